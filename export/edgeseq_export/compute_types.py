"""How the graphs of a bundle keep their weights and multiply by them.

Whatever the type, each row of a batch is computed by itself, so that a sentence's result never depends on its batch
mates. That rules out onnxruntime's dynamic quantisation, which has one scale for all rows of an activation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from edgeseq_export.activation_ranges import ActivationRange
from edgeseq_export.graph_writer import ONNXRUNTIME_DOMAIN, GraphWriter
from edgeseq_runtime.manifest import GraphRole
from edgeseq_runtime.records import ComputeTypeName

Int8Array = NDArray[np.int8]
FloatArray = NDArray[np.float32]

LARGEST_FACTOR = 64
"""Of 8-bit weights that meet 8-bit activations.

x86 processors without VNNI add two such products in 16 bits, and cut off what is more: 2 * 255 * 64 < 2 ** 15.
"""


@dataclass(frozen=True)
class Product:
    """A product of activations and weights, to be written."""

    x: str
    """The activations, (rows, in)."""
    weight: Tensor
    """(in, out)."""
    bias: Tensor | None
    """(out,), added to the result."""
    reader: nn.Module
    """The module that reads x."""
    rectify: bool = False
    """Whether x goes through a ReLU first."""
    output: str | None = None
    """Name of the result, where it is an output of the graph."""


@dataclass(frozen=True)
class CandidateHead:
    """An exit head whose weights for candidates are to be taken from a table."""

    table: Tensor
    """(vocab, d), times `scale` the head's weight."""
    scale: float
    reader: nn.Module
    """The module that reads the exit states."""


class ComputeType(Protocol):
    """A way to write products and tables."""

    def multiply(self, writer: GraphWriter, product: Product) -> str:
        """Adds a product and returns the name of its result, (rows, out)."""

    def look_up(self, writer: GraphWriter, table: Tensor, ids: str) -> str:
        """Adds rows of a table (entries, d), chosen by ids of any shape, and returns their name: (..., d)."""

    def take_candidates(self, writer: GraphWriter, head: CandidateHead, ids: str) -> None:
        """Adds a head's weights for candidates, ids (rows, candidates): `candidate_weights` and what goes with them."""

    def multiply_candidates(self, writer: GraphWriter, x: str, reader: nn.Module) -> str:
        """Adds the products of activations (rows, d), each row with its own candidates: (rows, candidates).

        `reader` is the module that reads x.
        """


class Float32:
    """`float32`: everything as it was trained."""

    def multiply(self, writer: GraphWriter, product: Product) -> str:
        """Adds a product."""
        x = writer.add("Relu", product.x) if product.rectify else product.x
        weight = writer.constant(product.weight.contiguous())
        if product.bias is None:
            return writer.add("MatMul", x, weight, output=product.output)
        return writer.add("Gemm", x, weight, writer.constant(product.bias), output=product.output)

    def look_up(self, writer: GraphWriter, table: Tensor, ids: str) -> str:
        """Adds rows of a table."""
        return writer.add("Gather", writer.constant(table), ids)

    def take_candidates(self, writer: GraphWriter, head: CandidateHead, ids: str) -> None:
        """Adds weights for candidates."""
        rows = writer.add("Mul", writer.add("Gather", writer.constant(head.table), ids), writer.scalar(head.scale))
        writer.add("Transpose", rows, perm=[0, 2, 1], output="candidate_weights")

    def multiply_candidates(self, writer: GraphWriter, x: str, reader: nn.Module) -> str:
        """Adds products with candidates."""
        del reader
        # A product of its own for each row, so that no row's bits depend on others.
        products = writer.add("MatMul", writer.add("Unsqueeze", x, writer.integers(1)), "candidate_weights")
        return writer.add("Squeeze", products, writer.integers(1))


FLOAT32 = Float32()


class _QuantisedTables:
    """Tables of 8 bits, with a scale per row.

    So are the weights for candidates: against float32 they are a quarter of what each step reads, and against runs
    of a column (see `BlockwiseWeights`) the kernel needs no preparation, which would be once per sentence.
    """

    def __init__(self, ranges: Mapping[nn.Module, ActivationRange]) -> None:
        """Takes what each module reads, as it was measured."""
        self._ranges = ranges

    def look_up(self, writer: GraphWriter, table: Tensor, ids: str) -> str:
        """Adds rows of a table."""
        quantised, scales = quantise_columns(_array(table.T))
        rows = writer.add("Gather", writer.constant(quantised.T), ids)
        of_rows = writer.add("Gather", writer.constant(scales[:, None]), ids)
        return writer.add("Mul", writer.add("Cast", rows, to=TensorProto.FLOAT), of_rows)

    def take_candidates(self, writer: GraphWriter, head: CandidateHead, ids: str) -> None:
        """Adds weights for candidates, and what their products with exit states of 8 bits are to be multiplied by."""
        quantised, scales = quantise_columns(_array(head.table.T))
        rows = writer.add("Gather", writer.constant(quantised.T), ids)
        writer.add("Transpose", rows, perm=[0, 2, 1], output="candidate_weights")
        x_scale, _ = self._ranges[head.reader].quantisation()
        of_rows = writer.add("Gather", writer.constant(scales), ids)
        writer.add("Mul", of_rows, writer.scalar(head.scale * x_scale), output="candidate_scales")

    def multiply_candidates(self, writer: GraphWriter, x: str, reader: nn.Module) -> str:
        """Adds products with candidates: of integers, exactly."""
        scale, zero_point = self._ranges[reader].quantisation()
        x_zero = writer.constant(np.array(zero_point, dtype=np.uint8))
        x = writer.add("QuantizeLinear", x, writer.scalar(scale), x_zero)
        x = writer.add("Unsqueeze", x, writer.integers(1))
        products = writer.add(
            "Squeeze", writer.add("MatMulInteger", x, "candidate_weights", x_zero), writer.integers(1)
        )
        return writer.add("Mul", writer.add("Cast", products, to=TensorProto.FLOAT), "candidate_scales")


