"""Whether each exported graph computes what its torch module computes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from edgeseq_export.example_inputs import example_inputs
from edgeseq_export.graphs import GraphPart
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.places import Layout, StepPlaces
from edgeseq_runtime.reports import ParityRow
from edgeseq_runtime.signatures import GraphSignature

# Float32 on both sides, sums in another order: absolute difference, relative to the largest value of an output.
TOLERANCE = 2e-5

# (rows, source) of each comparison, 1 row among them.
_SIZES = [(1, 4), (2, 12), (5, 36), (33, 8)]
_CANDIDATES = 32
_STEPS = 4
_STOPPED_SHARE = 0.4
_ROWS_ALONE = 3
_DRAWS = 20
_LIMIT_SPREAD = 10.0
_STOP_MARGIN = 1e-2

_LARGEST = float(np.finfo(np.float32).max)
"""Stands for infinity, which JSON lacks."""

Feed = dict[str, Tensor]


@dataclass(frozen=True)
class _Comparison:
    """Runs module and graph side by side and keeps the largest difference."""

    part: GraphPart
    session: onnxruntime.InferenceSession

    def run(self, wanted_feed: Feed, found_feed: Feed) -> tuple[list[Tensor], list[Tensor], float]:
        """Gives the outputs of the module, those of the graph, and the largest difference."""
        wanted = self.part.module(*(wanted_feed[spec.name] for spec in self.part.signature.inputs))
        wanted = list(wanted) if isinstance(wanted, tuple) else [wanted]
        arrays = self.session.run(None, {name: value.numpy() for name, value in found_feed.items()})
        found = [torch.from_numpy(array) for array in arrays]
        return wanted, found, max(map(_difference, wanted, found))


def _difference(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        return _LARGEST
    difference = float((wanted - found).abs().max()) / max(1.0, float(wanted.abs().max()))
    return difference if np.isfinite(difference) else _LARGEST


@torch.no_grad()
def compare_graph(part: GraphPart, facts: ModelFacts, graph: onnx.ModelProto, seed: int) -> ParityRow:
    """Compares a graph with its module over several shapes; blocks over chained steps.

    Args:
        part: the module and its signature.
        facts: of the model.
        graph: what was exported.
        seed: of the inputs.

    Returns:
        The largest difference, relative to the largest magnitude of the output where that exceeds 1; the largest
        float where a shape differs or a value is not finite.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    comparison = _Comparison(part, session)
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for rows, source in _SIZES:
        if part.signature.role in ("step", "shortlist_step"):
            worst = max(worst, _compare_rows_alone(comparison, facts, rows, source, generator))
        elif part.signature.role == "block":
            worst = max(worst, _compare_steps(comparison, facts, rows, source, generator))
        else:
            inputs = example_inputs(
                part.signature,
                {"rows": rows, "source": source, "cells": 2 * rows, "candidates": _CANDIDATES},
                generator,
            )
            worst = max(worst, comparison.run(inputs, inputs)[2])
    return ParityRow(graph=part.signature.file, shapes=len(_SIZES), max_abs_diff=worst, tolerance=TOLERANCE)


