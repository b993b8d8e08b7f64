"""The naive engine that lazy bounded backfill is compared with: it fills every block at once."""

import numpy as np

from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.engine import Engine, Step
from edgeseq_runtime.state import DecoderState


class EagerEngine(Engine):
    """After each step, computes the column of every block that each row skipped, needed or not.

    Attributes:
        backfilled: Columns computed so far.
    """

    backfilled = 0

    def step(
        self,
        state: DecoderState,
        tokens: IntArray,
        parents: IntArray | None = None,
        depths: IntArray | None = None,
    ) -> Step:
        step = super().step(state, tokens, parents, depths)
        positions = state.positions - 1
        for number, past in enumerate(state.blocks[1:], start=2):
            if past.window is None or state.copied is None:
                continue
            for row in np.flatnonzero(step.depths < number):
                rows, position = np.array([row]), positions[[row]]
                states = state.copied.get(rows, position)
                columns = self._graphs["backfill", number].run({"states": states})[0]
                past.window.put(rows, position, columns)
                past.filled[row] = position[0] + 1
                self.backfilled += 1
        return step
