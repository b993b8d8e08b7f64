"""Token embeddings with sinusoidal positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgeseq.modules.dropout import Dropout


def sinusoid(position: Tensor, dim: int) -> Tensor:
    """Sinusoidal position vectors (Vaswani et al., 2017, section 3.5), computed, so of no greatest length.

    Args:
        position: any shape, 0 for the first position.
        dim: channels, even. The first half are sines, the second cosines.

    Returns:
        float32, the shape of position and one axis of dim.
    """
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=position.device) * (-math.log(10000.0) / max(half - 1, 1)))
    angle = position.unsqueeze(-1).to(torch.float32) * frequency
    return torch.cat((torch.sin(angle), torch.cos(angle)), dim=-1)


class TokenEmbedding(nn.Module):
    """Scaled token vectors plus their positions."""

    def __init__(self, vocab_size: int, dim: int, padding_id: int, dropout: float = 0.0) -> None:
        """Creates the table.

        Args:
            vocab_size: number of pieces.
            dim: channels, even.
            padding_id: the piece that pads; its vector starts at zero.
            dropout: applied to the sum.

        Raises:
            ValueError: dim is odd.
        """
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim {dim} is odd; sines and cosines need half of the channels each")
        self.table = nn.Embedding(vocab_size, dim, padding_idx=padding_id)
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        with torch.no_grad():
            self.table.weight[padding_id].zero_()
        self.dropout = Dropout(dropout)
        self.dim = dim
        self.scale = math.sqrt(dim)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Embeds tokens.

        Args:
            tokens: int64 (B, T).
            position: int64, (B, T) or (T,), 0 for the first token.

        Returns:
            (B, T, dim).
        """
        return self.dropout(self.table(tokens) * self.scale + sinusoid(position, self.dim))
