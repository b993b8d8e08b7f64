"""What a sentence loses when its tokens stop early: losses in [0, 1] that a guarantee can bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.chrf import CHRF

from edgeseq.evaluation.error_rates import edit_distance

Floats = NDArray[np.float64]


def chrf_drops(outputs: Sequence[str], full_depth: Sequence[str], references: Sequence[str]) -> Floats:
    """Computes how far each output's sentence chrF lies below that of full depth.

    Args:
        outputs: of a policy.
        full_depth: of the same sentences at full depth.
        references: one per sentence.

    Returns:
        (sentences,), in [0, 1], where chrF goes from 0 to 1; 0 where the output is as good, or better.
    """
    metric = CHRF()
    return np.array(
        [
            0.0 if output == full else max(0.0, _chrf(metric, full, reference) - _chrf(metric, output, reference)) / 100
            for output, full, reference in zip(outputs, full_depth, references, strict=True)
        ]
    )


def disagreements(outputs: Sequence[Sequence[str]], full_depth: Sequence[Sequence[str]]) -> Floats:
    """Computes the share of pieces by which each output differs from that of full depth.

    Args:
        outputs: pieces of a policy's outputs, EOS included.
        full_depth: of the same sentences at full depth.

    Returns:
        (sentences,), in [0, 1]: pieces to insert, delete or replace (Levenshtein distance), divided by the pieces of
        the longer output.
    """
    return np.array(
        [
            0.0 if output == full else edit_distance(output, full) / max(len(output), len(full))
            for output, full in zip(outputs, full_depth, strict=True)
        ]
    )


def _chrf(metric: CHRF, output: str, reference: str) -> float:
    return float(metric.sentence_score(output, [reference]).score)
