"""What every exit would have said: texts decoded by a depth policy, all exits and predictors asked at each token.

At full depth that is every exit; another policy's decode shows what it was chosen from.

Dimensions: T generated tokens of a text, N decoder blocks, R rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeseq_runtime.arrays import AnyArray, FloatArray, IntArray
from edgeseq_runtime.bundle import Bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.manifest import THRESHOLD_KINDS
from edgeseq_runtime.policy import CONFIDENCE, DepthPolicy, FixedDepth, largest_probability
from edgeseq_runtime.predictors import CertaintyUnits, DepthClassifier, HaltingUnits, Predictor, mean_memory
from edgeseq_runtime.search import Emission, greedy_steps, output_limit
from edgeseq_runtime.sources import batch_sources, read_source
from edgeseq_runtime.tokenizer import BOS_ID, PAD_ID

NOT_RUN = -1
"""The choice of an exit that was not reached."""


@dataclass(frozen=True, eq=False)
class Probe:
    """One text, decoded. Of blocks above a token's depth, which did not run, nothing is known: -1 and NaN."""

    source: list[int]
    """Ids, EOS included; empty for blank text, and so is all the rest."""
    tokens: list[int]
    """Ids of the T generated tokens, EOS included unless the greatest length came first."""
    depths: IntArray
    """(T,): the block after which each stopped."""
    choices: IntArray
    """(T, N): the token that each exit takes for the best, after the tokens before it."""
    confidence: FloatArray
    """(T, N): its probability; below the token's depth the largest of all pieces, as the policy of that name has it."""
    signals: dict[str, FloatArray]
    """What each predictor of the bundle says: kinds halting and certainty (T, N-1) their chi; multinomial (T, N) and
    sequence (N,) its distribution over depths."""


def probe_texts(
    bundle: Bundle, engine: Engine, texts: Sequence[str], batch_size: int = 32, policy: DepthPolicy | None = None
) -> list[Probe]:
    """Decodes texts greedily and records what each exit and each predictor that was reached would have said.

    Args:
        bundle: the bundle.
        engine: its graphs.
        texts: blank ones generate nothing. What a Translator would cut off is cut off.
        batch_size: texts decoded at once.
        policy: decides depths; None means full depth.

    Returns:
        One probe per text, in order. On the CPU it does not depend on the other texts.
    """
    sources = [read_source(bundle.tokenizer, text)[0] for text in texts]
    kinds = {entry.name: entry.kind for entry in bundle.manifest.predictors}
    blocks = bundle.manifest.model.decoder_blocks
    decider = policy or FixedDepth("full", bundle.manifest.model, blocks)
    probes: dict[int, Probe] = {}
    for batch in batch_sources([len(source) for source in sources], batch_size):
        recorder = _Recorder(decider, blocks, bundle.predictors, kinds)
        probes |= zip(batch, recorder.decode(engine, [sources[index] for index in batch]), strict=True)
    return [probes.get(index) or _blank(blocks, kinds) for index in range(len(texts))]


def collect_signals(probes: Sequence[Probe], name: str, kind: str) -> FloatArray:
    """What told each token to stop, or how deep to go.

    Args:
        probes: of texts, with at least one token.
        name: of a predictor that was asked, or that of confidence.
        kind: of the predictor, or confidence.

    Returns:
        Confidence, halting and certainty (T, N-1), after blocks 1 to N-1; multinomial and sequence (T, N),
        distributions over depths, those of a sentence for each of its tokens.
    """
    if kind == CONFIDENCE:
        return np.concatenate([probe.confidence for probe in probes])[:, :-1]
    if kind == "sequence":
        return np.concatenate([np.tile(probe.signals[name], (len(probe.tokens), 1)) for probe in probes])
    return np.concatenate([probe.signals[name] for probe in probes])


