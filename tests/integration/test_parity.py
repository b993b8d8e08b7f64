"""Exported graphs are what torch computes, and a graph that is not is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from edgeseq.models import Seq2Seq
from edgeseq.modules import ConvolutionUnit
from edgeseq.modules.embedding import sinusoid
from edgeseq.training.run import load_run
from edgeseq_export import ExportError, bundle_writer, export_run
from edgeseq_export.decoding_parity import compare_decoding
from edgeseq_export.graph_writer import IR_VERSION, OPSET
from edgeseq_export.graphs import BlockGraph, FirstBlockGraph, GraphPart, split_model
from edgeseq_export.onnx_graphs import write_graph
from edgeseq_export.parity import TOLERANCE, compare_graph, failed_rows
from edgeseq_runtime.arrays import AnyArray, IntArray
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.places import Layout
from edgeseq_runtime.predictors import DepthClassifier, Predictor
from edgeseq_runtime.sinusoids import Sinusoids
from edgeseq_runtime.tokenizer import EOS_ID
from graph_checks import late_reads
from linear import linear

ONE_OF_EACH_KIND = [
    *("encoder.onnx", "cross_2.onnx", "block_1.onnx", "block_3.onnx", "head.onnx", "step.onnx"),
    *("candidates.onnx", "shortlist_step.onnx"),
]


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Bundle:
    return load_bundle(bundle)


@pytest.fixture(scope="module")
def model(run: Path) -> Seq2Seq:
    return load_run(run)[2]


@pytest.fixture(scope="module")
def parts(model: Seq2Seq, loaded: Bundle) -> dict[str, GraphPart]:
    return {part.signature.file: part for part in split_model(model, loaded.manifest.model, "float32")}


def perturb(graph: onnx.ModelProto, weight: Tensor | None = None, share: float = 0.01) -> onnx.ModelProto:
    """Changes one element of a weight by a share of the weight's range; None takes the graph's largest weight."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    floats = [tensor for tensor in changed.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    if weight is None:
        stored = max(floats, key=lambda tensor: np.prod(tensor.dims))
    else:
        expected = weight.detach().numpy()
        (stored,) = [tensor for tensor in floats if np.array_equal(numpy_helper.to_array(tensor), expected)]
    values = numpy_helper.to_array(stored).copy()
    # Row 5 of an embedding is a piece that the comparison's inputs hold.
    values[5, 0] += share * np.ptp(values)
    stored.CopyFrom(numpy_helper.from_array(values, stored.name))
    return changed


def in_projection(part: GraphPart) -> Tensor:
    """The weight of a block's in-projection, as its graph stores it."""
    module = part.module.block if isinstance(part.module, FirstBlockGraph) else part.module
    assert isinstance(module, BlockGraph)
    unit = module.block.mixer
    assert isinstance(unit, ConvolutionUnit)
    return unit.in_projection.weight.T


def test_every_graph_equals_its_module_and_the_manifest_says_so(loaded: Bundle) -> None:
    parity = loaded.manifest.parity
    assert [row.graph for row in parity.rows] == [entry.file for entry in loaded.manifest.graphs]
    assert all(row.max_abs_diff <= row.tolerance for row in parity.rows)
    assert parity.decoding.disagreements == 0
    assert parity.decoding.ties <= 0.001 * parity.decoding.decisions


def test_there_is_a_control_for_each_kind_of_graph(loaded: Bundle) -> None:
    roles = {entry.file: entry.role for entry in loaded.manifest.graphs}
    assert {roles[file] for file in ONE_OF_EACH_KIND} == set(roles.values()) - {"shortlist_head"}


@pytest.mark.parametrize("file", ONE_OF_EACH_KIND)
def test_one_perturbed_weight_fails_the_comparison_by_name(
    file: str, bundle: Path, loaded: Bundle, parts: dict[str, GraphPart]
) -> None:
    facts = loaded.manifest.model
    graph = onnx.load(bundle / file)
    assert failed_rows([compare_graph(parts[file], facts, graph, seed=1)]) == []
    failed = failed_rows([compare_graph(parts[file], facts, perturb(graph), seed=1)])
    assert [row.graph for row in failed] == [file]