class Int8(_QuantisedTables):
    """`int8`: weights of 8 bits with a scale per column, activations of 8 bits with scales known beforehand."""

    def multiply(self, writer: GraphWriter, product: Product) -> str:
        """Adds a product: of integers, exactly; its result is float32."""
        scale, zero_point = self._ranges[product.reader].quantisation()
        # A zero point of 0 cuts off what is negative: a ReLU.
        x = writer.add("Relu", product.x) if product.rectify and zero_point else product.x
        x_scale = writer.scalar(scale)
        x_zero = writer.constant(np.array(zero_point, dtype=np.uint8))
        weight, scales = quantise_columns(_array(product.weight))
        inputs = [
            writer.add_once("QuantizeLinear", x, x_scale, x_zero),
            writer.constant(weight),
            x_scale,
            writer.constant(scales),
            x_zero,
        ]
        # Weights have no zero points: given ones, even zeros, the kernel does more at each call.
        if product.bias is not None:
            inputs += ["", writer.constant(product.bias)]
        return writer.add("MatMulIntegerToFloat", *inputs, output=product.output, domain=ONNXRUNTIME_DOMAIN)


class BlockwiseWeights(_QuantisedTables):
    """Decoder of `int8-weights` and `int4`: a scale for each run of a column; the kernel makes activations 8 bits.

    Faster than `int8` for a row or two, since nothing else has to be quantised, and slower for many.
    """

    def __init__(self, bits: int, ranges: Mapping[nn.Module, ActivationRange]) -> None:
        """Takes the bits of a weight, 8 or 4, and what modules read."""
        super().__init__(ranges)
        self._bits = bits
        # Of more, the kernel gives a row alone other last bits than rows together: 128 of 8 bits where the processor
        # has AVX-512, 32 of 4 bits where it has not.
        self._run_lengths = {8: (64, 32, 16), 4: (16,)}[bits]

    def multiply(self, writer: GraphWriter, product: Product) -> str:
        """Adds a product; one whose weights cannot be cut into runs stays float32."""
        inner, columns = product.weight.shape
        length = next((length for length in self._run_lengths if inner % length == 0), None)
        if length is None:
            return FLOAT32.multiply(writer, product)
        x = writer.add("Relu", product.x) if product.rectify else product.x
        runs = _array(product.weight.T).reshape(-1, length)
        middle = 2 ** (self._bits - 1)
        quantised, scales = quantise_columns(runs.T, middle - 1)
        shifted = (quantised.T.astype(np.int16) + middle).astype(np.uint8)
        packed = shifted if self._bits == 8 else shifted[:, ::2] | (shifted[:, 1::2] << 4)
        inputs = [x, writer.constant(packed.reshape(columns, inner // length, -1)), writer.constant(scales)]
        if product.bias is not None:
            inputs += ["", "", writer.constant(product.bias)]
        return writer.add(
            "MatMulNBits",
            *inputs,
            output=product.output,
            domain=ONNXRUNTIME_DOMAIN,
            K=inner,
            N=columns,
            bits=self._bits,
            block_size=length,
            accuracy_level=4,  # activations of 8 bits; without it the kernel is slower than float32
        )


Arithmetic = Callable[[GraphRole, int | None], ComputeType]
"""Chooses by the role and the block of a graph, or of a part of the graph of a whole step."""


def all_float32(role: GraphRole, block: int | None) -> ComputeType:
    """The `Arithmetic` of float32."""
    del role, block
    return FLOAT32


def choose_arithmetic(
    name: ComputeTypeName, ranges: Mapping[nn.Module, ActivationRange] | None, keep_float32: Collection[str] = ()
) -> Arithmetic:
    """Picks the arithmetic of a bundle.

    Encoder and source keys and values have many rows, even of one sentence: they are `int8`.
    Of `int4`, the exit head and block 1 keep 8 bits: every token runs them, and of all graphs they harmed the most.

    Args:
        name: compute type of the bundle.
        ranges: what modules read; None for float32.
        keep_float32: names of graphs that stay float32, such as `head` or `block_1`.
    """
    if ranges is None:
        return all_float32

    def choose(role: GraphRole, block: int | None) -> ComputeType:
        role = "head" if role in {"candidates", "shortlist_head"} else role
        if (role if block is None else f"{role}_{block}") in keep_float32:
            return FLOAT32
        if name == "int8" or role in {"encoder", "cross"}:
            return Int8(ranges)
        sensitive = role == "head" or (role, block) == ("block", 1)
        return BlockwiseWeights(4 if name == "int4" and not sensitive else 8, ranges)

    return choose


def quantise_columns(weight: FloatArray, largest: int = LARGEST_FACTOR) -> tuple[Int8Array, FloatArray]:
    """Rounds a matrix to integers, with a scale for each of its columns.

    Args:
        weight: (in, out).
        largest: of the integers, which are symmetric about 0.

    Returns:
        The integers (in, out), and the scales by which they are to be multiplied, (out,).
    """
    scales = np.abs(weight).max(axis=0) / np.float32(largest)
    scales = np.where(scales >= np.finfo(np.float32).tiny, scales, np.float32(1))
    return np.rint(weight / scales).astype(np.int8), scales


@torch.no_grad()
def _array(tensor: Tensor) -> FloatArray:
    return tensor.numpy()
