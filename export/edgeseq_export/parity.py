"""Whether each exported graph computes what its torch module computes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeseq_export.graphs import GraphPart
from edgeseq_export.onnx_graph import example_inputs
from edgeseq_runtime.manifest import ParityRow

# Float32 on both sides, sums in another order: absolute difference, relative to the largest value of an output.
TOLERANCE = 2e-5

# Sizes other than those the graphs were traced with, 1 among them.
_SIZES = [
    {"rows": rows, "source": source, "positions": positions, "pending": rows * positions}
    for rows, source, positions in ((1, 4, 1), (2, 12, 1), (5, 36, 3), (33, 8, 1))
]
_CHAINED_STEPS = 3


@dataclass(frozen=True)
class _Comparison:
    """Runs module and graph on the same inputs and keeps the largest difference."""

    part: GraphPart
    session: onnxruntime.InferenceSession

    def run(self, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], list[NDArray[np.float32]], float]:
        expected = self.part.module(*inputs)
        expected = list(expected) if isinstance(expected, tuple) else [expected]
        names = [spec.name for spec in self.part.signature.inputs]
        found = self.session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        worst = 0.0
        for wanted, got in zip(expected, found, strict=True):
            if got.shape != tuple(wanted.shape):
                return expected, found, float("inf")
            scale = max(1.0, float(wanted.abs().max()))
            difference = float(np.abs(got - wanted.numpy()).max()) / scale
            worst = max(worst, difference if np.isfinite(difference) else float("inf"))
        return expected, found, worst


@torch.no_grad()
def compare_graph(part: GraphPart, graph: onnx.ModelProto, seed: int) -> ParityRow:
    """Compares a graph with its module over several shapes; blocks also over chained steps.

    In chained steps each side feeds back its own state, so that errors could add up.

    Args:
        part: the module and its signature.
        graph: what was exported.
        seed: of the inputs.

    Returns:
        The largest difference, relative to the largest magnitude of the output where that exceeds 1; infinite
        where a shape differs or a value is not finite.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    comparison = _Comparison(part, session)
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for sizes in _SIZES:
        inputs = example_inputs(part.signature, sizes, generator)
        worst = max(worst, comparison.run(inputs)[2])
        if part.signature.role == "block":
            worst = max(worst, _chain_steps(comparison, inputs))
    return ParityRow(
        graph=part.signature.file, shapes=len(_SIZES), max_abs_diff=min(worst, _LARGEST), tolerance=TOLERANCE
    )


# JSON has no infinity.
_LARGEST = float(np.finfo(np.float32).max)


def _chain_steps(comparison: _Comparison, inputs: tuple[Tensor, ...]) -> float:
    """Feeds outputs back as the next step's input and history."""
    names = [spec.name for spec in comparison.part.signature.inputs]
    torch_feed = dict(zip(names, inputs, strict=True))
    ort_feed = {name: value.numpy() for name, value in torch_feed.items()}
    worst = 0.0
    for _ in range(_CHAINED_STEPS):
        expected = comparison.part.module(*torch_feed.values())
        found = comparison.session.run(None, ort_feed)
        for wanted, got in zip(expected, found, strict=True):
            scale = max(1.0, float(wanted.abs().max()))
            worst = max(worst, float(np.abs(got - wanted.numpy()).max()) / scale)
        # The exit state is bounded by its norm, so steps stay in the range of real ones.
        torch_feed["x"], ort_feed["x"] = expected[1], found[1]
        if "history" in torch_feed:
            reach = torch_feed["history"].shape[1]
            torch_feed["history"] = torch.cat((torch_feed["history"], expected[2]), dim=1)[:, -reach:]
            ort_feed["history"] = np.concatenate((ort_feed["history"], found[2]), axis=1)[:, -reach:]
    return worst


def failed_rows(rows: list[ParityRow]) -> list[ParityRow]:
    """Picks the rows over their tolerance."""
    return [row for row in rows if row.max_abs_diff > row.tolerance]


def format_rows(rows: list[ParityRow]) -> str:
    """Lays the rows out as a table."""
    width = max(map(len, itertools.chain(["graph"], (row.graph for row in rows))))
    lines = [f"{'graph':<{width}}  shapes  largest difference  tolerance"]
    lines += [
        f"{row.graph:<{width}}  {row.shapes:>6}  {row.max_abs_diff:>18.2e}  {row.tolerance:>9.0e}"
        + ("" if row.max_abs_diff <= row.tolerance else "  FAILED")
        for row in rows
    ]
    return "\n".join(lines)
