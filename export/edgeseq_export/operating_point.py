"""The default operating point: measured on validation text when a bundle is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeseq.evaluation.policies import PolicyResult, evaluate_policies
from edgeseq_runtime import Translator
from edgeseq_runtime.manifest import THRESHOLD_KINDS, OperatingPoint, PredictorEntry
from edgeseq_runtime.policy_names import DEFAULT_POINT
from edgeseq_runtime.reports import DepthQuality

MAX_LOSS = 0.4
"""BLEU, against full depth on the validation set: the default point is the cheapest that loses no more."""

_THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.93, 0.94, 0.96, 0.98)
_FEW_BLOCKS_THRESHOLDS = _THRESHOLDS[6:]
_MIDDLING_THRESHOLD = 0.9
_QUANTILES = (0.3, 0.5, 0.7, 0.8, 0.9)
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Measured:
    """What the validation set said."""

    results: list[PolicyResult]
    quality: list[DepthQuality]
    operating_points: list[OperatingPoint]


def measure_policies(translator: Translator, sources: Sequence[str], references: Sequence[str]) -> Measured:
    """Measures fixed depths and the bundle's first predictor, and picks the default operating point.

    Args:
        translator: the new bundle.
        sources: validation sentences.
        references: one per source.

    Returns:
        All results. The default point is the policy of fewest decoder FLOPs whose BLEU is within 0.4 of full depth,
        whether tokens may stop after all blocks or after a few. Where none costs less than full depth, there is none.
    """
    model = translator.manifest.model
    depths = [str(depth) for depth in range(1, model.decoder_blocks + 1)]
    for entry in translator.manifest.predictors[:1]:
        if entry.kind in THRESHOLD_KINDS:
            depths += [f"{entry.name}:{threshold:g}" for threshold in _THRESHOLDS]
            depths += [
                f"{entry.name}:{threshold:g}@{blocks}"
                for blocks in _few_blocks(model.decoder_blocks)
                for threshold in _FEW_BLOCKS_THRESHOLDS
            ]
        else:
            depths += [entry.name, *(f"{entry.name}:{quantile:g}" for quantile in _QUANTILES)]
    results = evaluate_policies(translator, sources, references, depths, _BATCH_SIZE)
    full = results[model.decoder_blocks - 1]
    adaptive = results[model.decoder_blocks :]
    best = choose_policy(full, adaptive)
    return Measured(results, [_quality(result) for result in results], [] if best is None else [_point(best, full)])


def choose_policy(full: PolicyResult, adaptive: Sequence[PolicyResult]) -> PolicyResult | None:
    """Picks the policy of fewest decoder FLOPs that loses little; asking exits can cost more than blocks not run save.

    Args:
        full: full depth.
        adaptive: policies that decide per token or sentence.

    Returns:
        None where no policy within 0.4 BLEU of full depth costs less than it.
    """
    good = [result for result in adaptive if result.scores.bleu >= full.scores.bleu - MAX_LOSS]
    cheap = [result for result in good if result.flops_per_token < full.flops_per_token]
    return min(cheap, key=lambda result: result.flops_per_token, default=None)


def middling_policy(entry: PredictorEntry) -> str:
    """A policy of a predictor that stops some tokens early, whatever that costs."""
    return f"{entry.name}:{_MIDDLING_THRESHOLD:g}" if entry.kind in THRESHOLD_KINDS else entry.name


def _few_blocks(blocks: int) -> list[str]:
    """Sets of blocks to stop after, fewer than all: the even ones, and powers of two.

    Units asked at every block have many chances to stop a token too early; each stop also costs a batch time.
    """
    even = range(2, blocks, 2)
    powers = [block for block in range(1, blocks) if block & (block - 1) == 0]
    return [",".join(map(str, exits)) for exits in (even, powers) if 0 < len(exits) < blocks - 1]


def _quality(result: PolicyResult) -> DepthQuality:
    return DepthQuality(
        depth=result.depth,
        bleu=result.scores.bleu,
        chrf=result.scores.chrf,
        average_depth=result.average_depth,
        sentences=result.sentences,
    )


def _point(result: PolicyResult, full: PolicyResult) -> OperatingPoint:
    return OperatingPoint(
        name=DEFAULT_POINT,
        policy=result.depth,
        bleu=result.scores.bleu,
        chrf=result.scores.chrf,
        average_depth=result.average_depth,
        sentences=result.sentences,
        full_depth_bleu=full.scores.bleu,
    )
