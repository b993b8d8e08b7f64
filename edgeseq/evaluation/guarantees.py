"""An operating point with a guarantee: proposed on one half of the texts, tested on the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeseq.errors import CalibrationError
from edgeseq.evaluation.learn_then_test import choose_guaranteed, safest_first, sentences_needed
from edgeseq.evaluation.measuring import Decoded, Text, decode_policies
from edgeseq.evaluation.operating_points import FULL, Price, full_depth, price_of
from edgeseq.evaluation.sentence_losses import Floats, chrf_drops, disagreements
from edgeseq_runtime import Translator
from edgeseq_runtime.calibration import CalibratedPoint, Guarantee, MeasuredPolicy

GUARANTEED = "guaranteed"
"""Name of the operating point."""

Loss = Literal["chrf-drop", "disagreement"]
"""Of a sentence: by how much its chrF falls, or the share of pieces that differ (see ``sentence_losses``)."""


@dataclass(frozen=True)
class GuaranteeTerms:
    """What is to be guaranteed: an expected loss of at most delta, but for a chance of epsilon."""

    loss: Loss
    delta: float
    """Inside (0, 1), like epsilon."""
    epsilon: float


_LOGGER = logging.getLogger(__name__)


def part_text(text: Text, terms: GuaranteeTerms, seed: int) -> tuple[Text, Text]:
    """Parts a text at random into two halves: one to propose on, one to test with.

    Raises:
        CalibrationError: a level is out of range, or there are so few sentences that no policy could pass.
    """
    number, needed = len(text.sources), sentences_needed(terms.delta, terms.epsilon)
    if number // 2 < needed:
        raise CalibrationError(
            f"{number} sentences are too few for a guarantee: half of them propose, and to test delta {terms.delta:g} "
            f"with epsilon {terms.epsilon:g} even a policy without any loss needs {needed}; give {2 * needed} or more"
        )
    order = np.random.default_rng(seed).permutation(number)
    return text.select(np.sort(order[: number // 2])), text.select(np.sort(order[number // 2 :]))


def order_for_tests(
    decoded: Sequence[Decoded], measured: Sequence[MeasuredPolicy], text: Text, loss: Loss, price: Price
) -> list[MeasuredPolicy]:
    """Orders policies from the safest to the cheapest, by what they did on the text that proposed them.

    Args:
        decoded: decodes of that text, full depth among them.
        measured: the policies to order, with their times; full depth among them.
        text: that text.
        loss: of a sentence.
        price: what to save.

    Returns:
        Policies of rising loss and falling cost. Full depth, which loses nothing, and all that costs more are left
        out.
    """
    by_policy = {entry.policy: entry for entry in decoded}
    mean_losses = [sentence_losses(by_policy[entry.policy], by_policy[FULL], text, loss).mean() for entry in measured]
    costs = [price_of(entry, price) for entry in measured]
    ordered = [measured[index] for index in safest_first(np.array(mean_losses), np.array(costs))]
    limit = price_of(full_depth(measured), price)
    return [entry for entry in ordered if entry.policy != FULL and price_of(entry, price) < limit]


def guarantee_point(
    translator: Translator,
    ordered: Sequence[MeasuredPolicy],
    full: MeasuredPolicy,
    text: Text,
    batch_size: int,
    terms: GuaranteeTerms,
) -> CalibratedPoint:
    """Finds the cheapest policy that keeps the terms.

    Args:
        translator: the bundle.
        ordered: policies to test, from the safest to the cheapest.
        full: full depth.
        text: what to test with; nothing that ``ordered`` depends on.
        batch_size: sentences decoded together.
        terms: what is to be guaranteed.

    Returns:
        The point, with the figures of the text that proposed it; full depth where no other policy passes.
    """
    _LOGGER.info("testing %d policies on %d sentences", len(ordered), len(text.sources))
    reference, *tested = decode_policies(translator, text, [FULL, *(entry.policy for entry in ordered)], batch_size)
    chosen = None
    if tested:
        losses = np.stack([sentence_losses(entry, reference, text, terms.loss) for entry in tested], axis=1)
        chosen = choose_guaranteed(losses, terms.delta, terms.epsilon)
    if chosen is None:
        _LOGGER.warning("no policy passes; the guaranteed one is full depth")
    guarantee = Guarantee(
        loss=terms.loss,
        delta=terms.delta,
        epsilon=terms.epsilon,
        sentences=len(text.sources),
        mean_loss=0.0 if chosen is None else chosen.mean_loss,
        p_value=0.0 if chosen is None else chosen.p_value,
    )
    measured = full if chosen is None else ordered[chosen.policy]
    return CalibratedPoint(name=GUARANTEED, guarantee=guarantee, **measured.model_dump())


def sentence_losses(decoded: Decoded, full: Decoded, text: Text, loss: Loss) -> Floats:
    """Computes the loss of each sentence against full depth: (sentences,), in [0, 1]."""
    if loss == "chrf-drop":
        return chrf_drops(decoded.outputs, full.outputs, text.references)
    return disagreements(decoded.pieces, full.pieces)
