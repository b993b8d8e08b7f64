"""In which precision a device multiplies matrices fastest: not every processor has bfloat16."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from edgeseq.config import PrecisionName

WORTHWHILE = 1.3
"""How many times as fast bfloat16 has to be.

It was three times as fast as float32 on a processor with instructions for it and a fiftieth without: far enough apart
on these two for repeated runs to choose alike.
"""

_SIZE = 256
_REPEATS = 5


def pick_precision(name: PrecisionName, device: torch.device) -> torch.dtype:
    """Resolves a precision of matrix products.

    Args:
        name: "auto" stands for the faster one. On processors both are timed, in less than 0.1 s.
        device: where to multiply.

    Returns:
        torch.float32 or torch.bfloat16.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = _seconds(torch.float32) > WORTHWHILE * _seconds(torch.bfloat16)
    return torch.bfloat16 if supported else torch.float32


def autocast(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Opens the precision in which matrix products are computed."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    """The least time of a few products of square matrices, after one that does not count."""
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    return min([_time(matrix.matmul, matrix) for _ in range(_REPEATS + 1)][1:])


def _time(multiply: Callable[[Tensor], Tensor], matrix: Tensor) -> float:
    started = time.perf_counter()
    multiply(matrix)
    return time.perf_counter() - started
