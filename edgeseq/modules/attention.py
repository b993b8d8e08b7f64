"""Encoder-decoder attention whose keys and values are computed once per sentence.

Dimensions: B batch, T target positions, S source positions, D channels, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeseq.modules.dropout import dropout as apply_dropout


class CrossAttention(nn.Module):
    """Multi-head attention of decoder positions over the encoder's memory (Vaswani et al., 2017)."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        """Creates the projections.

        Args:
            dim: channels of both sides, a multiple of heads.
            heads: attention heads.
            dropout: probability of dropping an attention weight.

        Raises:
            ValueError: dim is not a multiple of heads.
        """
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}; every head needs as many channels")
        self.heads = heads
        self.dropout = dropout
        self.query_projection = nn.Linear(dim, dim)
        self.key_projection = nn.Linear(dim, dim)
        self.value_projection = nn.Linear(dim, dim)
        self.output_projection = nn.Linear(dim, dim)
        self.scale = (dim // heads) ** -0.5

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Computes what every step reads.

        Args:
            memory: (B, S, D).

        Returns:
            cross_key (B, H, D/H, S), scaled and transposed for the product with queries, and cross_value
            (B, H, S, D/H).
        """
        # Scaling the keys once per sentence spares every step from scaling its queries.
        key = (self.key_projection(memory) * self.scale).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)
        value = self.value_projection(memory).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return key, value

    def forward(self, x: Tensor, cross_key: Tensor, cross_value: Tensor, source_bias: Tensor | None) -> Tensor:
        """Attends from all positions at once.

        Args:
            x: (B, T, D).
            cross_key: (B, H, D/H, S).
            cross_value: (B, H, S, D/H).
            source_bias: (B, 1, 1, S), added to the scores: 0 at tokens, -inf at padding. None: no padding.

        Returns:
            (B, T, D).
        """
        query = self.query_projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = query @ cross_key  # (B, H, T, S)
        if source_bias is not None:
            scores = scores + source_bias
        weights = apply_dropout(torch.softmax(scores, dim=-1), self.dropout, self.training)
        mixed = weights.to(cross_value.dtype) @ cross_value  # (B, H, T, D/H)
        return self.output_projection(mixed.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, cross_key: Tensor, cross_value: Tensor, source_bias: Tensor) -> Tensor:
        """Attends from each of T new positions on its own: a product with one row each.

        The result at a position then has the same bits however many positions a call holds, which a product
        over several rows does not promise. Arguments and result are those of `forward`.
        """
        query = self.query_projection(x).unflatten(-1, (self.heads, 1, -1))  # (B, T, H, 1, D/H)
        scores = query @ cross_key.unsqueeze(1) + source_bias.unsqueeze(1)  # (B, T, H, 1, S)
        mixed = torch.softmax(scores, dim=-1) @ cross_value.unsqueeze(1)  # (B, T, H, 1, D/H)
        return self.output_projection(mixed.flatten(2))
