"""What the commands that train have in common: how a configuration is read, and what torch is told before it loads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeseq.config import RunConfig

FILE = click.Path(path_type=Path)


def _list_settings(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from edgeseq.cli.settings_list import list_settings

        for line in list_settings():
            click.echo(line)
        context.exit()


_OPTIONS = (
    click.option(
        "--list-settings",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_list_settings,
        help="Show every key of a configuration with its default and meaning, and exit.",
    ),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. --set model.dim=128."),
    click.option("--src", type=FILE, help="Training text, source side (.gz and .xz are read directly)."),
    click.option("--tgt", type=FILE, help="Training text, target side."),
    click.option("--valid-src", type=FILE, help="Validation text, source side."),
    click.option("--valid-tgt", type=FILE, help="Validation text, target side."),
)


def configuration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that override a configuration file: `overrides`, and the four files by their names."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def resolve_config(path: Path, overrides: Sequence[str], files: Mapping[str, Path | None]) -> RunConfig:
    """Reads a configuration file; over it go --set, and over these the files.

    Raises:
        ConfigError: the file or an override is at fault.
    """
    from edgeseq.config_files import load_config, parse_override

    settings = dict(parse_override(override) for override in overrides)
    settings |= {f"data.{name}": str(file.resolve()) for name, file in files.items() if file is not None}
    return load_config(path, settings)


def limit_kernel_cache() -> None:
    """Keeps oneDNN's memory small; to be called before torch is imported.

    oneDNN keeps a compiled kernel for each matrix shape it meets, and batches come in hundreds of shapes: its default
    of 1,024 kernels took gigabytes. It reads this once, when torch loads it.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