@dataclass
class _Recorder:
    """A depth policy that does what another one does, and notes what could have been said and decided.

    One decodes one batch. The arrays that it is shown after a block hold those rows of the step's emission that ran
    the block, in order.
    """

    policy: DepthPolicy
    blocks: int
    predictors: Mapping[str, Predictor]
    kinds: Mapping[str, str]
    name: str = "probe"
    reads_logits: bool = True
    draft_depth = None
    linear_stop: None = None
    choices: list[IntArray] = field(default_factory=list)
    """Of the current step, one (rows,) per block that has run, the last excepted; the others alike."""
    confidence: list[FloatArray] = field(default_factory=list)
    stopping: dict[str, list[FloatArray]] = field(default_factory=dict)
    multinomial: dict[str, FloatArray] = field(default_factory=dict)
    sequence: dict[str, FloatArray] = field(default_factory=dict)
    """Of the batch, (R, N) each."""

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        means = mean_memory(memory, lengths)
        for name, predictor in self.predictors.items():
            if isinstance(predictor, DepthClassifier) and self.kinds[name] == "sequence":
                self.sequence[name] = predictor.probabilities(means)
        return self.policy.limits(memory, lengths)

    def decides(self, block: int) -> bool:
        return block < self.blocks

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        assert logits is not None, "this policy reads logits"
        self.confidence.append(largest_probability(logits))
        allowed = logits.copy()
        allowed[:, [PAD_ID, BOS_ID]] = -np.inf
        self.choices.append(allowed.argmax(axis=-1))
        for name, predictor in self.predictors.items():
            if isinstance(predictor, HaltingUnits):
                self.stopping.setdefault(name, []).append(predictor.probabilities(block, exit_states))
            elif isinstance(predictor, CertaintyUnits):
                self.stopping.setdefault(name, []).append(predictor.probabilities(block, logits))
            elif block == 1 and self.kinds[name] == "multinomial":
                self.multinomial[name] = predictor.probabilities(exit_states)
        if not self.policy.decides(block):
            return np.full(len(exit_states), self.blocks, dtype=np.int64)
        return self.policy.plan(block, exit_states, logits if self.policy.reads_logits else None)

    def decision_flops(self, block: int) -> int:
        del block
        return 0

    def decode(self, engine: Engine, sources: list[list[int]]) -> list[Probe]:
        """Decodes a batch of sources, none of which waits for another to end."""
        limits = [output_limit(len(source)) for source in sources]
        rows: list[list[_Row]] = [[] for _ in sources]
        for step in greedy_steps(engine, sources, self, limits, want_scores=True):
            for sentence, row in zip(step.sentences.tolist(), self._take_rows(step), strict=True):
                rows[sentence].append(row)
        return [self._probe(index, source, rows[index]) for index, source in enumerate(sources)]

    def _take_rows(self, step: Emission) -> list[_Row]:
        """What was noted during a step, by row; then the next step begins."""
        assert step.log_probabilities is not None, "scores were asked for"
        choices = self._spread(self.choices, step.depths, self.blocks, np.int64(NOT_RUN))
        confidence = self._spread(self.confidence, step.depths, self.blocks, np.float32(np.nan))
        # What was said is known of the last block too, after which nothing is decided and nothing was noted.
        said = np.arange(len(step.tokens)), step.depths - 1
        choices[said] = step.tokens
        confidence[said] = np.exp(step.log_probabilities)
        signals = {
            name: self._spread(parts, step.depths, self.blocks - 1, np.float32(np.nan))
            for name, parts in self.stopping.items()
        } | self.multinomial
        self.choices, self.confidence, self.stopping, self.multinomial = [], [], {}, {}
        return [
            _Row(
                int(step.tokens[row]),
                int(step.depths[row]),
                choices[row],
                confidence[row],
                {name: signal[row] for name, signal in signals.items()},
            )
            for row in range(len(choices))
        ]

    @staticmethod
    def _spread(parts: Sequence[AnyArray], depths: IntArray, columns: int, missing: np.generic) -> AnyArray:
        """Puts what was noted after each block into the rows that ran it: (R, columns)."""
        spread = np.full((len(depths), columns), missing)
        for block, part in enumerate(parts, start=1):
            spread[depths >= block, block - 1] = part
        return spread

    def _probe(self, index: int, source: list[int], rows: list[_Row]) -> Probe:
        names = rows[0].signals
        return Probe(
            source=source,
            tokens=[row.token for row in rows],
            depths=np.array([row.depth for row in rows], dtype=np.int64),
            choices=np.stack([row.choices for row in rows]),
            confidence=np.stack([row.confidence for row in rows]),
            signals={name: np.stack([row.signals[name] for row in rows]) for name in names}
            | {name: distributions[index] for name, distributions in self.sequence.items()},
        )


@dataclass(frozen=True)
class _Row:
    """One token."""

    token: int
    depth: int
    choices: IntArray  # (N,)
    confidence: FloatArray  # (N,)
    signals: dict[str, FloatArray]  # halting and certainty (N-1,), multinomial (N,)


def _blank(blocks: int, kinds: Mapping[str, str]) -> Probe:
    stopping = dict.fromkeys(THRESHOLD_KINDS, (0, blocks - 1))
    shapes: dict[str, tuple[int, ...]] = {**stopping, "multinomial": (0, blocks), "sequence": (blocks,)}
    return Probe(
        source=[],
        tokens=[],
        depths=np.zeros(0, dtype=np.int64),
        choices=np.zeros((0, blocks), dtype=np.int64),
        confidence=np.zeros((0, blocks), dtype=np.float32),
        signals={name: np.zeros(shapes[kind], dtype=np.float32) for name, kind in kinds.items()},
    )
