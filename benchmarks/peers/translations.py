"""What every system of the comparison does: lines in, translations out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Translated(NamedTuple):
    """One line's translation."""

    text: str
    pieces: int
    """As many as the system has generated, the end not counted."""


Translate = Callable[[list[str], int, int], list[Translated]]
"""Lines, none of them blank, batch size and beam size to translations."""
