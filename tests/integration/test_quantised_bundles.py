"""Bundles of fewer bits keep every promise of float32 ones but the same numbers, and are refused where those matter."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from command_line import Outcome, run_edgeseq
from deciding import deciding_policies
from eager_engine import EagerEngine
from edgeseq_export import ExportError, ValidationText, bundle_writer, export_run, operating_point, quantisation
from edgeseq_export.compute_types import quantise_columns
from edgeseq_export.graph_writer import ONNXRUNTIME_DOMAIN
from edgeseq_export.quantisation import Choices, Reference, blame_graphs, format_blame, problems
from edgeseq_export.weights_file import WEIGHTS_FILE
from edgeseq_runtime import Translation, Translator
from edgeseq_runtime.arrays import AnyArray, IntArray
from edgeseq_runtime.bundle import Bundle, describe_graph, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.errors import BundleError, DeviceError
from edgeseq_runtime.manifest import MANIFEST_FILE, Manifest
from edgeseq_runtime.places import Layout
from edgeseq_runtime.policy import DepthPolicy, FixedDepth
from edgeseq_runtime.reports import QuantisationReport
from edgeseq_runtime.search import Hypothesis, greedy, output_limit
from edgeseq_runtime.signatures import expected_signatures
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID

SHORTLIST = ("--shortlist", "--shortlist-best", 20)
NOT_BLAMED = {"step.onnx", "candidates.onnx", "shortlist_head.onnx", "shortlist_step.onnx"}
"""They compute what others do."""

DAY = re.compile(rb'"created": "[0-9-]{10}"')
"""What differs between manifests of exports before and after midnight."""

COMPUTE_TYPES = ["int8", "int8-weights", "int4"]

POLICIES = ["full", "2", "halting", "confidence", "certainty", "multinomial", "by-sentence"]
"""One of each kind; see `deciding`."""


@pytest.fixture(scope="module", autouse=True)
def _in_little_time() -> Iterator[None]:
    """One thread for tiny tensors; little text for parity, which has its own tests, and few policies to pick from."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_writer, "_PARITY_SENTENCES", 8)
        patch.setattr(operating_point, "_THRESHOLDS", (0.5,))
        patch.setattr(operating_point, "_FEW_BLOCKS_THRESHOLDS", (0.9,))
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def wide_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    open_gate(monkeypatch)


def open_gate(patch: pytest.MonkeyPatch) -> None:
    """Lets everything pass: a model of 32 channels that has learnt for a minute is unsure of most tokens."""
    patch.setattr(quantisation, "MAX_LOSS", 100.0)
    patch.setattr(quantisation, "MAX_DEPTH_CHANGES", 1.0)
    patch.setattr(quantisation, "MIN_TOKEN_AGREEMENT", 0.0)


@pytest.fixture(scope="module")
def export(run: Path, corpus_valid: tuple[Path, Path]) -> Callable[..., Outcome]:
    """Runs `edgeseq export` with validation text."""
    files = ("--valid-src", corpus_valid[0], "--valid-ref", corpus_valid[1])
    return lambda bundle, *options: run_edgeseq("export", run, "--out", bundle, *files, *options)


