"""Token ids of parallel text: made in memory, two bytes each, and memory-mapped from then on."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeseq.data.text import read_parallel
from edgeseq.errors import DataError
from edgeseq_runtime.atomic import publish_directory
from edgeseq_runtime.tokenizer import EOS_ID, Tokenizer

_STAMP = "fingerprint"
_MAX_PIECE_IDS = 2**16


@dataclass(frozen=True)
class CorpusCounts:
    """What became of the pairs of two files."""

    kept: int
    empty: int
    """Pairs with nothing on at least one side."""
    overlong: int
    """Pairs with more than max_pieces on a side."""

    def describe(self) -> str:
        """Says it aloud."""
        return f"{self.kept:,} pairs kept, {self.empty:,} empty and {self.overlong:,} overlong ones left out"


@dataclass(frozen=True)
class _Side:
    tokens: NDArray[np.uint16]
    offsets: NDArray[np.int64]

    def __getitem__(self, index: int) -> NDArray[np.uint16]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)


class ParallelCorpus:
    """Pairs of token sequences, each ending with EOS."""

    def __init__(self, folder: Path) -> None:
        """Maps a corpus that `build_corpus` wrote."""
        self.source = _load_side(folder, "src")
        self.target = _load_side(folder, "tgt")
        self.counts = CorpusCounts(**json.loads((folder / "counts.json").read_text()))

    def __len__(self) -> int:
        return len(self.source.offsets) - 1

    @property
    def target_tokens(self) -> int:
        """Number of target tokens, EOS included."""
        return int(self.target.offsets[-1])


def build_corpus(src: Path, tgt: Path, tokenizer: Tokenizer, max_pieces: int, folder: Path) -> ParallelCorpus:
    """Encodes two parallel files, or maps the result of an earlier call with the same text and tokenizer.

    Args:
        src: source text.
        tgt: target text.
        tokenizer: of both sides.
        max_pieces: greatest length of a side, EOS included.
        folder: where the arrays go; replaced as a whole.

    Raises:
        DataError: the files cannot be read, do not correspond, or no pair is left; the vocabulary is too large.
    """
    if tokenizer.vocab_size > _MAX_PIECE_IDS:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} pieces; token ids are stored in 16 bits, so at most "
            f"{_MAX_PIECE_IDS} are possible: give data.tokenizer a smaller one"
        )
    fingerprint = _fingerprint((src, tgt), tokenizer, max_pieces)
    stamp = folder / _STAMP
    if stamp.is_file() and stamp.read_text() == fingerprint:
        return ParallelCorpus(folder)
    counts = {"kept": 0, "empty": 0, "overlong": 0}
    tokens = (array("H"), array("H"))
    ends = (array("q", [0]), array("q", [0]))
    for encoded in _encode(read_parallel(src, tgt), tokenizer):
        if min(map(len, encoded)) == 1:  # nothing but EOS
            counts["empty"] += 1
        elif max(map(len, encoded)) > max_pieces:
            counts["overlong"] += 1
        else:
            counts["kept"] += 1
            for side, ids in enumerate(encoded):
                tokens[side].extend(ids)
                ends[side].append(len(tokens[side]))
    if not counts["kept"]:
        raise DataError(
            f"no pair of {src} and {tgt} is left: {counts['empty']} are empty on a side, {counts['overlong']} have "
            f"more than data.max_pieces = {max_pieces} pieces"
        )
    with publish_directory(folder) as temporary:
        for name, side in (("src", 0), ("tgt", 1)):
            np.save(temporary / f"{name}_tokens.npy", np.frombuffer(tokens[side], dtype=np.uint16))
            np.save(temporary / f"{name}_offsets.npy", np.frombuffer(ends[side], dtype=np.int64))
        (temporary / "counts.json").write_text(json.dumps(counts))
        (temporary / _STAMP).write_text(fingerprint)
    return ParallelCorpus(folder)


def is_of_other_text(src: Path, tgt: Path, tokenizer: Tokenizer, max_pieces: int, folder: Path) -> bool:
    """Says whether a folder holds what `build_corpus` made of other text, or with another tokenizer or limit.

    Raises:
        DataError: a file cannot be read.
    """
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text() != _fingerprint((src, tgt), tokenizer, max_pieces)


def _encode(pairs: Iterator[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    for source, target in pairs:
        yield [*tokenizer.encode(source), EOS_ID], [*tokenizer.encode(target), EOS_ID]


def _load_side(folder: Path, name: str) -> _Side:
    tokens = np.load(folder / f"{name}_tokens.npy", mmap_mode="r")
    return _Side(tokens, np.load(folder / f"{name}_offsets.npy"))


def _fingerprint(paths: tuple[Path, ...], tokenizer: Tokenizer, max_pieces: int) -> str:
    vocabulary = hashlib.sha256(tokenizer.model_bytes).hexdigest()
    digest = hashlib.sha256(f"{max_pieces}\n{vocabulary}\n".encode())
    for path in paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
