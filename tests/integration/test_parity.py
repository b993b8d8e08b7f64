"""Exported graphs are what torch computes, and a graph that is not is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeseq.models import Seq2Seq
from edgeseq.training.run import load_run
from edgeseq_export import ExportError, bundle_writer, export_run
from edgeseq_export.decoding_parity import compare_decoding
from edgeseq_export.graphs import GraphPart, split_model
from edgeseq_export.onnx_graph import OPSET
from edgeseq_export.parity import compare_graph, failed_rows
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.policy import HaltingUnits
from edgeseq_runtime.tokenizer import EOS_ID

ONE_OF_EACH_KIND = ["encoder.onnx", "embed.onnx", "cross_2.onnx", "block_3.onnx", "backfill_3.onnx", "head.onnx"]


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Bundle:
    return load_bundle(bundle)


@pytest.fixture(scope="module")
def model(run: Path) -> Seq2Seq:
    return load_run(run)[2]


@pytest.fixture(scope="module")
def parts(model: Seq2Seq, loaded: Bundle) -> dict[str, GraphPart]:
    return {part.signature.file: part for part in split_model(model, loaded.manifest.model)}


def perturb(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Changes one element of the largest weight by a hundredth of the weight's range."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    weight = max(
        (tensor for tensor in changed.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT),
        key=lambda tensor: np.prod(tensor.dims),
    )
    values = numpy_helper.to_array(weight).copy()
    # Row 5 of an embedding is a piece that the comparison's inputs hold.
    values[5, 0] += 0.01 * np.ptp(values)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return changed


def test_every_graph_equals_its_module_and_the_manifest_says_so(loaded: Bundle) -> None:
    parity = loaded.manifest.parity
    assert [row.graph for row in parity.rows] == [entry.file for entry in loaded.manifest.graphs]
    assert all(row.max_abs_diff <= row.tolerance for row in parity.rows)
    assert parity.decoding.disagreements == 0
    assert parity.decoding.ties <= 0.001 * parity.decoding.decisions


@pytest.mark.parametrize("file", ONE_OF_EACH_KIND)
def test_one_perturbed_weight_fails_the_comparison_by_name(
    file: str, bundle: Path, parts: dict[str, GraphPart]
) -> None:
    graph = onnx.load(bundle / file)
    assert failed_rows([compare_graph(parts[file], graph, seed=1)]) == []
    failed = failed_rows([compare_graph(parts[file], perturb(graph), seed=1)])
    assert [row.graph for row in failed] == [file]


def test_a_bundle_with_a_wrong_graph_is_not_written(
    run: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(part: GraphPart) -> onnx.ModelProto:
        graph = onnx.load(bundle / part.signature.file)
        return perturb(graph) if part.signature.file == "block_3.onnx" else graph

    monkeypatch.setattr(bundle_writer, "trace_graph", traced)
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
        assert graph.ir_version <= 10


@pytest.fixture(scope="module")
def sources(loaded: Bundle, sentences: list[str]) -> list[list[int]]:
    fresh = [sentence for sentence in sentences[:40] if sentence]
    return [[*loaded.tokenizer.encode(sentence), EOS_ID] for sentence in fresh]


def test_forced_decodes_agree_with_the_reference_decoder(
    loaded: Bundle, model: Seq2Seq, sources: list[list[int]]
) -> None:
    engine = Engine(loaded.path, loaded.manifest.model, device="cpu")
    parity = compare_decoding(model, engine, loaded.halting, sources, max_length=60, seed=3)
    print(parity)
    assert parity.disagreements == 0
    assert parity.ties <= 0.001 * parity.decisions
    assert parity.sentences == 2 * len(sources)


def test_a_wrong_backfill_is_seen_in_forced_decodes(loaded: Bundle, model: Seq2Seq, sources: list[list[int]]) -> None:
    """Control: columns of skipped positions left at zero."""

    class Forgetful(Engine):
        def _backfill(self, *_: object) -> None:
            pass

    engine = Forgetful(loaded.path, loaded.manifest.model, device="cpu")
    assert compare_decoding(model, engine, loaded.halting, sources, max_length=60, seed=3).disagreements > 0


def test_a_wrong_halting_unit_is_seen_in_forced_decodes(
    loaded: Bundle, model: Seq2Seq, sources: list[list[int]]
) -> None:
    """Control: a bias of the exported units is off."""
    units = loaded.halting
    assert units is not None
    wrong = HaltingUnits(units.weight, units.bias + np.float32(0.3))
    engine = Engine(loaded.path, loaded.manifest.model, device="cpu")
    assert compare_decoding(model, engine, wrong, sources, max_length=60, seed=3).disagreements > 0
