"""What each depth policy of a bundle gives on a test set: quality, depth, FLOPs, speed."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgeseq.errors import DataError
from edgeseq.evaluation.beam_flops import beam_flops
from edgeseq.evaluation.error_rates import ErrorRates, score_error_rates
from edgeseq.evaluation.scores import CorpusScores, LineTest, Sample, compare_with_line, score_corpus
from edgeseq_runtime import Translation, Translator
from edgeseq_runtime.beam import GREEDY, BeamOptions
from edgeseq_runtime.flops import DecoderFlops, decoder_flops
from edgeseq_runtime.policy import DepthPolicy, FixedDepth

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyRun:
    """What one policy cost on one test set."""

    depth: str
    """The policy in full."""
    average_depth: float
    """Blocks per generated token, EOS included."""
    depth_shares: list[float]
    """Share of tokens that stopped at blocks 1 to N."""
    flops: DecoderFlops
    """Of the whole set."""
    sentences: int
    tokens: int
    seconds: float
    """Wall time of translating once, tokenizer included, and making graphs ready that no policy before it needed."""
    signature: str
    """All that the numbers depend on."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, encoder included: a first impression, not a measurement."""
        return self.tokens / self.seconds

    @property
    def flops_per_token(self) -> float:
        """Decoder FLOPs per generated token."""
        return self.flops.total / self.tokens


@dataclass(frozen=True)
class PolicyResult(PolicyRun):
    """One policy on a test set of translations."""

    scores: CorpusScores
    line: LineTest | None
    """For adaptive policies, where the fixed depths around the average depth were evaluated too."""

    @property
    def quality(self) -> dict[str, float]:
        """Scores by the names under which tables show them."""
        return {"BLEU": self.scores.bleu, "chrF": self.scores.chrf}


@dataclass(frozen=True)
class PolicyErrorRates(PolicyRun):
    """One policy on a test set of words with one or more right answers each."""

    rates: ErrorRates

    @property
    def quality(self) -> dict[str, float]:
        """Error rates by the names under which tables show them."""
        return {"PER": self.rates.phone_error_rate, "WER": self.rates.word_error_rate}


def evaluate_policies(
    translator: Translator,
    sources: Sequence[str],
    references: Sequence[str],
    depths: Sequence[str],
    batch_size: int,
    beam: BeamOptions = GREEDY,
) -> list[PolicyResult]:
    """Translates a test set once per policy and measures each.

    Args:
        translator: the bundle.
        sources: sentences.
        references: one per source.
        depths: policies as a user gives them.
        batch_size: sentences decoded at once.
        beam: of the search.

    Returns:
        One result per policy, in order.

    Raises:
        PolicyError: the bundle lacks a policy; nothing is translated then.
        DataError: all sources are blank.
    """
    runs = _run_policies(translator, sources, depths, batch_size, beam)
    samples = [
        Sample.collect([t.text for t in translations], references, [t.depths for t in translations])
        for _, translations in runs
    ]
    policies = [translator.bundle.policy(depth) for depth in depths]
    fixed = {
        policy.depth: sample for policy, sample in zip(policies, samples, strict=True) if isinstance(policy, FixedDepth)
    }
    return [
        PolicyResult(
            **vars(run),
            scores=score_corpus([t.text for t in translations], references),
            line=None if isinstance(policy, FixedDepth) else compare_with_line(sample, fixed),
        )
        for policy, (run, translations), sample in zip(policies, runs, samples, strict=True)
    ]


def evaluate_error_rates(
    translator: Translator,
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    depths: Sequence[str],
    batch_size: int,
    beam: BeamOptions = GREEDY,
) -> list[PolicyErrorRates]:
    """Like `evaluate_policies`, for tokens that are separated by blanks, such as phones.

    Args:
        translator: the bundle.
        sources: words.
        references: one or more right outputs of each; see `error_rates`.
        depths: policies as a user gives them.
        batch_size: words decoded at once.
        beam: of the search.

    Returns:
        One result per policy, in order.

    Raises:
        PolicyError: the bundle lacks a policy; nothing is translated then.
    """
    return [
        PolicyErrorRates(**vars(run), rates=score_error_rates([t.text for t in translations], references))
        for run, translations in _run_policies(translator, sources, depths, batch_size, beam)
    ]


def _run_policies(
    translator: Translator, sources: Sequence[str], depths: Sequence[str], batch_size: int, beam: BeamOptions
) -> list[tuple[PolicyRun, list[Translation]]]:
    """Translates a test set once per policy, after all policies are known to exist."""
    policies = [translator.bundle.policy(depth) for depth in depths]
    if not any(source.strip() for source in sources):
        raise DataError(f"all {len(sources)} lines to translate are blank; give text to measure on")
    runs = []
    for number, (depth, policy) in enumerate(zip(depths, policies, strict=True), start=1):
        started = time.perf_counter()
        translations = translator.translate(list(sources), batch_size=batch_size, depth=depth, beam=beam)
        seconds = time.perf_counter() - started
        _LOGGER.info("%d of %d: %s: %.1f s", number, len(depths), depth, seconds)
        used = [depth for translation in translations for depth in translation.depths]
        run = PolicyRun(
            depth=policy.name,
            average_depth=sum(used) / max(len(used), 1),
            depth_shares=_shares(used, translator.manifest.model.decoder_blocks),
            flops=count_flops(translator, translations, policy)
            if beam == GREEDY
            else beam_flops(translator, sources, policy, beam, batch_size),
            sentences=len(sources),
            tokens=len(used),
            seconds=seconds,
            signature=f"{translator.signature(depth, beam)}|batch:{batch_size}",
        )
        runs.append((run, translations))
    return runs


def _shares(depths: Sequence[int], blocks: int) -> list[float]:
    counts = Counter(depths)
    return [counts[block] / max(len(depths), 1) for block in range(1, blocks + 1)]


def count_flops(translator: Translator, translations: Sequence[Translation], policy: DepthPolicy) -> DecoderFlops:
    """Adds up the decoder FLOPs of translations that a policy made by greedy search."""
    total = DecoderFlops()
    for translation in translations:
        total += decoder_flops(
            translator.manifest.model,
            translation.source_pieces,
            translation.depths,
            policy,
            translation.candidates,
        )
    return total
