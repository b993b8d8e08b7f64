"""Depth policies whose thresholds lie amid what their signals say on some text, so that they do decide there.

What a small model learns in seconds differs from machine to machine; a threshold typed in by hand may stop all tokens
at one block, and then a comparison would not say much.
"""

from collections.abc import Sequence

import numpy as np

from edgeseq_runtime import Translator
from edgeseq_runtime.manifest import THRESHOLD_KINDS
from edgeseq_runtime.policy import CONFIDENCE

FIXED = ("full", "2")
PER_TOKEN = (
    *("halting", "halting by block", "halting at 1 and 3", "common", "multinomial"),
    *("certainty", "certainty by block", "confidence", "confidence at 1 and 3"),
)
"""A predictor with one threshold, one for each block, or one for each of two blocks."""
PER_SENTENCE = ("by-sentence",)
DECIDING = (*PER_TOKEN, *PER_SENTENCE)


def deciding_policies(translator: Translator, texts: Sequence[str]) -> dict[str, str]:
    """Spells out all of the above, and the argmax of predictors that choose once.

    Args:
        translator: Of a bundle with four blocks and predictors of these names.
        texts: Sentences on which signals are looked at.

    Returns:
        Name here to the policy as a user spells it.
    """
    # Imported here: it scores, too, and tests of the runtime alone do without.
    from edgeseq.evaluation.probing import probe_texts

    probes = [probe for probe in probe_texts(translator.bundle, translator.engine, texts) if probe.tokens]
    policies = {name: name for name in FIXED}
    for entry in translator.manifest.predictors:
        signals = [probe.signals[entry.name] for probe in probes]
        if entry.kind in THRESHOLD_KINDS:
            policies |= _thresholds(entry.name, np.concatenate(signals))
        else:
            cumulative = np.concatenate([np.atleast_2d(signal) for signal in signals]).cumsum(axis=-1)
            policies[entry.name] = f"{entry.name}:{np.median(cumulative[:, 1]):.4f}"
            policies[f"{entry.name} at once"] = entry.name
    return policies | _thresholds(CONFIDENCE, np.concatenate([probe.confidence[:, :-1] for probe in probes]))


def _thresholds(name: str, signals: np.ndarray) -> dict[str, str]:
    """Medians of blocks 1 to 3, of signals (tokens, 3)."""
    medians = [f"{median:.4f}" for median in np.median(signals, axis=0)]
    return {
        name: f"{name}:{medians[0]}",
        f"{name} by block": f"{name}:{','.join(medians)}",
        f"{name} at 1 and 3": f"{name}:{medians[0]},{medians[2]}@1,3",
    }


def shifted(policy: str) -> str:
    """The policy with its first threshold or quantile half-way to 1."""
    name, _, argument = policy.partition(":")
    first, separator, rest = argument.partition("," if "," in argument.partition("@")[0] else "@")
    return f"{name}:{(1 + float(first)) / 2:.4f}{separator}{rest}"
