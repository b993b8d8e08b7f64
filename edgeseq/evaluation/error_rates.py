"""Phone and word error rates against several references, as grapheme-to-phoneme conversion is scored.

A word may have several right pronunciations; each output is held against the closest of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeseq.data.text import read_lines
from edgeseq.errors import DataError


@dataclass(frozen=True)
class ErrorRates:
    """Error rates of a set of outputs, in per cent."""

    phone_error_rate: float
    """Insertions, deletions and substitutions per phone of the closest references, summed over the set; above 100
    where outputs are far too long."""
    word_error_rate: float
    """Share of outputs that equal none of their references."""


def score_error_rates(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> ErrorRates:
    """Scores outputs whose tokens are separated by blanks.

    The closest reference is the one of fewest edits, and of several such the longest.

    Args:
        outputs: one per word.
        references: one or more of each; none blank.
    """
    edits = tokens = wrong = 0
    for output, accepted in zip(outputs, references, strict=True):
        distance, length = _closest(output.split(), [reference.split() for reference in accepted])
        edits += distance
        tokens += length
        wrong += distance > 0
    return ErrorRates(100 * edits / tokens, 100 * wrong / len(outputs))


def edit_distance(output: Sequence[str], reference: Sequence[str]) -> int:
    """Computes the fewest insertions, deletions and substitutions that make one sequence the other (Levenshtein)."""
    previous = list(range(len(reference) + 1))  # of the tokens so far to each beginning of the reference
    for row, token in enumerate(output, start=1):
        current = [row]
        for column, wanted in enumerate(reference, start=1):
            best = previous[column - 1] + (token != wanted)
            # Comparisons, not min(): this runs fifty times a word, and a test set has thousands of them.
            if previous[column] < best:
                best = previous[column] + 1
            if current[-1] < best:
                best = current[-1] + 1
            current.append(best)
        previous = current
    return previous[-1]


def read_references(path: Path) -> list[tuple[str, ...]]:
    """Reads the references of each word: a line a word, its pronunciations separated by tabs.

    Raises:
        DataError: the file is empty or cannot be read, or a line is blank or has a blank between two tabs.
    """
    references = []
    for number, line in enumerate(read_lines(path), start=1):
        accepted = tuple(" ".join(reference.split()) for reference in line.split("\t"))
        if not all(accepted):
            raise DataError(
                f"{path}, line {number}: {line!r} has {'a blank reference' if line.strip() else 'no reference'}; "
                "expected one or more, tokens separated by blanks and references by tabs"
            )
        references.append(accepted)
    if not references:
        raise DataError(f"{path} is empty (0 lines), expected the references of one word a line")
    return references


def read_words(src: Path, refs: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    """Reads words and the references of each.

    Raises:
        DataError: as `read_references`; or the files differ in length.
    """
    words, references = list(read_lines(src)), read_references(refs)
    if len(words) != len(references):
        raise DataError(
            f"{src} has {len(words)} lines, {refs} has {len(references)}: line {min(len(words), len(references)) + 1} "
            "has no counterpart; give a line of references for each word"
        )
    return words, references


def _closest(output: list[str], references: list[list[str]]) -> tuple[int, int]:
    """Edits to the closest reference, and its length."""
    if output in references:  # the common case
        return 0, len(output)
    edits, negative_length = min((edit_distance(output, reference), -len(reference)) for reference in references)
    return edits, -negative_length
