"""Whole models of a few hundred parameters, built the way training builds them."""

from typing import Any

import torch

from edgeseq.config import ModelConfig, StackConfig
from edgeseq.models import Seq2Seq, build_model
from ramp import fill_with_ramp

VOCAB_SIZE = 24
DECODER_KERNEL_SIZES = [3, 1, 5, 4]


def small_config(**changes: Any) -> ModelConfig:
    """A `[model]` table of width 8: two encoder and four decoder blocks, no dropout."""
    settings: dict[str, Any] = {
        "dim": 8,
        "attention_heads": 2,
        "encoder": StackConfig(kernel_sizes=[3, 5], convolution_heads=2, feed_forward_dim=12),
        "decoder": StackConfig(kernel_sizes=DECODER_KERNEL_SIZES, convolution_heads=2, feed_forward_dim=12),
        "dropout": 0.0,
    }
    return ModelConfig(**settings | changes)


def small_model(vocab_size: int = VOCAB_SIZE, **changes: Any) -> Seq2Seq:
    """That model in evaluation mode, float64, filled with ramps."""
    return fill_with_ramp(build_model(small_config(**changes), vocab_size).to(torch.float64)).eval()


@torch.no_grad()
def balance_halting_units(model: Seq2Seq) -> Seq2Seq:
    """Sets the units' biases so that each stops about half of the tokens of an arbitrary text at χ = 0.5."""
    units = model.decoder.halting_units
    assert units is not None
    vocab_size = model.decoder.embedding.table.num_embeddings
    tokens = 4 + torch.arange(64).mul(7).remainder(vocab_size - 4).view(8, 8)
    states = model(tokens, None, tokens.flip(1))
    units.bias.zero_()
    units.bias.copy_(-units(states).flatten(0, -2).median(dim=0).values)
    return model
