"""Oracles: the depth at which a token should stop, which the halting units learn (Elbayad et al., section 3.2).

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


def oracle_depths(scores: Tensor, valid: Tensor, sigma: float, depth_penalty: float) -> Tensor:
    """Picks argmax_n (score_n - λ n); the lowest depth wins ties.

    The score of block n is log p(y_t | h_t^n) for the likelihood oracle, and for the correctness oracle 1 where
    y_t is the argmax at block n, else 0. With the latter, a token that no block gets right stops at block 1. The
    agreement oracle puts the argmax of block N in place of y_t: with σ = 0 it picks the lowest block that says what
    the last one says, so that stopping there changes nothing.

    Args:
        scores: (B, T, N).
        valid: bool (B, T), True at real tokens.
        sigma: as in `smooth_over_positions`.
        depth_penalty: λ ≥ 0, in units of the score per block.

    Returns:
        int64 (B, T), 1 to N.
    """
    blocks = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    return (smooth_over_positions(scores, valid, sigma) - depth_penalty * blocks).argmax(-1) + 1


def worth_stopping(scores: Tensor, valid: Tensor, sigma: float, depth_penalty: float) -> Tensor:
    """Says of each block below N whether no later one is worth its price: score_n - λ n ≥ max_{m > n} (score_m - λ m).

    `oracle_depths` names one depth and is silent about the blocks above it, although tokens whose unit did not
    fire there arrive at them. This speaks of every block on its own.

    Args:
        scores: (B, T, N), as for `oracle_depths`.
        valid: bool (B, T), True at real tokens.
        sigma: as in `smooth_over_positions`.
        depth_penalty: λ ≥ 0.

    Returns:
        bool (B, T, N - 1).
    """
    blocks = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    net = smooth_over_positions(scores, valid, sigma) - depth_penalty * blocks
    best_from_here = net.flip(-1).cummax(-1).values.flip(-1)
    return net[..., :-1] >= best_from_here[..., 1:]
