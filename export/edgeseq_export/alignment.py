"""Which target pieces translate which source pieces, learnt from the training text.

IBM Model 1 (Brown et al., 1993): every piece of a target is explained by some piece of its source, and expectation
maximisation finds the probabilities t(target | source) that explain all targets best. The EOS of a source stands for
no piece at all. Order plays no part, and t(source | target) does not help: see the project's results.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeseq.data.corpus import ParallelCorpus
from edgeseq.progress import ProgressLine
from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.tokenizer import PAD_ID

ITERATIONS = 5
"""Of expectation maximisation: 8 find 0.05 % of the Tatoeba references' pieces more."""

MAX_LINKS = 1 << 26
"""Pairs of a source and a target position, at most: they take 4 bytes each, and so many of them 4 s an iteration."""

_CHUNK_LINKS = 1 << 22

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alignment:
    """What was learnt."""

    best: NDArray[np.uint16]
    """(V, k): of each source piece the target pieces with the highest probabilities, best first; pad where there are
    fewer."""
    pairs: int
    """Sentence pairs it was learnt from."""


def align(corpus: ParallelCorpus, vocab_size: int, best: int, max_links: int = MAX_LINKS) -> Alignment:
    """Learns which target pieces translate each source piece.

    Args:
        corpus: training pairs.
        vocab_size: ids V, source and target alike.
        best: target pieces to keep of each source piece.
        max_links: of a larger corpus, pairs from all over it are taken that have about so many.

    Returns:
        The table; the same for the same corpus.
    """
    links = _Links(corpus, vocab_size, max_links)
    sources, targets = np.divmod(links.pieces, np.uint32(vocab_size))
    # Nothing is known at first: any piece of a source explains a target piece as well as any other.
    probabilities = np.ones(len(links.pieces))
    with ProgressLine("aligning", ITERATIONS, 0) as progress:
        for iteration in range(1, ITERATIONS + 1):
            counts = links.count(probabilities)
            totals = np.bincount(sources, weights=counts, minlength=vocab_size)
            probabilities = counts / totals[sources]
            progress.advance(iteration, f"iteration {iteration}")
    return Alignment(_rank(sources, targets, probabilities, vocab_size, best), links.pairs)


class _Links:
    """All pairs of a source and a target position within sentence pairs, grouped by target position.

    Attributes:
        pieces: source piece · V + target piece of those that occur, ascending.
        pairs: sentence pairs.
    """

    def __init__(self, corpus: ParallelCorpus, vocab_size: int, max_links: int) -> None:
        self._corpus = corpus
        self._vocab_size = vocab_size
        links = corpus.source.lengths * corpus.target.lengths
        step = -(-int(links.sum()) // max_links)
        self._chosen = np.arange(0, len(corpus), step)
        self.pairs = len(self._chosen)
        _LOGGER.info("aligning %s of %s training pairs", f"{self.pairs:,}", f"{len(corpus):,}")
        self._ends = np.cumsum(links[self._chosen])
        self.pieces = np.zeros(0, dtype=np.uint32)
        for keys, _ in self._chunks():
            self.pieces = np.union1d(self.pieces, keys)
        self._places = [(np.searchsorted(self.pieces, keys).astype(np.int32), sizes) for keys, sizes in self._chunks()]

    def count(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected number of times that each of the pieces is explained so: each target position counts as 1."""
        counts = np.zeros(len(self.pieces))
        for places, sizes in self._places:
            weights = probabilities[places]
            totals = np.add.reduceat(weights, np.cumsum(sizes) - sizes)
            counts += np.bincount(places, weights / np.repeat(totals, sizes), minlength=len(counts))
        return counts

    def _chunks(self) -> Iterator[tuple[NDArray[np.uint32], IntArray]]:
        """Yields the keys of links, and for each target position how many of them are its own."""
        source, target = self._corpus.source, self._corpus.target
        bounds = np.searchsorted(self._ends, np.arange(_CHUNK_LINKS, self._ends[-1] + _CHUNK_LINKS, _CHUNK_LINKS))
        for pairs in np.split(self._chosen, np.unique(bounds[:-1] + 1)):
            if not len(pairs):
                continue
            own_targets = [target[pair] for pair in pairs.tolist()]
            own_sources = [source[pair] for pair in pairs.tolist()]
            keys = [
                (ids.astype(np.uint32) * np.uint32(self._vocab_size) + explained[:, None]).reshape(-1)
                for ids, explained in zip(own_sources, own_targets, strict=True)
            ]
            lengths = [
                np.full(len(explained), len(ids)) for ids, explained in zip(own_sources, own_targets, strict=True)
            ]
            yield np.concatenate(keys), np.concatenate(lengths)


def _rank(
    sources: NDArray[np.uint32],
    targets: NDArray[np.uint32],
    probabilities: NDArray[np.float64],
    vocab_size: int,
    best: int,
) -> NDArray[np.uint16]:
    """Keeps the best targets of each source, of equals the lower id."""
    order = np.lexsort((targets, -probabilities, sources))
    sources, targets = sources[order], targets[order]
    ranks = np.arange(len(order)) - np.searchsorted(sources, sources)
    table = np.full((vocab_size, best), PAD_ID, dtype=np.uint16)
    kept = ranks < best
    table[sources[kept], ranks[kept]] = targets[kept]
    return table
