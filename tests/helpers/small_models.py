"""Whole models of a few hundred parameters, built the way training builds them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeseq.config import ModelConfig, PredictorConfig, StackConfig
from edgeseq.models import Seq2Seq, build_model
from edgeseq.modules import CertaintyUnits, DepthPredictor, HaltingUnits
from edgeseq.modules.predictors import LinearUnits, certainty_of, mean_memory
from ramp import fill_with_ramp

VOCAB_SIZE = 24
DECODER_KERNEL_SIZES = [3, 1, 5, 4]

HALTING = PredictorConfig(kind="halting")
PREDICTORS = (
    HALTING,
    PredictorConfig(name="shared", kind="halting", units="shared"),
    PredictorConfig(kind="multinomial"),
    PredictorConfig(name="sentence", kind="sequence"),
)
"""One of each kind; some have a name of their own."""


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


def small_model(
    vocab_size: int = VOCAB_SIZE, predictors: Sequence[PredictorConfig] = (HALTING,), **changes: Any
) -> Seq2Seq:
    """That model in evaluation mode, float64, filled with ramps."""
    model = build_model(small_config(**changes), vocab_size, predictors)
    return fill_with_ramp(model.to(torch.float64)).eval()


@torch.no_grad()
def balance_predictors(model: Seq2Seq) -> Seq2Seq:
    """Sets biases so that every depth occurs among the tokens, and among the sentences, of an arbitrary text.

    Each halting unit then stops about half of the tokens at χ = 0.5; classifiers have no favourite depth.
    """
    vocab_size = model.decoder.embedding.table.num_embeddings
    tokens = 4 + torch.arange(256).square().div(7, rounding_mode="floor").remainder(vocab_size - 4).view(32, 8)
    memory = model.encoder(tokens, None)
    states = model.decoder(tokens.flip(1), memory, None)
    for name in model.predictors:
        certain = model.predictor(name)
        if isinstance(certain, CertaintyUnits):
            heads = model.decoder.exit_heads
            certainty = torch.stack([certainty_of(heads(state, n)) for n, state in enumerate(states, start=1)], dim=2)
            certain.contract_bias.zero_()
            logits = certain(certainty.to(certain.contract_bias.dtype)).flatten(0, -2)
            certain.contract_bias.copy_(-logits.median(dim=0).values)
            continue
        predictor = linear_units(model, name)
        predictor.bias.zero_()
        if isinstance(predictor, HaltingUnits):
            logits = predictor(states).flatten(0, -2)
            own = logits.median(dim=0).values if len(predictor.bias) > 1 else logits.median()
            predictor.bias.copy_(-own)
        else:
            scores = _scores(predictor, states, memory)
            predictor.weight.mul_(1.5 / (scores - scores.mean(dim=0)).std())
            predictor.bias.copy_(-_scores(predictor, states, memory).mean(dim=0))
    return model


def linear_units(model: Seq2Seq, name: str) -> LinearUnits:
    """A predictor of a model that is a table of linear units."""
    predictor = model.predictor(name)
    assert isinstance(predictor, LinearUnits)
    return predictor


def _scores(classifier: DepthPredictor, states: list[Tensor], memory: Tensor) -> Tensor:
    """Log-probabilities of all depths, (tokens or sentences, N)."""
    return classifier.log_distribution(states, mean_memory(memory, None)).flatten(0, 1)
