"""The ONNX graph of each part of a model, written by hand.

The step is paid per node as much as per FLOP, so these graphs are written, not traced: about 40 nodes a block,
where the exporter made 50 and a graph of its own for backfill. Here are the encoder's and those of a block's source and
step; see `decoder_writer` for what a step consists of, and `step_writer` for the whole of one.

Dimensions: R rows, S source positions, D channels, H heads, K kernel size.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import onnx
import torch

from edgeseq.models import Encoder
from edgeseq.modules import (
    ConvolutionUnit,
    CrossAttention,
    DecoderBlock,
    DynamicConv,
    EncoderBlock,
    LightweightConv,
    SelfAttention,
    TokenEmbedding,
)
from edgeseq_export.compute_types import Arithmetic, all_float32
from edgeseq_export.decoder_writer import (
    BlockNames,
    before,
    columns_of,
    feed_forward,
    fixed_taps,
    normalise_taps,
    raw_taps,
    residual,
    stop_score,
    write_block,
)
from edgeseq_export.graphs import (
    BlockGraph,
    CandidatesGraph,
    CrossGraph,
    EncoderGraph,
    FirstBlockGraph,
    GraphPart,
    HeadGraph,
    ShortlistHeadGraph,
    StepGraph,
)
from edgeseq_export.layer_writer import LayerWriter
from edgeseq_export.step_writer import write_step


@torch.no_grad()
def write_graph(part: GraphPart, arithmetic: Arithmetic = all_float32) -> onnx.ModelProto:
    """Writes the graph of a part of the model.

    Args:
        part: the module, in evaluation mode, and the signature the graph must have.
        arithmetic: chooses what writes products with weights, and tables; all else is of standard operators, in
            float32.

    Returns:
        The graph.
    """
    signature, module = part.signature, part.module
    if isinstance(module, StepGraph):
        return write_step(signature, module, arithmetic)
    writer = LayerWriter(signature, arithmetic(signature.role, signature.block))
    if isinstance(module, EncoderGraph):
        _EncoderWriter(writer).write(module.encoder)
    elif isinstance(module, CrossGraph):
        _write_cross(writer, module.attention)
    elif isinstance(module, FirstBlockGraph):
        _write_block(writer, module.block.block, module.embedding)
    elif isinstance(module, BlockGraph):
        _write_block(writer, module.block)
    elif isinstance(module, CandidatesGraph):
        writer.take_candidates(module.heads, module.embedding, "candidates")
    elif isinstance(module, ShortlistHeadGraph):
        writer.shortlist_head("exit_states", module.heads)
    else:
        assert isinstance(module, HeadGraph)
        writer.exit_head("exit_states", module.heads, module.block, output="logits")
    return writer.finish()


def _sinusoid(writer: LayerWriter, positions: str, dim: int) -> str:
    """Adds `edgeseq.modules.embedding.sinusoid`, (T,) → (T, D)."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half) * (-math.log(10000.0) / max(half - 1, 1)))
    column = writer.reshape(writer.add("Cast", positions, to=onnx.TensorProto.FLOAT), -1, 1)
    angle = writer.add("Mul", column, writer.constant(frequency))
    return writer.add("Concat", writer.add("Sin", angle), writer.add("Cos", angle), axis=-1)


