"""The naive engine that lazy bounded backfill is compared with: it fills every block at once."""

from pathlib import Path

import numpy as np

from edgeseq_runtime.arrays import AnyArray, IntArray
from edgeseq_runtime.engine import Engine, Step
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.state import DecoderState


class EagerEngine(Engine):
    """After each step, computes the column of every block that each row skipped, needed or not.

    It runs the block as if the rows had gone on, and keeps nothing of that but the columns.

    Attributes:
        backfilled: Columns computed so far.
    """

    backfilled = 0

    def __init__(self, folder: Path, model: ModelFacts, device: str = "auto") -> None:
        super().__init__(folder, model, device)
        self._facts = model

    def step(
        self,
        state: DecoderState,
        tokens: IntArray,
        parents: IntArray | None = None,
        depths: IntArray | None = None,
    ) -> Step:
        step = super().step(state, tokens, parents, depths)
        for block in range(2, self._facts.decoder_blocks + 1):
            skipped = np.flatnonzero(step.depths < block)
            if len(skipped):
                self._fill(state, block, skipped)
        return step

    def run_ahead(self, *arguments: object) -> None:
        """What is skipped is filled step by step."""

    def _fill(self, state: DecoderState, block: int, rows: IntArray) -> None:
        """Make the columns of rows at the position that has just been decoded."""
        facts, past = self._facts, state.blocks[block - 1]
        heads = facts.mixer_heads
        size = len(next(iter(past.tensors.values()))) // (state.rows * heads)
        reach = len(state.states) // state.rows
        positions = state.positions[rows] - 1
        assert (past.filled[rows] == positions).all(), "the engine has run a block that it reports as skipped"
        written = [
            (row * heads + head) * size + position % size
            for row, position in zip(rows.tolist(), positions.tolist(), strict=True)
            for head in range(heads)
        ]
        head_dim, source = facts.dim // facts.heads, state.source_bias.shape[3]
        cells = rows * reach + positions % reach
        # What the taps meet and which places attention reads is of no consequence to the columns.
        places: dict[str, AnyArray] = (
            {"place_bias": np.zeros((len(rows), 1, 1, 1, size), dtype=np.float32)}
            if facts.mixer == "attention"
            else {"tap_places": np.zeros((len(rows), 1, heads, 1, size), dtype=np.int64)}
        )
        feed: dict[str, AnyArray] = {
            "states": state.states,
            "exit_states": state.exit_states,
            **past.tensors,
            "cross_key": np.zeros((state.rows, facts.heads, head_dim, source), dtype=np.float32),
            "cross_value": np.zeros((state.rows, facts.heads, source, head_dim), dtype=np.float32),
            "source_bias": state.source_bias,
            "active_rows": rows[:, None],
            "own_cells": cells[:, None],
            "read_cells": cells,
            "written_columns": np.array(written)[:, None],
            **places,
        }
        if block < facts.decoder_blocks:
            feed["stop_weight"] = np.zeros((1, facts.dim), dtype=np.float32)
        outputs = self._graphs["block", block].run(feed)
        for tensor, made in zip(past.tensors.values(), outputs[2 : 2 + len(past.tensors)], strict=True):
            tensor[:] = made
        past.filled[rows] = positions + 1
        self.backfilled += len(rows)
