"""Ways to compute an exit head for each sentence's candidates only, against the whole vocabulary.

Each row has candidates of its own, drawn at random. Their weights are either taken once a sentence, and read at each
step, or taken at each step. Calls go through as many sets of sentences as fill some megabytes, so that what they read
comes from where it comes from in a decoder. Ways run in turn; medians of the rounds, as a table in Markdown.

    python benchmarks/shortlist_heads.py
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

os.environ["OMP_NUM_THREADS"] = "1"

import click
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from edgeseq_export.activation_ranges import ActivationRange
from edgeseq_export.compute_types import BlockwiseWeights, CandidateHead, ComputeType, Float32, Int8, Product
from edgeseq_export.compute_types import quantise_columns as quantise
from edgeseq_export.graph_writer import GraphWriter
from edgeseq_runtime.manifest import DType, TensorSpec
from edgeseq_runtime.signatures import GraphInterface

SIZES = ((256, 8000), (512, 32000))
ROWS = (1, 32)
BYTES = 12e6  # of weights that calls go through
HEAD: nn.Module = nn.Identity()
RANGE = ActivationRange(-4.0, 4.0)
KINDS: dict[str, ComputeType] = {"float32": Float32(), "int8": Int8({HEAD: RANGE})}

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Way:
    """A graph, and what it is fed of the candidates of some sentences."""

    session: onnxruntime.InferenceSession
    feed: Callable[[NDArray[np.int64]], Arrays]


def tensor(name: str, *shape: int | str, dtype: DType = "float32") -> TensorSpec:
    """Input or output of a graph."""
    return TensorSpec(name=name, dtype=dtype, shape=list(shape))


def open_session(
    inputs: list[TensorSpec], outputs: list[TensorSpec], write: Callable[[GraphWriter], object]
) -> onnxruntime.InferenceSession:
    """Writes a graph and opens it."""
    writer = GraphWriter(GraphInterface("head.onnx", tuple(inputs), tuple(outputs)))
    write(writer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = writer.finish().SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def taken(kind: str, dim: int) -> list[TensorSpec]:
    """Weights of candidates, and what goes with them."""
    dtype: DType = "float32" if kind == "float32" else "int8"
    weights = tensor("candidate_weights", "rows", dim, "candidates", dtype=dtype)
    return [weights] if kind == "float32" else [weights, tensor("candidate_scales", "rows", "candidates")]


def gather_transposed(writer: GraphWriter, weight: Tensor) -> None:
    """Adds what takes int8 weights and multiplies by them."""
    rows, scales = quantise(weight.T.numpy())
    scale, zero = RANGE.quantisation()
    x_zero = writer.constant(np.array(zero, dtype=np.uint8))
    x = writer.add("Unsqueeze", writer.add("QuantizeLinear", "x", writer.scalar(scale), x_zero), writer.integers(1))
    weights = writer.add("Transpose", writer.add("Gather", writer.constant(rows.T), "ids"), perm=[0, 2, 1])
    products = writer.add("Squeeze", writer.add("MatMulInteger", x, weights, x_zero), writer.integers(1))
    of_rows = writer.add("Gather", writer.constant(scales * scale), "ids")
    writer.add("Mul", writer.add("Cast", products, to=TensorProto.FLOAT), of_rows, output="y")


def gather_first(writer: GraphWriter, weight: Tensor) -> None:
    """Adds what takes weights of uint8, which need not be transposed: they are the first factor, x the second."""
    rows, scales = quantise(weight.T.numpy())
    shifted = (rows.T.astype(np.int16) + 128).astype(np.uint8)
    scale = 4.0 / 127
    no_shift = writer.constant(np.array(0, dtype=np.int8))
    x = writer.add("Unsqueeze", writer.add("QuantizeLinear", "x", writer.scalar(scale), no_shift), writer.integers(2))
    weights = writer.add("Gather", writer.constant(shifted), "ids")
    middle = writer.constant(np.array(128, dtype=np.uint8))
    products = writer.add("Squeeze", writer.add("MatMulInteger", weights, x, middle), writer.integers(2))
    of_rows = writer.add("Gather", writer.constant((scales * scale).astype(np.float32)), "ids")
    writer.add("Mul", writer.add("Cast", products, to=TensorProto.FLOAT), of_rows, output="y")


def gather_float32(writer: GraphWriter, weight: Tensor) -> None:
    """Adds what takes float32 weights and multiplies by them."""
    weights = writer.add("Gather", writer.constant(weight), "ids")
    x = writer.add("Unsqueeze", "x", writer.integers(2))
    writer.add("Squeeze", writer.add("MatMul", weights, x), writer.integers(2), output="y")


def open_ways(dim: int, vocab: int) -> dict[str, Way]:
    """All ways of one size, with the same random weights."""
    weight = torch.randn(vocab, dim) / dim**0.5
    x, ids = tensor("x", "rows", dim), tensor("ids", "rows", "candidates", dtype="int64")
    y, all_y = tensor("y", "rows", "candidates"), tensor("y", "rows", vocab)
    ways: dict[str, Way] = {}
    for name, whole in (*KINDS.items(), ("int8-weights", BlockwiseWeights(8, {HEAD: RANGE}))):

        def write_whole(writer: GraphWriter, kind: ComputeType = whole) -> None:
            kind.multiply(writer, Product("x", weight.T, None, HEAD, output="y"))

        ways[f"whole vocabulary, {name}"] = Way(open_session([x], [all_y], write_whole), lambda _: {})
    for name, kind in KINDS.items():

        def write_take(writer: GraphWriter, kind: ComputeType = kind) -> None:
            kind.take_candidates(writer, CandidateHead(weight, 1.0, HEAD), "ids")

        def write_multiply(writer: GraphWriter, kind: ComputeType = kind) -> None:
            writer.add("Identity", kind.multiply_candidates(writer, "x", HEAD), output="y")

        take = open_session([ids], taken(name, dim), write_take)

        def feed(chosen: NDArray[np.int64], take: onnxruntime.InferenceSession = take, name: str = name) -> Arrays:
            names = [spec.name for spec in taken(name, dim)]
            return dict(zip(names, take.run(names, {"ids": chosen}), strict=True))

        ways[f"candidates, {name}, taken once"] = Way(open_session([x, *taken(name, dim)], [y], write_multiply), feed)
        ways[f"taking them, {name}"] = Way(take, lambda chosen: {"ids": chosen})
    for name, write in (
        ("int8, taken and transposed at each step", gather_transposed),
        ("int8, taken at each step as first factor", gather_first),
        ("float32, taken at each step", gather_float32),
    ):
        session = open_session([x, ids], [y], lambda writer, write=write: write(writer, weight))  # type: ignore[misc]
        ways[f"candidates, {name}"] = Way(session, lambda chosen: {"ids": chosen})
    return ways


def bind(way: Way, dim: int, sets: list[NDArray[np.int64]], draw: np.random.Generator) -> list[tuple[object, Arrays]]:
    """Binds a way's inputs for each set of sentences; arrays are kept beside what is bound to them."""
    bound: list[tuple[object, Arrays]] = []
    for chosen in sets:
        feed = dict(way.feed(chosen))
        names = [given.name for given in way.session.get_inputs()]
        if "x" in names:
            feed["x"] = draw.standard_normal((len(chosen), dim), dtype=np.float32)
        binding = way.session.io_binding()
        for name in names:
            binding.bind_cpu_input(name, feed[name])
        for output in way.session.get_outputs():
            binding.bind_output(output.name, "cpu")
        bound.append((binding, feed))
    return bound


