"""Learning-rate schedules, as a factor of the peak rate."""

from __future__ import annotations

import math
from typing import Literal


def rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: Literal["inverse_sqrt", "cosine"]) -> float:
    """Factor of the learning rate in a step.

    Args:
        step: 0 for the first.
        total_steps: length of the phase.
        warmup_steps: steps of linear rise; cut to the length of the phase.
        schedule: what follows: `inverse_sqrt`, or half a `cosine` down to zero.

    Returns:
        In [0, 1].
    """
    warmup_steps = min(warmup_steps, total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "inverse_sqrt":
        return math.sqrt(max(warmup_steps, 1) / max(step + 1, 1))
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
