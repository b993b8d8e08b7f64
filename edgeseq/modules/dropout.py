"""Dropout that draws eight decisions from one random number."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zeroes elements with a probability and scales the others so that the mean stays.

    Where training runs on CPUs, torch's own dropout is a sixth of a step: it draws a number per element. One
    byte per element is enough; the probability is rounded to a multiple of 1/256, up to 255 of them, and the scale
    fits the rounded one. The randomness is torch's, so seeds and checkpoints cover it.

    Args:
        x: any shape.
        probability: in [0, 1).
        training: False returns x.
    """
    threshold = min(round(probability * 256), 255)
    if not training or threshold == 0:
        return x
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None)  # all 64 bits; the default range leaves the sign bit zero
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
    return x * (keep.to(x.dtype) * (256 / (256 - threshold)))


class Dropout(nn.Module):
    """`dropout` as a module, active in training mode."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Drops elements of x, of any shape."""
        return dropout(x, self.probability, self.training)
