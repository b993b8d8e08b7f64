"""Lines of a text as they are taken in: with their prefixes, and so many at a time."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

from edgeseq_runtime.errors import InputError

_Item = TypeVar("_Item")


class _Missing:
    """Stands where there is nothing; None may be somebody's mistake for a line."""


_MISSING = _Missing()


def with_prefixes(lines: Iterable[str], prefixes: Iterable[str] | None) -> Iterator[tuple[str, str]]:
    """Pair lines with their prefixes, empty ones where there are none.

    Raises:
        InputError: There are more of one than of the other; when that is reached.
    """
    if prefixes is None:
        yield from ((line, "") for line in lines)
        return
    pairs = itertools.zip_longest(lines, prefixes, fillvalue=_MISSING)
    for number, (line, prefix) in enumerate(pairs, start=1):
        if isinstance(line, _Missing) or isinstance(prefix, _Missing):
            lacking, having = ("line", "prefix") if isinstance(line, _Missing) else ("prefix", "line")
            raise InputError(f"{having} {number} has no {lacking}: give one prefix for each line, blank for none")
        yield line, prefix


def read_window(items: Iterator[_Item], size: int) -> tuple[list[_Item], Exception | None]:
    """Take up to ``size`` items; also those before an error, which is for when they have been dealt with."""
    window: list[_Item] = []
    try:
        window.extend(itertools.islice(items, size))
    except Exception as error:  # noqa: BLE001 (whatever the reader of the lines raises)
        return window, error
    return window, None
