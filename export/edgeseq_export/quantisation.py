"""What a compute type of fewer bits changes, against the same model in float32: the gate of an export.

The 8-bit graphs are led along float32's own tokens and depths, so that each choice is compared by itself; then both
translate freely, for BLEU and chrF.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeseq.evaluation.scores import CorpusScores, score_corpus
from edgeseq_export.weights_file import WEIGHTS_FILE
from edgeseq_runtime.arrays import BoolArray, FloatArray, IntArray
from edgeseq_runtime.bundle import Bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.reports import QuantisationReport
from edgeseq_runtime.search import greedy, output_limit
from edgeseq_runtime.signatures import expected_signatures
from edgeseq_runtime.sources import batch_sources, group_sources
from edgeseq_runtime.tokenizer import BOS_ID, PAD_ID, Tokenizer

MAX_LOSS = 0.3
"""BLEU at full depth."""
MAX_DEPTH_CHANGES = 0.02
MIN_TOKEN_AGREEMENT = 0.97

_ROWS = 32


@dataclass(frozen=True)
class Choices:
    """Choices that were compared along float32's own tokens and depths."""

    tokens: int
    same_tokens: int
    same_depths: int

    @property
    def token_agreement(self) -> float:
        """Share of tokens that are the best ones in both."""
        return self.same_tokens / self.tokens

    @property
    def token_changes(self) -> float:
        """Share of tokens of which another one is the best."""
        return 1 - self.token_agreement

    @property
    def depth_changes(self) -> float:
        """Share of tokens that would have stopped elsewhere."""
        return 1 - self.same_depths / self.tokens


@dataclass(frozen=True)
class _Batch:
    """Sentences that were decoded, of similar length."""

    sources: list[Sequence[int]]
    tokens: IntArray
    """(rows, longest)."""
    depths: IntArray
    """(rows, longest)."""
    real: BoolArray
    """(rows, longest), where a sentence has a token."""


class Reference:
    """What a float32 engine decodes: tokens and depths along which others are led, to compare their choices."""

    def __init__(self, float32: Engine, policy: DepthPolicy, sources: Sequence[Sequence[int]]) -> None:
        """Decodes.

        Args:
            float32: the engine.
            policy: says where tokens stop.
            sources: ids of sentences, EOS last.
        """
        self._policy = policy
        batches = batch_sources([len(source) for source in sources], _ROWS)
        self._batches = [_decode(float32, [sources[index] for index in batch], policy) for batch in batches]

    def compare(self, quantised: Engine) -> Choices:
        """Leads another engine along the tokens and depths, and counts the choices that are the same."""
        tokens = same_tokens = same_depths = 0
        for batch in self._batches:
            led = _Led(self._policy, quantised.full_depth)
            state = quantised.encode(batch.sources, led)
            fed = np.full(len(batch.sources), BOS_ID, dtype=np.int64)
            for position in range(batch.tokens.shape[1]):
                led.begin(batch.depths[:, position])
                logits = quantised.step(state, fed).logits
                logits[:, [PAD_ID, BOS_ID]] = -np.inf
                rows = batch.real[:, position]
                fed = batch.tokens[:, position]
                same_tokens += int((logits.argmax(axis=-1) == fed)[rows].sum())
                same_depths += int((led.chosen == batch.depths[:, position])[rows].sum())
                tokens += int(rows.sum())
        return Choices(tokens, same_tokens, same_depths)


@dataclass(frozen=True)
class GateText:
    """What the gate translates."""

    sources: list[list[int]]
    """Ids, EOS last; none is empty."""
    references: list[str]


def measure_quantisation(
    bundle: Bundle, folders: tuple[Path, Path], policy: DepthPolicy, text: GateText
) -> QuantisationReport:
    """Compares a bundle with the same model in float32.

    Args:
        bundle: of fewer bits.
        folders: of float32 graphs, and of the bundle's.
        policy: says where tokens stop while depths are compared. Tokens and BLEU are compared at full depth.
        text: validation text.

    Returns:
        What the manifest tells of it.
    """
    manifest = bundle.manifest
    float32, quantised = (Engine(folder, manifest.model, device="cpu") for folder in folders)
    full = bundle.policy("full")
    # At full depth every block has its say in the tokens.
    tokens = Reference(float32, full, text.sources).compare(quantised)
    depths = tokens if policy.name == full.name else Reference(float32, policy, text.sources).compare(quantised)
    before, after = (_score(engine, full, bundle.tokenizer, text) for engine in (float32, quantised))
    return QuantisationReport(
        compute_type=manifest.compute_type,
        policy=policy.name,
        sentences=len(text.sources),
        tokens=tokens.tokens,
        token_agreement=tokens.token_agreement,
        depth_changes=depths.depth_changes,
        float32_bleu=before.bleu,
        float32_chrf=before.chrf,
        bleu=after.bleu,
        chrf=after.chrf,
    )


