"""The output classifiers that stand on every decoder block."""

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
