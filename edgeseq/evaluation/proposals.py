"""Depth policies worth decoding with: thousands are estimated from one decode at full depth, the best few proposed.

Elbayad et al. (2020, section 3.2) draw 10,000 vectors of thresholds and decode the validation set with each. Here each
draw is estimated instead: of every token of the full-depth decode it is known what each exit would have said and what
each predictor would have decided (see ``probing``). The share of tokens at which the exit that a draw stops at agrees
with full depth stands in for quality. Of equal parts of the range of average depth, the draw that agrees most is kept.

Dimensions: T tokens, N decoder blocks, D draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Signals = NDArray[np.float32]
Bools = NDArray[np.bool_]

DRAWS = 10_000
"""Vectors of thresholds, as many as in the paper."""

_MOST_TOKENS = 20_000
_CHUNK = 100
_DECIMALS = 4
_NEVER = 1.0
"""As a threshold: no probability exceeds it."""


@dataclass(frozen=True)
class Proposal:
    """A depth policy with what is expected of it."""

    policy: str
    """As a user spells it."""
    average_depth: float
    agreement: float
    """Share of tokens for which the exit they stop at says what the last one says."""


def propose_thresholds(
    name: str, signals: Signals, agrees: Bools, generator: np.random.Generator, draws: int, kept: int
) -> list[Proposal]:
    """Proposes thresholds for a predictor that is asked after every block.

    Half of the draws have a threshold per block, half one for all; each lets tokens stop after blocks of its own
    choice. Thresholds are drawn evenly among the values that the signal takes, not between 0 and 1: wherever those
    crowd, so do the draws.

    Args:
        name: of the predictor, as policies spell it.
        signals: (T, N-1), in [0, 1]; a token stops after the first block whose signal exceeds its threshold.
        agrees: (T, N), whether each exit's token is the last one's.
        generator: of the draws.
        draws: vectors of thresholds to try.
        kept: most proposals to return.

    Returns:
        Proposals of rising depth and agreement.
    """
    signals, agrees = _sample(generator, signals, agrees)
    thresholds = _draw_thresholds(signals, generator, draws)
    thresholds = thresholds[(thresholds < _NEVER).any(axis=1)]  # the others are full depth
    depth, agreement = estimate_thresholds(signals, agrees, thresholds)
    return [
        Proposal(_spell(name, thresholds[index]), float(depth[index]), float(agreement[index]))
        for index in best_per_segment(depth, agreement, agrees.shape[1], kept)
    ]


def propose_dial(
    name: str, distributions: Signals, agrees: Bools, generator: np.random.Generator, draws: int, kept: int
) -> list[Proposal]:
    """Proposes settings of the dial of a predictor that chooses a depth once.

    Args:
        name: of the predictor.
        distributions: (T, N), the probability of each depth; with setting T a token goes to the lowest depth whose
            cumulative probability reaches T.
        agrees: (T, N).
        generator: of the settings to try.
        draws: settings to try.
        kept: most proposals to return.

    Returns:
        Proposals of rising depth and agreement.
    """
    distributions, agrees = _sample(generator, distributions, agrees)
    cumulative = np.cumsum(distributions, axis=1)[:, :-1]
    # Only where a cumulative probability is reached does anything change.
    settings = np.unique(np.round(generator.choice(cumulative.ravel(), draws).astype(np.float64), _DECIMALS))
    settings = settings[(settings > 0) & (settings < 1)]
    if not len(settings):
        return []
    # To reach a setting is to exceed the number below it.
    thresholds = np.repeat(np.nextafter(settings.astype(np.float32), np.float32(0))[:, None], cumulative.shape[1], 1)
    depth, agreement = estimate_thresholds(cumulative, agrees, thresholds)
    return [
        Proposal(f"{name}:{settings[index]:g}", float(depth[index]), float(agreement[index]))
        for index in best_per_segment(depth, agreement, agrees.shape[1], kept)
    ]


def estimate_thresholds(signals: Signals, agrees: Bools, thresholds: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Estimates what thresholds give, supposing that tokens are those of full depth.

    Args:
        signals: (T, N-1).
        agrees: (T, N).
        thresholds: (D, N-1).

    Returns:
        Average depth and share of tokens that agree, (D,) each.
    """
    depth, agreement = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    columns = np.ascontiguousarray(signals.T)
    by_exit = np.ascontiguousarray(agrees.T)
    limits = thresholds.astype(np.float32)
    for start in range(0, len(thresholds), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        going = np.ones((len(limits[chunk]), len(signals)), dtype=np.bool_)
        for block, (column, limit) in enumerate(zip(columns, limits[chunk].T, strict=True)):
            depth[chunk] += np.count_nonzero(going, axis=1)
            stops = going & (column > limit[:, None])
            agreement[chunk] += np.count_nonzero(stops & by_exit[block], axis=1)
            going &= ~stops
        depth[chunk] += np.count_nonzero(going, axis=1)
        agreement[chunk] += np.count_nonzero(going & by_exit[-1], axis=1)
    return depth / len(signals), agreement / len(signals)


def best_per_segment(depth: Floats, agreement: Floats, blocks: int, segments: int) -> list[int]:
    """Cuts the range of average depth, 1 to N, into equal segments and takes the best of each.

    Returns:
        Indices by rising depth; those that agree less often than a shallower one are left out.
    """
    segment = np.minimum((depth - 1) / max(blocks - 1, 1) * segments, segments - 1).astype(np.int64)
    # By segment, in it the highest agreement first, of equals the shallower.
    order = np.lexsort((depth, -agreement, segment))
    _, first = np.unique(segment[order], return_index=True)
    best = order[first]
    above = np.maximum.accumulate(np.concatenate(([-np.inf], agreement[best][:-1])))
    kept: list[int] = best[agreement[best] > above].tolist()
    return kept


def _draw_thresholds(signals: Signals, generator: np.random.Generator, draws: int) -> Floats:
    exits = signals.shape[1]
    ordered = np.sort(signals, axis=0)
    places = generator.integers(len(signals), size=(draws, exits))
    thresholds = np.round(np.take_along_axis(ordered, places, axis=0).astype(np.float64), _DECIMALS)
    shared = np.round(generator.choice(signals.ravel(), draws).astype(np.float64), _DECIMALS)
    thresholds[::2] = shared[::2, None]
    # Some draws use most exits, others few; one is always open.
    open_exits = generator.random((draws, exits)) < generator.random((draws, 1))
    open_exits[np.arange(draws), generator.integers(exits, size=draws)] = True
    return np.where(open_exits, thresholds, _NEVER)


def _spell(name: str, thresholds: Floats) -> str:
    values = thresholds.tolist()
    exits = [block for block, value in enumerate(values, start=1) if value < _NEVER]
    texts = [f"{values[block - 1]:g}" for block in exits]
    if len(set(texts)) == 1:
        texts = texts[:1]
    asked = "" if len(exits) == len(values) else "@" + ",".join(map(str, exits))
    return f"{name}:{','.join(texts)}{asked}"


def _sample(generator: np.random.Generator, signals: Signals, agrees: Bools) -> tuple[Signals, Bools]:
    if len(signals) <= _MOST_TOKENS:
        return signals, agrees
    chosen = generator.choice(len(signals), _MOST_TOKENS, replace=False)
    return signals[chosen], agrees[chosen]
