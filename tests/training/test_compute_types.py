"""Products and tables of every compute type against numpy, and how the ranges of 8-bit activations are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeseq.models import Seq2Seq
from edgeseq.modules import ConvolutionUnit, DecoderBlock, ExitHeads, FeedForward
from edgeseq_export.activation_ranges import ActivationRange, _Observer, measure_ranges
from edgeseq_export.compute_types import (
    FLOAT32,
    LARGEST_FACTOR,
    BlockwiseWeights,
    CandidateHead,
    ComputeType,
    FloatArray,
    Int8,
    Product,
    quantise_columns,
)
from edgeseq_export.graph_writer import IR_VERSION, OPSET, GraphWriter
from edgeseq_runtime.manifest import DType, TensorSpec
from edgeseq_runtime.signatures import GraphInterface
from edgeseq_runtime.tokenizer import EOS_ID
from tiny_bundle import VOCAB_SIZE, tiny_model

READER: nn.Module = nn.Identity()
"""Stands for the module whose product is written."""

STEP = 1 / 32
"""A scale that is a power of two: multiples of its half are ties, exactly."""
WITH_NEGATIVE = ActivationRange(-100 * STEP, 155 * STEP)
WITHOUT_NEGATIVE = ActivationRange(0.0, 255 * STEP)

COMPUTE_TYPES: dict[str, ComputeType] = {
    "float32": FLOAT32,
    "int8": Int8({READER: WITH_NEGATIVE}),
    "int8-weights": BlockwiseWeights(8, {READER: WITH_NEGATIVE}),
    "int4": BlockwiseWeights(4, {READER: WITH_NEGATIVE}),
}
QUANTISED = [name for name in COMPUTE_TYPES if name != "float32"]
BLOCKWISE = ("int8-weights", "int4")

Bytes = NDArray[np.uint8]


def normal(*shape: int, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one_graph(input_spec: TensorSpec, output_spec: TensorSpec, write: Callable[[GraphWriter], object]) -> Any:
    writer = GraphWriter(GraphInterface("part.onnx", (input_spec,), (output_spec,)))
    write(writer)
    return writer.finish()


def spec(name: str, *shape: int | str, dtype: DType = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=list(shape))


def product(
    compute_type: ComputeType, weight: FloatArray, bias: FloatArray | None = None, *, rectify: bool = False
) -> onnx.ModelProto:
    """The graph of one product, x to y."""
    of_torch = None if bias is None else torch.from_numpy(bias)
    wanted = Product("x", torch.from_numpy(weight), of_torch, READER, rectify, output="y")
    inner, columns = weight.shape
    return one_graph(
        spec("x", "rows", inner), spec("y", "rows", columns), lambda writer: compute_type.multiply(writer, wanted)
    )


def table_rows(compute_type: ComputeType, table: FloatArray) -> onnx.ModelProto:
    """The graph of a look-up, ids of two axes to y."""

    def write(writer: GraphWriter) -> None:
        writer.add("Identity", compute_type.look_up(writer, torch.from_numpy(table), "ids"), output="y")

    return one_graph(spec("ids", "rows", "length", dtype="int64"), spec("y", "rows", "length", table.shape[1]), write)


def session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(graph: onnx.ModelProto, **feed: NDArray[Any]) -> FloatArray:
    (found,) = session(graph).run(None, feed)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    return found


def operators(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


def change(graph: onnx.ModelProto, dtype: int, alter: Callable[[NDArray[Any]], NDArray[Any]]) -> onnx.ModelProto:
    """The graph with its largest tensor of a type replaced."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    stored = max(
        (tensor for tensor in changed.graph.initializer if tensor.data_type == dtype),
        key=lambda tensor: int(np.prod(tensor.dims)),
    )
    values = numpy_helper.to_array(stored)
    altered = alter(values.copy())
    assert altered.dtype == values.dtype
    assert not np.array_equal(altered, values), "nothing was changed"
    stored.CopyFrom(numpy_helper.from_array(altered, stored.name))
    return changed


