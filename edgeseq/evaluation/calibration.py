"""`edgeseq calibrate` without its command line: from a bundle and a text to operating points."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass

from edgeseq.evaluation.guarantees import GuaranteeTerms, guarantee_point, order_for_tests, part_text
from edgeseq.evaluation.measuring import Text, decode_policies, time_policies
from edgeseq.evaluation.operating_points import Price, choose_points, full_depth, propose_policies, worth_timing
from edgeseq_runtime import Translator, __version__
from edgeseq_runtime.calibration import Calibration, Machine, MeasuredPolicy
from edgeseq_runtime.sessions import onnxruntime_version

_DECODE_BATCH = 32
"""For outputs, which on the CPU are the same whatever the batch, and on a GPU almost."""


@dataclass(frozen=True)
class CalibrationSettings:
    """How to measure and what to look for."""

    batch_size: int
    """Sentences decoded together when timing."""
    price: Price
    max_bleu_loss: Mapping[str, float]
    """Greatest loss of BLEU against full depth, by the operating point's name."""
    proposals: int
    """Most policies of each predictor that are decoded."""
    rounds: int
    """Turns of each policy in timing."""
    timing_sentences: int
    """Sentences of a turn, from the start of the text."""
    seed: int
    """Of the draws of proposals, and of parting the text."""


@dataclass(frozen=True)
class CalibrationResult:
    """What came out."""

    calibration: Calibration
    measured: list[MeasuredPolicy]
    """All policies that were decoded on the calibration text."""
    timed: frozenset[str]
    """Those of them whose times are from timing rounds; that of the others is from a decode in large batches."""


def calibrate(
    translator: Translator, text: Text, settings: CalibrationSettings, terms: GuaranteeTerms | None
) -> CalibrationResult:
    """Chooses a bundle's operating points.

    Args:
        translator: the bundle, on the device to calibrate for.
        text: sentences like those to come, with references.
        settings: how to measure.
        terms: what to guarantee; then half of the text, drawn at random, does nothing but test. None for no
            guarantee.

    Raises:
        CalibrationError: there is too little text.
    """
    tests = None
    if terms is not None:
        text, tests = part_text(text, terms, settings.seed)
    policies = propose_policies(
        translator, text.sources, kept=settings.proposals, batch_size=_DECODE_BATCH, seed=settings.seed
    )
    decoded = decode_policies(translator, text, policies, _DECODE_BATCH)
    measured = [entry.measured for entry in decoded]
    timed = time_policies(
        translator,
        text.sources[: settings.timing_sentences],
        worth_timing(measured),
        settings.batch_size,
        settings.rounds,
    )
    points = choose_points(timed, settings.max_bleu_loss, settings.price)
    if terms is not None and tests is not None:
        ordered = order_for_tests(decoded, timed, text, terms.loss, settings.price)
        points.append(guarantee_point(translator, ordered, full_depth(timed), tests, _DECODE_BATCH, terms))
    by_policy = {entry.policy: entry for entry in timed}
    calibration = Calibration(
        edgeseq_version=__version__,
        created=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        bundle_sha256=translator.bundle.sha256,
        machine=Machine(
            provider=translator.engine.provider,
            onnxruntime=onnxruntime_version(),
            batch_size=settings.batch_size,
            cpu_count=os.cpu_count() or 1,
        ),
        sentences=len(text.sources),
        price=settings.price,
        full_depth=full_depth(timed),
        points=points,
    )
    return CalibrationResult(
        calibration, [by_policy.get(entry.policy, entry) for entry in measured], frozenset(by_policy)
    )