def test_an_exit_head_that_subtracts_the_bias_of_candidates_is_refused(
    bundle: Path, loaded: Bundle, parts: dict[str, GraphPart]
) -> None:
    """It has no weights of its own that could be perturbed."""
    part, facts = parts["shortlist_head.onnx"], loaded.manifest.model
    graph = onnx.load(bundle / part.signature.file)
    assert failed_rows([compare_graph(part, facts, graph, seed=1)]) == []
    (add,) = (node for node in graph.graph.node if node.op_type == "Add")
    add.op_type = "Sub"
    assert [row.graph for row in failed_rows([compare_graph(part, facts, graph, seed=1)])] == ["shortlist_head.onnx"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_perturbed_in_projection_fails_the_comparison_by_name(
    number: int, bundle: Path, loaded: Bundle, parts: dict[str, GraphPart]
) -> None:
    part = parts[f"block_{number}.onnx"]
    wrong = perturb(onnx.load(bundle / part.signature.file), in_projection(part))
    failed = failed_rows([compare_graph(part, loaded.manifest.model, wrong, seed=1)])
    assert [row.graph for row in failed] == [part.signature.file]


def test_columns_of_pending_positions_are_compared(
    loaded: Bundle, model: Seq2Seq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the module's columns of copied states, and those alone, are zeros."""
    facts = loaded.manifest.model
    (part,) = [part for part in split_model(model, facts) if part.signature.file == "block_3.onnx"]
    assert isinstance(part.module, BlockGraph)
    graph = write_graph(part)
    assert failed_rows([compare_graph(part, facts, graph, seed=1)]) == []
    monkeypatch.setattr(part.module.block, "backfill", lambda states: (torch.zeros_like(states),))
    assert [row.graph for row in failed_rows([compare_graph(part, facts, graph, seed=1)])] == ["block_3.onnx"]


def test_a_graph_that_leaves_its_taps_in_order_is_refused(
    bundle: Path, loaded: Bundle, parts: dict[str, GraphPart]
) -> None:
    """Control: the taps meet the rings as they are, as if place 0 always held the oldest column."""
    graph = onnx.load(bundle / "block_3.onnx")
    (index, node) = next(
        (index, node) for index, node in enumerate(graph.graph.node) if node.op_type == "GatherElements"
    )
    assert node.input[1] == "tap_places"
    kernel_size = loaded.manifest.model.decoder_reaches[2]
    graph.graph.initializer.append(numpy_helper.from_array(np.arange(kernel_size), "as_they_are"))
    graph.graph.node.insert(index, onnx.helper.make_node("Expand", ["as_they_are", "shape"], ["in_order"]))
    graph.graph.node.insert(index, onnx.helper.make_node("Shape", ["tap_places"], ["shape"]))
    node.input[1] = "in_order"
    failed = failed_rows([compare_graph(parts["block_3.onnx"], loaded.manifest.model, graph, seed=1)])
    assert [row.graph for row in failed] == ["block_3.onnx"]


def test_a_bundle_with_a_wrong_graph_is_not_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(part: GraphPart) -> onnx.ModelProto:
        graph = write_graph(part)
        return perturb(graph) if part.signature.file == "block_3.onnx" else graph

    monkeypatch.setattr(bundle_writer, "write_graph", written)
    with pytest.raises(ExportError, match=r"^block_3\.onnx differ\(s\) from torch; no bundle is written"):
        export_run(run, tmp_path / "wrong.bundle", validation=None)
    assert list(tmp_path.iterdir()) == []


def test_graphs_carry_no_paths_and_the_promised_versions(bundle: Path, loaded: Bundle) -> None:
    for entry in loaded.manifest.graphs:
        raw = (bundle / entry.file).read_bytes()
        assert b".py" not in raw, entry.file
        assert b"site-packages" not in raw, entry.file
        graph = onnx.load(bundle / entry.file)
        assert {opset.domain: opset.version for opset in graph.opset_import} == {"": OPSET}
        assert graph.ir_version == IR_VERSION


def test_no_graph_reads_state_that_it_has_replaced(bundle: Path, loaded: Bundle) -> None:
    updated = []
    for entry in loaded.manifest.graphs:
        graph = onnx.load(bundle / entry.file).graph
        updated += [output.name for output in graph.output if output.name.startswith("next_")]
        assert late_reads(graph) == [], entry.file
    of_a_row_alone = {f"next_columns_{block}" for block in range(1, loaded.manifest.model.decoder_blocks + 1)}
    assert set(updated) == {"next_states", "next_exit_states", "next_columns", "next_filled", *of_a_row_alone}


def test_a_late_read_is_seen(bundle: Path) -> None:
    """Control: a node that reads the states beside the one that replaces them."""
    graph = onnx.load(bundle / "block_3.onnx").graph
    graph.node.append(onnx.helper.make_node("Identity", ["states"], ["copy"], name="late"))
    assert late_reads(graph) == ["late"]


def test_position_vectors_are_those_of_training(loaded: Bundle) -> None:
    """No graph computes them, so no comparison of a graph holds them; at great positions sines amplify rounding."""
    dim = loaded.manifest.model.dim
    expected = sinusoid(torch.arange(2000), dim).numpy()
    vectors = Sinusoids(dim)
    short = vectors.take(np.arange(100))
    found = vectors.take(np.arange(2000))
    assert np.array_equal(found[:100], short), "a longer table holds other vectors"
    assert np.abs(found - expected)[:128].max() <= TOLERANCE
    assert np.abs(found - expected).max() <= 1e-3
    assert np.abs(found[1:] - expected[:-1]).max() > 0.1, "neighbours are alike: nothing is compared"


@pytest.fixture(scope="module")
def sources(loaded: Bundle, sentences: list[str]) -> list[list[int]]:
    fresh = [sentence for sentence in sentences[:40] if sentence]
    return [[*loaded.tokenizer.encode(sentence), EOS_ID] for sentence in fresh]


def test_forced_decodes_agree_with_the_reference_decoder(
    loaded: Bundle, model: Seq2Seq, sources: list[list[int]]
) -> None:
    engine = Engine(loaded.path, loaded.manifest.model, device="cpu")
    parity = compare_decoding(model, engine, loaded.predictors, sources, max_length=60, seed=3)
    print(parity)
    assert parity.disagreements == 0
    assert parity.ties <= 0.001 * parity.decisions
    assert parity.sentences == 2 * len(sources)


class Forgetful(Layout):
    """Makes no column of a skipped position."""

    def catch_up(self, kernel_size: int, row: int, position: int, gap: int) -> tuple[IntArray, IntArray]:
        cells, columns = super().catch_up(kernel_size, row, position, gap)
        return cells[:0], columns[:0]


class Short(Layout):
    """Takes the oldest column that the convolution reaches for out of reach."""

    def catch_up(self, kernel_size: int, row: int, position: int, gap: int) -> tuple[IntArray, IntArray]:
        return super().catch_up(kernel_size, row, position, min(gap, max(kernel_size - 2, 0)))


class Misplacing(Layout):
    """Puts the columns of skipped positions in each other's places."""

    def catch_up(self, kernel_size: int, row: int, position: int, gap: int) -> tuple[IntArray, IntArray]:
        cells, columns = super().catch_up(kernel_size, row, position, gap)
        return cells[::-1], columns


class Backward(Layout):
    """Has the first tap read the newest column, and the last the oldest."""

    def rings(self, kernel_size: int, positions: IntArray) -> tuple[IntArray, AnyArray]:
        cells, taps = super().rings(kernel_size, positions)
        return cells, kernel_size - 1 - taps


@pytest.mark.parametrize("layout", [Forgetful, Short, Misplacing, Backward])
def test_wrong_places_are_seen_in_forced_decodes(
    layout: type[Layout], loaded: Bundle, model: Seq2Seq, sources: list[list[int]]
) -> None:
    """Control: columns missing, one too few, or in wrong places; taps in wrong order.

    One column too few is a small mistake: other depths are drawn until it changes a choice.
    """
    facts = loaded.manifest.model
    engine = Engine(loaded.path, facts, device="cpu")
    engine._layout = layout(facts)
    assert any(
        compare_decoding(model, engine, loaded.predictors, sources, max_length=60, seed=seed).disagreements > 0
        for seed in range(3, 9)
    )


def test_a_perturbed_in_projection_is_seen_in_forced_decodes(
    loaded: Bundle, model: Seq2Seq, parts: dict[str, GraphPart], sources: list[list[int]], tmp_path: Path
) -> None:
    """Control: one element of a weight that makes the columns, those of skipped positions too.

    It is far off, since forced decodes see choices alone, and a trained model is sure of most of them.
    """
    wrong = tmp_path / "wrong"
    shutil.copytree(loaded.path, wrong)
    part = parts["block_3.onnx"]
    graph = perturb(onnx.load(wrong / "block_3.onnx"), in_projection(part), share=5)
    onnx.save(graph, wrong / "block_3.onnx")
    engine = Engine(wrong, loaded.manifest.model, device="cpu")
    assert compare_decoding(model, engine, loaded.predictors, sources, max_length=60, seed=3).disagreements > 0


@pytest.mark.parametrize("name", ["halting", "common", "multinomial", "by-sentence"])
def test_a_wrong_predictor_is_seen_in_forced_decodes(
    name: str, loaded: Bundle, model: Seq2Seq, sources: list[list[int]]
) -> None:
    """Control: a bias of the exported table is off."""
    right = linear(loaded.predictors[name])
    bias = right.bias.copy()
    bias[0] += 5
    wrong = type(right)(right.weight, bias)
    engine = Engine(loaded.path, loaded.manifest.model, device="cpu")
    predictors = {**loaded.predictors, name: wrong}
    assert compare_decoding(model, engine, predictors, sources, max_length=60, seed=3).disagreements > 0


def test_a_bundle_with_a_wrong_predictor_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever it is, the first or another."""
    original = bundle_writer._write_predictors

    def write(model: Seq2Seq, folder: Path) -> dict[str, Predictor]:
        predictors = original(model, folder)
        right = linear(predictors["multinomial"])
        predictors["multinomial"] = DepthClassifier(right.weight, right.bias[::-1].copy())
        return predictors

    monkeypatch.setattr(bundle_writer, "_write_predictors", write)
    with pytest.raises(
        ExportError, match=r"^the graphs do not decode as torch does: .* differ, .* no bundle is written"
    ):
        export_run(run, tmp_path / "wrong.bundle", validation=None)
    assert list(tmp_path.iterdir()) == []
