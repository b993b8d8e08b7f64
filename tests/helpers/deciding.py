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
            policies[entry.name] = f"{entry.name}:{_amid(cumulative[:, 1])}"
            policies[f"{entry.name} at once"] = entry.name
    return policies | _thresholds(CONFIDENCE, np.concatenate([probe.confidence[:, :-1] for probe in probes]))


def _thresholds(name: str, signals: np.ndarray) -> dict[str, str]:
    """Of signals (tokens, 3) at blocks 1 to 3."""
    values = [_amid(of_block) for of_block in signals.T]
    return {
        name: f"{name}:{values[0]}",
        f"{name} by block": f"{name}:{','.join(values)}",
        f"{name} at 1 and 3": f"{name}:{values[0]},{values[2]}@1,3",
    }


def _amid(signals: np.ndarray) -> str:
    """The middle of the widest gap among the middle fifth: about half lies on either side, and nothing close to it."""
    ordered = np.sort(signals)
    middle = ordered[int(0.4 * len(ordered)) : int(0.6 * len(ordered)) + 2]
    widest = int(np.diff(middle).argmax())
    return f"{(middle[widest] + middle[widest + 1]) / 2:.5f}"


def shifted(policy: str) -> str:
    """The policy with its first threshold or quantile half-way to 1."""
    name, _, argument = policy.partition(":")
    first, separator, rest = argument.partition("," if "," in argument.partition("@")[0] else "@")
    return f"{name}:{(1 + float(first)) / 2:.4f}{separator}{rest}"
