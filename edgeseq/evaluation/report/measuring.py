"""What a report is made of: policies measured on a test set, and the decodes of those it looks into."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from edgeseq.errors import DataError
from edgeseq.evaluation.measuring import time_policies
from edgeseq.evaluation.policies import PolicyResult, evaluate_policies
from edgeseq.evaluation.probing import Probe, probe_texts
from edgeseq.evaluation.report.dials import policies_by_predictor
from edgeseq_runtime import Translator
from edgeseq_runtime.calibration import MeasuredPolicy
from edgeseq_runtime.policy_names import DEFAULT_POINT

ROUNDS = 5
"""Times that each policy is timed, all of them in turn: one run each would measure what else the machine does."""

_TIMED_SENTENCES = 250

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShownPolicy:
    """A policy that the report looks into."""

    policy: str
    """In full."""
    probes: list[Probe]
    """Of every sentence, as this policy decodes it."""


@dataclass(frozen=True)
class Measurements:
    """All that was measured."""

    results: list[PolicyResult]
    """Fixed depths, the settings of each predictor, operating points, and what is shown; each policy once."""
    milliseconds: dict[str, float]
    """Wall time per sentence of each policy, by its full name: the median of ROUNDS."""
    timed_sentences: int
    """Sentences of a round."""
    points: dict[str, list[str]]
    """Names of operating points, as in ``adaptive:NAME``, by their policy in full."""
    full: list[Probe]
    """Of every sentence at full depth."""
    shown: list[ShownPolicy]

    def result(self, policy: str) -> PolicyResult:
        """Finds a policy by its full name."""
        return next(result for result in self.results if result.depth == policy)

    @property
    def full_depth(self) -> PolicyResult:
        """The result at full depth."""
        return self.result("full")


def measure(
    translator: Translator,
    sources: Sequence[str],
    references: Sequence[str],
    depths: Sequence[str],
    batch_size: int,
) -> Measurements:
    """Decodes a test set with every kind of policy.

    Args:
        translator: the bundle.
        sources: sentences.
        references: one per source.
        depths: policies to look into, as a user spells them. None given: the default operating point, or without one
            the middle setting of the first predictor.
        batch_size: sentences decoded together.

    Raises:
        DataError: all sources are blank.
        PolicyError: the bundle lacks one of `depths`; nothing is decoded then.
    """
    bundle = translator.bundle
    for depth in depths:
        bundle.policy(depth)
    _LOGGER.info("every exit at full depth: %d sentences", len(sources))
    full = probe_texts(bundle, translator.engine, sources, batch_size)
    with_tokens = [probe for probe in full if probe.tokens]
    if not with_tokens:
        raise DataError(f"all {len(sources)} source sentences are blank; give text to report on")
    by_predictor = policies_by_predictor(translator.manifest, with_tokens)
    shown_names = list(depths) or [_default_policy(translator, by_predictor)]
    names = [*map(str, range(1, translator.manifest.model.decoder_blocks)), "full"]
    names += [policy for policies in by_predictor.values() for policy in policies]
    names += [*bundle.operating_points.values(), *shown_names]
    results = evaluate_policies(translator, sources, references, _different(translator, names), batch_size)
    timed = sources[:: max(1, len(sources) // _TIMED_SENTENCES)][:_TIMED_SENTENCES]
    points: dict[str, list[str]] = {}
    for name, policy in bundle.operating_points.items():
        points.setdefault(_full_name(translator, policy), []).append(name)
    shown = []
    for name in _different(translator, shown_names):
        _LOGGER.info("every exit that %s reaches", name)
        probes = probe_texts(bundle, translator.engine, sources, batch_size, bundle.policy(name))
        shown.append(ShownPolicy(name, probes))
    milliseconds = _time(translator, results, timed, batch_size)
    return Measurements(results, milliseconds, len(timed), points, full, shown)


def _time(
    translator: Translator, results: Sequence[PolicyResult], sources: Sequence[str], batch_size: int
) -> dict[str, float]:
    measured = [
        MeasuredPolicy(
            policy=result.depth,
            bleu=result.scores.bleu,
            chrf=result.scores.chrf,
            average_depth=result.average_depth,
            flops_per_token=result.flops_per_token,
            ms_per_sentence=1000 * result.seconds / result.sentences,
        )
        for result in results
    ]
    timed = time_policies(translator, sources, measured, batch_size, ROUNDS)
    return {entry.policy: entry.ms_per_sentence for entry in timed}


def _default_policy(translator: Translator, by_predictor: dict[str, list[str]]) -> str:
    if DEFAULT_POINT in translator.bundle.operating_points:
        return "adaptive"
    settings = next((policies for policies in by_predictor.values() if policies), ["full"])
    return settings[len(settings) // 2]


def _different(translator: Translator, names: Sequence[str]) -> list[str]:
    """Full names, each once, in order."""
    return list(dict.fromkeys(_full_name(translator, name) for name in names))


def _full_name(translator: Translator, name: str) -> str:
    policy = translator.bundle.policy(name).name
    return "full" if policy == str(translator.manifest.model.decoder_blocks) else policy
