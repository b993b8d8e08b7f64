"""The source's keys and values of each block, computed for the rows that enter it a first time."""

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.sessions import Graphs
from edgeseq_runtime.state import DecoderState

ENTERED_SHARE = 8
"""When one row in so many of a batch has entered a block, all of them get source keys and values."""

KeysAndValues = tuple[FloatArray, FloatArray]
"""Of all rows of a batch; see ``signatures`` for the shapes."""


class SourceAttention:
    """Gives blocks what they attend to of the rows' sources. May be shared by threads: results are kept in states."""

    def __init__(self, graphs: Graphs) -> None:
        """Take the graphs of a bundle."""
        self._graphs = graphs

    def enter(self, state: DecoderState, block: int, active: IntArray) -> KeysAndValues:
        """Keys and values for a block that the rows ``active``, (n,), of a batch are about to run.

        Once some of a batch have entered, the rest come along: most will enter too, and one call is
        much cheaper than one at each step for a row or two.
        """
        past = state.blocks[block - 1]
        if past.cross is None or not past.all_entered:
            past.cross = self._enter(state, block, active)
        return past.cross

    def enter_all(self, state: DecoderState, deepest: int) -> None:
        """Compute keys and values of the only row for all blocks up to ``deepest``."""
        if not state.blocks[deepest - 1].all_entered:  # blocks are entered from below
            for block, past in enumerate(state.blocks[:deepest], start=1):
                if not past.all_entered:
                    self.enter(state, block, np.zeros(1, dtype=np.int64))
                    state.moved = True

    def prepare(self, other: DecoderState, state: DecoderState) -> None:
        """Compute keys and values of all rows of ``other`` for the blocks that all rows of ``state`` have entered.

        Rows of ``other`` are about to join ``state``. A batch of one row computes nothing before it enters a block.
        """
        if state.rows > 1:
            for block, past in enumerate(state.blocks, start=1):
                if past.all_entered:
                    self.enter(other, block, np.arange(other.rows))

    def _enter(self, state: DecoderState, block: int, active: IntArray) -> KeysAndValues:
        past = state.blocks[block - 1]
        entered = past.entered.copy()
        entered[active] = True
        if np.count_nonzero(entered) * ENTERED_SHARE >= state.rows:
            entered[:] = True
            past.all_entered = True
        rows = (entered & ~past.entered).nonzero()[0]
        past.entered = entered
        if past.cross is not None and not len(rows):
            return past.cross
        new_key, new_value = self._compute(state, block, rows)
        if len(rows) == state.rows:
            return new_key, new_value
        key, value = past.cross or (
            np.zeros((state.rows, *new_key.shape[1:]), dtype=np.float32),
            np.zeros((state.rows, *new_value.shape[1:]), dtype=np.float32),
        )
        key[rows] = new_key
        value[rows] = new_value
        return key, value

    def _compute(self, state: DecoderState, block: int, rows: IntArray) -> list[FloatArray]:
        """Compute those of some rows, once for all hypotheses of a sentence."""
        graph = self._graphs["cross", block]
        if len(rows) > 1:
            _, firsts, numbers = np.unique(state.sentences[rows], return_index=True, return_inverse=True)
            if len(firsts) < len(rows):
                return [
                    array.take(numbers, axis=0) for array in graph.run({"memory": state.memory.take(rows[firsts], 0)})
                ]
        return graph.run({"memory": state.memory if len(rows) == state.rows else state.memory.take(rows, axis=0)})
