"""Which settings of each predictor a report measures: a handful, spread over the range of average depth.

Unlike `proposals`, which looks for the best thresholds of each block, this turns the one dial that each predictor has:
one threshold for all blocks, or one quantile. Depths are estimated from a decode at full depth.

Dimensions: T tokens, N decoder blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeseq.evaluation.probing import Probe, collect_signals
from edgeseq.evaluation.proposals import Signals, estimate_thresholds
from edgeseq_runtime.manifest import THRESHOLD_KINDS, Manifest
from edgeseq_runtime.policy import CONFIDENCE

_SETTINGS = 5
_MOST_TOKENS = 20_000
_CANDIDATES = 400
_DECIMALS = 3


def policies_by_predictor(manifest: Manifest, probes: Sequence[Probe]) -> dict[str, list[str]]:
    """Chooses policies of every predictor of a bundle, and of confidence.

    Args:
        manifest: the bundle's.
        probes: texts decoded at full depth, with at least one token.

    Returns:
        Policies as a user spells them by the name of their predictor, from shallow to deep; those that choose a depth
        once begin with the depth of greatest probability.
    """
    blocks = manifest.model.decoder_blocks
    if blocks == 1:
        return {}
    kinds: dict[str, str] = {entry.name: entry.kind for entry in manifest.predictors}
    kinds[CONFIDENCE] = CONFIDENCE
    chosen = {}
    for name, kind in kinds.items():
        once = _chooses_once(kind)
        signals = collect_signals(probes, name, kind)[:_MOST_TOKENS]
        if once:
            signals = np.cumsum(signals, axis=1)[:, :-1]
        policies = [f"{name}:{setting:g}" for setting in spread_settings(signals, blocks, reaches=once)]
        chosen[name] = [name, *policies] if once else policies
    return chosen


def spread_settings(signals: Signals, blocks: int, *, reaches: bool) -> list[float]:
    """Chooses settings whose average depths divide the range from 1 to N evenly, as far as there are such settings.

    Args:
        signals: (T, N-1), rising with the wish to stop.
        blocks: N.
        reaches: whether a token stops where its signal reaches the setting, or else where it exceeds it.

    Returns:
        Different settings between 0 and 1, from shallow to deep.
    """
    settings = np.unique(np.round(np.quantile(signals.astype(np.float64), np.linspace(0, 1, _CANDIDATES)), _DECIMALS))
    settings = settings[(settings > 0) & (settings < 1)]
    if not len(settings):
        return []
    limits = settings.astype(np.float32)
    thresholds = np.repeat((np.nextafter(limits, np.float32(0)) if reaches else limits)[:, None], blocks - 1, axis=1)
    depth, _ = estimate_thresholds(signals, np.ones((len(signals), blocks), dtype=np.bool_), thresholds)
    targets = np.linspace(1, blocks, _SETTINGS + 2)[1:-1]
    nearest = {int(np.abs(depth - target).argmin()) for target in targets}
    return [float(settings[index]) for index in sorted(nearest)]


def _chooses_once(kind: str) -> bool:
    """Whether a depth is chosen for good, from a distribution over depths."""
    return kind != CONFIDENCE and kind not in THRESHOLD_KINDS