def _write_cross(writer: LayerWriter, attention: CrossAttention) -> None:
    dim, heads = attention.query_projection.in_features, attention.heads
    length = writer.add("Shape", "memory", start=1, end=2)
    shape = writer.add("Concat", writer.integers(-1), length, writer.integers(2 * heads, dim // heads), axis=0)
    memory = writer.reshape("memory", -1, dim)
    # Scaling the keys once per sentence spares every step from scaling its queries.
    both = writer.joined(memory, (attention.key_projection, attention.scale), (attention.value_projection, 1.0))
    both = writer.add("Transpose", writer.add("Reshape", both, shape), perm=[0, 2, 1, 3])
    key, _ = writer.split(both, 2, axis=1, last="cross_value")
    writer.add("Transpose", key, perm=[0, 1, 3, 2], output="cross_key")


def _write_block(writer: LayerWriter, block: DecoderBlock, embedding: TokenEmbedding | None = None) -> None:
    """Adds a block: block 1, which begins with the embedding and is run by every row, or one for the active rows."""
    mixer = block.mixer
    attends = isinstance(mixer, SelfAttention)
    every_row = embedding is not None
    names = BlockNames(
        tensors={name: (name, f"next_{name}") for name in (("keys", "values") if attends else ("columns",))},
        cross_key="cross_key",
        cross_value="cross_value",
        written_columns="written_columns",
        places="place_bias" if attends else "tap_places",
        active_rows=None if every_row else "active_rows",
        rows="tokens" if every_row else "exit_states",
    )
    if embedding is not None:
        x = columns = writer.add("Add", writer.scaled_tokens(embedding, "tokens"), "position_vectors")
    else:
        # The new columns: of the active rows first, then of the copied states of pending positions (backfill).
        columns = writer.add("Gather", "states", "read_cells")
        x = writer.reshape(writer.add("Gather", "states", "own_cells"), -1, mixer.dim)
    x, _ = write_block(writer, block, names, x, columns)
    writer.add("ScatterND", "states", "own_cells", x, output="next_states")
    if every_row:
        exit_states = writer.layer_norm(x, block.exit_norm, output="exit_states")
    else:
        exit_states = writer.layer_norm(x, block.exit_norm)
        writer.add("ScatterND", "exit_states", "active_rows", exit_states, output="next_exit_states")
    if writer.gives("stop_scores"):
        stop_score(writer, exit_states, "stop_weight", output="stop_scores")


class _EncoderWriter:
    """Writes the encoder on (R · S, D), so that products and biases are one node; mixers see (R, H, S, D/H)."""

    def __init__(self, writer: LayerWriter) -> None:
        self._writer = writer
        self._length = writer.add("Shape", "source", start=1, end=2)
        one = writer.constant(np.array(1, dtype=np.int64))
        zero = writer.constant(np.array(0, dtype=np.int64))
        self._positions = writer.add("Range", zero, writer.add("Squeeze", self._length), one)
        self._padding = writer.reshape("padding_mask", -1, 1)
        self._biases: dict[int, str] = {}

    def write(self, encoder: Encoder) -> None:
        """Writes source, padding_mask → memory."""
        writer = self._writer
        dim = encoder.embedding.dim
        positions = _sinusoid(writer, self._positions, dim)
        x = writer.add("Add", writer.scaled_tokens(encoder.embedding, "source"), positions)
        x = writer.reshape(x, -1, dim)
        for block in cast("list[EncoderBlock]", list(encoder.blocks)):
            x = self._write_block(block, x)
        x = writer.layer_norm(x, encoder.norm)
        shape = writer.add("Concat", writer.integers(-1), self._length, writer.integers(dim), axis=0)
        writer.add("Reshape", x, shape, output="memory")

    def _write_block(self, block: EncoderBlock, x: str) -> str:
        writer, mixer = self._writer, block.mixer
        read = before(writer, block.mixer_norm, x)
        if isinstance(mixer, SelfAttention):
            mixed = writer.linear(self._attend(mixer, read), mixer.output_projection)
        else:
            assert isinstance(mixer, ConvolutionUnit)
            columns = writer.add("Where", self._padding, writer.scalar(0.0), columns_of(writer, mixer, read))
            mixed = writer.linear(self._convolve(mixer.convolution, columns), mixer.out_projection)
        x = residual(writer, block.mixer_norm, x, mixed)
        y = feed_forward(writer, block.feed_forward, before(writer, block.feed_forward_norm, x))
        return residual(writer, block.feed_forward_norm, x, y)

    def _attend(self, attention: SelfAttention, x: str) -> str:
        """Adds the mixing of whole sentences by their own attention, (R · S, D) → (R · S, D)."""
        writer = self._writer
        heads, dim = attention.heads, attention.dim
        shape = writer.add(
            "Concat", writer.integers(-1), self._length, writer.integers(3 * heads, dim // heads), axis=0
        )
        projected = writer.joined(
            x,
            (attention.query_projection, attention.scale),
            (attention.key_projection, 1.0),
            (attention.value_projection, 1.0),
        )
        projected = writer.add("Transpose", writer.add("Reshape", projected, shape), perm=[0, 2, 1, 3])
        query, key, value = writer.split(projected, 3, axis=1)
        key = writer.add("Transpose", key, perm=[0, 1, 3, 2])
        scores = writer.add("Add", writer.add("MatMul", query, key), self._bias(attention.window))
        mixed = writer.add("MatMul", writer.add("Softmax", scores, axis=-1), value)
        return writer.reshape(writer.add("Transpose", mixed, perm=[0, 2, 1, 3]), -1, dim)

    def _bias(self, window: int) -> str:
        """Adds the bias of attention scores (R, 1, S, S), once for all blocks with the same window."""
        if window not in self._biases:
            writer = self._writer
            positions = (writer.reshape(self._positions, -1, 1), self._positions)
            # Every position reads itself, at padding too: a softmax of nothing would be no number.
            own = writer.add("Equal", *positions)
            read = writer.add("Not", writer.add("Unsqueeze", "padding_mask", writer.integers(1, 2)))
            if window:
                distance = writer.add("Abs", writer.add("Sub", *positions))
                bound = writer.constant(np.array(window // 2, dtype=np.int64))
                read = writer.add("And", read, writer.add("LessOrEqual", distance, bound))
            read = writer.add("Or", read, own)
            self._biases[window] = writer.add("Where", read, writer.scalar(0.0), writer.scalar(float("-inf")))
        return self._biases[window]

    def _convolve(self, convolution: LightweightConv | DynamicConv, columns: str) -> str:
        """Adds `edgeseq.modules.convolution.banded_product` over whole sentences, (R · S, D) → (R · S, D)."""
        writer, length = self._writer, self._length
        heads, kernel_size, dim = convolution.heads, convolution.kernel_size, convolution.dim
        left = writer.integers(kernel_size // 2)
        if isinstance(convolution, LightweightConv):
            shape = writer.add("Concat", writer.integers(1, heads), length, writer.integers(kernel_size), axis=0)
            taps = writer.add("Expand", fixed_taps(writer, convolution, 1, heads, 1, kernel_size), shape)
        else:
            raw = raw_taps(writer, convolution, columns, heads, kernel_size)  # (R · S, H, K)
            shape = writer.add("Concat", writer.integers(-1), length, writer.integers(heads, kernel_size), axis=0)
            taps = writer.add("Reshape", normalise_taps(writer, convolution, raw), shape)
            taps = writer.add("Transpose", taps, perm=[0, 2, 1, 3])
        padded = writer.add("Pad", taps, writer.add("Concat", writer.integers(*[0] * 7), length, axis=0))
        width = writer.add("Add", length, writer.integers(kernel_size - 1))
        flat = self._cut(writer.reshape(padded, 0, 0, -1), writer.integers(0), writer.add("Mul", length, width), axis=2)
        skewed = writer.add("Reshape", flat, writer.add("Concat", writer.integers(0, 0), length, width, axis=0))
        band = self._cut(skewed, left, writer.add("Add", length, left), axis=3)  # (R or 1, H, S, S)
        shape = writer.add("Concat", writer.integers(-1), length, writer.integers(heads, dim // heads), axis=0)
        values = writer.add("Transpose", writer.add("Reshape", columns, shape), perm=[0, 2, 1, 3])
        mixed = writer.add("Transpose", writer.add("MatMul", band, values), perm=[0, 2, 1, 3])
        return writer.reshape(mixed, -1, dim)

    def _cut(self, x: str, start: str, end: str, axis: int) -> str:
        return self._writer.add("Slice", x, start, end, self._writer.integers(axis))
