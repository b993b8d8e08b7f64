"""What a block asks of the unit that mixes its positions: convolution or self-attention alike."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor


class TokenMixer(Protocol):
    """Mixes each position with others of its sequence.

    Of each earlier position it needs a *column*, one vector or more that depend on that position's input alone. So the
    column of a position that stopped below can be made later, from its copied state.

    Dimensions: B batch, T time, D channels, P new positions.
    """

    kind: ClassVar[str]
    """Under which a block stores the unit's weights."""
    dim: int
    """D."""
    heads: int
    """Groups of channels that are mixed in the same way."""

    def columns(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the columns of positions, (..., D) → a tuple of (..., D)."""
        ...

    def __call__(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Mixes a whole sequence, (B, T, D) → (B, T, D); padding_mask bool (B, T), True at padding."""
        ...

    def step(self, x: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mixes P new positions, (B, P, D), with the columns of earlier ones.

        Returns:
            The result (B, P, D) and the new positions' columns.
        """
        ...
