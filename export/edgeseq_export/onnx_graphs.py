"""The ONNX graph of each part of a model, written by hand.

The step is paid per node as much as per FLOP, so these graphs are written, not traced: about 40 nodes a block,
where the exporter made 50 and a graph of its own for backfill. Two ideas keep them short:

*   State is read and written through indices, inside the graph. Nothing is gathered, moved or stored outside it.
*   The columns of a row lie in a ring of K places and never move. Instead the taps, which are few, are brought into
    the order of the ring.

Dimensions: R rows, S source positions, D channels, H heads, K kernel size; n active rows, m pending columns.
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
    TokenEmbedding,
)
from edgeseq_export.graph_writer import GraphWriter
from edgeseq_export.graphs import BlockGraph, CrossGraph, EmbedGraph, EncoderGraph, GraphPart, HeadGraph


@torch.no_grad()
def write_graph(part: GraphPart) -> onnx.ModelProto:
    """Writes the graph of a part of the model.

    Args:
        part: the module, in evaluation mode, and the signature the graph must have.

    Returns:
        The graph, of standard operators only.
    """
    writer = GraphWriter(part.signature)
    module = part.module
    if isinstance(module, EncoderGraph):
        _EncoderWriter(writer).write(module.encoder)
    elif isinstance(module, EmbedGraph):
        _write_embed(writer, module.embedding)
    elif isinstance(module, CrossGraph):
        _write_cross(writer, module.attention)
    elif isinstance(module, BlockGraph):
        _write_block(writer, module.block)
    else:
        assert isinstance(module, HeadGraph)
        weight = module.heads.weight(module.block)
        writer.add("MatMul", "exit_states", writer.constant(weight.T.contiguous()), output="logits")
    return writer.finish()


def _write_embed(writer: GraphWriter, embedding: TokenEmbedding) -> None:
    x = writer.add("Add", _scaled_tokens(writer, embedding, "tokens"), "position_vectors")
    writer.add("ScatterND", "states", "own_cells", x, output="next_states")


def _scaled_tokens(writer: GraphWriter, embedding: TokenEmbedding, tokens: str) -> str:
    return writer.add("Gather", writer.constant(embedding.table.weight * embedding.scale), tokens)


def _sinusoid(writer: GraphWriter, positions: str, dim: int) -> str:
    """Adds `edgeseq.modules.embedding.sinusoid`, (T,) → (T, D)."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half) * (-math.log(10000.0) / max(half - 1, 1)))
    column = writer.reshape(writer.add("Cast", positions, to=onnx.TensorProto.FLOAT), -1, 1)
    angle = writer.add("Mul", column, writer.constant(frequency))
    return writer.add("Concat", writer.add("Sin", angle), writer.add("Cos", angle), axis=-1)


def _write_cross(writer: GraphWriter, attention: CrossAttention) -> None:
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


