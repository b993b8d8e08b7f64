"""Vocabulary shortlists: from which target pieces a sentence's translation is made.

Where the vocabulary is large, the exit head is much of a step. With a shortlist it computes the logits of the
sentence's *candidates* only: for each piece of the source those that translate it most often in the training text,
and the most frequent ones of all. They are a sentence's own, whoever its batch mates are.

Dimensions: R rows, V vocabulary, C candidates of the row that has the most, padded; d model width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.errors import BundleError
from edgeseq_runtime.manifest import ShortlistFacts
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

CANDIDATE_MULTIPLE = 32
"""Numbers of candidates are padded to a multiple of this, so that batches seldom need tensors of another size, and so
that ``ranking`` sums a row in the same order whatever the padding: onnxruntime adds vectors of up to 16 lanes."""

SPECIAL_IDS = (PAD_ID, UNK_ID, BOS_ID, EOS_ID)
"""They are candidates of every sentence, so that the column of each is its id, as it is without a shortlist."""


class Shortlist:
    """Chooses candidates. Nothing changes after construction.

    Attributes:
        facts: What the manifest says of it.
    """

    def __init__(
        self,
        facts: ShortlistFacts,
        vocab_size: int,
        tensors: Mapping[str, npt.NDArray[np.uint16]],
        name: str = "the shortlist",
    ) -> None:
        """Take the tables.

        Args:
            facts: Of the manifest.
            vocab_size: Ids, source and target alike.
            tensors: ``best`` (V, k), for each source piece its target pieces, rows that have fewer filled up with
                pad; ``frequent`` (m,), target pieces that every sentence has.
            name: What error messages call it.

        Raises:
            BundleError: Tables of other names or sizes, or an id outside of the vocabulary.
        """
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        expected = {"best": (vocab_size, facts.best), "frequent": (facts.frequent,)}
        if shapes != expected:
            raise BundleError(f"{name} holds {shapes}, expected {expected}")
        for key, tensor in tensors.items():
            highest = int(tensor.max(initial=0))
            if highest >= vocab_size:
                raise BundleError(f"{name} lists the id {highest} under {key!r}, but there are {vocab_size} pieces")
        self.facts = facts
        self._best = tensors["best"]
        self._always = np.zeros(vocab_size, dtype=np.bool_)
        self._always[list(SPECIAL_IDS)] = True
        self._always[tensors["frequent"]] = True

    def candidates(self, source: Sequence[int]) -> IntArray:
        """Candidates of a sentence, from its source ids: ascending, the special ones first."""
        chosen = self._always.copy()
        chosen[self._best[list(source)]] = True
        return chosen.nonzero()[0]


@dataclass(slots=True)
class BatchCandidates:
    """Candidates of the rows of a batch.

    Attributes:
        ids: (R, C), of each row ascending, padding behind.
        sizes: (R,), how many of them are no padding.
        tensors: What exit heads read, by the names of their inputs, rows first and candidates last.
    """

    ids: IntArray
    sizes: IntArray
    tensors: dict[str, npt.NDArray[Any]]

    @property
    def width(self) -> int:
        """Number C of columns of the logits."""
        return int(self.ids.shape[1])

    def select(self, rows: IntArray) -> None:
        """Keep, repeat and reorder rows."""
        self.ids = self.ids[rows]
        self.sizes = self.sizes[rows]
        self.tensors = {name: tensor.take(rows, axis=0) for name, tensor in self.tensors.items()}

    def repeated(self, count: int) -> "BatchCandidates":
        """The same for ``count`` copies of the only row."""
        rows = np.zeros(count, dtype=np.int64)
        copy = BatchCandidates(self.ids, self.sizes, self.tensors)
        copy.select(rows)
        return copy

    def adopt(self, rows: IntArray, other: "BatchCandidates", other_rows: IntArray) -> None:
        """Give rows to other sentences; the width follows the row that has the most.

        Args:
            rows: Rows to overwrite, each once.
            other: Candidates of the sentences.
            other_rows: For each of ``rows``, the row of ``other`` it takes.
        """
        self.sizes[rows] = other.sizes[other_rows]
        width = padded_width(int(self.sizes.max()))
        self.ids = _replace_rows(self.ids, rows, other.ids, other_rows, width)
        self.tensors = {
            name: _replace_rows(tensor, rows, other.tensors[name], other_rows, width)
            for name, tensor in self.tensors.items()
        } | {"candidate_bias": candidate_bias(self.sizes, width)}


def pad_candidates(lists: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Lay the candidates of sentences side by side.

    Returns:
        Ids (R, C) with padding behind, and how many of each row are none, (R,).
    """
    sizes = np.array([len(ids) for ids in lists], dtype=np.int64)
    table = np.full((len(lists), padded_width(int(sizes.max()))), PAD_ID, dtype=np.int64)
    for row, ids in zip(table, lists, strict=True):
        row[: len(ids)] = ids
    return table, sizes


def candidate_bias(sizes: IntArray, width: int) -> FloatArray:
    """What is added to the logits (R, width): 0 at candidates and -inf at padding."""
    return np.where(np.arange(width) < sizes[:, None], np.float32(0), np.float32(-np.inf))


def padded_width(candidates: int) -> int:
    """Number of columns that hold so many candidates."""
    return -(-candidates // CANDIDATE_MULTIPLE) * CANDIDATE_MULTIPLE


Numbers = TypeVar("Numbers", bound=np.generic)


def _replace_rows(
    own: npt.NDArray[Numbers], rows: IntArray, new: npt.NDArray[Numbers], new_rows: IntArray, width: int
) -> npt.NDArray[Numbers]:
    """Put rows of one array in the place of rows of another, and cut or pad the last axis of all with zeros."""
    if own.shape[-1] != width:
        resized = np.zeros((*own.shape[:-1], width), dtype=own.dtype)
        kept = min(width, own.shape[-1])
        resized[..., :kept] = own[..., :kept]
        own = resized
    kept = min(width, new.shape[-1])
    own[rows, ..., :kept] = new[new_rows, ..., :kept]
    own[rows, ..., kept:] = 0
    return own
