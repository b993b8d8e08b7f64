"""The ONNX graph of each part of a model, written by hand.

The step is paid per node as much as per FLOP, so these graphs are written, not traced: about 40 nodes a block,
where the exporter made 50 and a graph of its own for backfill. Two ideas keep them short:

*   State is read and written through indices, inside the graph. Nothing is gathered, moved or stored outside it.
*   The columns of a row lie in a ring of places and never move. Instead the taps of a convolution, which are few, are
    brought into the order of the ring, and attention, which does not ask for order, is told which places to leave out.

Dimensions: R rows, S source positions, D channels, H heads, K kernel size, C places of a ring; n active rows, m pending
columns.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F

from edgeseq.models import Encoder
from edgeseq.modules import (
    ConvolutionUnit,
    CrossAttention,
    DecoderBlock,
    DynamicConv,
    EncoderBlock,
    FeedForward,
    LightweightConv,
    ResidualNorm,
    SelfAttention,
    TokenEmbedding,
)
from edgeseq_export.compute_types import FLOAT32, ComputeType
from edgeseq_export.graphs import BlockGraph, CrossGraph, EncoderGraph, FirstBlockGraph, GraphPart, HeadGraph
from edgeseq_export.layer_writer import LayerWriter


@torch.no_grad()
def write_graph(part: GraphPart, compute_type: ComputeType = FLOAT32) -> onnx.ModelProto:
    """Writes the graph of a part of the model.

    Args:
        part: the module, in evaluation mode, and the signature the graph must have.
        compute_type: writes products with weights, and tables; all else is of standard operators, in float32.

    Returns:
        The graph.
    """
    writer = LayerWriter(part.signature, compute_type)
    module = part.module
    if isinstance(module, EncoderGraph):
        _EncoderWriter(writer).write(module.encoder)
    elif isinstance(module, CrossGraph):
        _write_cross(writer, module.attention)
    elif isinstance(module, FirstBlockGraph):
        _write_block(writer, module.block.block, module.embedding)
    elif isinstance(module, BlockGraph):
        _write_block(writer, module.block)
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
    split = writer.add("Concat", writer.integers(-1), length, writer.integers(heads, dim // heads), axis=0)
    memory = writer.reshape("memory", -1, dim)
    # Scaling the keys once per sentence spares every step from scaling its queries.
    for projection, scale, order, output in (
        (attention.key_projection, attention.scale, [0, 2, 3, 1], "cross_key"),
        (attention.value_projection, 1.0, [0, 2, 1, 3], "cross_value"),
    ):
        projected = writer.add("Reshape", writer.linear(memory, projection, scale), split)
        writer.add("Transpose", projected, perm=order, output=output)


def _write_block(writer: LayerWriter, block: DecoderBlock, embedding: TokenEmbedding | None = None) -> None:
    """Adds a block: block 1, which begins with the embedding and is run by every row, or one for the active rows."""
    mixer, attention = block.mixer, block.cross_attention
    every_row = embedding is not None
    if embedding is not None:
        x = writer.add("Add", writer.scaled_tokens(embedding, "tokens"), "position_vectors")
        read = _before(writer, block.mixer_norm, x)
    else:
        # The new columns: of the active rows first, then of the copied states of pending positions (backfill).
        read = _before(writer, block.mixer_norm, writer.add("Gather", "states", "read_cells"))
        x = writer.reshape(writer.add("Gather", "states", "own_cells"), -1, mixer.dim)
    if isinstance(mixer, SelfAttention):
        own = read if every_row else _before(writer, block.mixer_norm, x)
        mixed = _attend_rings(writer, mixer, read, own, every_row=every_row)
    else:
        assert isinstance(mixer, ConvolutionUnit)
        mixed = _convolve_rings(writer, mixer, read, every_row=every_row)
    x = _residual(writer, block.mixer_norm, x, mixed)

    query = writer.linear(_before(writer, block.cross_norm, x), attention.query_projection)
    mixed = _attend(writer, query, attention.heads, mixer.dim, every_row=every_row)
    x = _residual(writer, block.cross_norm, x, writer.linear(mixed, attention.output_projection))

    y = _feed_forward(writer, block.feed_forward, _before(writer, block.feed_forward_norm, x))
    x = _residual(writer, block.feed_forward_norm, x, y)
    writer.add("ScatterND", "states", "own_cells", x, output="next_states")
    if every_row:
        writer.layer_norm(x, block.exit_norm, output="exit_states")
    else:
        exit_state = writer.layer_norm(x, block.exit_norm)
        writer.add("ScatterND", "exit_states", "active_rows", exit_state, output="next_exit_states")


def _write_columns(writer: LayerWriter, name: str, columns: str, column_dim: int) -> None:
    """Adds the replacement of what `written_columns` names in a tensor of columns."""
    updates = writer.reshape(columns, -1, column_dim)
    writer.add("ScatterND", name, "written_columns", updates, output=f"next_{name}")


def _columns(writer: LayerWriter, unit: ConvolutionUnit, x: str) -> str:
    projected = writer.linear(x, unit.in_projection)
    if not unit.glu:
        return projected
    value, gate = writer.add_pair("Split", projected, axis=-1, num_outputs=2)
    return writer.add("Mul", value, writer.add("Sigmoid", gate))


def _raw_taps(writer: LayerWriter, convolution: DynamicConv, columns: str, *shape: int) -> str:
    """Adds the taps of a dynamic convolution as they are predicted, not yet normalised: (rows, ...)."""
    return writer.reshape(writer.linear(columns, convolution.tap_projection), -1, *shape)


def _normalise_taps(writer: LayerWriter, convolution: DynamicConv, taps: str) -> str:
    """Adds their normalisation over the last axis."""
    if convolution.normalization == "softmax":
        return writer.add("Softmax", taps, axis=-1)
    length = writer.add("ReduceL2", taps, writer.integers(-1), keepdims=1)
    return writer.add("Div", taps, writer.add("Max", length, writer.scalar(1e-12)))


def _fixed_taps(writer: LayerWriter, convolution: LightweightConv, *shape: int) -> str:
    """Adds the normalised taps of a lightweight convolution."""
    weight = convolution.weight
    softmax = convolution.normalization == "softmax"
    normal = torch.softmax(weight, dim=-1) if softmax else F.normalize(weight, dim=-1)
    return writer.constant(normal.view(shape))


def _convolve_rings(writer: LayerWriter, unit: ConvolutionUnit, read: str, *, every_row: bool) -> str:
    """Adds the unit on each row's ring, with its taps brought into the ring's order: (n, D)."""
    convolution = unit.convolution
    heads, kernel_size, dim = convolution.heads, convolution.kernel_size, convolution.dim
    columns = _columns(writer, unit, read)
    _write_columns(writer, "columns", columns, dim // heads)
    shape = (1, heads, 1, kernel_size)
    if isinstance(convolution, LightweightConv):
        taps = writer.add("Expand", _fixed_taps(writer, convolution, 1, *shape), writer.add("Shape", "tap_places"))
        taps = writer.add("GatherElements", taps, "tap_places", axis=4)
    else:
        taps = writer.add("GatherElements", _raw_taps(writer, convolution, columns, *shape), "tap_places", axis=4)
        taps = _normalise_taps(writer, convolution, taps)
    ring = (heads, kernel_size, dim // heads)
    if every_row:
        rings = writer.reshape("next_columns", -1, 1, *ring)
    else:
        rings = _of_active_rows(writer, writer.reshape("next_columns", -1, *ring))
    mixed = writer.reshape(writer.add("MatMul", taps, rings), -1, dim)
    return writer.linear(mixed, unit.out_projection)


def _attend_rings(writer: LayerWriter, attention: SelfAttention, read: str, x: str, *, every_row: bool) -> str:
    """Adds the attention of each row (n, D) to all places of its rings, its own among them: (n, D)."""
    heads, dim = attention.heads, attention.dim
    head_dim = dim // heads
    ring_axes = (1, heads) if every_row else (heads,)
    if attention.window:
        shape = writer.integers(-1, *ring_axes, attention.window, head_dim)
    else:
        rows = writer.add("Shape", "tokens" if every_row else "exit_states", start=0, end=1)
        shape = writer.add("Concat", rows, writer.integers(*ring_axes, -1, head_dim), axis=0)
    rings = []
    for name, projection in (("keys", attention.key_projection), ("values", attention.value_projection)):
        _write_columns(writer, name, writer.linear(read, projection), head_dim)
        ring = writer.add("Reshape", f"next_{name}", shape)
        rings.append(ring if every_row else _of_active_rows(writer, ring))  # (n, 1, H, C, D/H)
    query = writer.reshape(writer.linear(x, attention.query_projection, attention.scale), -1, 1, heads, head_dim, 1)
    # The query as a column spares transposing the keys; a row of scores then is the same numbers.
    scores = writer.reshape(writer.add("MatMul", rings[0], query), 0, 0, 0, 1, -1)
    weights = writer.add("Softmax", writer.add("Add", scores, "place_bias"), axis=-1)
    mixed = writer.reshape(writer.add("MatMul", weights, rings[1]), -1, dim)
    return writer.linear(mixed, attention.output_projection)


def _attend(writer: LayerWriter, query: str, heads: int, dim: int, *, every_row: bool) -> str:
    """Adds the attention of the rows to their sources, one query each: (n, D)."""
    names = ("cross_key", "cross_value", "source_bias")
    if every_row:
        key, value, bias = names
        query = writer.reshape(query, -1, heads, 1, dim // heads)
    else:
        key, value, bias = (_of_active_rows(writer, name) for name in names)
        query = writer.reshape(query, -1, 1, heads, 1, dim // heads)
    scores = writer.add("Add", writer.add("MatMul", query, key), bias)
    mixed = writer.add("MatMul", writer.add("Softmax", scores, axis=-1), value)
    return writer.reshape(mixed, -1, dim)


def _of_active_rows(writer: LayerWriter, x: str) -> str:
    """Adds a copy of the active rows, (R, ...) → (n, 1, ...)."""
    return writer.add("Gather", x, "active_rows")


def _feed_forward(writer: LayerWriter, feed_forward: FeedForward, x: str) -> str:
    return writer.linear(writer.linear(x, feed_forward.expand), feed_forward.contract, rectify=True)


def _before(writer: LayerWriter, norm: ResidualNorm, x: str) -> str:
    return writer.layer_norm(x, norm.norm) if norm.placement == "pre" else x


def _residual(writer: LayerWriter, norm: ResidualNorm, x: str, y: str) -> str:
    total = writer.add("Add", x, y)
    return writer.layer_norm(total, norm.norm) if norm.placement == "post" else total


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
        read = _before(writer, block.mixer_norm, x)
        if isinstance(mixer, SelfAttention):
            mixed = writer.linear(self._attend(mixer, read), mixer.output_projection)
        else:
            assert isinstance(mixer, ConvolutionUnit)
            columns = writer.add("Where", self._padding, writer.scalar(0.0), _columns(writer, mixer, read))
            mixed = writer.linear(self._convolve(mixer.convolution, columns), mixer.out_projection)
        x = _residual(writer, block.mixer_norm, x, mixed)
        y = _feed_forward(writer, block.feed_forward, _before(writer, block.feed_forward_norm, x))
        return _residual(writer, block.feed_forward_norm, x, y)

    def _attend(self, attention: SelfAttention, x: str) -> str:
        """Adds the mixing of whole sentences by their own attention, (R · S, D) → (R · S, D)."""
        writer = self._writer
        heads, dim = attention.heads, attention.dim
        shape = writer.add("Concat", writer.integers(-1), self._length, writer.integers(heads, dim // heads), axis=0)
        query, key, value = (
            writer.add("Transpose", writer.add("Reshape", writer.linear(x, projection, scale), shape), perm=order)
            for projection, scale, order in (
                (attention.query_projection, attention.scale, [0, 2, 1, 3]),
                (attention.key_projection, 1.0, [0, 2, 3, 1]),
                (attention.value_projection, 1.0, [0, 2, 1, 3]),
            )
        )
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
            taps = writer.add("Expand", _fixed_taps(writer, convolution, 1, heads, 1, kernel_size), shape)
        else:
            raw = _raw_taps(writer, convolution, columns, heads, kernel_size)  # (R · S, H, K)
            shape = writer.add("Concat", writer.integers(-1), length, writer.integers(heads, kernel_size), axis=0)
            taps = writer.add("Reshape", _normalise_taps(writer, convolution, raw), shape)
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