@pytest.fixture(scope="module")
def exported(export: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Bundle of a compute type, each made once."""

    @cache
    def make(compute_type: str) -> Path:
        bundle = tmp_path_factory.mktemp("quantised") / f"{compute_type}.bundle"
        with pytest.MonkeyPatch.context() as patch:
            open_gate(patch)
            outcome = export(bundle, "--compute-type", compute_type, *SHORTLIST)
        assert outcome.code == 0, outcome.stderr
        return bundle

    return make


@pytest.fixture(scope="module", params=COMPUTE_TYPES)
def quantised(request: pytest.FixtureRequest, exported: Callable[[str], Path]) -> Path:
    return exported(request.param)


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Bundle:
    """The same model in float32."""
    return load_bundle(bundle)


@pytest.fixture(scope="module")
def text(sentences: list[str]) -> list[str]:
    """Sentences of mixed length, one of them blank and one very long."""
    return [*sentences[:62], "", sentences[-1]]


@pytest.fixture(scope="module")
def policies(bundle: Path, sentences: list[str]) -> dict[str, str]:
    """Name to spelling: thresholds lie amid what float32 says, and so amid what a few bits less make of it."""
    return deciding_policies(Translator(bundle, device="cpu"), [line for line in sentences[:60] if line])


@pytest.fixture(scope="module")
def sources(loaded: Bundle, sentences: list[str]) -> list[list[int]]:
    """More than two batches of the gate."""
    return [[*loaded.tokenizer.encode(line), EOS_ID] for line in sentences[100:180] if line]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def whole_graphs(folder: Path) -> dict[str, bytes]:
    """The graphs of a bundle, each with its weights."""
    return {path.name: onnx.load(path).SerializeToString(deterministic=True) for path in folder.glob("*.onnx")}


def bits(translations: Sequence[Translation]) -> list[tuple[object, ...]]:
    """Everything of a result; scores are sums over all hidden states, compared as they are."""
    return [(t.text, tuple(t.tokens), tuple(t.depths), t.score) for t in translations]


# What a bundle holds and says.


def test_a_bundle_of_fewer_bits_translates(quantised: Path, bundle: Path, text: list[str]) -> None:
    found, float32 = (
        Translator(folder, depth="full", device="cpu").translate(text, batch_size=16, max_length=5, scores=True)
        for folder in (quantised, bundle)
    )
    assert all(translation.text for translation, line in zip(found, text, strict=True) if line)
    # The same model, but not the same numbers: where tokens are the same, scores have moved, though not far.
    pairs = [
        (one, other) for one, other in zip(found, float32, strict=True) if one.tokens == other.tokens and one.tokens
    ]
    assert len(pairs) > len(text) / 10
    for one, other in pairs:
        assert one.score == pytest.approx(other.score, abs=0.5)
    assert any(one.score != other.score for one, other in pairs)


def test_a_bundle_of_fewer_bits_is_smaller(exported: Callable[[str], Path], loaded: Bundle) -> None:
    def size(manifest: Manifest) -> int:
        return next(entry.size for entry in manifest.files if entry.role == "weights")

    sizes = [size(load_bundle(exported(name)).manifest) for name in COMPUTE_TYPES]
    assert max(sizes) < 0.6 * size(loaded.manifest)
    assert sizes[2] < sizes[1], "4 bits are no fewer than 8"


def test_products_with_weights_are_those_of_the_compute_type(quantised: Path, bundle: Path) -> None:
    def operators(folder: Path) -> set[str]:
        return {
            node.op_type
            + "".join(f" of {attribute.i} bits" for attribute in node.attribute if attribute.name == "bits")
            for path in folder.glob("*.onnx")
            for node in onnx.load(path).graph.node
            if node.domain == ONNXRUNTIME_DOMAIN or node.op_type == "Gemm"
        }

    wanted = {"int8": "MatMulIntegerToFloat", "int8-weights": "MatMulNBits of 8 bits", "int4": "MatMulNBits of 4 bits"}
    found = operators(quantised)
    assert wanted[quantised.stem] in found
    assert {"int8-weights": "MatMulNBits of 4 bits", "int8": "MatMulNBits of 8 bits"}.get(quantised.stem) not in found
    assert "Gemm" not in found
    assert operators(bundle) == {"Gemm"}


def test_the_manifest_tells_what_the_compute_type_changed(
    quantised: Path, loaded: Bundle, corpus_valid: tuple[Path, Path]
) -> None:
    opened = load_bundle(quantised)
    manifest = opened.manifest
    assert manifest.compute_type == quantised.stem
    report = manifest.quantisation
    assert report is not None
    assert report.compute_type == quantised.stem
    valid = corpus_valid[0].read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert report.sentences == len(valid)
    assert report.policy == manifest.operating_points[0].policy
    ids = [[*loaded.tokenizer.encode(line), EOS_ID] for line in valid]
    engines = [engine_of(folder, loaded) for folder in (loaded.path, quantised)]
    tokens, depths = (
        Reference(engines[0], opened.policy(depth), ids).compare(engines[1]) for depth in ("full", "adaptive")
    )
    assert (report.tokens, report.token_agreement) == (tokens.tokens, tokens.token_agreement)
    assert report.depth_changes == depths.depth_changes
    assert report.tokens > report.sentences
    # What was translated for the gate is what was measured at full depth, by other code, in both types.
    full = str(manifest.model.decoder_blocks)
    for of_type, bleu, chrf in (
        (manifest, report.bleu, report.chrf),
        (loaded.manifest, report.float32_bleu, report.float32_chrf),
    ):
        (quality,) = (row for row in of_type.quality if row.depth == full)
        assert (quality.bleu, quality.chrf) == pytest.approx((bleu, chrf))
    assert report.chrf != report.float32_chrf, "both are the same model"
    assert (loaded.manifest.compute_type, loaded.manifest.quantisation) == ("float32", None)
    assert [row.graph for row in manifest.parity.rows] == [entry.file for entry in manifest.graphs]


def test_a_manifest_with_the_report_of_another_compute_type_is_refused(exported: Callable[[str], Path]) -> None:
    content = json.loads((exported("int8") / MANIFEST_FILE).read_bytes())
    assert Manifest.from_bytes(json.dumps(content).encode()).compute_type == "int8"
    content["compute_type"] = "int4"
    with pytest.raises(BundleError, match="compute_type is 'int4', but the quantisation report is of 'int8'"):
        Manifest.from_bytes(json.dumps(content).encode())
    content["compute_type"] = "int2"
    with pytest.raises(BundleError, match=r"compute_type: Input should be 'float32', 'int8', 'int8-weights' or 'int4'"):
        Manifest.from_bytes(json.dumps(content).encode())


def test_inspect_shows_the_compute_type_and_what_it_changed(quantised: Path, bundle: Path) -> None:
    def inspect(folder: Path) -> str:
        outcome = run_edgeseq("inspect", folder)
        assert outcome.code == 0, outcome.stderr
        return outcome.stdout.decode()

    report = load_bundle(quantised).manifest.quantisation
    assert report is not None
    found, float32 = inspect(quantised), inspect(bundle)
    assert re.search(rf"^Size .* files, {quantised.stem}$", found, re.MULTILINE)
    assert re.search(r"^Size .* files, float32$", float32, re.MULTILINE)
    assert report.describe() in found.split("\n")
    assert report.describe().startswith(f"{quantised.stem} against float32 on {report.sentences} sentences: BLEU ")
    heading = "Graphs, and their largest difference from the torch modules they come from"
    assert f"{heading}, in float32" in found.split("\n")
    assert heading in float32.split("\n")
    assert "against float32" not in float32
    document = json.loads(run_edgeseq("inspect", quantised, "--json").stdout)
    assert document["manifest"]["quantisation"] == report.model_dump(mode="json")


# The numeric promise.


@pytest.mark.parametrize("shortlist", [False, True])
def test_drafts_change_nothing(shortlist: bool, quantised: Path, text: list[str]) -> None:
    translator = Translator(quantised, device="cpu", shortlist=shortlist)
    for depth in ("speculative:1", "speculative:2"):
        found, full = (translator.translate(text, batch_size=1, max_length=12, depth=name) for name in (depth, "full"))
        assert found == full


@pytest.mark.parametrize("shortlist", [False, True])
@pytest.mark.parametrize("name", ["full", "halting", "confidence"])
def test_batched_equals_single_in_bits(
    name: str, shortlist: bool, quantised: Path, policies: dict[str, str], text: list[str]
) -> None:
    translator = Translator(quantised, depth=policies[name], device="cpu", shortlist=shortlist)
    single = bits(translator.translate(text, batch_size=1, max_length=12, scores=True))
    for batch_size in (3, 32):
        assert bits(translator.translate(text, batch_size=batch_size, max_length=12, scores=True)) == single
    depths = {depth for _, _, used, _ in single for depth in used}  # type: ignore[attr-defined]
    assert len(depths) > 1 or name == "full", "the policy never decides"


def test_a_shortlist_changes_few_translations_in_fewer_bits_too(quantised: Path) -> None:
    """Its exit head is of 8 bits, in no compute type like that of the whole vocabulary."""
    facts = load_bundle(quantised).manifest.shortlist
    assert facts is not None
    assert facts.report is not None
    assert facts.weights == "int8"
    assert facts.report.changed < 0.5
    assert facts.report.chrf == pytest.approx(facts.report.full_chrf, abs=5)


def replace_head(folder: Path, graph: onnx.ModelProto) -> None:
    """Puts another exit head into a bundle, and the manifest says so."""
    manifest = load_bundle(folder).manifest
    (folder / "head.onnx").write_bytes(graph.SerializeToString())
    (signature,) = (each for each in expected_signatures(manifest.model) if each.file == "head.onnx")
    graphs = [describe_graph(folder, signature) if entry.file == "head.onnx" else entry for entry in manifest.graphs]
    (folder / MANIFEST_FILE).write_bytes(manifest.model_copy(update={"graphs": graphs}).to_bytes())


def dynamic_head(float32: onnx.ModelProto) -> onnx.ModelProto:
    """An exit head of 8 bits whose activations have one scale for all rows of a batch."""
    graph = onnx.ModelProto()
    graph.CopyFrom(float32)
    (stored,) = graph.graph.initializer
    weight, scales = quantise_columns(numpy_helper.to_array(stored))
    del graph.graph.initializer[:], graph.graph.node[:]
    graph.graph.initializer.extend(
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(scales, "scales")]
    )
    graph.graph.node.extend(
        [
            helper.make_node("DynamicQuantizeLinear", ["exit_states"], ["integers", "scale", "zero"], name="a"),
            helper.make_node("MatMulInteger", ["integers", "weight", "zero"], ["sums"], name="b"),
            helper.make_node("Cast", ["sums"], ["cast"], name="c", to=TensorProto.FLOAT),
            helper.make_node("Mul", ["cast", "scale"], ["scaled"], name="d"),
            helper.make_node("Mul", ["scaled", "scales"], ["logits"], name="e"),
        ]
    )
    return graph


def test_dynamic_quantisation_is_seen(
    exported: Callable[[str], Path],
    bundle: Path,
    text: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: an exit head in which rows share a scale."""
    wrong = tmp_path / "wrong.bundle"
    shutil.copytree(exported("int8"), wrong)
    replace_head(wrong, dynamic_head(onnx.load(bundle / "head.onnx")))
    with pytest.raises(DeviceError, match=r"wrong on this machine: head\.logits differs by"):
        Translator(wrong, depth="full", device="cpu")
    monkeypatch.setattr("edgeseq_runtime.translator.check_answers", lambda *_: None)
    translator = Translator(wrong, depth="full", device="cpu")
    single = bits(translator.translate(text, batch_size=1, max_length=12, scores=True))
    for batch_size in (3, 32):
        assert bits(translator.translate(text, batch_size=batch_size, max_length=12, scores=True)) != single


def random_depths(engine: Engine, loaded: Bundle, sources: list[list[int]]) -> AnyArray:
    """Logits of random tokens at random depths, long runs at block 1 among them: (steps, rows, vocab)."""
    generator = np.random.default_rng(5)
    facts, rows = loaded.manifest.model, len(sources)
    state = engine.encode(sources, FixedDepth("1", facts, 1))
    tokens = np.full(rows, BOS_ID)
    logits = []
    for _ in range(40):
        depths = np.where(generator.random(rows) < 0.8, 1, generator.integers(1, facts.decoder_blocks + 1, rows))
        logits.append(engine.step(state, tokens, depths=depths).logits.copy())
        tokens = generator.integers(EOS_ID + 1, facts.vocab_size, rows)
    return np.stack(logits)


class Forgetful(Layout):
    """Makes no column of a skipped position."""

    def catch_up(self, kernel_size: int, row: int, position: int, gap: int) -> tuple[IntArray, IntArray]:
        return super().catch_up(kernel_size, row, position, 0)


def test_lazy_equals_eager_over_random_depths_in_bits(
    quantised: Path, loaded: Bundle, sources: list[list[int]]
) -> None:
    facts, few = loaded.manifest.model, sources[:24]
    eager = EagerEngine(quantised, facts, device="cpu")
    lazy, wrong = (Engine(quantised, facts, device="cpu") for _ in range(2))
    expected = random_depths(eager, loaded, few)
    assert np.array_equal(random_depths(lazy, loaded, few), expected)
    assert eager.backfilled > 0
    # Control: the lazy engine forgets columns.
    wrong._layout = Forgetful(facts)
    assert not np.array_equal(random_depths(wrong, loaded, few), expected)


@pytest.mark.parametrize("name", ["halting", "confidence", "multinomial"])
def test_lazy_decodes_equal_eager_ones_in_bits(
    name: str, quantised: Path, loaded: Bundle, policies: dict[str, str], sources: list[list[int]]
) -> None:
    facts, policy = loaded.manifest.model, loaded.policy(policies[name])
    lazily, eagerly = (
        greedy(kind(quantised, facts, device="cpu"), sources, policy, [24] * len(sources), rows=32, want_scores=True)
        for kind in (Engine, EagerEngine)
    )
    assert lazily == eagerly
    assert any(earlier < later for each in lazily for earlier, later in itertools.pairwise(each.depths)), (
        "no token went deeper than the one before: no missing column was read"
    )


# Graphs that stay float32, and what is refused.


@pytest.mark.usefixtures("wide_gate")
def test_a_graph_that_is_kept_is_that_of_the_float32_bundle_and_no_other_is(
    export: Callable[..., Outcome], exported: Callable[[str], Path], bundle: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.bundle"
    options = ("--compute-type", "int4", "--keep-float32", "head", "--keep-float32", "block_2")
    outcome = export(kept, *options)
    assert outcome.code == 0, outcome.stderr
    found, quantised, float32 = (whole_graphs(folder) for folder in (kept, exported("int4"), bundle))
    names = {"head.onnx", "block_2.onnx"}
    assert {name for name, data in found.items() if data == float32[name]} == names
    assert {name for name, data in found.items() if data != quantised[name]} == names | {"step.onnx"}
    manifest = load_bundle(kept).manifest
    assert manifest.compute_type == "int4"
    # Fewer graphs differ, and so do fewer tokens.
    report, whole = manifest.quantisation, load_bundle(exported("int4")).manifest.quantisation
    assert report is not None
    assert whole is not None
    assert report != whole


def test_a_graph_that_is_not_there_cannot_be_kept(run: Path, corpus_valid: tuple[Path, Path], tmp_path: Path) -> None:
    graphs = ["encoder", *(f"{role}_{n}" for n in range(1, 5) for role in ("cross", "block")), "head"]
    message = f"there is no graph 'heads' to keep in float32; the graphs are {', '.join(graphs)}"
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        export_run(run, tmp_path / "new" / "en-de.bundle", ValidationText(*corpus_valid), "int8", ["head", "heads"])
    assert list(tmp_path.iterdir()) == []


def test_names_are_those_of_graphs_and_not_of_files(export: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = export(tmp_path / "en-de.bundle", "--compute-type", "int8", "--keep-float32", "head.onnx")
    assert outcome.code == 1
    assert outcome.stderr.startswith(
        "edgeseq: error: there is no graph 'head.onnx' to keep in float32; the graphs are "
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compute_type", COMPUTE_TYPES)
def test_fewer_bits_need_validation_text(compute_type: str, run: Path, tmp_path: Path) -> None:
    outcome = run_edgeseq("export", run, "--out", tmp_path / "new" / "b.bundle", "--compute-type", compute_type)
    assert outcome.code == 1
    assert outcome.stderr == (
        f"edgeseq: error: compute type {compute_type!r} is measured against float32 on validation text: "
        "give some (--valid-src and --valid-ref), or export float32\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_compute_type_is_refused_with_those_that_there_are(run: Path, tmp_path: Path) -> None:
    outcome = run_edgeseq("export", run, "--out", tmp_path / "b.bundle", "--compute-type", "int2")
    assert outcome.code == 2
    assert "'int2' is not one of 'float32', 'int8', 'int8-weights', 'int4'" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


# The gate compares choices.


@pytest.fixture(scope="module")
def damaged(bundle: Path, exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of `int8`, but block 2 is float32 with weights in disorder."""
    folder = tmp_path_factory.mktemp("damaged")
    for path in (*exported("int8").glob("*.onnx"), exported("int8") / WEIGHTS_FILE):
        shutil.copyfile(path, folder / path.name)
    graph = onnx.load(bundle / "block_2.onnx")
    generator = np.random.default_rng(1)
    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
            shuffled = generator.permutation(numpy_helper.to_array(tensor), axis=0)
            tensor.CopyFrom(numpy_helper.from_array(shuffled, tensor.name))
    onnx.save(graph, folder / "block_2.onnx")
    return folder


@pytest.fixture(scope="module")
def float32(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of float32 that bring their own weights, as an export compares others with."""
    folder = tmp_path_factory.mktemp("float32")
    for name, data in whole_graphs(bundle).items():
        (folder / name).write_bytes(data)
    return folder


def files_of(loaded: Bundle) -> list[str]:
    return [entry.file for entry in loaded.manifest.graphs]


def engine_of(folder: Path, loaded: Bundle) -> Engine:
    return Engine(folder, loaded.manifest.model, device="cpu")


@pytest.mark.parametrize("name", POLICIES)
def test_an_engine_chooses_as_it_does_itself_and_a_damaged_one_does_not(
    name: str, bundle: Path, damaged: Path, loaded: Bundle, policies: dict[str, str], sources: list[list[int]]
) -> None:
    policy = loaded.policy(policies[name])
    for folder in (bundle, damaged):
        same = Reference(engine_of(folder, loaded), policy, sources).compare(engine_of(folder, loaded))
        assert (same.token_agreement, same.depth_changes) == (1.0, 0.0)
        assert same.tokens > len(sources)
    # Control: block 2 is damaged. Fixed depths do not change for that; those chosen before it need not.
    choices = Reference(engine_of(bundle, loaded), policy, sources).compare(engine_of(damaged, loaded))
    assert choices.token_agreement < 0.95
    if name in {"full", "2"}:
        assert choices.depth_changes == 0
    elif name in {"halting", "confidence", "certainty"}:
        assert choices.depth_changes > 0.01


def chosen_alone(
    engine: Engine, policy: DepthPolicy, source: list[int], led: Hypothesis
) -> tuple[list[int], list[int]]:
    """What an engine chooses at each position after given tokens and depths: every prefix decoded anew, unbatched."""
    tokens, depths = [], []
    fed = [BOS_ID, *led.tokens[:-1]]
    for position, depth in enumerate(led.depths):
        for last in (depth, 0):
            state = engine.encode([source], policy)
            state.alone = None  # the damage is in the graph of a single block
            for token, used in zip(fed[: position + 1], [*led.depths[:position], last], strict=True):
                step = engine.step(state, np.array([token]), depths=np.array([used]))
            if last:
                logits = step.logits[0].copy()
                logits[[PAD_ID, BOS_ID]] = -np.inf
                tokens.append(int(logits.argmax()))
            else:
                depths.append(int(step.depths[0]))
    return tokens, depths


@pytest.mark.parametrize("name", POLICIES)
def test_choices_are_those_of_each_position_by_itself(
    name: str, bundle: Path, damaged: Path, loaded: Bundle, policies: dict[str, str], sources: list[list[int]]
) -> None:
    policy, few = loaded.policy(policies[name]), sources[:5]
    float32, quantised = engine_of(bundle, loaded), engine_of(damaged, loaded)
    decoded = greedy(float32, few, policy, [output_limit(len(source)) for source in few])
    tokens = same_tokens = same_depths = 0
    for source, led in zip(few, decoded, strict=True):
        alone_tokens, alone_depths = chosen_alone(quantised, policy, source, led)
        tokens += len(led.tokens)
        same_tokens += sum(map(int.__eq__, alone_tokens, led.tokens))
        same_depths += sum(map(int.__eq__, alone_depths, led.depths))
    assert Reference(float32, policy, few).compare(quantised) == Choices(tokens, same_tokens, same_depths)
    # Control: another engine is led.
    assert Reference(float32, policy, few).compare(float32) != Choices(tokens, same_tokens, same_depths)


def test_the_damaged_graph_is_blamed_first(
    bundle: Path, float32: Path, damaged: Path, loaded: Bundle, sources: list[list[int]]
) -> None:
    full = loaded.policy("full")
    model = loaded.manifest.model
    by_tokens = attrgetter("token_changes")
    found = blame_graphs((float32, damaged), model, full, sources[:32], by_tokens)
    files = set(files_of(loaded)) - NOT_BLAMED
    assert sorted(name for name, _ in found) == sorted(name.removesuffix(".onnx") for name in files)
    agreements = [choices.token_agreement for _, choices in found]
    assert agreements == sorted(agreements)
    assert found[0][0] == "block_2"
    assert agreements[0] < agreements[1]
    lines = format_blame(found).split("\n")
    assert len(lines) == len(found)
    assert re.fullmatch(r"  block_2 +same tokens +\d+\.\d\d%   other depths +0\.00%", lines[0])
    # Control: without the damage, nothing is as bad, and nothing is blamed where nothing differs.
    assert blame_graphs((float32, bundle), model, full, sources[:8], by_tokens)[0][1].token_agreement == 1


def report_of(**changes: float) -> QuantisationReport:
    facts: dict[str, object] = {
        "compute_type": "int8",
        "policy": "halting:0.5",
        "sentences": 100,
        "tokens": 1000,
        "token_agreement": 0.97,
        "depth_changes": 0.02,
        "float32_bleu": 30.0,
        "float32_chrf": 50.0,
        "bleu": 29.75,
        "chrf": 49.9,
    }
    return QuantisationReport.model_validate(facts | changes)


def test_what_is_over_a_limit_is_named_with_the_limit() -> None:
    assert problems(report_of()) == []
    assert problems(report_of(bleu=31.0, token_agreement=1.0, depth_changes=0.0)) == []
    assert problems(report_of(bleu=29.5)) == ["BLEU falls from 30.00 to 29.50 (limit: by 0.3)"]
    assert problems(report_of(depth_changes=0.0311)) == ["3.11% of tokens stop elsewhere (limit: 2%)"]
    assert problems(report_of(token_agreement=0.9612)) == ["96.12% of tokens are the same (limit: 97%)"]
    assert len(problems(report_of(bleu=0.0, token_agreement=0.0, depth_changes=1.0))) == 3


def test_a_bundle_over_a_limit_is_not_written_and_an_older_one_stays(
    export: Callable[..., Outcome], bundle: Path, loaded: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, temporary = tmp_path / "bundles", tmp_path / "temporary"
    shutil.copytree(bundle, place / "en-de.bundle")
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(bundle_writer, "_BLAME_SENTENCES", 8)
    open_gate(monkeypatch)
    monkeypatch.setattr(quantisation, "MIN_TOKEN_AGREEMENT", 1.01)  # not even float32 would pass
    outcome = export(place / "en-de.bundle", "--compute-type", "int8")
    assert outcome.code == 1
    message = outcome.stderr[outcome.stderr.index("edgeseq: error: ") :]
    first, *table, last = message.rstrip("\n").split("\n")
    assert re.fullmatch(
        r"edgeseq: error: int8 changes too much: \d+\.\d\d% of tokens are the same \(limit: 101%\)\. "
        r"No bundle is written\. Each graph alone in int8, the most harmful first:",
        first,
    )
    assert sorted(line.split()[0] for line in table) == sorted(
        name.removesuffix(".onnx") for name in set(files_of(loaded)) - NOT_BLAMED
    )
    assert last == "Keep those in float32 (--keep-float32 NAME), or choose another compute type."
    assert contents(place) == {f"en-de.bundle/{name}": data for name, data in contents(bundle).items()}
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("wide_gate")
def test_a_bundle_within_all_limits_replaces_an_older_one(
    export: Callable[..., Outcome], exported: Callable[[str], Path], bundle: Path, tmp_path: Path
) -> None:
    """Control: nothing but the limit kept the older one. And the same run gives the same bundle, on any day."""

    def all_but_the_day(folder: Path) -> dict[str, bytes]:
        return contents(folder) | {MANIFEST_FILE: DAY.sub(b"", (folder / MANIFEST_FILE).read_bytes())}

    place = tmp_path / "en-de.bundle"
    shutil.copytree(bundle, place)
    outcome = export(place, "--compute-type", "int8", *SHORTLIST)
    assert outcome.code == 0, outcome.stderr
    assert all_but_the_day(place) == all_but_the_day(exported("int8"))
    assert all_but_the_day(place) != all_but_the_day(bundle)
