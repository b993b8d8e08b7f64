"""From a training run to a bundle: split, write, compare, measure, publish; all of it or nothing."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from edgeseq import modules
from edgeseq.config import RunConfig
from edgeseq.data.text import read_parallel
from edgeseq.models import Seq2Seq
from edgeseq.training.run import load_run
from edgeseq_export.activation_ranges import ActivationRange, measure_ranges
from edgeseq_export.compute_types import choose_arithmetic
from edgeseq_export.decoding_parity import MAX_TIE_SHARE, MAX_TIES, TIE_MARGIN, add_counts, compare_decoding
from edgeseq_export.errors import ExportError
from edgeseq_export.facts import model_facts, predictor_entry
from edgeseq_export.graphs import split_model
from edgeseq_export.onnx_graphs import write_graph
from edgeseq_export.operating_point import Measured, measure_policies, middling_policy
from edgeseq_export.parity import compare_graph, failed_rows, format_rows
from edgeseq_export.quantisation import (
    MAX_DEPTH_CHANGES,
    GateText,
    blame_graphs,
    format_blame,
    measure_quantisation,
    problems,
)
from edgeseq_export.shortlists import SHORTLIST_FILE, ShortlistTables, make_tables, measure_shortlist
from edgeseq_export.weights_file import WEIGHTS_FILE, gather_weights
from edgeseq_runtime import Translator, __version__
from edgeseq_runtime.atomic import publish_directory, write_file
from edgeseq_runtime.bundle import Bundle, describe_file, describe_graph, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.known_answers import answer, asked_graphs, tensor_names
from edgeseq_runtime.manifest import MANIFEST_FILE, Manifest, ModelFacts, Provenance, TokenizerFacts, is_bundle
from edgeseq_runtime.predictors import CertaintyUnits, DepthClassifier, HaltingUnits, Predictor
from edgeseq_runtime.records import CandidateWeights, ComputeTypeName
from edgeseq_runtime.reports import ParityReport, ParityRow, QuantisationReport
from edgeseq_runtime.shortlist import Shortlist
from edgeseq_runtime.signatures import expected_signatures
from edgeseq_runtime.sources import read_source
from edgeseq_runtime.tokenizer import EOS_ID, Tokenizer

TOKENIZER_FILE = "tokenizer.model"
PREDICTORS_FILE = "predictors.safetensors"
KNOWN_ANSWERS_FILE = "known_answers.safetensors"

_PARITY_SENTENCES = 64
_PARITY_LENGTH = 40
_RANGE_PAIRS = 200
_BLAME_SENTENCES = 200
_EXTREME = 1e3
_SEED = 20_251

_RUNTIME_CLASSES: dict[type[modules.DepthPredictor], type[Predictor]] = {
    modules.HaltingUnits: HaltingUnits,
    modules.CertaintyUnits: CertaintyUnits,
    modules.TokenDepth: DepthClassifier,
    modules.SentenceDepth: DepthClassifier,
}

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationText:
    """Files that say how good each depth is."""

    src: Path
    ref: Path


def export_run(
    run: Path,
    bundle: Path,
    validation: ValidationText | None,
    compute_type: ComputeTypeName = "float32",
    keep_float32: Collection[str] = (),
    shortlist_best: int | None = None,
) -> Manifest:
    """Exports a training run.

    Args:
        run: folder with config.json, tokenizer.model and model.safetensors.
        bundle: the folder to make; an older bundle there is replaced.
        validation: text on which quality per depth and the default operating point are measured; all compute types but
            float32 need it.
        compute_type: how graphs keep their weights and multiply by them.
        keep_float32: names of graphs that stay float32, such as `head`.
        shortlist_best: target pieces that a source piece brings into a sentence's shortlist; None for a bundle without
            shortlists. They need validation text, tied exit heads, and the token ids that the run was trained on.

    Returns:
        The manifest of the bundle.

    Raises:
        ExportError: a graph, or a decode, differs from torch, or the compute type changes too much; nothing is written
            then. Or there is no validation text where it is needed, no graph of a name, or no way to a shortlist.
        EdgeseqError: the run or the validation text cannot be read.
        OSError: the bundle cannot be written.
    """
    if validation is None:
        _check_needs_no_text(compute_type, shortlist=shortlist_best is not None)
    config, tokenizer, model = load_run(run)
    pairs = None if validation is None else _read_pairs(validation)
    facts = model_facts(config.model, model, tokenizer.vocab_size)
    _check_names(facts, keep_float32)
    tables = None if shortlist_best is None else make_tables(run, facts, shortlist_best)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with publish_directory(bundle, is_ours=is_bundle) as folder, ExitStack() as stack:
        float32_folder = folder
        if compute_type != "float32":
            float32_folder = Path(stack.enter_context(TemporaryDirectory(prefix="edgeseq-float32-")))
        shortlist = None if tables is None else tables.open("float32")
        rows = _write_graphs(model, facts, float32_folder, shortlist)
        _LOGGER.info("%s", format_rows(rows))
        write_file(folder / TOKENIZER_FILE, tokenizer.model_bytes)
        predictors = _write_predictors(model, folder)
        sources = _parity_sources(tokenizer, None if pairs is None else [source for source, _ in pairs])
        parity = _compare_decodes(model, facts, float32_folder, predictors, sources, rows, shortlist)
        if compute_type != "float32":
            assert pairs is not None, "checked above"
            arithmetic = choose_arithmetic(compute_type, _measure_ranges(model, tokenizer, pairs), keep_float32)
            if tables is not None and "head" not in keep_float32:
                shortlist = tables.open("int8")
            for part in split_model(model, facts, _weights_of(shortlist)):
                graph = write_graph(part, arithmetic)
                write_file(folder / part.signature.file, graph.SerializeToString(deterministic=True))
        gather_weights(folder)
        if tables is not None:
            tables.write(folder)
        if compute_type != "float32":
            _write_known_answers(facts, folder)
        manifest = _build_manifest(config, model, facts, folder, compute_type, parity, shortlist)
        write_file(folder / MANIFEST_FILE, manifest.to_bytes())
        # Opening it runs all checks a user's runtime will run.
        translator = Translator(folder, depth="full", device="cpu")
        if pairs is not None:
            manifest = _measure(translator, float32_folder, pairs, tables)
    return manifest


def _check_needs_no_text(compute_type: ComputeTypeName, *, shortlist: bool) -> None:
    if compute_type != "float32":
        raise ExportError(
            f"compute type {compute_type!r} is measured against float32 on validation text: give some "
            "(--valid-src and --valid-ref), or export float32"
        )
    if shortlist:
        raise ExportError(
            "what a shortlist changes is measured on validation text: give some (--valid-src and --valid-ref), or "
            "export without --shortlist"
        )


def _read_pairs(validation: ValidationText) -> list[tuple[str, str]]:
    pairs = list(read_parallel(validation.src, validation.ref))
    if not any(source.strip() for source, _ in pairs):
        raise ExportError(f"{validation.src} has no line that is not blank: give validation text")
    return pairs


def _measure(
    translator: Translator, float32_folder: Path, pairs: list[tuple[str, str]], tables: ShortlistTables | None
) -> Manifest:
    """Measures the bundle on validation text, and has its manifest tell what came of it.

    Raises:
        ExportError: the compute type changes too much.
    """
    folder, manifest = translator.bundle.path, translator.manifest
    measured = measure_policies(translator, *map(list, zip(*pairs, strict=True)))
    _log_measured(measured)
    manifest = _complete(folder, manifest, quality=measured.quality, operating_points=measured.operating_points)
    if manifest.compute_type != "float32":
        manifest = _complete(folder, manifest, quantisation=_pass_gate(folder, float32_folder, pairs))
    if tables is not None and manifest.shortlist is not None:
        report = measure_shortlist(folder, pairs, tables.pairs)
        _LOGGER.info("%s", report.describe())
        manifest = _complete(folder, manifest, shortlist=manifest.shortlist.model_copy(update={"report": report}))
    return manifest


def _complete(folder: Path, manifest: Manifest, **found: object) -> Manifest:
    """Writes the manifest once more, with what has been measured."""
    manifest = manifest.model_copy(update=found)
    write_file(folder / MANIFEST_FILE, manifest.to_bytes())
    return manifest


def _check_names(facts: ModelFacts, keep_float32: Collection[str]) -> None:
    # The step has the arithmetic of the blocks and exit heads that it consists of.
    signatures = [signature for signature in expected_signatures(facts) if signature.role != "step"]
    known = [signature.file.removesuffix(".onnx") for signature in signatures]
    unknown = sorted(set(keep_float32) - set(known))
    if unknown:
        raise ExportError(f"there is no graph {unknown[0]!r} to keep in float32; the graphs are {', '.join(known)}")


def _weights_of(shortlist: Shortlist | None) -> CandidateWeights | None:
    return None if shortlist is None else shortlist.facts.weights


def _write_graphs(model: Seq2Seq, facts: ModelFacts, folder: Path, shortlist: Shortlist | None) -> list[ParityRow]:
    rows = []
    for seed, part in enumerate(split_model(model, facts, _weights_of(shortlist)), start=_SEED):
        graph = write_graph(part)
        write_file(folder / part.signature.file, graph.SerializeToString(deterministic=True))
        rows.append(compare_graph(part, facts, graph, seed))
    failed = failed_rows(rows)
    if failed:
        names = ", ".join(row.graph for row in failed)
        raise ExportError(f"{names} differ(s) from torch; no bundle is written.\n{format_rows(rows)}")
    return rows


def _write_known_answers(facts: ModelFacts, folder: Path) -> None:
    """Has graphs work on inputs so large that their 8-bit values are the least and the greatest."""
    generator = np.random.default_rng(_SEED)
    inputs = {
        key: (_EXTREME * generator.choice([-1, 1], shape)).astype(np.float32)
        for key, (_, _, shape) in asked_graphs(facts).items()
    }
    answers = answer(Engine(folder, facts, device="cpu"), facts, inputs)
    tensors: dict[str, Tensor] = {}
    for key, given in inputs.items():
        names = tensor_names(facts, key)
        tensors |= dict(zip(names, (torch.from_numpy(given), torch.from_numpy(answers[key].copy())), strict=True))
    write_file(folder / KNOWN_ANSWERS_FILE, save(tensors))


def _measure_ranges(
    model: Seq2Seq, tokenizer: Tokenizer, pairs: list[tuple[str, str]]
) -> dict[nn.Module, ActivationRange]:
    _LOGGER.info("measuring activations on %d validation pairs", min(len(pairs), _RANGE_PAIRS))
    ids = [(_read_ids(tokenizer, source), _read_ids(tokenizer, target)) for source, target in pairs[:_RANGE_PAIRS]]
    return measure_ranges(model, ids, _SEED)


def _read_ids(tokenizer: Tokenizer, line: str) -> list[int]:
    """Ids of a line, EOS last, no more of it than is translated."""
    return read_source(tokenizer, line)[0] or [EOS_ID]


def _pass_gate(folder: Path, float32_folder: Path, pairs: list[tuple[str, str]]) -> QuantisationReport:
    """Measures what the compute type changed.

    Raises:
        ExportError: too much.
    """
    bundle = load_bundle(folder)
    model = bundle.manifest.model
    read = [(read_source(bundle.tokenizer, source)[0], reference) for source, reference in pairs]
    text = GateText([source for source, _ in read if source], [reference for source, reference in read if source])
    folders = (float32_folder, folder)
    policy = bundle.policy(_gate_policy(bundle))
    report = measure_quantisation(bundle, folders, policy, text)
    _LOGGER.info("%s", report.describe())
    found = problems(report)
    if found:
        by_depth = report.depth_changes > MAX_DEPTH_CHANGES
        blamed_at = policy if by_depth else bundle.policy("full")
        harm = attrgetter("depth_changes" if by_depth else "token_changes")
        raise ExportError(
            f"{report.compute_type} changes too much: {'; '.join(found)}. No bundle is written. Each graph alone in "
            f"{report.compute_type}, the most harmful first:\n"
            f"{format_blame(blame_graphs(folders, model, blamed_at, text.sources[:_BLAME_SENTENCES], harm))}\n"
            "Keep those in float32 (--keep-float32 NAME), or choose another compute type."
        )
    return report


def _gate_policy(bundle: Bundle) -> str:
    """The policy whose depths are compared: the one to be used, or else one at which tokens stop early at all."""
    if bundle.operating_points:
        return "adaptive"
    return middling_policy(bundle.manifest.predictors[0]) if bundle.manifest.predictors else "full"


def _write_predictors(model: Seq2Seq, folder: Path) -> dict[str, Predictor]:
    tensors: dict[str, Tensor] = {}
    predictors: dict[str, Predictor] = {}
    for name in model.predictors:
        weights = {key: value.detach() for key, value in model.predictor(name).named_parameters()}
        tensors |= {f"{name}.{key}": value for key, value in weights.items()}
        kind = _RUNTIME_CLASSES[type(model.predictor(name))]
        predictors[name] = kind(**{key: value.numpy() for key, value in weights.items()})
    if tensors:
        write_file(folder / PREDICTORS_FILE, save(tensors))
    return predictors


def _parity_sources(tokenizer: Tokenizer, text: list[str] | None) -> list[list[int]]:
    """Takes sentences of the validation text, or draws random pieces where there is none."""
    if text is not None:
        return [_read_ids(tokenizer, line) for line in text[:_PARITY_SENTENCES]]
    generator = torch.Generator().manual_seed(_SEED)
    lengths = torch.randint(1, 30, (_PARITY_SENTENCES,), generator=generator).tolist()
    first = EOS_ID + 1
    return [
        [*torch.randint(first, tokenizer.vocab_size, (length,), generator=generator).tolist(), EOS_ID]
        for length in lengths
    ]


def _compare_decodes(
    model: Seq2Seq,
    facts: ModelFacts,
    folder: Path,
    predictors: dict[str, Predictor],
    sources: list[list[int]],
    rows: list[ParityRow],
    shortlist: Shortlist | None,
) -> ParityReport:
    engines = [Engine(folder, facts, device="cpu")]
    if shortlist is not None:
        engines.append(Engine(folder, facts, device="cpu", shortlist=shortlist))
    decoding = add_counts(
        [compare_decoding(model, engine, predictors, sources, _PARITY_LENGTH, _SEED) for engine in engines]
    )
    summary = (
        f"{decoding.sentences} forced decodes, {decoding.tokens} tokens, {decoding.decisions} decisions: "
        f"{decoding.disagreements} differ, {decoding.ties} ties"
    )
    _LOGGER.info("%s", summary)
    allowed = max(MAX_TIES, MAX_TIE_SHARE * decoding.decisions)
    if decoding.disagreements or decoding.ties > allowed:
        raise ExportError(
            f"the graphs do not decode as torch does: {summary} (expected 0, and at most {allowed:.0f} ties, "
            f"{MAX_TIE_SHARE:.1%} of the decisions or {MAX_TIES}); no bundle is written"
        )
    return ParityReport(tie_margin=TIE_MARGIN, rows=rows, decoding=decoding)


def _build_manifest(
    config: RunConfig,
    model: Seq2Seq,
    facts: ModelFacts,
    folder: Path,
    compute_type: ComputeTypeName,
    parity: ParityReport,
    shortlist: Shortlist | None,
) -> Manifest:
    files = [describe_file(folder, WEIGHTS_FILE, "weights"), describe_file(folder, TOKENIZER_FILE, "tokenizer")]
    if config.predictors:
        files.append(describe_file(folder, PREDICTORS_FILE, "predictors"))
    if compute_type != "float32":
        files.append(describe_file(folder, KNOWN_ANSWERS_FILE, "known_answers"))
    if shortlist is not None:
        files.append(describe_file(folder, SHORTLIST_FILE, "shortlist"))
    return Manifest(
        edgeseq_version=__version__,
        created=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        compute_type=compute_type,
        model=facts,
        graphs=[describe_graph(folder, each) for each in expected_signatures(facts, _weights_of(shortlist))],
        files=files,
        tokenizer=TokenizerFacts(pieces=facts.vocab_size),
        predictors=[
            predictor_entry(predictor, model, joint=predictor in config.joint_predictors)
            for predictor in config.predictors
        ],
        operating_points=[],
        quality=[],
        parity=parity,
        quantisation=None,
        shortlist=None if shortlist is None else shortlist.facts,
        provenance=Provenance(licence=config.data.licence, data=config.data.description),
    )


def _log_measured(measured: Measured) -> None:
    for result in measured.results:
        _LOGGER.info(
            "depth %-12s BLEU %5.2f  chrF %5.2f  average depth %.2f",
            result.depth,
            result.scores.bleu,
            result.scores.chrf,
            result.average_depth,
        )
    for point in measured.operating_points:
        _LOGGER.info("operating point %s: %s", point.name, point.policy)