def _write_block(writer: GraphWriter, block: DecoderBlock) -> None:
    unit, attention = block.convolution_unit, block.cross_attention
    dim = unit.convolution.dim
    # The new columns: of the active rows first, then of the copied states of pending positions (backfill).
    read = writer.add("Gather", "states", "read_cells")
    columns = _columns(writer, unit, _before(writer, block.convolution_norm, read))
    updates = writer.reshape(columns, -1, dim // unit.convolution.heads)
    writer.add("ScatterND", "columns", "written_columns", updates, output="next_columns")
    mixed = _convolve_rings(writer, unit.convolution, columns)
    x = writer.reshape(writer.add("Gather", "states", "own_cells"), -1, dim)
    x = _residual(writer, block.convolution_norm, x, writer.linear(mixed, unit.out_projection))

    query = writer.linear(_before(writer, block.cross_norm, x), attention.query_projection)
    mixed = _attend(writer, query, attention.heads, dim)
    x = _residual(writer, block.cross_norm, x, writer.linear(mixed, attention.output_projection))

    y = _feed_forward(writer, block.feed_forward, _before(writer, block.feed_forward_norm, x))
    x = _residual(writer, block.feed_forward_norm, x, y)
    writer.add("ScatterND", "states", "own_cells", x, output="next_states")
    exit_state = writer.layer_norm(x, block.exit_norm)
    writer.add("ScatterND", "exit_states", "active_rows", exit_state, output="next_exit_states")


def _columns(writer: GraphWriter, unit: ConvolutionUnit, x: str) -> str:
    projected = writer.linear(x, unit.in_projection)
    if not unit.glu:
        return projected
    value, gate = writer.add_pair("Split", projected, axis=-1, num_outputs=2)
    return writer.add("Mul", value, writer.add("Sigmoid", gate))


def _taps(writer: GraphWriter, convolution: LightweightConv | DynamicConv, columns: str) -> str:
    """Adds the normalised taps: (rows · H, K) if dynamic, (H, K) if lightweight."""
    kernel_size = convolution.kernel_size
    if isinstance(convolution, LightweightConv):
        weight = convolution.weight
        normal = (
            torch.softmax(weight, dim=-1) if convolution.normalization == "softmax" else F.normalize(weight, dim=-1)
        )
        return writer.constant(normal)
    raw = writer.reshape(writer.linear(columns, convolution.tap_projection), -1, kernel_size)
    if convolution.normalization == "softmax":
        return writer.add("Softmax", raw, axis=-1)
    length = writer.add("ReduceL2", raw, writer.integers(-1), keepdims=1)
    return writer.add("Div", raw, writer.add("Max", length, writer.scalar(1e-12)))


def _convolve_rings(writer: GraphWriter, convolution: LightweightConv | DynamicConv, columns: str) -> str:
    """Adds the product of each active row's ring with its taps in the ring's order: (n, D)."""
    heads, kernel_size, dim = convolution.heads, convolution.kernel_size, convolution.dim
    taps = writer.reshape(_taps(writer, convolution, columns), -1, heads, kernel_size)
    if isinstance(convolution, LightweightConv):
        taps = writer.add("Expand", taps, writer.add("Shape", "tap_places"))
    taps = writer.add("GatherElements", taps, "tap_places", axis=2)
    taps = writer.reshape(taps, -1, heads, 1, kernel_size)
    rings = _of_active_rows(writer, writer.reshape("next_columns", -1, kernel_size * dim))
    rings = writer.reshape(rings, -1, heads, kernel_size, dim // heads)
    return writer.reshape(writer.add("MatMul", taps, rings), -1, dim)


def _attend(writer: GraphWriter, query: str, heads: int, dim: int) -> str:
    """Adds the attention of the active rows, one query each: (n, D)."""
    query = writer.reshape(query, -1, 1, heads, 1, dim // heads)
    key, value, bias = (_of_active_rows(writer, name) for name in ("cross_key", "cross_value", "source_bias"))
    scores = writer.add("Add", writer.add("MatMul", query, key), bias)
    mixed = writer.add("MatMul", writer.add("Softmax", scores, axis=-1), value)
    return writer.reshape(mixed, -1, dim)


def _of_active_rows(writer: GraphWriter, x: str) -> str:
    """Adds a copy of the active rows, (R, ...) → (n, 1, ...)."""
    return writer.add("Gather", x, "active_rows")


def _feed_forward(writer: GraphWriter, feed_forward: FeedForward, x: str) -> str:
    return writer.linear(writer.add("Relu", writer.linear(x, feed_forward.expand)), feed_forward.contract)


def _before(writer: GraphWriter, norm: ResidualNorm, x: str) -> str:
    return writer.layer_norm(x, norm.norm) if norm.placement == "pre" else x


def _residual(writer: GraphWriter, norm: ResidualNorm, x: str, y: str) -> str:
    total = writer.add("Add", x, y)
    return writer.layer_norm(total, norm.norm) if norm.placement == "post" else total


class _EncoderWriter:
    """Writes the encoder on (R · S, D), so that products and biases are one node; convolutions see (R, H, S, D/H)."""

    def __init__(self, writer: GraphWriter) -> None:
        self._writer = writer
        self._length = writer.add("Shape", "source", start=1, end=2)

    def write(self, encoder: Encoder) -> None:
        """Writes source, padding_mask → memory."""
        writer = self._writer
        dim = encoder.embedding.dim
        one = writer.constant(np.array(1, dtype=np.int64))
        zero = writer.constant(np.array(0, dtype=np.int64))
        positions = writer.add("Range", zero, writer.add("Squeeze", self._length), one)
        x = writer.add("Add", _scaled_tokens(writer, encoder.embedding, "source"), _sinusoid(writer, positions, dim))
        x = writer.reshape(x, -1, dim)
        padding = writer.reshape("padding_mask", -1, 1)
        for block in cast("list[EncoderBlock]", list(encoder.blocks)):
            x = self._write_block(block, x, padding)
        x = writer.layer_norm(x, encoder.norm)
        shape = writer.add("Concat", writer.integers(-1), self._length, writer.integers(dim), axis=0)
        writer.add("Reshape", x, shape, output="memory")

    def _write_block(self, block: EncoderBlock, x: str, padding: str) -> str:
        writer, unit = self._writer, block.convolution_unit
        columns = _columns(writer, unit, _before(writer, block.convolution_norm, x))
        columns = writer.add("Where", padding, writer.scalar(0.0), columns)
        mixed = self._convolve(unit.convolution, columns)
        x = _residual(writer, block.convolution_norm, x, writer.linear(mixed, unit.out_projection))
        y = _feed_forward(writer, block.feed_forward, _before(writer, block.feed_forward_norm, x))
        return _residual(writer, block.feed_forward_norm, x, y)

    def _convolve(self, convolution: LightweightConv | DynamicConv, columns: str) -> str:
        """Adds `edgeseq.modules.convolution.banded_product` over whole sentences, (R · S, D) → (R · S, D)."""
        writer, length = self._writer, self._length
        heads, kernel_size, dim = convolution.heads, convolution.kernel_size, convolution.dim
        left = writer.integers(kernel_size // 2)
        taps = _taps(writer, convolution, columns)
        if isinstance(convolution, LightweightConv):
            shape = writer.add("Concat", writer.integers(1, heads), length, writer.integers(kernel_size), axis=0)
            taps = writer.add("Expand", writer.reshape(taps, 1, heads, 1, kernel_size), shape)
        else:
            shape = writer.add("Concat", writer.integers(-1), length, writer.integers(heads, kernel_size), axis=0)
            taps = writer.add("Transpose", writer.add("Reshape", taps, shape), perm=[0, 2, 1, 3])
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
