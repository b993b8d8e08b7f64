"""Counts of tokens by depth: in all, by position in the sentence, and by the probability they were said with.

Dimensions: G groups of tokens, N decoder blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeseq.evaluation.probing import Probe
from edgeseq_runtime.arrays import IntArray

_MOST_POSITIONS = 20
_FEWEST_TOKENS = 20
_LEAST_SHARE = 0.01
"""Tokens of later positions are counted together: from the 20th on, or from the first that holds fewer tokens."""

_PROBABILITY_GROUPS = 6


@dataclass(frozen=True, eq=False)
class Tally:
    """How many tokens of each group stopped at each depth; groups without tokens are left out."""

    names: list[str]
    """Of the G groups, in words."""
    labels: list[str]
    """The same, as short as an axis wants them."""
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
    return _tally(["all tokens"], ["all"], np.zeros(len(depths), dtype=np.int64), depths, blocks)


def count_by_position(probes: Sequence[Probe], blocks: int) -> Tally:
    """Counts tokens by their place in the sentence, from 1; the few that come late as one group."""
    places = np.concatenate([np.arange(len(probe.depths)) for probe in probes])
    few = np.bincount(places) < max(_FEWEST_TOKENS, _LEAST_SHARE * len(places))
    last = min(int(few.argmax()) if few.any() else len(few), _MOST_POSITIONS - 1)
    labels = [*map(str, range(1, last + 1)), f"{last + 1}+"]
    depths = np.concatenate([probe.depths for probe in probes])
    return _tally([f"position {label}" for label in labels], labels, np.minimum(places, last), depths, blocks)


def count_by_probability(probes: Sequence[Probe], blocks: int) -> Tally:
    """Counts tokens by the probability that their exit gave them: groups of equal size, as far as values differ.

    Labels are the greatest probability of each group.
    """
    probability = np.concatenate([probe.confidence[np.arange(len(probe.depths)), probe.depths - 1] for probe in probes])
    limits = np.unique(np.round(np.quantile(probability, np.linspace(0, 1, _PROBABILITY_GROUPS + 1)[1:-1]), 3))
    labels = [*(f"{limit:g}" for limit in limits), "1"]
    names = [*(f"a probability up to {limit:g}" for limit in limits), f"one above {limits[-1]:g}"]
    depths = np.concatenate([probe.depths for probe in probes])
    return _tally(names, labels, np.searchsorted(limits, probability), depths, blocks)


def _tally(names: list[str], labels: list[str], groups: IntArray, depths: IntArray, blocks: int) -> Tally:
    counts = np.zeros((len(labels), blocks), dtype=np.int64)
    np.add.at(counts, (groups, depths - 1), 1)
    present = counts.sum(axis=1).nonzero()[0]
    return Tally([names[group] for group in present], [labels[group] for group in present], counts[present])
