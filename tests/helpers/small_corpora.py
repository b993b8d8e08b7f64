"""Small parallel text for tests of data and training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeseq.data.corpus import CorpusCounts, ParallelCorpus, _Side

_SUBJECTS = ("der hund", "die katze", "ein kind", "der mann", "eine frau")
_VERBS = ("sieht", "findet", "mag")
_OBJECTS = ("den ball", "das haus", "einen baum", "die blume")

SENTENCES = [f"{s} {v} {o}" for s in _SUBJECTS for v in _VERBS for o in _OBJECTS]
"""Sixty different sentences."""
VOCAB_SIZE = 32
"""Pieces that a tokenizer of these sentences can have."""


def corpus_of(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> ParallelCorpus:
    """A corpus in memory, as `build_corpus` would write it; each sequence already ends with EOS."""
    corpus = ParallelCorpus.__new__(ParallelCorpus)
    corpus.source, corpus.target = (_side([pair[side] for pair in pairs]) for side in (0, 1))
    corpus.counts = CorpusCounts(kept=len(pairs), empty=0, overlong=0)
    return corpus


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """Writes a text file and returns its path."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_texts(folder: Path) -> dict[str, str]:
    """Writes training and validation text; returns the paths of a `[data]` table.

    The target is the source with its words in reverse: something to learn.
    """
    paths = {}
    for prefix, sentences in (("", SENTENCES[:-8]), ("valid_", SENTENCES[-8:])):
        for side, lines in (("src", sentences), ("tgt", [" ".join(line.split()[::-1]) for line in sentences])):
            paths[prefix + side] = str(write_lines(folder / f"{prefix}{side}.txt", lines))
    return paths


def _side(rows: Sequence[Sequence[int]]) -> _Side:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return _Side(np.array([token for row in rows for token in row], dtype=np.uint16), offsets)
