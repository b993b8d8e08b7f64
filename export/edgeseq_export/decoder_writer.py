"""Writes a step of a decoder block: for the active rows of a batch, or for a row alone.

Two ideas keep these graphs short:

*   State is read and written through indices, inside the graph. Nothing is gathered, moved or stored outside it.
*   The columns of a row lie in a ring of places and never move. Instead the taps of a convolution, which are few, are
    brought into the order of the ring, and attention, which does not ask for order, is told which places to leave out.

Dimensions: R rows, S source positions, D channels, H heads, K kernel size, C places of a ring; n rows that run the
block, m pending columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from edgeseq.modules import (
    ConvolutionUnit,
    DecoderBlock,
    DynamicConv,
    FeedForward,
    LightweightConv,
    ResidualNorm,
    SelfAttention,
)
from edgeseq_export.layer_writer import LayerWriter


@dataclass(frozen=True)
class BlockNames:
    """What a graph calls the tensors of one block."""

    tensors: dict[str, tuple[str, str | None]]
    """`columns`, or `keys` and `values`: the input that holds them, and a name for it with its columns replaced."""
    cross_key: str
    cross_value: str
    written_columns: str
    """The cells of the columns that are made, (written, 1)."""
    places: str
    """`tap_places` or `place_bias`, of the rows that run the block."""
    active_rows: str | None
    """The rows that run the block, (n, 1); None where all do, in order."""
    rows: str
    """Any input whose first axis is that of all rows."""


def write_block(
    writer: LayerWriter, block: DecoderBlock, names: BlockNames, x: str, columns: str
) -> tuple[str, list[str]]:
    """Adds a step of a block.

    Args:
        writer: of the graph.
        block: what is computed.
        names: of its tensors.
        x: the rows' newest token as block n - 1 left it, (n, D).
        columns: of what columns are made: (n + m, D), x first.

    Returns:
        What the next block reads, (n, D), and the tensors of columns with those that are made.
    """
    mixer = block.mixer
    read = before(writer, block.mixer_norm, columns)
    if isinstance(mixer, SelfAttention):
        own = read if columns == x else before(writer, block.mixer_norm, x)
        mixed, written = _attend_rings(writer, mixer, names, read, own)
    else:
        assert isinstance(mixer, ConvolutionUnit)
        mixed, written = _convolve_rings(writer, mixer, names, read)
    x = residual(writer, block.mixer_norm, x, mixed)
    attention = block.cross_attention
    query = writer.linear(before(writer, block.cross_norm, x), attention.query_projection)
    mixed = _attend(writer, names, query, attention.heads, mixer.dim)
    x = residual(writer, block.cross_norm, x, writer.linear(mixed, attention.output_projection))
    y = feed_forward(writer, block.feed_forward, before(writer, block.feed_forward_norm, x))
    return residual(writer, block.feed_forward_norm, x, y), written


def stop_score(writer: LayerWriter, exit_states: str, weight: str, output: str | None = None) -> str:
    """Adds the product of exit states (n, D) and a weight (1, D), each row by itself: (n,)."""
    # A matrix product would give a row alone other last bits than rows together, and they would part at a threshold.
    products = writer.add("Mul", exit_states, weight)
    return writer.add("ReduceSum", products, writer.integers(1), keepdims=0, output=output)


def before(writer: LayerWriter, norm: ResidualNorm, x: str) -> str:
    """Adds what comes before a layer."""
    return writer.layer_norm(x, norm.norm) if norm.placement == "pre" else x


def residual(writer: LayerWriter, norm: ResidualNorm, x: str, y: str) -> str:
    """Adds what comes after a layer that made y of x."""
    total = writer.add("Add", x, y)
    return writer.layer_norm(total, norm.norm) if norm.placement == "post" else total


def feed_forward(writer: LayerWriter, layer: FeedForward, x: str) -> str:
    """Adds a feed-forward layer."""
    return writer.linear(writer.linear(x, layer.expand), layer.contract, rectify=True)


def columns_of(writer: LayerWriter, unit: ConvolutionUnit, x: str) -> str:
    """Adds what a convolution reads, (rows, D)."""
    projected = writer.linear(x, unit.in_projection)
    if not unit.glu:
        return projected
    value, gate = writer.split(projected, 2, axis=-1)
    return writer.add("Mul", value, writer.add("Sigmoid", gate))


def raw_taps(writer: LayerWriter, convolution: DynamicConv, columns: str, *shape: int) -> str:
    """Adds the taps of a dynamic convolution as they are predicted, not yet normalised: (rows, ...)."""
    return writer.reshape(writer.linear(columns, convolution.tap_projection), -1, *shape)


def normalise_taps(writer: LayerWriter, convolution: DynamicConv, taps: str) -> str:
    """Adds their normalisation over the last axis."""
    if convolution.normalization == "softmax":
        return writer.add("Softmax", taps, axis=-1)
    length = writer.add("ReduceL2", taps, writer.integers(-1), keepdims=1)
    return writer.add("Div", taps, writer.add("Max", length, writer.scalar(1e-12)))


def fixed_taps(writer: LayerWriter, convolution: LightweightConv, *shape: int) -> str:
    """Adds the normalised taps of a lightweight convolution."""
    weight = convolution.weight
    softmax = convolution.normalization == "softmax"
    normal = torch.softmax(weight, dim=-1) if softmax else F.normalize(weight, dim=-1)
    return writer.constant(normal.view(shape))


def _write_columns(writer: LayerWriter, names: BlockNames, tensor: str, columns: str, column_dim: int) -> str:
    """Adds the replacement of the written columns in a tensor and returns the name of what it gives."""
    updates = writer.reshape(columns, -1, column_dim)
    held, replaced = names.tensors[tensor]
    return writer.add("ScatterND", held, names.written_columns, updates, output=replaced)


def _convolve_rings(writer: LayerWriter, unit: ConvolutionUnit, names: BlockNames, read: str) -> tuple[str, list[str]]:
    """Adds the unit on each row's ring, with its taps brought into the ring's order: (n, D), and the rings."""
    convolution = unit.convolution
    heads, kernel_size, dim = convolution.heads, convolution.kernel_size, convolution.dim
    columns = columns_of(writer, unit, read)
    written = _write_columns(writer, names, "columns", columns, dim // heads)
    shape = (1, heads, 1, kernel_size)
    if isinstance(convolution, LightweightConv):
        taps = writer.add("Expand", fixed_taps(writer, convolution, 1, *shape), writer.add("Shape", names.places))
        taps = writer.add("GatherElements", taps, names.places, axis=4)
    else:
        taps = writer.add("GatherElements", raw_taps(writer, convolution, columns, *shape), names.places, axis=4)
        taps = normalise_taps(writer, convolution, taps)
    ring = (heads, kernel_size, dim // heads)
    if names.active_rows is None:
        rings = writer.reshape(written, -1, 1, *ring)
    else:
        rings = writer.add("Gather", writer.reshape(written, -1, *ring), names.active_rows)
    mixed = writer.reshape(writer.add("MatMul", taps, rings), -1, dim)
    return writer.linear(mixed, unit.out_projection), [written]


def _attend_rings(
    writer: LayerWriter, attention: SelfAttention, names: BlockNames, read: str, x: str
) -> tuple[str, list[str]]:
    """Adds the attention of each row (n, D) to all places of its rings, its own too: (n, D), and the rings."""
    heads, dim = attention.heads, attention.dim
    head_dim = dim // heads
    ring_axes = (heads,) if names.active_rows else (1, heads)
    if attention.window:
        shape = writer.integers(-1, *ring_axes, attention.window, head_dim)
    else:
        rows = writer.add("Shape", names.rows, start=0, end=1)
        shape = writer.add("Concat", rows, writer.integers(*ring_axes, -1, head_dim), axis=0)
    rings, all_written = [], []
    for tensor, projection in (("keys", attention.key_projection), ("values", attention.value_projection)):
        written = _write_columns(writer, names, tensor, writer.linear(read, projection), head_dim)
        all_written.append(written)
        ring = writer.add("Reshape", written, shape)
        rings.append(writer.add("Gather", ring, names.active_rows) if names.active_rows else ring)  # (n, 1, H, C, D/H)
    query = writer.reshape(writer.linear(x, attention.query_projection, attention.scale), -1, 1, heads, head_dim, 1)
    # The query as a column spares transposing the keys; a row of scores then is the same numbers.
    scores = writer.reshape(writer.add("MatMul", rings[0], query), 0, 0, 0, 1, -1)
    weights = writer.add("Softmax", writer.add("Add", scores, names.places), axis=-1)
    mixed = writer.reshape(writer.add("MatMul", weights, rings[1]), -1, dim)
    return writer.linear(mixed, attention.output_projection), all_written


def _attend(writer: LayerWriter, names: BlockNames, query: str, heads: int, dim: int) -> str:
    """Adds the attention of the rows to their sources, one query each: (n, D)."""
    sources = (names.cross_key, names.cross_value, "source_bias")
    if names.active_rows is None:
        key, value, bias = sources
        query = writer.reshape(query, -1, heads, 1, dim // heads)
    else:
        key, value, bias = (writer.add("Gather", source, names.active_rows) for source in sources)
        query = writer.reshape(query, -1, 1, heads, 1, dim // heads)
    scores = writer.add("Add", writer.add("MatMul", query, key), bias)
    mixed = writer.add("MatMul", writer.add("Softmax", scores, axis=-1), value)
    return writer.reshape(mixed, -1, dim)