# Weights as integers.


LARGEST = {"int8": LARGEST_FACTOR, "int8-weights": 127, "int4": 7}
"""Integers that weights are rounded to, by the compute type."""


@pytest.mark.parametrize("largest", LARGEST.values())
def test_weights_are_rounded_to_the_nearest_of_their_columns_integers(largest: int) -> None:
    weight = normal(40, 9) * 2.0 ** np.arange(-4, 5).astype(np.float32)
    integers, scales = quantise_columns(weight, largest)
    assert (integers.dtype, scales.dtype) == (np.dtype(np.int8), np.dtype(np.float32))
    assert (integers.shape, scales.shape) == ((40, 9), (9,))
    assert np.abs(integers.astype(int)).max(axis=0).tolist() == [largest] * 9, "part of a range is unused"
    assert (np.abs(integers * scales - weight) <= 0.5001 * scales).all()
    # Controls: integers are cut off instead of rounded; a neighbour's scale; one scale for all columns.
    assert not (np.abs(np.trunc(weight / scales) * scales - weight) <= 0.5001 * scales).all()
    assert not (np.abs(integers * np.roll(scales, 1) - weight) <= 0.5001 * scales).all()
    one = scales.max()
    assert not (np.abs(np.rint(weight / one) * one - weight) <= 0.5001 * scales).all()


@pytest.mark.parametrize("largest", LARGEST.values())
def test_columns_of_zeros_stay_zeros(largest: int) -> None:
    weight = normal(16, 3)
    weight[:, 1] = 0
    integers, scales = quantise_columns(weight, largest)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    assert not integers[:, 1].any()
    assert integers[:, [0, 2]].any(axis=0).all()


# Activations as integers.


@given(low=st.floats(-1e6, 0, width=32, allow_subnormal=False), high=st.floats(0, 1e6, width=32, allow_subnormal=False))
def test_a_range_reaches_its_ends_and_holds_zero_exactly(low: float, high: float) -> None:
    scale, zero_point = ActivationRange(low, high).quantisation()
    assert isinstance(zero_point, int), "zero lies between two integers"
    assert 0 <= zero_point <= 255
    assert scale > 0
    for end in (low, high):
        nearest = np.clip(round(end / scale) + zero_point, 0, 255)
        assert abs((nearest - zero_point) * scale - end) <= 0.5001 * scale


def test_a_range_without_negative_values_has_zero_point_0() -> None:
    assert ActivationRange(0.0, 510.0).quantisation() == (2.0, 0)
    assert ActivationRange(-255.0, 0.0).quantisation() == (1.0, 255)
    assert ActivationRange(-100.0, 155.0).quantisation() == (1.0, 100)


def test_a_range_of_nothing_but_zero_divides_by_no_zero() -> None:
    nothing = ActivationRange(0.0, 0.0)
    assert nothing.quantisation() == (1.0, 0)
    bias = normal(5)
    found = run(product(Int8({READER: nothing}), normal(32, 5), bias), x=np.zeros((3, 32), dtype=np.float32))
    assert np.array_equal(found, np.broadcast_to(bias, (3, 5)))


# Products in float32.


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_float32_multiplies_as_numpy_does(*, biased: bool, rectify: bool) -> None:
    x, weight, bias = normal(33, 48), normal(48, 20, seed=2), normal(20, seed=3) if biased else None
    graph = product(FLOAT32, weight, bias, rectify=rectify)
    expected = (np.maximum(x, 0) if rectify else x) @ weight + (0 if bias is None else bias)
    assert np.abs(run(graph, x=x) - expected).max() < 1e-5
    # Controls: one weight is off, and the graph that has, or has not, a ReLU.
    wrong = change(graph, TensorProto.FLOAT, lambda values: values + 1e-2 * np.eye(*values.shape, dtype=np.float32))
    assert np.abs(run(wrong, x=x) - expected).max() > 1e-3
    assert np.abs(run(product(FLOAT32, weight, bias, rectify=not rectify), x=x) - expected).max() > 1e-3


