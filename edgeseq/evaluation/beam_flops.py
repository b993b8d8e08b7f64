"""Decoder FLOPs of a beam search: of all open hypotheses, each at its own depths.

`edgeseq_runtime.flops` counts a sentence from the depths of its tokens. In a beam the tokens of the result are the
smaller part of the work, and which columns a hypothesis lacks depends on the ones it continues. So the rows are watched
as they are decoded. For greedy search both counts are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeseq_runtime import Translator
from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.beam import BeamOptions, beam_search
from edgeseq_runtime.engine import Engine, Step
from edgeseq_runtime.flops import DecoderFlops, column_flops, heads_run, mixing_flops, visit_flops
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.search import output_limit
from edgeseq_runtime.state import DecoderState


class _Rows:
    """What has been run of each row of a batch."""

    def __init__(self, sources: Sequence[Sequence[int]], blocks: int) -> None:
        rows = len(sources)
        self.source_pieces = np.array([len(source) for source in sources], dtype=np.int64)
        self.positions = np.zeros(rows, dtype=np.int64)
        self.filled = np.zeros((blocks, rows), dtype=np.int64)  # first position without a column
        self.entered = np.zeros((blocks, rows), dtype=np.bool_)  # source keys and values are there

    def select(self, rows: IntArray) -> None:
        self.source_pieces, self.positions = self.source_pieces[rows], self.positions[rows]
        self.filled, self.entered = self.filled[:, rows], self.entered[:, rows]

    def begin_anew(self, rows: IntArray, source_pieces: IntArray) -> None:
        self.source_pieces[rows] = source_pieces
        self.positions[rows] = 0
        self.filled[:, rows] = 0
        self.entered[:, rows] = False


@dataclass(frozen=True)
class _Watched:
    """A batch, and what has been run of its rows."""

    state: DecoderState
    rows: _Rows


class FlopsMeter:
    """A decoder that passes everything on to an engine and counts what its rows cost.

    Attributes:
        full_depth: number of decoder blocks.
        flops: of all rows so far.
    """

    def __init__(self, engine: Engine, model: ModelFacts) -> None:
        """Starts at zero.

        Args:
            engine: decodes.
            model: facts of its model.
        """
        self.full_depth = engine.full_depth
        self.flops = DecoderFlops()
        self._engine = engine
        self._model = model

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool) -> _Watched:
        """Prepares a batch; see `edgeseq_runtime.search.Decoder`."""
        self.flops += DecoderFlops(decisions=len(sources) * policy.decision_flops(0))
        return _Watched(self._engine.encode(sources, policy, alone=alone), _Rows(sources, self.full_depth))

    def adopt(self, state: _Watched, rows: IntArray, other: _Watched, other_rows: IntArray) -> None:
        """Gives rows to other sentences; see `edgeseq_runtime.search.Decoder`."""
        self._engine.adopt(state.state, rows, other.state, other_rows)
        state.rows.begin_anew(rows, other.rows.source_pieces[other_rows])

    def step(
        self, state: _Watched, tokens: IntArray, parents: IntArray | None = None, depths: IntArray | None = None
    ) -> Step:
        """Feeds a token per row; see `edgeseq_runtime.search.Decoder`."""
        step = self._engine.step(state.state, tokens, parents, depths)
        if parents is not None:
            state.rows.select(parents)
        self.flops += self._count(state, step.depths)
        state.rows.positions += 1
        return step

    def _count(self, state: _Watched, depths: IntArray) -> DecoderFlops:
        model, rows, policy = self._model, state.rows, state.state.policy
        blocks = cross = backfill = decisions = 0
        for block, reach in enumerate(model.decoder_reaches, start=1):
            visiting = (depths >= block).nonzero()[0]
            positions = rows.positions[visiting]
            filled, entered = rows.filled[block - 1], rows.entered[block - 1]
            blocks += sum(visit_flops(model, pieces) for pieces in rows.source_pieces[visiting].tolist())
            blocks += mixing_flops(model, reach, positions.tolist())
            first = visiting[~entered[visiting]]
            cross += 4 * int(rows.source_pieces[first].sum()) * model.dim**2
            gaps = positions - filled[visiting]
            backfill += column_flops(model) * int((np.minimum(gaps, reach - 1) if reach else gaps).sum())
            if block < self.full_depth:
                decisions += len(visiting) * policy.decision_flops(block)
            filled[visiting], entered[visiting] = positions + 1, True
        chosen = state.state.candidates
        columns = np.full(len(depths), model.vocab_size) if chosen is None else chosen.sizes
        heads = [heads_run(depth, self.full_depth, policy) for depth in depths.tolist()]
        return DecoderFlops(blocks, cross, backfill, decisions, 2 * model.dim * int((columns * heads).sum()))


def beam_flops(
    translator: Translator, lines: Sequence[str], policy: DepthPolicy, beam: BeamOptions, batch_size: int
) -> DecoderFlops:
    """Decodes text by beam search once more and counts.

    Args:
        translator: the bundle.
        lines: text; blank lines cost nothing.
        policy: decides depths.
        beam: settings.
        batch_size: sentences decoded together; does not change the count.

    Returns:
        The decoder's FLOPs, of all hypotheses that were open at any step.
    """
    sources = sorted(filter(None, map(translator.source_ids, lines)), key=len, reverse=True)
    meter = FlopsMeter(translator.engine, translator.manifest.model)
    if sources:
        limits = [output_limit(len(source)) for source in sources]
        beam_search(meter, sources, policy, limits, beam, places=batch_size)
    return meter.flops
