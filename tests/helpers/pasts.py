"""What a block's step reads of the past, put together from the columns of all earlier positions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeseq.modules import ConvolutionUnit, SelfAttention, TokenMixer

Column = tuple[Tensor, ...]


def past_of(mixer: TokenMixer, columns: Sequence[Column], x: Tensor) -> tuple[Tensor, ...]:
    """Builds the argument `past` of a step.

    Args:
        mixer: of the block.
        columns: of all positions before, (B, P, D) each, in chunks from the oldest to the newest.
        x: (B, any, D), what the step is given.
    """
    if isinstance(mixer, SelfAttention):
        keys, values = (_join(x[:, :0], columns, part) for part in (0, 1))
        first = max(0, keys.shape[1] - mixer.window + 1) if mixer.window else 0
        return keys[:, first:], values[:, first:], torch.zeros_like(keys[:, first:, 0])
    assert isinstance(mixer, ConvolutionUnit)
    length = mixer.convolution.kernel_size - 1
    history = _join(x.new_zeros(len(x), length, x.shape[2]), columns, 0)
    return (history[:, history.shape[1] - length :],)


def _join(start: Tensor, columns: Sequence[Column], part: int) -> Tensor:
    return torch.cat([start, *(column[part] for column in columns)], dim=1)
