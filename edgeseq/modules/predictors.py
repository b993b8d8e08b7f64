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
    """A table of linear units; a subclass says what they read and mean. All depths start as likely as possible."""

    def __init__(self, dim: int, blocks: int, rows: int) -> None:
        """Creates the table: weight (rows, dim) and bias (rows,), all zeros.

        Raises:
            ValueError: one block leaves nothing to decide.
        """
        super().__init__()
        if blocks < 2:
            raise ValueError(f"a decoder of {blocks} block(s) leaves a depth predictor nothing to decide")
        self.blocks = blocks
        self.weight = nn.Parameter(torch.zeros(rows, dim))
        self.bias = nn.Parameter(torch.zeros(rows))

    @abstractmethod
    def log_distribution(self, exit_states: Sequence[Tensor], mean_memory: Tensor) -> Tensor:
        """Computes log q.

        Args:
            exit_states: those of all N blocks, each (B, T, D).
            mean_memory: the encoder's output averaged over each sentence, (B, D).

        Returns:
            (B, T, N), or (B, 1, N) where one depth serves a sentence.
        """


class HaltingUnits(DepthPredictor):
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

    def log_distribution(self, exit_states: Sequence[Tensor], mean_memory: Tensor) -> Tensor:
        """Computes q(n) = χ_n · Π_{m<n} (1 - χ_m); see `log_stop_distribution`."""
        del mean_memory
        return log_stop_distribution(self(exit_states))


class TokenDepth(DepthPredictor):
    """softmax(W · exit_state_1 + b): the depth of each token, chosen after block 1; multinomial."""

    def __init__(self, dim: int, blocks: int) -> None:
        """Creates N units."""
        super().__init__(dim, blocks, rows=blocks)

    def log_distribution(self, exit_states: Sequence[Tensor], mean_memory: Tensor) -> Tensor:
        """Reads the first exit state; see `DepthPredictor`."""
        del mean_memory
        return torch.log_softmax(exit_states[0] @ self.weight.T + self.bias, dim=-1)


class SentenceDepth(DepthPredictor):
    """softmax(W · s + b), s the mean of the encoder's output: one depth for a whole sentence (section 3.1)."""

    def __init__(self, dim: int, blocks: int) -> None:
        """Creates N units."""
        super().__init__(dim, blocks, rows=blocks)

    def log_distribution(self, exit_states: Sequence[Tensor], mean_memory: Tensor) -> Tensor:
        """Reads the mean of the encoder's output; see `DepthPredictor`."""
        del exit_states
        return torch.log_softmax(mean_memory @ self.weight.T + self.bias, dim=-1).unsqueeze(1)


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
