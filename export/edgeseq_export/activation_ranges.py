"""Between which values the inputs of a model's products lie, measured on text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeseq.models import Seq2Seq
from edgeseq.modules import ExitHeads
from edgeseq_runtime.tokenizer import BOS_ID

_LEVELS = 255
_KEPT = 2**16
_KEPT_A_CALL = 2048
_SHARES = np.linspace(0.2, 1.0, 33).tolist()


@dataclass(frozen=True)
class ActivationRange:
    """The range that 8-bit activations cover; what lies outside is cut off."""

    low: float
    """At most 0."""
    high: float
    """At least 0."""

    def quantisation(self) -> tuple[float, int]:
        """Scale and zero point: integers from 0 to 255 stand for (integer - zero point) * scale."""
        scale = (self.high - self.low) / _LEVELS or 1.0
        return scale, round(-self.low / scale)


class _Observer:
    """Extremes of what a module reads, and a sample of it."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._low = self._high = 0.0
        self._samples: list[NDArray[np.float32]] = []

    def add(self, x: Tensor) -> None:
        values = x.detach().float().flatten().numpy()
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        self._samples.append(self._generator.choice(values, min(len(values), _KEPT_A_CALL), replace=False))

    def best_range(self) -> ActivationRange:
        """The range, up to the extremes, that leaves the least mean squared error, one end after the other."""
        values = self._generator.permutation(np.concatenate(self._samples))[:_KEPT]

        def error(candidate: ActivationRange) -> float:
            return _squared_error(values, candidate)

        high = min((ActivationRange(self._low, share * self._high) for share in _SHARES), key=error).high
        return min((ActivationRange(share * self._low, high) for share in _SHARES), key=error)


def measure_ranges(
    model: Seq2Seq, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], seed: int
) -> dict[nn.Module, ActivationRange]:
    """Measures what each linear layer and the exit heads read, on sentences and their references.

    Each pair is run twice: at full depth, and with every token stopping at a block drawn at random, since copied states
    are read too.

    Args:
        model: in evaluation mode.
        pairs: source ids and target ids, EOS last in both.
        seed: of the draws.

    Returns:
        Module → the range of its input.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = len(model.decoder.blocks)
    with _observe(model, np.random.default_rng(seed)) as observers, torch.no_grad():
        for source, target in pairs:
            memory = model.encoder(torch.tensor([source]), None)
            fed = torch.tensor([[BOS_ID, *target[:-1]]])
            for depths in (None, torch.randint(1, blocks + 1, fed.shape, generator=generator)):
                for block, state in enumerate(model.decoder(fed, memory, None, depths), start=1):
                    model.decoder.exit_heads(state, block)
    return {module: observer.best_range() for module, observer in observers.items()}


@contextmanager
def _observe(model: Seq2Seq, generator: np.random.Generator) -> Iterator[dict[nn.Module, _Observer]]:
    readers = [module for module in model.modules() if isinstance(module, nn.Linear | ExitHeads)]
    observers: dict[nn.Module, _Observer] = {module: _Observer(generator) for module in readers}

    def hook(observer: _Observer) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: observer.add(inputs[0])

    handles = [module.register_forward_pre_hook(hook(observer)) for module, observer in observers.items()]
    try:
        yield observers
    finally:
        for handle in handles:
            handle.remove()


def _squared_error(values: NDArray[np.float32], candidate: ActivationRange) -> float:
    scale, zero_point = candidate.quantisation()
    rounded = np.clip(np.rint(values / scale) + zero_point, 0, _LEVELS)
    return float(np.square((rounded - zero_point) * scale - values).mean())
