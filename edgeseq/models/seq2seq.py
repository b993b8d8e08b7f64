"""Encoder, adaptive decoder, and the two together.

A decoder returns the exit state of every block; it does not decide where a token stops. Where tokens
have stopped is an argument (`depths`), so training, the reference decoder and mixed paths share one forward.

Dimensions: B batch, T target positions, S source positions, D channels, N decoder blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edgeseq.modules import DecoderBlock, DepthPredictor, EncoderBlock, ExitHeads, TokenEmbedding


def source_bias_of(padding_mask: Tensor | None) -> Tensor | None:
    """Turns a padding mask, bool (B, S), into what attention adds to its scores, float32 (B, 1, 1, S)."""
    if padding_mask is None:
        return None
    bias = torch.zeros(padding_mask.shape, dtype=torch.float32, device=padding_mask.device)
    return bias.masked_fill(padding_mask, float("-inf"))[:, None, None, :]


class Encoder(nn.Module):
    """Embedding, blocks, and in pre-norm models a last norm."""

    def __init__(self, embedding: TokenEmbedding, blocks: list[EncoderBlock], norm: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, source: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Encodes.

        Args:
            source: int64 (B, S), pieces and EOS, right-padded.
            padding_mask: bool (B, S), True at padding, or None where there is none.

        Returns:
            memory (B, S, D).
        """
        x = self.embedding(source, torch.arange(source.shape[1], device=source.device))
        for block in self.blocks:
            x = block(x, padding_mask)
        return self.norm(x)


class Decoder(nn.Module):
    """Embedding, blocks with an exit each, and exit heads."""

    def __init__(
        self,
        embedding: TokenEmbedding,
        blocks: list[DecoderBlock],
        exit_heads: ExitHeads,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.exit_heads = exit_heads

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor,
        padding_mask: Tensor | None,
        depths: Tensor | None = None,
        blocks: int | None = None,
        up_scales: Sequence[float] | None = None,
    ) -> list[Tensor]:
        """Runs whole target sequences.

        Args:
            tokens: int64 (B, T), BOS first.
            memory: (B, S, D).
            padding_mask: bool (B, S), True at the source's padding, or None.
            depths: int64 (B, T): where each token stopped. Above its depth a token's state is copied unchanged
                (Elbayad et al., section 2.2.1). None: no token stopped.
            blocks: run only so many; None: all.
            up_scales: factor by which the gradient that comes back from above is scaled, for each block but the last
                (Elbayad et al., appendix A). None: 1.

        Returns:
            The exit states of the blocks that ran, each (B, T, D). Above a token's depth they have no meaning.
        """
        source_bias = source_bias_of(padding_mask)
        x = self.embedding(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        exit_states = []
        for number, block in enumerate(cast("Iterable[DecoderBlock]", self.blocks[:blocks]), start=1):
            next_x, exit_state = block(x, *block.cross_attention.project(memory), source_bias)
            x = next_x if depths is None else torch.where((depths >= number).unsqueeze(-1), next_x, x)
            if up_scales is not None and number < len(self.blocks):
                x = scale_gradient(x, up_scales[number - 1])
            exit_states.append(exit_state)
        return exit_states


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Leaves a tensor as it is, to the bit, and scales its gradient."""
    constant = x.detach()
    return constant + (x - constant) * factor


class _Predictors(nn.ModuleDict):
    """Takes any name, those of a module's own methods too."""

    def __setitem__(self, name: str, predictor: nn.Module) -> None:
        self._modules[name] = predictor


class Seq2Seq(nn.Module):
    """A translator: everything that is trained."""

    def __init__(self, encoder: Encoder, decoder: Decoder, predictors: dict[str, DepthPredictor]) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.predictors = _Predictors(predictors)

    def predictor(self, name: str) -> DepthPredictor:
        """Returns a depth predictor by its name."""
        predictor = self.predictors[name]
        assert isinstance(predictor, DepthPredictor)
        return predictor

    def forward(self, source: Tensor, padding_mask: Tensor | None, tokens: Tensor) -> list[Tensor]:
        """Encodes and decodes with teacher forcing; returns the exit states of all blocks, each (B, T, D)."""
        return self.decoder(tokens, self.encoder(source, padding_mask), padding_mask)