def time_way(way: Way, bound: list[tuple[object, Arrays]]) -> float:
    """Microseconds a call."""
    started = time.perf_counter()
    for binding, _ in bound:
        way.session.run_with_iobinding(binding)
    return 1e6 * (time.perf_counter() - started) / len(bound)


@click.command(help=__doc__)
@click.option("--candidates", type=int, default=640, show_default=True, help="Of each row.")
@click.option("--rounds", type=int, default=15, show_default=True)
def main(candidates: int, rounds: int) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    draw = np.random.default_rng(0)
    columns = [(dim, vocab, rows) for dim, vocab in SIZES for rows in ROWS]
    medians: dict[str, list[float]] = {}
    for dim, vocab in SIZES:
        ways = open_ways(dim, vocab)
        for rows in ROWS:
            copies = max(2, round(BYTES / (rows * candidates * dim)))
            sets = [
                np.stack([np.sort(draw.choice(vocab, candidates, replace=False)) for _ in range(rows)])
                for _ in range(copies)
            ]
            bound = {name: bind(way, dim, sets, draw) for name, way in ways.items()}
            found: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(rounds + 1):
                for name, way in ways.items():
                    found[name] += [time_way(way, bound[name])] if number else []
            for name, values in found.items():
                medians.setdefault(name, []).append(statistics.median(values))
    click.echo("| way | " + " | ".join(f"{dim} × {vocab}, {rows} rows, µs" for dim, vocab, rows in columns) + " |")
    click.echo("|---" * (1 + len(columns)) + "|")
    for name, values in medians.items():
        click.echo(f"| {name} | " + " | ".join(f"{value:.0f}" for value in values) + " |")


if __name__ == "__main__":
    main()
