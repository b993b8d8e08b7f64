"""All settings of a configuration file, with defaults and meaning, as `edgeseq train --list-settings` shows them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

_WIDTH = 100
_INDENT = " " * 6


def list_settings() -> Iterator[str]:
    """Yields lines of text: each table of a file, and each key as `--set` takes it."""
    from edgeseq.config import RunConfig

    yield from _describe_table(RunConfig, "", None)


def _describe_table(table: type[BaseModel], prefix: str, defaults: BaseModel | None) -> Iterator[str]:
    """Describes the keys of a table, whose defaults may be others than its own where it is part of a larger one."""
    from edgeseq.config_files import table_of

    for name, field in table.model_fields.items():
        key = f"{prefix}{name}"
        default = field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        inner = table_of(field.annotation)
        if inner is None:
            yield f"  {key} = {_show(default)}"
            yield click.wrap_text(_meaning(field), width=_WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
        else:
            yield ""
            yield click.wrap_text(inspect.cleandoc(inner.__doc__ or ""), width=_WIDTH, preserve_paragraphs=True)
            yield from _describe_table(inner, f"{key}.", default if isinstance(default, inner) else None)


def _show(default: Any) -> str:
    from pydantic_core import PydanticUndefined

    if default is PydanticUndefined:
        return "(to be given)"
    return "(none)" if default is None else json.dumps(default)


def _meaning(field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    text = " ".join((field.description or "").split())
    return f"{text} One of: {', '.join(map(str, choices))}." if choices else text
