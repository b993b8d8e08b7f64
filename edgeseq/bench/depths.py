"""Depths to measure: fixed ones, or those of a real model's tokens, scaled to an average.

How much a shallow token saves depends on its neighbours: a later deep one makes up for the columns it skipped. So the
order of the depths is that of a real model, a trace of which is kept beside this file: 600 test sentences of the
English → German example, six blocks, at `halting:0.9`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.policy import DepthPolicy

TRACED_BLOCKS = 6
_GOLDEN = (5**0.5 - 1) / 2
_BISECTIONS = 60


@cache
def read_trace() -> IntArray:
    """The traced depths of all tokens, one sentence after another."""
    text = resources.files(__package__).joinpath("depth_trace.txt").read_text(encoding="ascii")
    return np.array([int(digit) for digit in text if digit != "\n"], dtype=np.int64)


def scale_trace(average: float, blocks: int, rows: int, tokens: int) -> IntArray:
    """Lays the trace out as a batch, deeper or shallower as a whole.

    Depths are spread evenly within their sixth of the range from 0 to 1 and raised to a power, the same for all. So the
    deeper of two tokens stays the deeper one, and any average between 1 and `blocks` can be had.

    Args:
        average: depth wanted, over all tokens.
        blocks: of the model that is measured.
        rows: sentences.
        tokens: of each sentence.

    Returns:
        Depths, (rows, tokens).
    """
    trace = np.resize(read_trace(), rows * tokens)
    within = (np.arange(1, len(trace) + 1) * _GOLDEN) % 1
    shares = (trace - 1 + within) / TRACED_BLOCKS
    low, high = -12.0, 12.0  # logarithms of the power
    depths = trace
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        depths = _to_depths(shares, middle, blocks)
        low, high = (middle, high) if depths.mean() > average else (low, middle)
    return depths.reshape(rows, tokens)


def _to_depths(shares: NDArray[np.float64], log_power: float, blocks: int) -> IntArray:
    depths: IntArray = np.minimum(1 + (blocks * shares ** np.exp(log_power)).astype(np.int64), blocks)
    return depths


class Replayed:
    """A depth policy and the depths that tokens get in spite of it: it decides, and what it decides is put aside.

    Attributes:
        depths: of each token, (rows, tokens).
    """

    reads_logits = False
    draft_depth = None

    def __init__(self, name: str, depths: IntArray, policy: DepthPolicy) -> None:
        """Wraps a policy.

        Args:
            name: how the user called it.
            depths: of each token, (rows, tokens).
            policy: makes the decisions; does not read logits.
        """
        self.name = name
        self.depths = depths
        self.linear_stop = policy.linear_stop
        self.limits = policy.limits
        self.decides = policy.decides
        self.plan = policy.plan
        self.decision_flops = policy.decision_flops
