"""Corpus scores by sacreBLEU, and their uncertainty by paired bootstrap.

Scores are kept as sufficient statistics per sentence, so that resampling only adds numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

_RESAMPLES = 1000


@dataclass(frozen=True)
class CorpusScores:
    """BLEU and chrF of a set of translations, with what is needed to reproduce them."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def score_corpus(outputs: Sequence[str], references: Sequence[str]) -> CorpusScores:
    """Scores detokenised, cased text against one reference per sentence."""
    bleu, chrf = BLEU(), CHRF()
    bleu_score = bleu.corpus_score(list(outputs), [list(references)]).score
    chrf_score = chrf.corpus_score(list(outputs), [list(references)]).score
    return CorpusScores(bleu_score, chrf_score, str(bleu.get_signature()), str(chrf.get_signature()))


@dataclass(frozen=True)
class Sample:
    """What one policy did on each sentence."""

    bleu_counts: NDArray[np.int64]
    """(sentences, 10): correct and total n-grams of orders 1 to 4, output and reference length."""
    depth_sums: NDArray[np.int64]
    """(sentences,): blocks used."""
    token_counts: NDArray[np.int64]
    """(sentences,): tokens generated."""

    @classmethod
    def collect(cls, outputs: Sequence[str], references: Sequence[str], depths: Sequence[Sequence[int]]) -> Sample:
        """Counts n-grams and blocks of each sentence."""
        metric = BLEU(effective_order=True)
        counts = []
        for output, reference in zip(outputs, references, strict=True):
            score = metric.sentence_score(output, [reference])
            counts.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
        return cls(
            np.array(counts, dtype=np.int64),
            np.array([sum(used) for used in depths], dtype=np.int64),
            np.array([len(used) for used in depths], dtype=np.int64),
        )

    def bleu(self, sentences: NDArray[np.int64]) -> float:
        """Computes corpus BLEU of some sentences, repeats included."""
        counts = self.bleu_counts[sentences].sum(axis=0).tolist()
        # The smoothing of corpus_score, where an order has no match at all; here the default is none.
        return float(BLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp").score)

    def average_depth(self, sentences: NDArray[np.int64]) -> float:
        """Computes blocks per token over some sentences; 0 where they are all blank."""
        return float(self.depth_sums[sentences].sum() / max(self.token_counts[sentences].sum(), 1))


@dataclass(frozen=True)
class LineTest:
    """How far an adaptive policy lies above the line between the fixed depths around its average depth."""

    average_depth: float
    gain: float
    """BLEU of the policy minus that of the line."""
    low: float
    """2.5 % quantile of the gain."""
    high: float
    """97.5 % quantile."""


def compare_with_line(policy: Sample, fixed: dict[int, Sample], seed: int = 0) -> LineTest | None:
    """Compares a policy with mixing two fixed depths, by paired bootstrap over sentences.

    At average depth a, between n = ⌊a⌋ and n + 1, the line is BLEU_n + (a - n)(BLEU_{n+1} - BLEU_n): what one gets
    by sending a share of the work to either depth, without looking at the tokens. Resamples are compared with the line
    through the same two depths, also where their own average depth lies beyond one of them.

    Args:
        policy: the adaptive policy.
        fixed: samples of the same sentences at fixed depths.
        seed: of the resampling.

    Returns:
        The gain and its 95 % interval over 1,000 resamples; None where a neighbouring depth is missing.
    """
    everything = np.arange(len(policy.token_counts))
    depth = policy.average_depth(everything)
    if not {math.floor(depth), math.ceil(depth)} <= fixed.keys():
        return None
    below = math.floor(depth)
    ends = fixed[below], fixed.get(below + 1, fixed[below])  # without a depth above, the average is that depth itself
    generator = np.random.default_rng(seed)
    gains = [
        _gain(policy, below, ends, generator.integers(len(everything), size=len(everything))) for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(gains, (0.025, 0.975))
    return LineTest(depth, _gain(policy, below, ends, everything), float(low), float(high))


def _gain(policy: Sample, below: int, ends: tuple[Sample, Sample], sentences: NDArray[np.int64]) -> float:
    lower, upper = (end.bleu(sentences) for end in ends)
    return policy.bleu(sentences) - (lower + (policy.average_depth(sentences) - below) * (upper - lower))