# Products of integers.


def half_to_even(x: FloatArray) -> FloatArray:
    return np.rint(x)


def half_up(x: FloatArray) -> FloatArray:
    return np.floor(x + np.float32(0.5))


def integer_product(
    x: FloatArray,
    weight: FloatArray,
    bias: FloatArray | None,
    scale: float,
    zero_point: int,
    *,
    rounded: Callable[[FloatArray], FloatArray] = half_to_even,
    largest: int = 255,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `int8` promises, in numpy's integers; and how much one integer is worth in each column."""
    quantised = np.clip(rounded(x / np.float32(scale)) + zero_point, 0, largest).astype(np.int64)
    integers, scales = quantise_columns(weight)
    worth = np.float64(np.float32(scale)) * scales.astype(np.float64)
    return ((quantised - zero_point) @ integers.astype(np.int64)) * worth + (0 if bias is None else bias), worth


def off_by(found: FloatArray, expected: tuple[NDArray[np.float64], NDArray[np.float64]]) -> float:
    """The largest difference, in integers."""
    values, worth = expected
    return float((np.abs(found - values) / worth).max())


SAME = 0.1
"""Of an integer: what rounding to float32 may do. A wrong integer anywhere makes at least 1."""


def ties_and_beyond(rows: int, inner: int, *, step: float = STEP) -> FloatArray:
    """Activations of which half lie in the middle between two integers, and some outside any range."""
    halves = np.random.default_rng(4).integers(-600, 600, (rows, inner))
    return (halves * (step / 2)).astype(np.float32)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activations", [WITH_NEGATIVE, WITHOUT_NEGATIVE, ActivationRange(-3.21, 4.56)])
def test_int8_multiplies_exactly_as_integers_do(activations: ActivationRange, *, biased: bool) -> None:
    scale, zero_point = activations.quantisation()
    x, weight, bias = ties_and_beyond(33, 48), normal(48, 20), normal(20, seed=3) if biased else None
    graph = product(Int8({READER: activations}), weight, bias)
    found = run(graph, x=x)
    expected = integer_product(x, weight, bias, scale, zero_point)
    assert off_by(found, expected) < SAME
    # Control: it is not what float32 makes of the same numbers.
    assert off_by((x @ weight).astype(np.float32), expected) > 1
    # Controls: one integer of a weight is off by one; activations are cut off elsewhere; zero is another integer.
    wrong = change(graph, TensorProto.INT8, lambda integers: integers - np.eye(*integers.shape, dtype=np.int8))
    assert off_by(run(wrong, x=x), expected) > 0.9
    assert off_by(found, integer_product(x, weight, bias, scale, zero_point, largest=254)) > 0.9
    assert off_by(found, integer_product(x, weight, bias, scale, zero_point + 1)) > 0.9


def test_int8_rounds_ties_to_even() -> None:
    scale, zero_point = WITH_NEGATIVE.quantisation()
    assert scale == STEP
    x, weight = ties_and_beyond(33, 48), normal(48, 20)
    found = run(product(Int8({READER: WITH_NEGATIVE}), weight), x=x)
    assert off_by(found, integer_product(x, weight, None, scale, zero_point)) < SAME
    assert off_by(found, integer_product(x, weight, None, scale, zero_point, rounded=half_up)) > 0.9


def add_in_pairs(x: NDArray[np.int64], weight: NDArray[np.int64]) -> NDArray[np.int64]:
    """A product as x86 processors without VNNI make it: what two factors give is cut off at 16 bits, then added."""
    bounds = np.iinfo(np.int16)
    pairs = x[:, ::2, None] * weight[::2] + x[:, 1::2, None] * weight[1::2]
    return np.clip(pairs, bounds.min, bounds.max).sum(axis=1)


def test_int8_adds_the_largest_integers_on_every_processor() -> None:
    x, weight = np.full((3, 64), 255 * STEP, dtype=np.float32), np.ones((64, 20), dtype=np.float32)
    weight[:, 1::2] = -1
    graph = product(Int8({READER: WITHOUT_NEGATIVE}), weight)
    expected = np.broadcast_to(64 * 255 * STEP * weight[0], (3, 20))
    assert np.allclose(run(graph, x=x), expected, rtol=1e-6)
    # What this machine's kernels need not show: no pair of products is cut off. Control: weights up to 127.
    (integers,) = (
        numpy_helper.to_array(stored) for stored in graph.graph.initializer if tuple(stored.dims) == (64, 20)
    )
    largest = np.full((3, 64), 255, dtype=np.int64)
    for factor, right in ((1, True), (127 / 64, False)):
        factors = np.rint(integers * factor).astype(np.int64)
        assert np.array_equal(add_in_pairs(largest, factors), largest @ factors) == right


@pytest.mark.parametrize("activations", [WITHOUT_NEGATIVE, WITH_NEGATIVE])
def test_int8_rectifies_whether_its_zero_point_does_or_a_node(activations: ActivationRange) -> None:
    scale, zero_point = activations.quantisation()
    x, weight, bias = ties_and_beyond(33, 48), normal(48, 20), normal(20, seed=3)
    graph = product(Int8({READER: activations}), weight, bias, rectify=True)
    expected = integer_product(np.maximum(x, 0), weight, bias, scale, zero_point)
    assert off_by(run(graph, x=x), expected) < SAME
    assert operators(graph).count("Relu") == (1 if zero_point else 0)
    # Control: where negative values have integers, the product alone does not rectify.
    plain = run(product(Int8({READER: activations}), weight, bias), x=x)
    assert (off_by(plain, expected) > 1) == (zero_point > 0)


def test_int8_quantises_what_two_products_read_once() -> None:
    """Key and value read the same; products of another range do not share the integers."""
    narrow, other = nn.Identity(), nn.Identity()
    ranges: dict[nn.Module, ActivationRange] = {
        READER: WITH_NEGATIVE,
        other: WITH_NEGATIVE,
        narrow: ActivationRange(-1.0, 1.0),
    }
    weights: dict[nn.Module, FloatArray] = {reader: normal(32, 6, seed=n) for n, reader in enumerate(ranges)}
    compute_type = Int8(ranges)

    def written(*readers: nn.Module) -> onnx.ModelProto:
        def write(writer: GraphWriter) -> None:
            found = [
                compute_type.multiply(writer, Product("x", torch.from_numpy(weights[reader]), None, reader))
                for reader in readers
            ]
            writer.add("Concat", *found, axis=-1, output="y")

        return one_graph(spec("x", "rows", 32), spec("y", "rows", 12), write)

    x = ties_and_beyond(5, 32)
    for readers, nodes in (((READER, other), 1), ((READER, narrow), 2)):
        graph = written(*readers)
        assert operators(graph).count("QuantizeLinear") == nodes
        expected = [
            integer_product(x, weights[reader], None, *ranges[reader].quantisation())[0].astype(np.float32)
            for reader in readers
        ]
        assert np.allclose(run(graph, x=x), np.concatenate(expected, axis=-1), rtol=1e-5, atol=1e-5)


# Products with weights of a scale for each run.


def dequantised(weight: FloatArray, largest: int, length: int) -> FloatArray:
    """A weight (in, out) as its integers have it, with a scale for each run of a column."""
    runs = [quantise_columns(weight[start : start + length], largest) for start in range(0, len(weight), length)]
    return np.concatenate([integers * scales for integers, scales in runs])


def run_length(graph: onnx.ModelProto) -> int:
    """How long the runs of a graph's only product are."""
    (node,) = (node for node in graph.graph.node if node.op_type == "MatMulNBits")
    (length,) = (attribute.i for attribute in node.attribute if attribute.name == "block_size")
    return length


@pytest.mark.parametrize("name", BLOCKWISE)
@pytest.mark.parametrize("inner", [32, 48, 96, 160, 256])
def test_blockwise_weights_are_stored_as_the_nearest_integers_of_their_runs(name: str, inner: int) -> None:
    """Rows of the identity are 8-bit integers already: what comes out are the weights."""
    weight = normal(inner, 20)
    weight[:16] *= 4  # of one run
    graph = product(COMPUTE_TYPES[name], weight)
    length = run_length(graph)
    assert inner % length == 0
    identity = np.eye(inner, dtype=np.float32)
    found = run(graph, x=identity)
    assert np.allclose(found, dequantised(weight, LARGEST[name], length), rtol=1e-5, atol=1e-6)
    # Controls: runs of another length, and of the other number of bits.
    assert not np.allclose(found, dequantised(weight, LARGEST[name], length // 2), rtol=1e-3, atol=1e-3)
    assert not np.allclose(found, dequantised(weight, 134 - LARGEST[name], length), rtol=1e-3, atol=1e-3)


def close(found: FloatArray, expected: FloatArray) -> bool:
    """Within what 8-bit activations may change: 2 % of the largest value."""
    return bool(np.abs(found - expected).max() < 0.02 * np.abs(expected).max())


def swap_neighbours(packed: Bytes) -> Bytes:
    """Exchanges two weights in each pair: the nibbles of bytes, or bytes."""
    return packed.reshape(*packed.shape[:-1], -1, 2)[..., ::-1].reshape(packed.shape)


def swap_nibbles(packed: Bytes) -> Bytes:
    swapped: Bytes = ((packed << 4) | (packed >> 4)).astype(np.uint8)
    return swapped


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("inner", [32, 48, 96, 256])
@pytest.mark.parametrize("name", BLOCKWISE)
def test_blockwise_weights_multiply_as_their_dequantised_weights_do(
    name: str, inner: int, *, biased: bool, rectify: bool
) -> None:
    x, weight, bias = normal(33, inner), normal(inner, 20, seed=2), normal(20, seed=3) if biased else None
    graph = product(COMPUTE_TYPES[name], weight, bias, rectify=rectify)
    rounded = dequantised(weight, LARGEST[name], run_length(graph))
    expected = (np.maximum(x, 0) if rectify else x) @ rounded + (0 if bias is None else bias)
    assert close(run(graph, x=x), expected)
    # Controls: neighbouring weights are swapped; one scale is wrong; there is a ReLU too many or too few.
    swap = swap_nibbles if name == "int4" else swap_neighbours
    assert not close(run(change(graph, TensorProto.UINT8, swap), x=x), expected)

    def scale_once(scales: FloatArray) -> FloatArray:
        scales[3] *= 3
        return scales

    assert not close(run(change(graph, TensorProto.FLOAT, scale_once), x=x), expected)
    other = product(COMPUTE_TYPES[name], weight, bias, rectify=not rectify)
    assert not close(run(other, x=x), expected)


@pytest.mark.parametrize("name", BLOCKWISE)
def test_a_width_that_cannot_be_cut_into_runs_stays_float32(name: str) -> None:
    def written(inner: int) -> list[onnx.ModelProto]:
        weight, bias = normal(inner, 20), normal(20, seed=2)
        return [product(COMPUTE_TYPES[kind], weight, bias, rectify=True) for kind in (name, "float32")]

    found, float32 = written(40)
    assert found == float32
    assert operators(found) == ["Relu", "Gemm"]
    # Control: a width that can.
    found, float32 = written(48)
    assert found != float32
    assert operators(found) == ["Relu", "MatMulNBits"]


# A row is computed by itself.


def unlike_rows(inner: int) -> FloatArray:
    """Rows of very different size."""
    return normal(300, inner) * (2.0 ** np.random.default_rng(5).integers(-3, 4, (300, 1))).astype(np.float32)


def differing_batches(graph: onnx.ModelProto, x: FloatArray) -> list[int]:
    """Numbers of rows at which any of them differs in a bit from what it is alone."""
    of_graph = session(graph)
    single = np.concatenate([of_graph.run(None, {"x": row[None]})[0] for row in x[:33]])
    batches = {rows: of_graph.run(None, {"x": x[:rows]})[0][:33] for rows in (2, 3, 4, 5, 8, 16, 31, 33, 300)}
    return [rows for rows, found in batches.items() if not np.array_equal(found, single[:rows])]


@pytest.mark.parametrize("columns", [3, 40, 129])
@pytest.mark.parametrize("inner", [16, 32, 48, 64, 96, 128, 256, 512])
@pytest.mark.parametrize("name", COMPUTE_TYPES)
def test_a_row_gives_the_same_bits_in_every_batch(name: str, inner: int, columns: int) -> None:
    graph = product(COMPUTE_TYPES[name], normal(inner, columns), normal(columns, seed=2))
    assert differing_batches(graph, unlike_rows(inner)) == []


def test_one_scale_for_all_rows_is_seen() -> None:
    """Control: dynamic quantisation, which takes its scale from the whole batch."""
    weight, scales = quantise_columns(normal(32, 40))
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["integers", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["integers", "weight", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "scale"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "scales"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(scales, "scales")]
    graph = helper.make_model(
        helper.make_graph(nodes, "dynamic", [x], [y], constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    assert differing_batches(graph, unlike_rows(32)) != []


# Tables.

IDS = np.array([[3, 0, 3], [11, 7, 5]])


def test_float32_looks_rows_up_as_they_are() -> None:
    table = normal(12, 8)
    found = run(table_rows(FLOAT32, table), ids=IDS)
    assert np.array_equal(found, table[IDS])
    assert not np.array_equal(found, table[IDS - 1])


@pytest.mark.parametrize("name", QUANTISED)
def test_tables_are_rounded_to_8_bits_with_a_scale_per_row(name: str) -> None:
    table = normal(12, 8) * 2.0 ** np.arange(-6, 6, dtype=np.float32)[:, None]
    table[7] = 0
    integers, scales = quantise_columns(table.T)
    rounded = integers.T * scales[:, None]
    found = run(table_rows(COMPUTE_TYPES[name], table), ids=IDS)
    assert np.array_equal(found, rounded[IDS])
    assert (np.abs(found - table[IDS]) <= 0.5001 * scales[IDS][..., None]).all()
    assert not found[1, 1].any()
    # Control: another row's scale.
    assert not np.array_equal(found, (integers.T * np.roll(scales, 1)[:, None])[IDS])


# Ranges of activations.


def id_pairs(number: int, seed: int = 6) -> list[tuple[list[int], list[int]]]:
    """Source and target ids, EOS last in both."""
    generator = np.random.default_rng(seed)
    return [
        (
            [*generator.integers(EOS_ID + 1, VOCAB_SIZE, generator.integers(1, 12)).tolist(), EOS_ID],
            [*generator.integers(EOS_ID + 1, VOCAB_SIZE, generator.integers(1, 12)).tolist(), EOS_ID],
        )
        for _ in range(number)
    ]


def readers_of(model: Seq2Seq) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | ExitHeads)}


@contextmanager
def recorded(model: Seq2Seq) -> Iterator[dict[str, list[Tensor]]]:
    """Keeps all that each reader reads."""
    read: dict[str, list[Tensor]] = {name: [] for name in readers_of(model)}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: read[name].append(inputs[0].detach().flatten())

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in readers_of(model).items()]
    yield read
    for handle in handles:
        handle.remove()


def outside(values: Tensor, covered: ActivationRange) -> float:
    """The share of values that a range cuts off by more than the half of an integer."""
    scale, _ = covered.quantisation()
    return float(((values < covered.low - scale / 2) | (values > covered.high + scale / 2)).float().mean())


@pytest.mark.parametrize(
    "changes", [{}, {"norm": "post", "mixer": "lightweight"}, {"mixer": "attention", "glu": False}]
)
def test_ranges_cover_what_every_reader_reads(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    with recorded(model) as read:
        ranges = measure_ranges(model, id_pairs(30), seed=1)
    assert set(ranges) == set(readers_of(model).values())
    for name, module in readers_of(model).items():
        values, found = torch.cat(read[name]), ranges[module]
        assert min(0.0, float(values.min())) <= found.low <= 0 <= found.high <= max(0.0, float(values.max())), name
        assert outside(values, found) < 0.01, name
        # Control: half of the range does not.
        assert outside(values, ActivationRange(found.low / 2, found.high / 2)) > 0.01, name


def test_ranges_are_the_same_whenever_they_are_measured() -> None:
    model = tiny_model()
    first, again, otherwise = (measure_ranges(model, id_pairs(10), seed) for seed in (1, 1, 2))
    assert first == again
    assert first != otherwise


def test_what_a_rectifier_gives_has_no_negative_range() -> None:
    model = tiny_model()
    ranges = measure_ranges(model, id_pairs(10), seed=1)
    contracts = [module.contract for module in model.modules() if isinstance(module, FeedForward)]
    assert len(contracts) == 5
    assert [ranges[module].low for module in contracts] == [0.0] * 5
    assert [ranges[module].quantisation()[1] for module in contracts] == [0] * 5
    # Control: what reads anything else does have one.
    assert all(covered.low < 0 for module, covered in ranges.items() if module not in contracts)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_measuring_leaves_the_model_as_it_was() -> None:
    """Also where it fails half-way."""
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    (head,) = (module for module in model.modules() if isinstance(module, ExitHeads))
    handle = head.register_forward_hook(lambda *_: seen.append(hooks(model)))
    measure_ranges(model, id_pairs(2), seed=1)
    handle.remove()
    assert hooks(model) == 0
    assert min(seen) == len(readers_of(model)), "nothing was measured"
    with pytest.raises(IndexError):
        measure_ranges(model, [*id_pairs(1), ([VOCAB_SIZE, EOS_ID], [EOS_ID])], seed=1)
    assert hooks(model) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_copied_states_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block 1 gives states ten times as large as block 2; block 3 reads them where a token stopped at block 1."""
    model = tiny_model(norm="post")
    first, third = model.decoder.blocks[0], model.decoder.blocks[2]
    assert isinstance(first, DecoderBlock)
    assert isinstance(third, DecoderBlock)
    assert isinstance(third.mixer, ConvolutionUnit)
    with torch.no_grad():
        first.feed_forward_norm.norm.weight.mul_(10)
    reader = third.mixer.in_projection
    found = measure_ranges(model, id_pairs(30), seed=1)[reader]
    # Control: no token stops below block 4.
    blocks = len(model.decoder.blocks)
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, **_: torch.full(shape, blocks))
    without = measure_ranges(model, id_pairs(30), seed=1)[reader]
    assert found.high > 3 * without.high
    assert found.low < 3 * without.low


def best_range(values: FloatArray) -> ActivationRange:
    """The range of values that are read in ten parts."""
    observer = _Observer(np.random.default_rng(1))
    for part in np.split(values, 10):
        observer.add(torch.from_numpy(part))
    return observer.best_range()


def squared_error(values: FloatArray, covered: ActivationRange) -> float:
    scale, zero_point = covered.quantisation()
    integers = np.clip(np.rint(values / scale) + zero_point, 0, 255)
    return float(np.square((integers - zero_point) * scale - values).mean())


@pytest.mark.parametrize("signs", [(1,), (1, -1)])
def test_a_range_leaves_out_outliers_that_would_cost_precision(signs: tuple[int, ...]) -> None:
    """On the one side that there is, as after a rectifier, or on both."""
    values = normal(1_000_000) if len(signs) > 1 else np.abs(normal(1_000_000))
    lowest, highest = min(0.0, float(values.min())), float(values.max())
    for index, sign in enumerate(signs):
        values[777 + index] = 20 * sign
    found = best_range(values)
    assert found.high < 10
    assert found.low > -10
    # The others gain by it, and so does the whole.
    whole = ActivationRange(float(values.min()), 20.0)
    assert squared_error(values, found) < 0.6 * squared_error(values, whole)
    # Control: without outliers, the range goes about as far as what was read.
    values[777 : 777 + len(signs)] = 0
    without = best_range(values)
    assert lowest <= without.low <= 0.7 * lowest
    assert 0.7 * highest < without.high <= highest


def test_a_range_of_even_values_goes_to_their_ends() -> None:
    even = np.random.default_rng(1).uniform(-2, 3, 20_000).astype(np.float32)
    assert best_range(even) == ActivationRange(float(even.min()), float(even.max()))


def test_a_range_has_about_the_smallest_error_of_those_it_might_have_had() -> None:
    values = np.random.default_rng(2).laplace(size=200_000).astype(np.float32)
    lowest, highest = float(values.min()), float(values.max())
    errors = [
        squared_error(values, ActivationRange(share * lowest, share * highest)) for share in np.linspace(0.3, 1, 71)
    ]
    assert squared_error(values, best_range(values)) < 1.2 * min(errors)
    # Controls: neither the whole nor the least will do.
    assert errors[-1] > 1.2 * min(errors)
    assert errors[0] > 1.2 * min(errors)


def test_a_range_of_what_is_always_zero_is_nothing_but_zero() -> None:
    assert best_range(np.zeros(100, dtype=np.float32)) == ActivationRange(0.0, 0.0)


# Exit heads for each row's candidates.


def candidate_products(compute_type: ComputeType, head: CandidateHead) -> onnx.ModelProto:
    """The graph that takes weights for ids, and multiplies x by them, to y."""
    x, ids = spec("x", "rows", head.table.shape[1]), spec("ids", "rows", "candidates", dtype="int64")
    y = spec("y", "rows", "candidates")
    writer = GraphWriter(GraphInterface("part.onnx", (x, ids), (y,)))
    compute_type.take_candidates(writer, head, "ids")
    writer.add("Identity", compute_type.multiply_candidates(writer, "x", head.reader), output="y")
    return writer.finish()


CANDIDATES = np.array([[3, 9, 20, 41], [0, 5, 6, 7], [49, 1, 1, 30]])


@pytest.mark.parametrize("name", COMPUTE_TYPES)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_candidates_have_the_products_of_their_columns(name: str, scale: float) -> None:
    """In all types of fewer bits, those of `int8`."""
    table, x = normal(50, 32), normal(3, 32, seed=2)
    head = CandidateHead(torch.from_numpy(table), scale, READER)
    found = run(candidate_products(COMPUTE_TYPES[name], head), x=x, ids=CANDIDATES)
    whole = COMPUTE_TYPES["float32" if name == "float32" else "int8"]
    wanted = np.take_along_axis(run(product(whole, np.ascontiguousarray(scale * table.T)), x=x), CANDIDATES, axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    # Control: other columns.
    assert not np.allclose(found, np.roll(wanted, 1, axis=1), atol=0.1)


@pytest.mark.parametrize("name", COMPUTE_TYPES)
def test_products_with_candidates_depend_on_no_other_row_and_no_padding(name: str) -> None:
    table, x = normal(400, 64), normal(9, 64, seed=2)
    ids = np.random.default_rng(3).integers(0, 400, (9, 352))
    opened = session(candidate_products(COMPUTE_TYPES[name], CandidateHead(torch.from_numpy(table), 1.0, READER)))
    (together,) = opened.run(None, {"x": x, "ids": ids})
    for row in range(9):
        width = 32 * (row + 1)
        (alone,) = opened.run(None, {"x": x[row : row + 1], "ids": ids[row : row + 1, :width]})
        np.testing.assert_array_equal(alone[0], together[row, :width])


def test_weights_of_candidates_are_integers_in_fewer_bits() -> None:
    head = CandidateHead(torch.from_numpy(normal(50, 32)), 1.0, READER)
    for name, compute_type in COMPUTE_TYPES.items():
        found = operators(candidate_products(compute_type, head))
        assert ("MatMulInteger" in found, "MatMul" in found) == ((False, True) if name == "float32" else (True, False))
