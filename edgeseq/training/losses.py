"""Losses of the two phases: aligned training of the exits, and the exit distribution against an oracle.

Dimensions: M real target tokens of a batch, N decoder blocks, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ExitWeights = Literal["uniform", "n", "sqrt_n", "inverse_sqrt_n", "inverse_n"]

# Tokens whose logits are in flight at once: a few megabytes.
_CHUNK = 512
_SMALLEST = torch.finfo(torch.float32).tiny

_WEIGHTS = {
    "uniform": lambda _: 1.0,
    "n": float,
    "sqrt_n": math.sqrt,
    "inverse_sqrt_n": lambda n: 1 / math.sqrt(n),
    "inverse_n": lambda n: 1 / n,
}


def exit_weights(scheme: ExitWeights, blocks: int) -> list[float]:
    """Weights of the exits in the aligned loss, w_n / Σ w_n (Elbayad et al., section 2.2.1 and table 1a).

    Returns:
        N weights, the first exit's first; their sum is 1.
    """
    weights = [_WEIGHTS[scheme](n) for n in range(1, blocks + 1)]
    return [weight / sum(weights) for weight in weights]


def gradient_scales(gamma: float, blocks: int) -> tuple[list[float], list[float]]:
    """Gradient scaling (Elbayad et al., appendix A): γ_n = γ (N - n) weighs exit n against the exits above it.

    Args:
        gamma: γ > 0.
        blocks: N.

    Returns:
        γ_n for the loss of each of N exits, and 1 / γ_(n+1) for what comes back from above each of the N - 1 blocks
        below the last. As printed γ_N would be 0, which kills the last exit; it is 1 here.
    """
    scales = [gamma * (blocks - n) for n in range(1, blocks)] + [1.0]
    return scales, [1 / scale for scale in scales[1:]]


def sample_exits(weights: list[float], generator: torch.Generator) -> dict[int, float]:
    """Draws the exits of one step: the last, and one of the others, all equally likely.

    The drawn exit's weight is multiplied by N - 1, the inverse of its chance, so the expected loss is that
    of all exits.

    Args:
        weights: of all exits.
        generator: source of the draw.

    Returns:
        Exit → weight.
    """
    blocks = len(weights)
    if blocks == 1:
        return {1: weights[0]}
    drawn = int(torch.randint(1, blocks, (), generator=generator))
    return {drawn: weights[drawn - 1] * (blocks - 1), blocks: weights[-1]}


@dataclass(frozen=True)
class Teacher:
    """Another classifier of the same tokens, whose distribution is part of the target; it gets no gradient."""

    states: Tensor
    """(M, D)."""
    weight: Tensor
    """(V, D)."""
    share: float
    """Of the target, in [0, 1)."""


def classify_and_score(
    states: Tensor, weight: Tensor, labels: Tensor, smoothing: float, teacher: Teacher | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a linear classifier against smoothed labels, in one pass over the vocabulary.

    The logits of a few hundred tokens at a time are turned into gradients at once, while they are in the cache,
    and never stored: at 4,000 pieces, projection and loss took most of a training step otherwise.

    Args:
        states: (M, D).
        weight: (V, D), of the classifier.
        labels: int64 (M,).
        smoothing: share of the target distribution that is spread evenly over the vocabulary, in [0, 1).
        teacher: what else the target is made of.

    Returns:
        The loss against the target, and the plain negative log-likelihood (without gradient): means per token, in nats.
        A label counts as no less likely than float32's smallest number, which is 87.3 nats; gradients are exact.
    """
    if teacher is None:
        return _ClassifyAndScore.apply(states, weight, labels, smoothing, None, None, 0.0)
    return _ClassifyAndScore.apply(
        states, weight, labels, smoothing, teacher.states.detach(), teacher.weight.detach(), teacher.share
    )


class _ClassifyAndScore(torch.autograd.Function):
    """The gradient of the loss by the logits is p - target, known as soon as p is."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        labels: Tensor,
        smoothing: float,
        teacher_states: Tensor | None,
        teacher_weight: Tensor | None,
        teacher_share: float,
    ) -> tuple[Tensor, Tensor]:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        with torch.autocast(device, enabled=False):
            low_states, low_weight = states.to(dtype), weight.to(dtype)
            # In float32, since many chunks are summed.
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
            state_gradient = torch.empty_like(low_states)
            vocab_size = len(weight)
            if teacher_states is not None and teacher_weight is not None:
                teacher_states, teacher_weight = teacher_states.to(dtype), teacher_weight.to(dtype)
            own_share = 1 - teacher_share
            likelihood = smoothed = torch.zeros((), device=states.device)
            for start in range(0, len(states), _CHUNK):
                rows = slice(start, start + _CHUNK)
                chunk, chunk_labels = low_states[rows], labels[rows].unsqueeze(-1)
                logits = chunk @ low_weight.T
                gradient = torch.softmax(logits, dim=-1, dtype=torch.float32)
                own = gradient.gather(-1, chunk_labels).clamp_min(_SMALLEST).log()
                likelihood = likelihood - own.sum()
                # Mean log-probability over the vocabulary, from the logits and their normaliser.
                normalizer = logits.gather(-1, chunk_labels).float() - own
                uniform = logits.mean(-1, keepdim=True, dtype=torch.float32) - normalizer
                smoothed = smoothed - own_share * ((1 - smoothing) * own + smoothing * uniform).sum()
                gradient.sub_(own_share * smoothing / vocab_size)
                gradient.scatter_add_(
                    -1, chunk_labels, gradient.new_full(chunk_labels.shape, own_share * (smoothing - 1))
                )
                if teacher_states is not None and teacher_weight is not None:
                    told = torch.softmax(teacher_states[rows] @ teacher_weight.T, dim=-1, dtype=torch.float32)
                    smoothed = smoothed - teacher_share * ((told * logits).sum() - normalizer.sum())
                    gradient.sub_(told, alpha=teacher_share)
                gradient = gradient.to(dtype)
                state_gradient[rows] = gradient @ low_weight
                weight_gradient += gradient.T @ chunk
        ctx.save_for_backward(state_gradient.to(states.dtype), weight_gradient.to(weight.dtype))
        ctx.tokens = len(states)
        likelihood = likelihood / len(states)
        ctx.mark_non_differentiable(likelihood)
        return smoothed / len(states), likelihood

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        state_gradient, weight_gradient = ctx.saved_tensors
        scale = loss_gradient / ctx.tokens
        return state_gradient * scale, weight_gradient * scale, None, None, None, None, None


def exit_loss(log_stop: Tensor, oracle_depth: Tensor) -> Tensor:
    """Cross-entropy of the exit distribution against the oracle's depth (Elbayad et al., section 3).

    Args:
        log_stop: (M, N), log q.
        oracle_depth: int64 (M,), 1 to N.

    Returns:
        Mean per token.
    """
    return F.nll_loss(log_stop, oracle_depth - 1)


def gain_loss(halting_logits: Tensor, stop: Tensor) -> Tensor:
    """Cross-entropy of every halting unit by itself against whether its block is worth stopping at.

    Args:
        halting_logits: (M, N - 1), logits of χ.
        stop: bool (M, N - 1), of `worth_stopping`.

    Returns:
        Mean per token and unit.
    """
    return F.binary_cross_entropy_with_logits(halting_logits, stop.to(halting_logits.dtype))