def problems(report: QuantisationReport) -> list[str]:
    """Lists what is over a limit."""
    found = []
    if report.float32_bleu - report.bleu > MAX_LOSS:
        found.append(f"BLEU falls from {report.float32_bleu:.2f} to {report.bleu:.2f} (limit: by {MAX_LOSS})")
    if report.depth_changes > MAX_DEPTH_CHANGES:
        found.append(f"{report.depth_changes:.2%} of tokens stop elsewhere (limit: {MAX_DEPTH_CHANGES:.0%})")
    if report.token_agreement < MIN_TOKEN_AGREEMENT:
        found.append(f"{report.token_agreement:.2%} of tokens are the same (limit: {MIN_TOKEN_AGREEMENT:.0%})")
    return found


def blame_graphs(
    folders: tuple[Path, Path],
    model: ModelFacts,
    policy: DepthPolicy,
    sources: Sequence[Sequence[int]],
    harm: Callable[[Choices], float],
) -> list[tuple[str, Choices]]:
    """Compares float32 with models of which one graph alone is of fewer bits.

    Args:
        folders: of float32 graphs that bring their own weights, and of the others.
        model: facts of it.
        policy: says where tokens stop.
        sources: ids of sentences.
        harm: says how bad choices are.

    Returns:
        Graph, as `--keep-float32` calls it → choices, the most harmful graph first.
    """
    float32_folder, quantised_folder = folders
    reference = Reference(Engine(float32_folder, model, device="cpu"), policy, sources)
    found = []
    # But for the whole step, which is the other graphs once more.
    files = sorted(each.file for each in expected_signatures(model) if each.role != "step")
    with tempfile.TemporaryDirectory() as name:
        mixed = Path(name)
        for file in files:
            shutil.copyfile(float32_folder / file, mixed / file)
        shutil.copyfile(quantised_folder / WEIGHTS_FILE, mixed / WEIGHTS_FILE)
        for file in files:
            shutil.copyfile(quantised_folder / file, mixed / file)
            choices = reference.compare(Engine(mixed, model, device="cpu"))
            shutil.copyfile(float32_folder / file, mixed / file)
            found.append((file.removesuffix(".onnx"), choices))
    return sorted(found, key=lambda pair: harm(pair[1]), reverse=True)


def format_blame(found: Sequence[tuple[str, Choices]]) -> str:
    """Lays out what each graph does, a line each."""
    return "\n".join(
        f"  {graph:<16} same tokens {choices.token_agreement:7.2%}   other depths {choices.depth_changes:6.2%}"
        for graph, choices in found
    )


class _Led:
    """A depth policy that follows given depths, and notes where another one would have stopped."""

    draft_depth = None
    linear_stop = None

    def __init__(self, policy: DepthPolicy, full_depth: int) -> None:
        self.name = f"led:{policy.name}"
        self.reads_logits = policy.reads_logits
        self.chosen = np.zeros(0, dtype=np.int64)
        self._policy = policy
        self._full_depth = full_depth
        self._limits = np.zeros(0, dtype=np.int64)
        self._depths = np.zeros(0, dtype=np.int64)

    def begin(self, depths: IntArray) -> None:
        """Starts a step whose tokens stop at ``depths``."""
        self._depths = depths
        self.chosen = self._limits.copy()

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        self._limits = self._policy.limits(memory, lengths)
        return np.full(len(lengths), self._full_depth, dtype=np.int64)

    def decides(self, block: int) -> bool:
        del block
        return True

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        rows = self._depths >= block
        if self._policy.decides(block):
            planned = self._policy.plan(block, exit_states, logits)
            self.chosen[rows] = np.minimum(self.chosen[rows], planned)
        return self._depths[rows]

    def decision_flops(self, block: int) -> int:
        del block
        return 0


def _decode(engine: Engine, sources: list[Sequence[int]], policy: DepthPolicy) -> _Batch:
    decoded = greedy(engine, sources, policy, [output_limit(len(source)) for source in sources])
    lengths = np.array([len(hypothesis.tokens) for hypothesis in decoded])
    tokens = np.full((len(decoded), lengths.max()), PAD_ID, dtype=np.int64)
    depths = np.full(tokens.shape, engine.full_depth, dtype=np.int64)
    for row, hypothesis in enumerate(decoded):
        tokens[row, : len(hypothesis.tokens)] = hypothesis.tokens
        depths[row, : len(hypothesis.depths)] = hypothesis.depths
    return _Batch(sources, tokens, depths, np.arange(lengths.max()) < lengths[:, None])


def _score(engine: Engine, policy: DepthPolicy, tokenizer: Tokenizer, text: GateText) -> CorpusScores:
    outputs: dict[int, str] = {}
    for group, places in group_sources([len(source) for source in text.sources], _ROWS):
        sources = [text.sources[index] for index in group]
        decoded = greedy(engine, sources, policy, [output_limit(len(source)) for source in sources], rows=places)
        outputs |= zip(group, (tokenizer.decode(hypothesis.tokens) for hypothesis in decoded), strict=True)
    return score_corpus([outputs[index] for index in range(len(outputs))], text.references)
