"""`edgeseq train`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeseq.cli.configuration import FILE, configuration_options, limit_kernel_cache, resolve_config
from edgeseq.cli.streams import log_to_stderr


@click.command(epilog="Example: edgeseq train examples/demo/config.toml --out runs/first --set training.epochs=2")
@click.argument("config", type=FILE)
@click.option("--out", type=FILE, help="Folder of the run.  [default: runs/NAME of the configuration file]")
@click.option("--resume", is_flag=True, help="Continue an interrupted run from its newest checkpoint.")
@configuration_options
def command(config: Path, out: Path | None, resume: bool, overrides: tuple[str, ...], **files: Path | None) -> None:
    """Train a depth-adaptive translator as the TOML file CONFIG says.

    Trains a tokenizer, then the model with an exit on every decoder block, then the units that decide how deep
    each token goes. Ctrl-C leaves a checkpoint; --resume goes on from there. Precedence: defaults, CONFIG,
    --set, the file options.
    """
    limit_kernel_cache()
    from edgeseq.training.run import train

    log_to_stderr()
    train(resolve_config(config, overrides, files), out or Path("runs") / config.stem, resume)
