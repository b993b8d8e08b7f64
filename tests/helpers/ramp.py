"""Deterministic numbers in place of random ones: the same on every machine and with every torch release."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)

_PRIME = 10007


def ramp(*shape: int, start: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers between -1 and 1 that look irregular: a quadratic ramp folded by a prime.

    Args:
        shape: of the result.
        start: where the ramp begins; another start gives other numbers.
        dtype: of the result.
    """
    steps = torch.arange(start, start + math.prod(shape), dtype=torch.int64)
    folded = (steps * 7919 + steps * steps * 104729) % _PRIME
    return (folded.to(torch.float64) * (2 / _PRIME) - 1).to(dtype).view(shape)


@torch.no_grad()
def fill_with_ramp(module: AnyModule) -> AnyModule:
    """Gives every parameter ramp values of a size that suits its place, and returns the module."""
    for number, parameter in enumerate(module.parameters()):
        values = ramp(*parameter.shape, start=1000 * number + 1, dtype=parameter.dtype)
        parameter.copy_(values * (1.7 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3))
    for child in module.modules():
        if isinstance(child, nn.LayerNorm):
            child.weight.add_(1)
        elif isinstance(child, nn.Embedding) and child.padding_idx is not None:
            child.weight[child.padding_idx] = 0
    return module


def greatest_difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    assert one.shape == other.shape, f"{tuple(one.shape)} against {tuple(other.shape)}"
    return float((one - other).detach().abs().max())
