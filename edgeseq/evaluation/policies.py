"""What each depth policy of a bundle gives on a test set: quality, depth, FLOPs, speed."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgeseq.evaluation.scores import CorpusScores, LineTest, Sample, compare_with_line, score_corpus
from edgeseq_runtime import Translation, Translator
from edgeseq_runtime.flops import DecoderFlops, decoder_flops
from edgeseq_runtime.policy import DepthPolicy, FixedDepth

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyResult:
    """One policy on one test set."""

    depth: str
    """The policy in full."""
    scores: CorpusScores
    average_depth: float
    """Blocks per generated token, EOS included."""
    depth_shares: list[float]
    """Share of tokens that stopped at blocks 1 to N."""
    flops: DecoderFlops
    """Of the whole set."""
    sentences: int
    tokens: int
    seconds: float
    """Wall time of translating, tokenizer included, loading excluded."""
    line: LineTest | None
    """For adaptive policies, where the fixed depths around the average depth were evaluated too."""
    signature: str
    """All that the numbers depend on."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, encoder included."""
        return self.tokens / self.seconds

    @property
    def flops_per_token(self) -> float:
        """Decoder FLOPs per generated token."""
        return self.flops.total / self.tokens


def evaluate_policies(
    translator: Translator,
    sources: Sequence[str],
    references: Sequence[str],
    depths: Sequence[str],
    batch_size: int,
) -> list[PolicyResult]:
    """Translates a test set once per policy and measures each.

    Args:
        translator: the bundle.
        sources: sentences.
        references: one per source.
        depths: policies as a user gives them.
        batch_size: sentences decoded at once.

    Returns:
        One result per policy, in order.

    Raises:
        PolicyError: the bundle lacks a policy; nothing is translated then.
    """
    policies = [translator.bundle.policy(depth) for depth in depths]
    runs = []
    for number, depth in enumerate(depths, start=1):
        started = time.perf_counter()
        translations = translator.translate(list(sources), batch_size=batch_size, depth=depth)
        runs.append((translations, time.perf_counter() - started))
        _LOGGER.info("%d of %d: %s: %.1f s", number, len(depths), depth, runs[-1][1])
    samples = [
        Sample.collect([t.text for t in translations], references, [t.depths for t in translations])
        for translations, _ in runs
    ]
    fixed = {
        policy.depth: sample for policy, sample in zip(policies, samples, strict=True) if isinstance(policy, FixedDepth)
    }
    results = []
    for depth, policy, (translations, seconds), sample in zip(depths, policies, runs, samples, strict=True):
        adaptive = not isinstance(policy, FixedDepth)
        used = [depth for translation in translations for depth in translation.depths]
        results.append(
            PolicyResult(
                depth=policy.name,
                scores=score_corpus([t.text for t in translations], references),
                average_depth=sum(used) / max(len(used), 1),
                depth_shares=_shares(used, translator.manifest.model.decoder_blocks),
                flops=count_flops(translator, translations, policy),
                sentences=len(sources),
                tokens=len(used),
                seconds=seconds,
                line=compare_with_line(sample, fixed) if adaptive else None,
                signature=f"{translator.signature(depth)}|batch:{batch_size}",
            )
        )
    return results


def _shares(depths: Sequence[int], blocks: int) -> list[float]:
    counts = Counter(depths)
    return [counts[block] / max(len(depths), 1) for block in range(1, blocks + 1)]


def count_flops(translator: Translator, translations: Sequence[Translation], policy: DepthPolicy) -> DecoderFlops:
    """Adds up the decoder FLOPs of translations that a policy made."""
    total = DecoderFlops()
    for translation in translations:
        total += decoder_flops(translator.manifest.model, translation.source_pieces, translation.depths, policy)
    return total
