"""Writes the whole step of a row that is decoded alone, in one graph.

What takes an engine a call for each block, and index arithmetic between them, is here a chain of blocks, each inside an
`If` that asks whether the token goes on. So a block that is not entered costs nothing, and neither do its weights.

The row's tensors are inputs of the outermost graph, and each goes through the `If`s to an output that may share its
memory: where a block is skipped, its columns are handed on, which copies nothing then.

From position p back, places of a ring come in falling order, and go round. So what a block writes is a slice of a table
of cells that lists the places in this order, twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx

from edgeseq.modules import ConvolutionUnit, DecoderBlock
from edgeseq_export.compute_types import Arithmetic
from edgeseq_export.decoder_writer import BlockNames, stop_score, write_block
from edgeseq_export.graphs import StepGraph
from edgeseq_export.layer_writer import LayerWriter
from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.places import order_taps
from edgeseq_runtime.signatures import GraphSignature


def write_step(signature: GraphSignature, step: StepGraph, arithmetic: Arithmetic) -> onnx.ModelProto:
    """Writes the graph of a step.

    Args:
        signature: what it must take and give.
        step: the decoder, all blocks of which convolve.
        arithmetic: chooses what writes the products of each block and exit head.

    Returns:
        The graph.
    """
    return _StepWriter(signature, step, arithmetic).write()


class _StepWriter:
    """Writes it block by block, each within the graph of the one below. D channels, H heads, C cells of a ring."""

    def __init__(self, signature: GraphSignature, step: StepGraph, arithmetic: Arithmetic) -> None:
        self._writer = LayerWriter(signature, arithmetic("block", 1))
        self._arithmetic = arithmetic
        self._embedding = step.embedding
        self._blocks = cast("list[DecoderBlock]", list(step.blocks))
        self._exit_heads = step.exit_heads
        self._tied = step.tied
        self._shortlist = step.shortlist
        convolutions = [cast("ConvolutionUnit", block.mixer).convolution for block in self._blocks]
        self._heads = convolutions[0].heads
        self._sizes = [convolution.kernel_size for convolution in convolutions]
        self._reach = max(self._sizes)
        self._orders: dict[int, str] = {}

    def write(self) -> onnx.ModelProto:
        writer, depth = self._writer, len(self._blocks)
        self._write_places()
        x = writer.add("Add", writer.scaled_tokens(self._embedding, "tokens"), "position_vectors")
        columns = [f"next_columns_{number}" for number in range(2, depth + 1)]
        result, x, *_ = self._write_block(1, x, [None if self._tied else "logits", None, "depth", *columns])
        if self._tied:
            writer.compute_type = self._arithmetic("head", None)
            if self._shortlist:
                writer.shortlist_head(result, self._exit_heads)
            else:
                writer.exit_head(result, self._exit_heads, 1, output="logits")
        own = writer.reshape(writer.add("Mod", "position", writer.integers(self._reach)), 1, 1)
        writer.add("ScatterND", "states", own, x, output="next_states")
        if depth > 1:
            ran = writer.add("LessOrEqual", writer.integers(*range(2, depth + 1)), "depth")
            following = writer.add("Add", "position", writer.integers(1))
            writer.add("Where", ran, following, "filled", output="next_filled")
        return writer.finish()

    def _write_places(self) -> None:
        """Adds where each block reads and writes."""
        writer, heads, reach = self._writer, self._heads, self._reach
        sizes = np.array(self._sizes)
        first = writer.add(
            "Mod", writer.add("Mul", "position", writer.integers(-heads)), writer.constant(heads * sizes)
        )
        pending = writer.constant(np.zeros(1, dtype=np.int64))
        if len(sizes) > 1:
            gaps = writer.add("Sub", "position", "filled")
            skipped = writer.add("Min", gaps, writer.constant(sizes[1:] - 1))
            pending = writer.add("Concat", pending, skipped, axis=0)
            own = writer.add("Mod", writer.add("Neg", "position"), writer.integers(reach))
            self._first_state = writer.add("Add", own, writer.integers(1))
            self._last_states = writer.add("Add", self._first_state, skipped)
        count = writer.add("Mul", writer.add("Add", pending, writer.integers(1)), writer.integers(heads))
        self._first_columns, self._last_columns = first, writer.add("Add", first, count)

    def _write_block(self, number: int, x: str, outputs: Sequence[str | None]) -> list[str]:
        """Adds a block and all that comes after it.

        Args:
            number: of the block, from 1.
            x: what it reads, (1, D).
            outputs: names for what is given from here on, but for the block's own columns, where they need any.

        Returns:
            What the token stopped with: exit state, or logits where heads are untied; copied state; depth; and the
            columns of this block and those above it.
        """
        writer = self._writer
        block, size, top = self._blocks[number - 1], self._sizes[number - 1], number == 1
        writer.compute_type = self._arithmetic("block", number)
        names = BlockNames(
            tensors={"columns": (f"columns_{number}", "next_columns_1" if top else None)},
            cross_key=f"cross_key_{number}",
            cross_value=f"cross_value_{number}",
            written_columns=writer.add(
                "Slice",
                writer.constant(_column_cells(size, self._heads)),
                self._pick(self._first_columns, number - 1),
                self._pick(self._last_columns, number - 1),
            ),
            places=self._tap_places(size),
            active_rows=None,
            rows="tokens",
        )
        columns = x
        if not top:
            places = writer.constant(-np.arange(2 * self._reach) % self._reach)
            cells = writer.add("Slice", places, self._first_state, self._pick(self._last_states, number - 2))
            columns = writer.add("Concat", x, writer.add("Gather", "states", cells), axis=0)
        x, written = write_block(writer, block, names, x, columns)
        exit_state = writer.layer_norm(x, block.exit_norm)
        if number == len(self._blocks):
            return [*self._stop(number, exit_state, x, outputs), *written]
        score = stop_score(writer, exit_state, self._pick("stop_weights", number - 1))
        stops = writer.add("Greater", score, self._pick("stop_limits", number - 1))
        skipped = [f"columns_{above}" for above in range(number + 1, len(self._blocks) + 1)]
        nameless = [None] * len(outputs)
        results = writer.add_choice(
            stops,
            (
                lambda: [
                    *self._stop(number, exit_state, x, nameless),
                    *(writer.add("Identity", name) for name in skipped),
                ],
                lambda: self._write_block(number + 1, x, nameless[:-1]),
            ),
            outputs,
        )
        return [*results[:3], *written, *results[3:]]

    def _stop(self, number: int, exit_state: str, x: str, outputs: Sequence[str | None]) -> list[str]:
        """Adds what a token stops with: exit state or logits, copied state, depth."""
        writer = self._writer
        depth = writer.add("Identity", writer.integers(number), output=outputs[2])
        if self._tied:
            return [writer.add("Identity", exit_state), writer.add("Identity", x), depth]
        writer.compute_type = self._arithmetic("head", number)
        logits = writer.exit_head(exit_state, self._exit_heads, number, output=outputs[0])
        return [logits, writer.add("Identity", x), depth]

    def _pick(self, vector: str, index: int) -> str:
        """Adds an entry of a vector, (1,), or a row of a matrix, (1, ...)."""
        return self._writer.add("Gather", vector, self._writer.integers(index))

    def _tap_places(self, size: int) -> str:
        """Adds the order of taps, once for a block and those above it, which are within its graph."""
        writer = self._writer
        if size not in self._orders:
            place = writer.add("Mod", "position", writer.integers(size))
            self._orders[size] = writer.add("Gather", writer.constant(order_taps(size, self._heads)), place)
        return self._orders[size]


def _column_cells(size: int, heads: int) -> IntArray:
    """Cells of a row's columns, two turns of places in falling order, (2 · C · H, 1)."""
    places = -np.arange(2 * size) % size
    return (places[:, None] + size * np.arange(heads)).reshape(-1, 1)
