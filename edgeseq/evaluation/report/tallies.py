"""Counts of tokens by depth: in all, by position in the sentence, and by the probability they were said with.

Dimensions: G groups of tokens, N decoder blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeseq.evaluation.probing import Probe
from edgeseq_runtime.arrays import IntArray

MOST_POSITIONS = 20
"""Tokens from this position on are counted together."""

PROBABILITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Limits of the groups of probability: finer where most tokens are."""


@dataclass(frozen=True, eq=False)
class Tally:
    """How many tokens of each group stopped at each depth; groups without tokens are left out."""

    labels: list[str]
    """Of the G groups."""
    counts: IntArray
    """(G, N)."""

    @property
    def tokens(self) -> list[int]:
        """Of each group."""
        totals: list[int] = self.counts.sum(axis=1).tolist()
        return totals

    @property
    def shares(self) -> list[list[float]]:
        """Of each group's tokens, the share that stopped at depths 1 to N."""
        shares: list[list[float]] = (self.counts / self.counts.sum(axis=1, keepdims=True)).tolist()
        return shares

    @property
    def averages(self) -> list[float]:
        """Average depth of each group."""
        depths = np.arange(1, self.counts.shape[1] + 1)
        averages: list[float] = (self.counts @ depths / self.counts.sum(axis=1)).tolist()
        return averages


def count_depths(probes: Sequence[Probe], blocks: int) -> Tally:
    """Counts all tokens as one group."""
    depths = np.concatenate([probe.depths for probe in probes])
    return _tally(["all tokens"], np.zeros(len(depths), dtype=np.int64), depths, blocks)


def count_by_position(probes: Sequence[Probe], blocks: int) -> Tally:
    """Counts tokens by their place in the sentence, from 1."""
    places = np.concatenate([np.arange(len(probe.depths)) for probe in probes])
    labels = [str(place) for place in range(1, MOST_POSITIONS)]
    # "20" would promise one position where there are more.
    labels.append(f"{MOST_POSITIONS}{'+' if len(places) and places.max() >= MOST_POSITIONS else ''}")
    depths = np.concatenate([probe.depths for probe in probes])
    return _tally(labels, np.minimum(places, MOST_POSITIONS - 1), depths, blocks)


def count_by_probability(probes: Sequence[Probe], blocks: int) -> Tally:
    """Counts tokens by the probability that their exit gave them."""
    probability = np.concatenate([probe.confidence[np.arange(len(probe.depths)), probe.depths - 1] for probe in probes])
    # A probability of 1, or by rounding a little more, belongs to the last group.
    groups = np.clip(np.searchsorted(PROBABILITIES, probability, side="right") - 1, 0, len(PROBABILITIES) - 2)
    labels = [f"{low:g}–{high:g}" for low, high in itertools.pairwise(PROBABILITIES)]
    return _tally(labels, groups, np.concatenate([probe.depths for probe in probes]), blocks)


def _tally(labels: list[str], groups: IntArray, depths: IntArray, blocks: int) -> Tally:
    counts = np.zeros((len(labels), blocks), dtype=np.int64)
    np.add.at(counts, (groups, depths - 1), 1)
    present = counts.sum(axis=1).nonzero()[0]
    return Tally([labels[group] for group in present], counts[present])
