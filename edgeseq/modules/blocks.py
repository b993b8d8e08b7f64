"""Encoder and decoder blocks, composed of a token mixer, encoder-decoder attention and feed-forward layers.

Dimensions: B batch, T time, S source positions, D channels, H attention heads, K kernel size, P new positions.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from edgeseq.modules.attention import CrossAttention
from edgeseq.modules.convolution import DynamicConv, LightweightConv
from edgeseq.modules.dropout import Dropout
from edgeseq.modules.mixing import TokenMixer

NormPlacement = Literal["pre", "post"]


class ResidualNorm(nn.Module):
    """The layer norm of one residual branch: before the branch (pre) or after the sum (post)."""

    def __init__(self, dim: int, placement: NormPlacement) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.placement = placement

    def before(self, x: Tensor) -> Tensor:
        """Returns what the branch reads."""
        return self.norm(x) if self.placement == "pre" else x

    def after(self, x: Tensor) -> Tensor:
        """Returns what goes on, given the sum of residual and branch."""
        return self.norm(x) if self.placement == "post" else x


class ConvolutionUnit(nn.Module):
    """In-projection, optional gated linear unit, convolution, out-projection (Wu et al., figure 2): a `TokenMixer`."""

    kind: ClassVar[str] = "convolution_unit"

    def __init__(self, convolution: LightweightConv | DynamicConv, glu: bool) -> None:
        """Wraps a convolution.

        Args:
            convolution: the operator; its dim is the width of the projections.
            glu: project to twice the width and gate the first half by the sigmoid of the second.
        """
        super().__init__()
        self.dim = dim = convolution.dim
        self.heads = convolution.heads
        self.glu = glu
        self.in_projection = nn.Linear(dim, 2 * dim if glu else dim)
        self.convolution = convolution
        self.out_projection = nn.Linear(dim, dim)

    def columns(self, x: Tensor) -> tuple[Tensor]:
        """Computes what the convolution reads at each position.

        Args:
            x: (..., D), normed where the block is pre-norm.

        Returns:
            (..., D) alone.
        """
        projected = self.in_projection(x)
        return (F.glu(projected, dim=-1) if self.glu else projected,)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Mixes a whole sequence, (B, T, D) → (B, T, D); padding_mask bool (B, T), True at padding."""
        return self.out_projection(self.convolution(*self.columns(x), padding_mask))

    def step(self, x: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mixes P new positions.

        Args:
            x: (B, P, D).
            past: the columns of the K - 1 positions before them, (B, K - 1, D), oldest first, zeros before the start.

        Returns:
            The result (B, P, D), and the new columns (B, P, D) alone.
        """
        (history,) = past
        (columns,) = self.columns(x)
        return self.out_projection(self.convolution.step(columns, history)), (columns,)


class FeedForward(nn.Module):
    """Two linear layers with a rectifier between them."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden_dim)
        self.contract = nn.Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps each position on its own, (..., D) → (..., D)."""
        return self.contract(self.dropout(F.relu(self.expand(x))))


class _Block(nn.Module):
    """What blocks of both stacks have."""

    def __init__(self, mixer: TokenMixer, feed_forward: FeedForward, norm: NormPlacement, dropout: float) -> None:
        super().__init__()
        # Weights carry the name of what they are, so that those of another kind of block do not fit by chance.
        self._kind = mixer.kind
        self.add_module(self._kind, cast("nn.Module", mixer))
        self.add_module(self._norm_name, ResidualNorm(mixer.dim, norm))
        self.feed_forward = feed_forward
        self.feed_forward_norm = ResidualNorm(mixer.dim, norm)
        self.dropout = Dropout(dropout)

    @property
    def _norm_name(self) -> str:
        return self._kind.removesuffix("_unit") + "_norm"

    @property
    def mixer(self) -> TokenMixer:
        """What mixes the positions of the sequence."""
        return cast("TokenMixer", self.get_submodule(self._kind))

    @property
    def mixer_norm(self) -> ResidualNorm:
        """The norm of its branch."""
        return cast("ResidualNorm", self.get_submodule(self._norm_name))

    def _feed(self, x: Tensor) -> Tensor:
        y = self.feed_forward(self.feed_forward_norm.before(x))
        return self.feed_forward_norm.after(x + self.dropout(y))


class EncoderBlock(_Block):
    """Mixing over the source, then feed-forward."""

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Maps (B, T, D) → (B, T, D); padding_mask bool (B, T), True at padding, or None."""
        y = self.mixer(self.mixer_norm.before(x), padding_mask)
        return self._feed(self.mixer_norm.after(x + self.dropout(y)))


class DecoderBlock(_Block):
    """Causal mixing, encoder-decoder attention, feed-forward, and the norm of the exit state."""

    def __init__(
        self,
        mixer: TokenMixer,
        cross_attention: CrossAttention,
        feed_forward: FeedForward,
        norm: NormPlacement,
        dropout: float,
    ) -> None:
        super().__init__(mixer, feed_forward, norm, dropout)
        self.cross_attention = cross_attention
        self.cross_norm = ResidualNorm(mixer.dim, norm)
        # In post-norm models a block's output is normed already.
        self.exit_norm = nn.LayerNorm(mixer.dim) if norm == "pre" else nn.Identity()

    def forward(
        self, x: Tensor, cross_key: Tensor, cross_value: Tensor, source_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Runs a whole sequence.

        Args:
            x: (B, T, D): the states of the block below; where a token stopped below, its copied state.
            cross_key: (B, H, D/H, S) from `CrossAttention.project`.
            cross_value: (B, H, S, D/H).
            source_bias: (B, 1, 1, S), 0 at tokens, -inf at padding; None without padding.

        Returns:
            next_x and exit_state, both (B, T, D).
        """
        y = self.mixer(self.mixer_norm.before(x))
        x = self.mixer_norm.after(x + self.dropout(y))
        y = self.cross_attention(self.cross_norm.before(x), cross_key, cross_value, source_bias)
        return self._finish(self.cross_norm.after(x + self.dropout(y)))

    def step(
        self, x: Tensor, past: tuple[Tensor, ...], cross_key: Tensor, cross_value: Tensor, source_bias: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Runs P new positions.

        Args:
            x: (B, P, D).
            past: what the mixer's `step` reads of the positions before them.
            cross_key: (B, H, D/H, S).
            cross_value: (B, H, S, D/H).
            source_bias: (B, 1, 1, S).

        Returns:
            next_x, exit_state and the mixer's new columns, all (B, P, D).
        """
        y, columns = self.mixer.step(self.mixer_norm.before(x), past)
        x = self.mixer_norm.after(x + y)
        y = self.cross_attention.step(self.cross_norm.before(x), cross_key, cross_value, source_bias)
        return *self._finish(self.cross_norm.after(x + y)), columns

    def backfill(self, states: Tensor) -> tuple[Tensor, ...]:
        """Computes the columns this block would have at positions that stopped below it.

        Args:
            states: (..., D): the copied states (Elbayad et al., 2020, section 2.2.1).

        Returns:
            The mixer's columns, (..., D) each.
        """
        return self.mixer.columns(self.mixer_norm.before(states))

    def _finish(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self._feed(x)
        return x, self.exit_norm(x)