def _compare_steps(
    comparison: _Comparison, facts: ModelFacts, rows: int, source: int, generator: torch.Generator
) -> float:
    """Runs a block over steps in which rows stop below it, if they can, and come back; each side has its own state."""
    signature = comparison.part.signature
    assert signature.block is not None
    layout = Layout(facts)
    size = layout.ring_sizes[signature.block - 1]
    sizes = {
        "rows": rows,
        "active": 0,
        "source": source,
        "cells": rows * layout.reach,
        "column_cells": rows * layout.heads * size,
        "read": 0,
        "written": 0,
        "places": size,
    }
    wanted_feed = example_inputs(signature, sizes, generator)
    found_feed = {name: value.clone() for name, value in wanted_feed.items()}
    # Rings that grow instead of going round have room for the last of the steps.
    farthest = layout.capacity - _STEPS if layout.grows else 2 * layout.reach
    positions = torch.randint(0, farthest + 1, (rows,), generator=generator).numpy()
    filled = np.maximum(positions - torch.randint(0, layout.reach, (rows,), generator=generator).numpy(), 0)
    worst = 0.0
    for step in range(_STEPS):
        places = StepPlaces(layout, positions)
        if signature.block == 1:
            drawn = example_inputs(signature, sizes, generator)
            indices = places.first_block_indices(size)
            for feed in (wanted_feed, found_feed):
                feed.update({name: drawn[name] for name in ("tokens", "position_vectors")})
        else:
            x = torch.randn(rows, facts.dim, generator=generator)
            for feed in (wanted_feed, found_feed):
                feed["states"] = feed["states"].index_copy(0, torch.from_numpy(places.own_cells[:, 0]), x)
            going = (torch.rand(rows, generator=generator) > _STOPPED_SHARE).numpy()
            going[step % rows] = True
            places.narrow(going.nonzero()[0])
            indices = places.block_indices(size, filled)
        for feed in (wanted_feed, found_feed):
            feed.update({name: torch.from_numpy(index) for name, index in indices.items()})
        wanted, found, difference = comparison.run(wanted_feed, found_feed)
        worst = max(worst, difference)
        _carry_over(signature, wanted_feed, wanted)
        _carry_over(signature, found_feed, found)
        filled[places.active] = places.next_positions
        positions = positions + 1
    return worst


def _compare_rows_alone(
    comparison: _Comparison, facts: ModelFacts, rows: int, source: int, generator: torch.Generator
) -> float:
    """Runs whole steps that stop at any depth, for some rows one after another."""
    signature = comparison.part.signature
    worst = 0.0
    for _ in range(min(rows, _ROWS_ALONE)):
        sizes = {"source": source, "candidates": _CANDIDATES}
        wanted_feed = example_inputs(signature, sizes, generator)
        position = int(torch.randint(0, 2 * max(facts.decoder_reaches), (1,), generator=generator))
        if facts.decoder_blocks > 1:
            wanted_feed["filled"] = torch.randint(0, position + 1, (facts.decoder_blocks - 1,), generator=generator)
        found_feed = {name: value.clone() for name, value in wanted_feed.items()}
        for _ in range(_STEPS):
            drawn = example_inputs(signature, sizes, generator)
            drawn["position"] = torch.tensor([position])
            for feed in (wanted_feed, found_feed):
                feed.update({name: drawn[name] for name in ("tokens", "position_vectors", "position")})
            _draw_stop_rule(comparison.part.module, signature, (wanted_feed, found_feed), generator)
            wanted, found, difference = comparison.run(wanted_feed, found_feed)
            worst = max(worst, difference)
            _carry_over(signature, wanted_feed, wanted)
            _carry_over(signature, found_feed, found)
            position += 1
    return worst


def _draw_stop_rule(
    module: nn.Module, signature: GraphSignature, feeds: tuple[Feed, Feed], generator: torch.Generator
) -> None:
    """Draws where tokens stop, until none stops so narrowly that another rounding might decide otherwise."""
    names = [spec.name for spec in signature.inputs]
    if "stop_limits" not in names:
        return
    for _ in range(_DRAWS):
        limits = _LIMIT_SPREAD * torch.randn(feeds[0]["stop_limits"].shape, generator=generator)
        depths = {
            int(module(*({**feeds[0], "stop_limits": limits + margin}[name] for name in names))[1])
            for margin in (-_STOP_MARGIN, 0.0, _STOP_MARGIN)
        }
        if len(depths) == 1:
            break
    for feed in feeds:
        feed["stop_limits"] = limits


def _carry_over(signature: GraphSignature, feed: Feed, outputs: list[Tensor]) -> None:
    """Feeds state that came out of a step into the next."""
    for spec, value in zip(signature.outputs, outputs, strict=True):
        if spec.name.startswith("next_"):
            feed[spec.name.removeprefix("next_")] = value


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
