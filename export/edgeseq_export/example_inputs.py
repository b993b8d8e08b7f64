"""Inputs on which graphs and modules are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeseq_runtime.signatures import GraphSignature


def example_inputs(signature: GraphSignature, sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Draws the inputs of a graph; cells are 0, 1, 2 and so on.

    Args:
        signature: names, types and axes.
        sizes: axis name → size.
        generator: source of the draw.

    Returns:
        Name → normal floats, small ids, or masks whose first column is always a token.
    """
    inputs = {}
    for spec in signature.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        if spec.name == "source_bias":
            inputs[spec.name] = torch.zeros(shape).masked_fill(_padding(shape, generator)[:, None, None], -torch.inf)
        elif spec.dtype == "bool":
            inputs[spec.name] = _padding(shape, generator)
        elif spec.name == "own_cells":
            inputs[spec.name] = torch.arange(shape[0]).unsqueeze(1)
        elif spec.dtype == "int64":
            inputs[spec.name] = torch.randint(1, 16, shape, generator=generator)
        else:
            inputs[spec.name] = torch.randn(shape, generator=generator)
    return inputs


def _padding(shape: list[int], generator: torch.Generator) -> Tensor:
    lengths = torch.randint(1, shape[-1] + 1, (shape[0], 1), generator=generator)
    return torch.arange(shape[-1]) >= lengths
