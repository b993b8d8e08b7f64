"""``edgeseq translate --show-depth``: the depth of each token, as a tint in a terminal or as a number."""

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from edgeseq.cli.streams import STANDARD
from edgeseq.pieces import Stretch, stretches
from edgeseq.tints import ink, terminal_colour, tint

_JOINT = "·"


class DepthView:
    """Writes translations with the depth of each token; the end token, which is no text, is left out."""

    def __init__(self, blocks: int, *, tinted: bool) -> None:
        """Choose a form.

        Args:
            blocks: Full depth N.
            tinted: Whether to tint tokens; else numbers follow them, as in ``Meine/2 Leit/6·er/1``.
        """
        self._blocks = blocks
        self._tinted = tinted

    def line(self, tokens: Sequence[str], depths: Sequence[int], prefix: Sequence[str]) -> str:
        """Write a translation.

        Args:
            tokens: Its pieces.
            depths: Of each.
            prefix: Pieces of the beginning that was given, which has no depths: written as it is.
        """
        every = [*[None] * len(prefix), *depths]
        shown = [pair for pair in zip(stretches([*prefix, *tokens]), every, strict=True) if not pair[0].is_end]
        return "".join(self._token(stretch, depth, first=place == 0) for place, (stretch, depth) in enumerate(shown))

    def legend(self, *, tinted: bool) -> str:
        """Say how to read it.

        Args:
            tinted: Whether the legend itself may be tinted.
        """
        if not self._tinted:
            return f"depth: the number after each token, of {self._blocks} blocks; {_JOINT} joins pieces of a word"
        depths = range(1, self._blocks + 1)
        swatches = [self._tint(f" {depth} ", depth) if tinted else str(depth) for depth in depths]
        return f"depth: {' '.join(swatches)} (darker is deeper)"

    def _token(self, stretch: Stretch, depth: int | None, *, first: bool) -> str:
        if depth is None:
            return " " * stretch.space_before + stretch.text
        if self._tinted:
            return " " * stretch.space_before + self._tint(stretch.text or " ", depth)
        gap = "" if first else " " if stretch.space_before else _JOINT
        return f"{gap}{stretch.label}/{depth}"

    def _tint(self, text: str, depth: int) -> str:
        background = tint(depth, self._blocks)
        colours = f"48;5;{terminal_colour(background)};38;5;{terminal_colour(ink(background))}"
        return f"\x1b[{colours}m{text}\x1b[0m"


def takes_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose user wants colours; see https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def output_takes_colours(path: str) -> bool:
    """Whether an output that a user named takes them: stdout may, files never do."""
    return path == STANDARD and takes_colours(sys.stdout)
