"""Oracles: the depth at which a token should stop, which depth predictors learn (Elbayad et al., section 3.2).

A score says how good each exit is for a token: log p(y_t | h_t^n) for the likelihood oracle; for the correctness
oracle 1 where y_t is the argmax at block n, else 0; the agreement oracle puts the argmax of block N in place of y_t.

Dimensions: B batch, T target positions, N decoder blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_over_positions(scores: Tensor, valid: Tensor, sigma: float) -> Tensor:
    """Sums the scores of neighbouring tokens, weighted by κ(t, t') = exp(-(t - t')² / σ), not normalised.

    Args:
        scores: (B, T, N).
        valid: bool (B, T), True at real tokens; others do not count.
        sigma: width of the kernel; 0 leaves the scores as they are.

    Returns:
        (B, T, N).
    """
    if sigma == 0:
        return scores
    position = torch.arange(scores.shape[1], device=scores.device, dtype=scores.dtype)
    kernel = torch.exp(-((position[:, None] - position[None, :]) ** 2) / sigma)  # (T, T)
    return torch.einsum("ts,bsn->btn", kernel, scores * valid.unsqueeze(-1))


def sum_over_sentence(scores: Tensor, valid: Tensor) -> Tensor:
    """Sums the scores of a sentence's tokens (section 3.1): (B, T, N) → (B, 1, N); valid is bool (B, T)."""
    return (scores * valid.unsqueeze(-1)).sum(dim=1, keepdim=True)


def oracle_depths(scores: Tensor, costs: Tensor) -> Tensor:
    """Picks argmax_n (score_n - cost_n); the lowest depth wins ties.

    With unsmoothed correctness, a token that no block gets right stops at block 1. With unsmoothed agreement it is the
    lowest block that says what the last one says, so that stopping there changes nothing.

    Args:
        scores: (..., N), of tokens, smoothed or not, or of sentences.
        costs: (N,), of depths 1 to N in units of the score: λ n in the paper.

    Returns:
        int64 (...), 1 to N.
    """
    return (scores - costs).argmax(-1) + 1


def worth_stopping(scores: Tensor, costs: Tensor) -> Tensor:
    """Says of each block below N whether no later one is worth its price: score_n - cost_n ≥ max_{m > n} of the same.

    `oracle_depths` names one depth and is silent about the blocks above it, although tokens whose unit did not
    fire there arrive at them. This speaks of every block on its own.

    Args:
        scores: (..., N), as for `oracle_depths`.
        costs: (N,).

    Returns:
        bool (..., N - 1).
    """
    net = scores - costs
    best_from_here = net.flip(-1).cummax(-1).values.flip(-1)
    return net[..., :-1] >= best_from_here[..., 1:]
