"""The logits of one step, each row's from the exit head of the block after which it stopped."""

import itertools
from collections.abc import Callable, Iterable

import numpy as np

from edgeseq_runtime.arrays import BoolArray, FloatArray, IntArray

Classify = Callable[[int, IntArray | None], FloatArray]
"""Runs the exit head of a block, numbered from 1, on the exit states of some rows, None for all: (n, columns). The
result may lie in memory that the next call writes into."""


class StepLogits:
    """Collects them: what a policy has read on the way is kept, the rest is computed at the end.

    Attributes:
        exit_states: (rows, d), updated in place as blocks run.
    """

    def __init__(self, exit_states: FloatArray, classify: Classify, *, tied: bool) -> None:
        """Begin a step.

        Args:
            exit_states: (rows, d), of all rows of the batch.
            classify: Runs exit heads.
            tied: Whether one exit head serves all blocks.
        """
        self.exit_states = exit_states
        self._classify = classify
        self._tied = tied
        self._kept: list[tuple[IntArray, FloatArray]] = []

    def exit_states_of(self, active: IntArray) -> FloatArray:
        """Exit states of some rows, in order: (active, d)."""
        return self.exit_states if self._is_everyone(active) else self.exit_states.take(active, axis=0)

    def classify(self, block: int, active: IntArray) -> FloatArray:
        """Logits of rows that have just run a block: (active, columns)."""
        return self._classify(block, None if self._is_everyone(active) else active)

    def keep(self, active: IntArray, logits: FloatArray, stopped: BoolArray) -> None:
        """Keep the logits (active, columns) of those rows among ``active`` that stop, bool (active,)."""
        self._kept.append((active, logits) if stopped.all() else (active[stopped], logits[stopped]))

    def finish(self, depths: IntArray) -> FloatArray:
        """Give the logits of all rows, (rows, columns).

        Args:
            depths: (rows,), the block after which each stopped.
        """
        if not self._kept and self._tied:
            return self._classify(0, None)
        rest = np.ones(len(depths), dtype=np.bool_)
        for rows, _ in self._kept:
            rest[rows] = False
        remaining = rest.nonzero()[0]
        groups = [(0, remaining)]
        if not self._tied:
            groups = [(block, remaining[depths[remaining] == block]) for block in np.unique(depths[remaining]).tolist()]
        computed = ((rows, self.classify(block, rows)) for block, rows in groups if len(rows))
        return _join(len(depths), itertools.chain(self._kept, computed))

    def _is_everyone(self, rows: IntArray) -> bool:
        return len(rows) == len(self.exit_states)  # they are in order


def _join(number: int, parts: Iterable[tuple[IntArray, FloatArray]]) -> FloatArray:
    """Put rows together; each part is copied before the next one is made."""
    logits: FloatArray | None = None
    for rows, part in parts:
        if len(rows) == number:  # all of them, and in order
            return part
        if logits is None:
            logits = np.empty((number, part.shape[1]), dtype=np.float32)
        logits[rows] = part
    assert logits is not None, "there are no rows"
    return logits
