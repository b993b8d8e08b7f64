"""Depth policies measured on a text: quality and cost from one decode each, times in rounds."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeseq.evaluation.policies import count_flops
from edgeseq.evaluation.scores import score_corpus
from edgeseq_runtime import Translation, Translator
from edgeseq_runtime.calibration import MeasuredPolicy

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """Sentences and their references, line by line."""

    sources: list[str]
    references: list[str]

    def select(self, lines: NDArray[np.int64]) -> Text:
        """Takes some lines, numbered from 0."""
        return Text([self.sources[line] for line in lines], [self.references[line] for line in lines])


@dataclass(frozen=True)
class Decoded:
    """What a policy made of a text."""

    translations: list[Translation]
    measured: MeasuredPolicy
    """Its time is that of this one decode."""

    @property
    def policy(self) -> str:
        """As a user spells it."""
        return self.measured.policy

    @property
    def outputs(self) -> list[str]:
        """Translated text of each sentence."""
        return [translation.text for translation in self.translations]

    @property
    def pieces(self) -> list[list[str]]:
        """Pieces of each output, EOS included."""
        return [translation.tokens for translation in self.translations]


def decode_policies(translator: Translator, text: Text, policies: Sequence[str], batch_size: int) -> list[Decoded]:
    """Decodes a text once with each policy.

    Args:
        translator: the bundle.
        text: what to decode and to score.
        policies: as a user spells them.
        batch_size: sentences decoded together.

    Returns:
        One result per policy, in order.

    Raises:
        PolicyError: the bundle lacks a policy.
    """
    decoded = []
    for number, policy in enumerate(policies, start=1):
        decoded.append(_decode(translator, text, policy, batch_size))
        measured = decoded[-1].measured
        _LOGGER.info(
            "%d of %d: %s: BLEU %.2f, average depth %.2f",
            number,
            len(policies),
            policy,
            measured.bleu,
            measured.average_depth,
        )
    return decoded


def time_policies(
    translator: Translator, sources: Sequence[str], measured: Sequence[MeasuredPolicy], batch_size: int, rounds: int
) -> list[MeasuredPolicy]:
    """Times policies in turn, so that a slow phase of the machine meets all of them; medians count.

    Args:
        translator: the bundle.
        sources: sentences to decode in each turn.
        measured: the policies; all but their times is kept.
        batch_size: sentences decoded together.
        rounds: turns of each policy.
    """
    _LOGGER.info("timing %d policies, %d rounds of %d sentences", len(measured), rounds, len(sources))
    seconds: list[list[float]] = [[] for _ in measured]
    for _ in range(rounds):
        for entry, times in zip(measured, seconds, strict=True):
            times.append(_translate(translator, sources, entry.policy, batch_size)[1])
    return [
        entry.model_copy(update={"ms_per_sentence": 1000 * statistics.median(times) / len(sources)})
        for entry, times in zip(measured, seconds, strict=True)
    ]


def _decode(translator: Translator, text: Text, policy: str, batch_size: int) -> Decoded:
    translations, seconds = _translate(translator, text.sources, policy, batch_size)
    depths = [depth for translation in translations for depth in translation.depths]
    scores = score_corpus([translation.text for translation in translations], text.references)
    flops = count_flops(translator, translations, translator.bundle.policy(policy))
    measured = MeasuredPolicy(
        policy=policy,
        bleu=scores.bleu,
        chrf=scores.chrf,
        average_depth=sum(depths) / max(len(depths), 1),
        flops_per_token=flops.total / max(len(depths), 1),
        ms_per_sentence=1000 * seconds / len(translations),
    )
    return Decoded(translations, measured)


def _translate(
    translator: Translator, sources: Sequence[str], policy: str, batch_size: int
) -> tuple[list[Translation], float]:
    started = time.perf_counter()
    translations = translator.translate(list(sources), batch_size=batch_size, depth=policy)
    return translations, time.perf_counter() - started
