"""Subword pieces as the stretches of text that they stand for, for people who read them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SPACE = "▁"
_END = "</s>"
_UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Stretch:
    """One token of a translation as it stands in the text."""

    text: str
    """Without the space before it. Empty for a piece that is nothing but a space, and for the end token."""
    space_before: bool
    """Whether a space parts it from the token before."""
    is_end: bool
    """Whether it is the end token."""

    @property
    def label(self) -> str:
        """Something to show, even where there is no text."""
        return "end" if self.is_end else self.text or "␣"


def stretches(tokens: Sequence[str]) -> list[Stretch]:
    """Turns pieces into text, one stretch per token.

    Args:
        tokens: SentencePiece pieces of one translation, in order, the end token included.
    """
    found: list[Stretch] = []
    for token in tokens:
        if token == _END:
            found.append(Stretch("", space_before=bool(found), is_end=True))
            continue
        if token == _UNKNOWN:  # SentencePiece writes it so, parted from its neighbours
            found.append(Stretch("⁇", space_before=bool(found), is_end=False))
            continue
        space = token.startswith(_SPACE) and bool(found)
        found.append(Stretch(token.removeprefix(_SPACE).replace(_SPACE, " "), space_before=space, is_end=False))
    return found
