"""Multi-head attention (Vaswani et al., 2017, section 3.2): over the source, and of a sequence over itself.

Dimensions: B batch, T positions that read, S positions that are read, D channels, H heads, W window.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edgeseq.modules.dropout import dropout as apply_dropout


class _Attention(nn.Module):
    """The four projections, and the mixing of values by the scores of queries and keys."""

    def __init__(self, dim: int, heads: int, dropout: float, key_bias: bool) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}; every head needs as many channels")
        self.dim = dim
        self.heads = heads
        self.dropout = dropout
        self.query_projection = nn.Linear(dim, dim)
        self.key_projection = nn.Linear(dim, dim, bias=key_bias)
        self.value_projection = nn.Linear(dim, dim)
        self.output_projection = nn.Linear(dim, dim)
        self.scale = (dim // heads) ** -0.5

    def _split(self, x: Tensor) -> Tensor:
        """Gives each head its channels, (B, T, D) → (B, H, T, D/H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Maps queries (B, H, T, D/H), keys (B, H, D/H, S) and values (B, H, S, D/H) to (B, T, D)."""
        scores = query @ key  # (B, H, T, S)
        if bias is not None:
            scores = scores + bias
        weights = apply_dropout(torch.softmax(scores, dim=-1), self.dropout, self.training)
        mixed = weights.to(value.dtype) @ value  # (B, H, T, D/H)
        return self.output_projection(mixed.transpose(1, 2).flatten(2))


class CrossAttention(_Attention):
    """Attention of decoder positions over the encoder's memory; keys and values are computed once per sentence."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        """Creates the projections.

        Args:
            dim: channels of both sides, a multiple of heads.
            heads: attention heads.
            dropout: probability of dropping an attention weight.

        Raises:
            ValueError: dim is not a multiple of heads.
        """
        super().__init__(dim, heads, dropout, key_bias=True)

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
        return key, self._split(self.value_projection(memory))

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
        return self._attend(self._split(self.query_projection(x)), cross_key, cross_value, source_bias)

    def step(self, x: Tensor, cross_key: Tensor, cross_value: Tensor, source_bias: Tensor) -> Tensor:
        """Attends from each of T new positions on its own: a product with one row each.

        The result at a position then has the same bits however many positions a call holds, which a product
        over several rows does not promise. Arguments and result are those of `forward`.
        """
        query = self.query_projection(x).unflatten(-1, (self.heads, 1, -1))  # (B, T, H, 1, D/H)
        scores = query @ cross_key.unsqueeze(1) + source_bias.unsqueeze(1)  # (B, T, H, 1, S)
        mixed = torch.softmax(scores, dim=-1) @ cross_value.unsqueeze(1)  # (B, T, H, 1, D/H)
        return self.output_projection(mixed.flatten(2))


class SelfAttention(_Attention):
    """Attention of a sequence over itself, over all of it or within a window: a `TokenMixer`."""

    kind: ClassVar[str] = "self_attention"

    def __init__(self, dim: int, heads: int, window: int, causal: bool, dropout: float = 0.0) -> None:
        """Creates the projections.

        Args:
            dim: channels, a multiple of heads.
            heads: attention heads.
            window: W, how many positions each one reads: causal, itself and the W - 1 before it; else, and then W is
                odd, itself and W // 2 on either side. 0: all there are.
            causal: read no later position.
            dropout: probability of dropping an attention weight.

        Raises:
            ValueError: an argument is out of range.
        """
        # A bias would add the same to all scores of a query, which the softmax takes away again.
        super().__init__(dim, heads, dropout, key_bias=False)
        if window < 0:
            raise ValueError(f"window {window} is negative; 0 stands for all positions")
        if not causal and window and window % 2 == 0:
            raise ValueError(f"window {window} is even; non-causal attention needs an odd one, or 0 for all")
        self.window = window
        self.causal = causal

    def columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the keys and values of positions, (..., D) → two of (..., D)."""
        return self.key_projection(x), self.value_projection(x)

    def reads(self, queries: int, before: int, device: torch.device) -> Tensor:
        """Which positions each one reads.

        Args:
            queries: T, newest positions of the sequence, which read.
            before: positions before them, which are only read.
            device: of the result.

        Returns:
            bool (T, before + T).
        """
        read = torch.arange(before + queries, device=device)
        distance = read[before:, None] - read
        if self.causal:
            return (distance >= 0) & (distance < self.window if self.window else True)
        return distance.abs() <= self.window // 2 if self.window else torch.ones_like(distance, dtype=torch.bool)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Mixes a whole sequence.

        Args:
            x: (B, T, D).
            padding_mask: bool (B, T), True at padding, which no other position reads. Causal attention over
                right-padded sequences does not need it.

        Returns:
            (B, T, D). Values at padded positions have no meaning.
        """
        read = self.reads(x.shape[1], 0, x.device)
        if padding_mask is not None:
            # Every position reads itself, at padding too: a softmax of nothing would be no number.
            read = (read & ~padding_mask[:, None, :]) | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        read = read.unsqueeze(-3)  # (1, T, T) or (B, 1, T, T)
        bias = torch.zeros(read.shape, device=x.device).masked_fill(~read, float("-inf"))
        return self._mix(x, *self.columns(x), bias)

    def step(self, x: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mixes P new positions of a causal sequence.

        Args:
            x: (B, P, D).
            past: keys and values of L positions before them, both (B, L, D), oldest first: all, or where there is a
                window the last W - 1. Then what is added to their scores, (B, L): 0, or -inf at what is no position.

        Returns:
            The result, equal to `forward` at those positions, and their keys and values, all (B, P, D).

        Raises:
            ValueError: the attention is not causal.
        """
        if not self.causal:
            raise ValueError("step needs causal attention: the next positions are not known yet")
        keys, values, past_bias = past
        new_keys, new_values = self.columns(x)
        read = self.reads(x.shape[1], keys.shape[1], x.device)
        bias = torch.cat((past_bias, past_bias.new_zeros(x.shape[:2])), dim=1)[:, None, None]  # (B, 1, 1, L + P)
        bias = bias.masked_fill(~read, float("-inf"))
        mixed = self._mix(x, torch.cat((keys, new_keys), dim=1), torch.cat((values, new_values), dim=1), bias)
        return mixed, (new_keys, new_values)

    def _mix(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        query = self._split(self.query_projection(x) * self.scale)
        return self._attend(query, self._split(keys).transpose(-1, -2), self._split(values), bias)
