"""Depth predictors: they tell, from states that are there anyway, how many blocks a token needs.

Each gives a distribution over the depths 1 to N, which it learns from an oracle (Elbayad et al., section 3).
Dimensions: B sentences, T target positions, D channels, N decoder blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DepthPredictor(nn.Module, ABC):
    """What tells how many of N blocks a token needs."""

    def __init__(self, blocks: int) -> None:
        """Creates one for a decoder of N blocks.

        Raises:
            ValueError: one block leaves nothing to decide.
        """
        super().__init__()
        if blocks < 2:
            raise ValueError(f"a decoder of {blocks} block(s) leaves a depth predictor nothing to decide")
        self.blocks = blocks

    @abstractmethod
    def log_distribution(
        self, exit_states: Sequence[Tensor], mean_memory: Tensor, certainty: Tensor | None = None
    ) -> Tensor:
        """Computes log q.

        Args:
            exit_states: those of all N blocks, each (B, T, D).
            mean_memory: the encoder's output averaged over each sentence, (B, D).
            certainty: of the exits of all N blocks, (B, T, N, 2), see `certainty_of`; needed by some predictors only.

        Returns:
            (B, T, N), or (B, 1, N) where one depth serves a sentence.
        """


class LinearUnits(DepthPredictor):
    """A table of linear units on D channels; all depths start as likely as possible."""

    def __init__(self, dim: int, blocks: int, rows: int) -> None:
        """Creates weight (rows, dim) and bias (rows,), all zeros."""
        super().__init__(blocks)
        self.weight = nn.Parameter(torch.zeros(rows, dim))
        self.bias = nn.Parameter(torch.zeros(rows))


class HaltingUnits(LinearUnits):
    """χ_n = sigmoid(w · exit_state_n + b), the chance to stop at block n < N (equation 12): geometric-like.

    As printed, the unit is shared by all blocks; with one unit per block each can have a scale of its own.
    """

    def __init__(self, dim: int, blocks: int, shared: bool) -> None:
        """Creates N - 1 units, or one if shared; all start at χ = 0.5."""
        super().__init__(dim, blocks, rows=1 if shared else blocks - 1)

    def forward(self, exit_states: Sequence[Tensor]) -> Tensor:
        """Computes the logits of χ.

        Args:
            exit_states: those of all N blocks, each (..., D); the last is not read.

        Returns:
            (..., N - 1).
        """
        stacked = torch.stack(list(exit_states[: self.blocks - 1]), dim=-2)  # (..., N - 1, D)
        return (stacked * self.weight).sum(-1) + self.bias

    def log_distribution(
        self, exit_states: Sequence[Tensor], mean_memory: Tensor, certainty: Tensor | None = None
    ) -> Tensor:
        """Computes q(n) = χ_n · Π_{m<n} (1 - χ_m); see `log_stop_distribution`."""
        del mean_memory, certainty
        return log_stop_distribution(self(exit_states))


class TokenDepth(LinearUnits):
    """softmax(W · exit_state_1 + b): the depth of each token, chosen after block 1; multinomial."""

    def __init__(self, dim: int, blocks: int) -> None:
        """Creates N units."""
        super().__init__(dim, blocks, rows=blocks)

    def log_distribution(
        self, exit_states: Sequence[Tensor], mean_memory: Tensor, certainty: Tensor | None = None
    ) -> Tensor:
        """Reads the first exit state; see `DepthPredictor`."""
        del mean_memory, certainty
        return torch.log_softmax(exit_states[0] @ self.weight.T + self.bias, dim=-1)


class SentenceDepth(LinearUnits):
    """softmax(W · s + b), s the mean of the encoder's output: one depth for a whole sentence (section 3.1)."""

    def __init__(self, dim: int, blocks: int) -> None:
        """Creates N units."""
        super().__init__(dim, blocks, rows=blocks)

    def log_distribution(
        self, exit_states: Sequence[Tensor], mean_memory: Tensor, certainty: Tensor | None = None
    ) -> Tensor:
        """Reads the mean of the encoder's output; see `DepthPredictor`."""
        del exit_states, certainty
        return torch.log_softmax(mean_memory @ self.weight.T + self.bias, dim=-1).unsqueeze(1)


class CertaintyUnits(DepthPredictor):
    """χ_n from how certain exit n < N is of its piece: two numbers, a hidden layer, one unit; per block.

    A linear unit sees little of that in a state of D channels. No gradient reaches the trunk.
    """

    def __init__(self, blocks: int, hidden_dim: int) -> None:
        """Creates the units of N - 1 blocks; all start at χ = 0.5."""
        super().__init__(blocks)
        units = blocks - 1
        self.expand_weight = nn.Parameter(torch.randn(units, hidden_dim, 2) / 2)
        self.expand_bias = nn.Parameter(torch.randn(units, hidden_dim))
        self.contract_weight = nn.Parameter(torch.zeros(units, hidden_dim))
        self.contract_bias = nn.Parameter(torch.zeros(units))

    def forward(self, certainty: Tensor) -> Tensor:
        """Computes the logits of χ, (..., N, 2) → (..., N - 1); the last exit is not read."""
        below = certainty[..., : self.blocks - 1, :]
        hidden = torch.relu((self.expand_weight * below.unsqueeze(-2)).sum(-1) + self.expand_bias)
        return (self.contract_weight * hidden).sum(-1) + self.contract_bias

    def log_distribution(
        self, exit_states: Sequence[Tensor], mean_memory: Tensor, certainty: Tensor | None = None
    ) -> Tensor:
        """Computes the geometric-like distribution, as halting units do."""
        del exit_states, mean_memory
        assert certainty is not None, "these units read nothing else"
        return log_stop_distribution(self(certainty))


MAX_CERTAINTY = 15.0
"""Beyond this, log-odds and leads no longer count."""

_CERTAINTY_SCALE = 5.0


def certainty_of(logits: Tensor) -> Tensor:
    """Says how certain a classifier is: log-odds of the best piece, and its lead over the next one.

    Args:
        logits: (..., V).

    Returns:
        float32 (..., 2), cut at ±15 and divided by 5.
    """
    logits = logits.float()
    best = logits.topk(2, dim=-1)
    others = logits.scatter(-1, best.indices[..., :1], float("-inf")).logsumexp(-1)
    both = torch.stack((best.values[..., 0] - others, best.values[..., 0] - best.values[..., 1]), dim=-1)
    return both.clamp(-MAX_CERTAINTY, MAX_CERTAINTY) / _CERTAINTY_SCALE


def log_stop_distribution(halting_logits: Tensor) -> Tensor:
    """The geometric-like distribution of depths: q(n) = χ_n · Π_{m<n} (1 - χ_m), q(N) = Π_{m<N} (1 - χ_m).

    Args:
        halting_logits: (..., N - 1), logits of χ.

    Returns:
        log q, (..., N).
    """
    log_go = nn.functional.logsigmoid(-halting_logits).cumsum(-1)
    log_stop = nn.functional.logsigmoid(halting_logits)
    before = nn.functional.pad(log_go, (1, 0))  # log of having passed all blocks below n
    return torch.cat((log_stop + before[..., :-1], before[..., -1:]), dim=-1)


def mean_memory(memory: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Averages the encoder's output over each sentence's own positions.

    Args:
        memory: (B, S, D).
        padding_mask: bool (B, S), True at padding, or None.

    Returns:
        (B, D).
    """
    if padding_mask is None:
        return memory.mean(dim=1)
    real = (~padding_mask).unsqueeze(-1)
    return memory.masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1)
