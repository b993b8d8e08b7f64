"""Reads and writes configurations: one TOML file for people, JSON in a run; every mistake is reported at once.

Precedence: defaults < file < `--set key=value` < named options. The resolved configuration is stored with the run.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from edgeseq.config import RunConfig
from edgeseq.errors import ConfigError

_PATHS = {"data": ("src", "tgt", "valid_src", "valid_tgt", "tokenizer"), "training": ("start_from",)}


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Reads a TOML file and applies overrides.

    Args:
        path: the file. Paths inside it are taken relative to its folder.
        overrides: dotted key → value, e.g. {"model.dim": 128}. Paths are taken relative to the working directory.

    Returns:
        The configuration, its paths absolute.

    Raises:
        ConfigError: the file cannot be read or parsed, or any value is wrong; all mistakes are listed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for section, keys in _PATHS.items():
        paths = table.get(section)
        if isinstance(paths, dict):
            for key in keys:
                if isinstance(paths.get(key), str):
                    paths[key] = str((path.parent / paths[key]).resolve())
    names = {f"{section}.{key}" for section, keys in _PATHS.items() for key in keys}
    for key, value in (overrides or {}).items():
        _set_dotted(table, key, str(Path(value).resolve()) if key in names and isinstance(value, str) else value)
    return _validate(table, str(path))


def parse_override(text: str) -> tuple[str, Any]:
    """Splits `key=value`; the value is read as TOML, and as a plain string where it is no TOML.

    Raises:
        ConfigError: there is no "=" or no key.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"--set {text!r} is not key=value; example: --set model.dim=128")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def save_config(config: RunConfig) -> bytes:
    """Serialises a resolved configuration as JSON."""
    return (json.dumps(config.model_dump(mode="json"), indent=2) + "\n").encode()


def load_resolved_config(path: Path) -> RunConfig:
    """Reads what `save_config` wrote.

    Raises:
        ConfigError: the file is missing, no JSON, or does not fit this version.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; is it the folder of a training run?") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    return _validate(table, str(path))


def _validate(table: Any, name: str) -> RunConfig:
    try:
        # JSON has no tuples; in TOML and JSON alike an array stands for one.
        return RunConfig.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        lines = []
        for mistake in error.errors(include_url=False):
            where = ".".join(str(part) for part in mistake["loc"]) or "configuration"
            message = mistake["msg"].removeprefix("Value error, ")
            if mistake["type"] == "extra_forbidden":
                message = f"unknown key; {_known_keys(mistake['loc'])}"
            elif not isinstance(mistake["input"], dict):
                message += f", got {mistake['input']!r}"
            lines.append(f"  {where}: {message}")
        raise ConfigError(f"{name} has {len(lines)} mistake(s):\n" + "\n".join(lines)) from error


def table_of(annotation: Any) -> type[BaseModel] | None:
    """Finds the table in `Table`, `Table | None` or `list[Table]`; None where there is none."""
    candidates = (annotation, *get_args(annotation))
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _known_keys(location: tuple[int | str, ...]) -> str:
    table: type[BaseModel] = RunConfig
    for part in location[:-1]:
        if isinstance(part, str):  # an int counts the tables of a list
            inner = table_of(table.model_fields[part].annotation)
            assert inner is not None, "a location leads through tables"
            table = inner
    return "known here: " + ", ".join(table.model_fields)


def _set_dotted(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    first = RunConfig.model_fields.get(parents[0]) if parents else None
    if first is not None and get_origin(first.annotation) is list:
        raise ConfigError(
            f"cannot set {key}: {parents[0]} is a list of tables; set the whole of it, as in "
            f"--set '{parents[0]}=[{{{leaf}={json.dumps(value)}}}]'"
        )
    for parent in parents:
        child = table.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"cannot set {key}: {parent} is a value, not a table")
        table = child
    table[leaf] = value
