"""What stands on every decoder block: exit heads, and the units that say when to stop."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExitHeads(nn.Module):
    """The output classifier after each block, one for all (tied) or one per block (untied)."""

    def __init__(self, dim: int, vocab_size: int, blocks: int, tied: bool, embedding: nn.Embedding | None) -> None:
        """Creates the classifiers.

        Args:
            dim: channels of an exit state.
            vocab_size: number of pieces.
            blocks: number of decoder blocks.
            tied: share one classifier over blocks.
            embedding: share its weight too, (vocab_size, dim); needs tied heads.

        Raises:
            ValueError: an embedding is to be shared by untied heads.
        """
        super().__init__()
        if embedding is not None and not tied:
            raise ValueError("untied exit heads cannot share the embedding's weight; tie the heads or untie it")
        self.tied = tied
        if embedding is not None:
            weights = [embedding.weight]
        else:
            weights = [nn.Parameter(torch.randn(vocab_size, dim) * dim**-0.5) for _ in range(1 if tied else blocks)]
        self.weights = nn.ParameterList(weights)

    def forward(self, exit_state: Tensor, block: int) -> Tensor:
        """Classifies the exit states (..., D) of a block, numbered from 1, into logits (..., vocab)."""
        return exit_state @ self.weight(block).T

    def weight(self, block: int) -> Tensor:
        """Returns the classifier of a block, (vocab, dim)."""
        return self.weights[0 if self.tied else block - 1]


class HaltingUnits(nn.Module):
    """χ_n = sigmoid(w · exit_state_n + b), the chance to stop at block n < N (Elbayad et al., equation 12).

    As printed, the unit is shared by all blocks; with one unit per block each can have a scale of its own.
    """

    def __init__(self, dim: int, blocks: int, shared: bool) -> None:
        """Creates N - 1 units, or one if shared; all start at χ = 0.5."""
        super().__init__()
        self.stops = blocks - 1
        self.shared = shared
        units = 1 if shared else self.stops
        self.weight = nn.Parameter(torch.zeros(units, dim))
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, exit_states: list[Tensor]) -> Tensor:
        """Computes the logits of χ.

        Args:
            exit_states: those of all N blocks, each (..., D); the last is not read.

        Returns:
            (..., N - 1).
        """
        stacked = torch.stack(exit_states[: self.stops], dim=-2)  # (..., N - 1, D)
        return (stacked * self.weight).sum(-1) + self.bias


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
