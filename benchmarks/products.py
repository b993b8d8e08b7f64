"""What a product with weights costs in each compute type, by its size and the number of rows.

Each type has as many copies of the product as fill some megabytes, called in turn, so that weights come from where they
come from in a decoder: beyond the second-level cache. Types run in turn; medians of the rounds, as a table in Markdown.

    python benchmarks/products.py
"""

from __future__ import annotations

import statistics
import time

import click
import numpy as np
import onnxruntime
import torch
from torch import nn

from edgeseq_export.activation_ranges import ActivationRange
from edgeseq_export.compute_types import BlockwiseWeights, ComputeType, Float32, Int8, Product
from edgeseq_export.graph_writer import GraphWriter
from edgeseq_runtime.manifest import TensorSpec
from edgeseq_runtime.signatures import GraphInterface

SIZES = ((256, 256), (256, 1024), (1024, 256), (512, 2048), (256, 8000), (512, 32000))
ROWS = (1, 4, 8, 32, 160)
WEIGHTS = 12e6  # bytes at 8 bits
LAYER: nn.Module = nn.Identity()


def open_product(compute_type: ComputeType, inner: int, outer: int) -> onnxruntime.InferenceSession:
    """A session of one product with random weights."""
    x = TensorSpec(name="x", dtype="float32", shape=["rows", inner])
    y = TensorSpec(name="y", dtype="float32", shape=["rows", outer])
    writer = GraphWriter(GraphInterface("product.onnx", (x,), (y,)))
    weight = torch.randn(inner, outer) / inner**0.5
    compute_type.multiply(writer, Product("x", weight, torch.zeros(outer), LAYER, output="y"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        writer.finish().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def time_rows(sessions: list[onnxruntime.InferenceSession], x: np.ndarray) -> float:
    """Microseconds a call, of calls of all sessions in turn."""
    bound = []
    for session in sessions:
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y", "cpu")
        bound.append((session, binding))
    started = time.perf_counter()
    for session, binding in bound:
        session.run_with_iobinding(binding)
    return 1e6 * (time.perf_counter() - started) / len(sessions)


@click.command(help=__doc__)
@click.option("--rounds", type=int, default=15, show_default=True)
def main(rounds: int) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    ranges = {LAYER: ActivationRange(-4.0, 4.0)}
    types: dict[str, ComputeType] = {
        "float32": Float32(),
        "int8": Int8(ranges),
        "int8-weights": BlockwiseWeights(8, ranges),
        "int4": BlockwiseWeights(4, ranges),
    }
    click.echo("| in × out | rows | " + " | ".join(f"{name}, µs" for name in types) + " |")
    click.echo("|---" * (2 + len(types)) + "|")
    for inner, outer in SIZES:
        copies = max(1, round(WEIGHTS / (inner * outer)))
        sessions = {name: [open_product(kind, inner, outer) for _ in range(copies)] for name, kind in types.items()}
        for rows in ROWS:
            x = np.random.default_rng(0).standard_normal((rows, inner), dtype=np.float32)
            found: dict[str, list[float]] = {name: [] for name in types}
            for _ in range(rounds):
                for name, opened in sessions.items():
                    found[name].append(time_rows(opened, x))
            medians = " | ".join(f"{statistics.median(values):.1f}" for values in found.values())
            click.echo(f"| {inner} × {outer} | {rows} | {medians} |")


if __name__ == "__main__":
    main()
