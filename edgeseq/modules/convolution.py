"""Lightweight and dynamic convolutions (Wu et al., ICLR 2019, equations 4 and 5).

Both operators are depthwise convolutions whose taps are shared by the channels of a head and normalised
over the kernel. A lightweight convolution learns its taps; a dynamic one predicts them from the current
position. Neither knows of residuals, projections or configuration.

Dimensions: B batch, T time, D channels, H heads, K kernel size, P new positions of a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeseq.modules.dropout import dropout

Normalization = Literal["softmax", "l2"]


def banded_product(x: Tensor, taps: Tensor, left: int) -> Tensor:
    """Convolves every position with its own taps by one batched matrix product.

    The taps of a row are shifted to the columns they read, which gives a T × T band matrix per head. It is
    built by padding, flattening and cutting ("skewing"): no loop over taps, no windows, no strides.

    Args:
        x: (B, T, D).
        taps: (B or 1, T, H, K), from the oldest position to the newest.
        left: number of taps that read positions before the current one.

    Returns:
        (B, T, D); positions outside the sequence count as zeros.
    """
    batch, time, dim = x.shape
    heads, kernel_size = taps.shape[2:]
    # Row i of the skewed matrix holds tap j at column i + j, that is, at position i + j - left.
    skewed = F.pad(taps.transpose(1, 2), (0, time)).flatten(2)[..., : time * (kernel_size + time - 1)]
    band = skewed.unflatten(2, (time, kernel_size + time - 1))[..., left : left + time]  # (B or 1, H, T, T)
    values = x.view(batch, time, heads, dim // heads).transpose(1, 2)  # (B, H, T, D/H)
    return (band @ values).transpose(1, 2).reshape(batch, time, dim)


def window_product(window: Tensor, taps: Tensor) -> Tensor:
    """Convolves P new positions, each on its own, so that the result does not depend on P.

    Args:
        window: (B, K - 1 + P, D): history and new columns, oldest first.
        taps: (B or 1, P, H, K).

    Returns:
        (B, P, D).
    """
    rows, dim = window.shape[0], window.shape[2]
    positions, heads, kernel_size = taps.shape[1:]
    offsets = torch.arange(positions, device=window.device).unsqueeze(1)
    index = offsets + torch.arange(kernel_size, device=window.device)  # (P, K)
    values = window.index_select(1, index.flatten())  # (B, P · K, D)
    values = values.view(rows, positions, kernel_size, heads, dim // heads).transpose(2, 3)
    return (taps.unsqueeze(3) @ values).reshape(rows, positions, dim)  # (B, P, H, 1, D/H)


class _Convolution(nn.Module, ABC):
    """What both operators share; a subclass says where the taps come from."""

    def __init__(
        self,
        dim: int,
        heads: int,
        kernel_size: int,
        causal: bool,
        weight_dropout: float,
        normalization: Normalization,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}; every head needs as many channels")
        if kernel_size < 1:
            raise ValueError(f"kernel_size {kernel_size} is not positive")
        if not causal and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even; a non-causal convolution needs an odd one")
        if not 0 <= weight_dropout < 1:
            raise ValueError(f"weight_dropout {weight_dropout} is not in [0, 1)")
        if normalization not in ("softmax", "l2"):
            raise ValueError(f"normalization {normalization!r} is unknown; choose 'softmax' or 'l2'")
        self.dim = dim
        self.heads = heads
        self.kernel_size = kernel_size
        self.causal = causal
        self.weight_dropout = weight_dropout
        self.normalization = normalization

    @abstractmethod
    def _raw_taps(self, x: Tensor) -> Tensor:
        """Returns unnormalised taps, (B or 1, T, H, K)."""

    def _taps(self, x: Tensor) -> Tensor:
        raw = self._raw_taps(x)
        # All K taps are normalised, also those that read before the start: a step cannot know how long the
        # sequence is, so anything else would make training and decoding differ.
        if self.normalization == "softmax":
            taps = torch.softmax(raw, dim=-1, dtype=torch.float32).to(raw.dtype)
        else:
            taps = F.normalize(raw, dim=-1)
        # DropConnect: a whole tap is dropped for all channels of a head; survivors are not renormalised.
        return dropout(taps, self.weight_dropout, self.training)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Convolves a whole sequence.

        Args:
            x: (B, T, D).
            padding_mask: bool (B, T), True at padding, which is read as zeros. A causal convolution over
                right-padded sequences does not need it.

        Returns:
            (B, T, D). Values at padded positions have no meaning.
        """
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        left = self.kernel_size - 1 if self.causal else self.kernel_size // 2
        return banded_product(x, self._taps(x), left)

    def step(self, x: Tensor, history: Tensor) -> Tensor:
        """Convolves P new positions of a causal sequence.

        Args:
            x: (B, P, D): the new columns.
            history: (B, K - 1, D): the columns before them, oldest first, zeros before the start.

        Returns:
            (B, P, D), equal to `forward` at those positions.

        Raises:
            ValueError: the convolution is not causal.
        """
        if not self.causal:
            raise ValueError("step needs a causal convolution: the next positions are not known yet")
        return window_product(torch.cat((history, x), dim=1), self._taps(x))


class LightweightConv(_Convolution):
    """Convolution with learned taps, W in R^(H × K) (equation 4)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        kernel_size: int,
        causal: bool,
        weight_dropout: float = 0.0,
        normalization: Normalization = "softmax",
    ) -> None:
        """Creates the operator.

        Args:
            dim: channels; channel c uses the taps of head c // (dim / heads).
            heads: number of tap sets.
            kernel_size: taps per head; odd unless causal.
            causal: read the K - 1 positions before the current one, instead of K // 2 on either side.
            weight_dropout: probability in [0, 1) of dropping a normalised tap.
            normalization: `softmax`, or `l2` (appendix A of the paper: nearly as good).

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__(dim, heads, kernel_size, causal, weight_dropout, normalization)
        self.weight = nn.Parameter(torch.empty(heads, kernel_size))
        nn.init.xavier_uniform_(self.weight)

    def _raw_taps(self, x: Tensor) -> Tensor:
        return self.weight.expand(1, x.shape[1], -1, -1)


class DynamicConv(_Convolution):
    """Convolution whose taps are a linear function of the current position (equation 5)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        kernel_size: int,
        causal: bool,
        weight_dropout: float = 0.0,
        normalization: Normalization = "softmax",
    ) -> None:
        """Creates the operator; the arguments are those of `LightweightConv`.

        Raises:
            ValueError: an argument is out of range.
        """
        super().__init__(dim, heads, kernel_size, causal, weight_dropout, normalization)
        self.tap_projection = nn.Linear(dim, heads * kernel_size, bias=False)

    def _raw_taps(self, x: Tensor) -> Tensor:
        return self.tap_projection(x).unflatten(-1, (self.heads, self.kernel_size))
