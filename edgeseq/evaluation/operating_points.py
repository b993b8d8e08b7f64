"""Operating points: the cheapest policies that lose little against full depth, over all predictors of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from edgeseq.errors import CalibrationError
from edgeseq.evaluation.learn_then_test import safest_first
from edgeseq.evaluation.probing import Probe, collect_signals, probe_texts
from edgeseq.evaluation.proposals import DRAWS, Proposal, propose_dial, propose_thresholds
from edgeseq_runtime import Translator
from edgeseq_runtime.calibration import CalibratedPoint, MeasuredPolicy
from edgeseq_runtime.manifest import THRESHOLD_KINDS
from edgeseq_runtime.policy import CONFIDENCE

FULL = "full"

Price = Literal["ms", "flops", "blocks"]
"""What is to be saved: time per sentence, decoder FLOPs per token, or blocks per token."""

_LOGGER = logging.getLogger(__name__)


def propose_policies(
    translator: Translator, sources: Sequence[str], *, kept: int, batch_size: int, seed: int, draws: int = DRAWS
) -> list[str]:
    """Lists policies that are worth decoding with.

    Args:
        translator: the bundle.
        sources: what to propose on.
        kept: most thresholds, or settings, of each predictor.
        batch_size: sentences decoded together.
        seed: of the draws.
        draws: thresholds or settings to estimate for each predictor.

    Returns:
        Full depth first, then the other fixed depths, then those of each predictor of the bundle and of confidence.

    Raises:
        CalibrationError: all sources are blank.
    """
    manifest = translator.manifest
    policies = [FULL, *map(str, range(1, manifest.model.decoder_blocks))]
    if len(policies) == 1:
        return policies
    probes = [probe for probe in probe_texts(translator.bundle, translator.engine, sources, batch_size) if probe.tokens]
    if not probes:
        raise CalibrationError(f"all {len(sources)} sentences are blank; give text to calibrate on")
    kinds: dict[str, str] = {entry.name: entry.kind for entry in manifest.predictors}
    for name, kind in [*kinds.items(), (CONFIDENCE, CONFIDENCE)]:
        if kind != CONFIDENCE and kind not in THRESHOLD_KINDS:
            policies.append(name)  # the depth of greatest probability, which no setting of the dial gives
        proposals = _propose(name, kind, probes, np.random.default_rng(seed), draws, kept)
        _LOGGER.info("%s: %d proposals from %d draws", name, len(proposals), draws)
        policies += [proposal.policy for proposal in proposals]
    return policies


def worth_timing(measured: Sequence[MeasuredPolicy]) -> list[MeasuredPolicy]:
    """Leaves out what another policy of the same predictor outdoes in both BLEU and FLOPs; keeps full depth."""
    by_predictor: dict[str, list[MeasuredPolicy]] = {}
    for entry in measured:
        by_predictor.setdefault(_predictor(entry.policy), []).append(entry)
    kept = {FULL}
    for entries in by_predictor.values():
        bleu = np.array([entry.bleu for entry in entries])
        flops = np.array([entry.flops_per_token for entry in entries])
        kept.update(entries[index].policy for index in safest_first(-bleu, flops))
    return [entry for entry in measured if entry.policy in kept]


def choose_points(
    measured: Sequence[MeasuredPolicy], max_bleu_loss: Mapping[str, float], price: Price
) -> list[CalibratedPoint]:
    """Takes for each name the cheapest policy within its loss.

    Args:
        measured: policies on the same text, full depth among them.
        max_bleu_loss: greatest loss of BLEU against full depth, by name.
        price: what to save.

    Returns:
        One point per name; where nothing else will do, its policy is full depth.
    """
    full = full_depth(measured)
    points = []
    for name, loss in max_bleu_loss.items():
        good = [entry for entry in measured if entry.bleu >= full.bleu - loss]
        cheapest = min(good, key=lambda entry: price_of(entry, price))
        points.append(CalibratedPoint(name=name, **cheapest.model_dump()))
    return points


def full_depth(measured: Sequence[MeasuredPolicy]) -> MeasuredPolicy:
    """Finds full depth among policies."""
    return next(entry for entry in measured if entry.policy == FULL)


def price_of(measured: MeasuredPolicy, price: Price) -> float:
    """Reads what a policy costs."""
    if price == "ms":
        return measured.ms_per_sentence
    return measured.flops_per_token if price == "flops" else measured.average_depth


def _propose(
    name: str, kind: str, probes: Sequence[Probe], generator: np.random.Generator, draws: int, kept: int
) -> list[Proposal]:
    choices = np.concatenate([probe.choices for probe in probes])
    agrees = choices == choices[:, -1:]
    signals = collect_signals(probes, name, kind)
    asked = kind == CONFIDENCE or kind in THRESHOLD_KINDS
    return (propose_thresholds if asked else propose_dial)(name, signals, agrees, generator, draws, kept)


def _predictor(policy: str) -> str:
    name = policy.partition(":")[0]
    return "fixed" if name.isdigit() or name == FULL else name
