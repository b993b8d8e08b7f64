"""`edgeseq train`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from edgeseq.cli.streams import log_to_stderr

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("config", type=_FILE)
@click.option("--out", type=_FILE, help="Folder of the run.  [default: runs/NAME of the configuration file]")
@click.option("--resume", is_flag=True, help="Continue an interrupted run from its newest checkpoint.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. --set model.dim=128.")
@click.option("--src", type=_FILE, help="Training text, source side (.gz and .xz are read directly).")
@click.option("--tgt", type=_FILE, help="Training text, target side.")
@click.option("--valid-src", type=_FILE, help="Validation text, source side.")
@click.option("--valid-tgt", type=_FILE, help="Validation text, target side.")
def command(config: Path, out: Path | None, resume: bool, overrides: tuple[str, ...], **files: Path | None) -> None:
    """Train a depth-adaptive translator as the TOML file CONFIG says.

    Trains a tokenizer, then the model with an exit on every decoder block, then the units that decide how deep
    each token goes. Ctrl-C leaves a checkpoint; --resume goes on from there. Precedence: defaults, CONFIG,
    --set, the file options.
    """
    # oneDNN keeps a compiled kernel for each matrix shape it meets, and batches come in hundreds of shapes: its default
    # of 1,024 kernels took gigabytes. It reads this once, when torch loads it.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    from edgeseq.config import load_config, parse_override
    from edgeseq.training.run import train

    log_to_stderr()
    settings = dict(parse_override(override) for override in overrides)
    settings |= {f"data.{name}": str(path.resolve()) for name, path in files.items() if path is not None}
    train(load_config(config, settings), out or Path("runs") / config.stem, resume)
