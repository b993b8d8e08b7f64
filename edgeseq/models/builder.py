"""Builds models from a configuration: the only place where modules and configuration meet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgeseq.config import ModelConfig, PredictorConfig, StackConfig
from edgeseq.models.seq2seq import Decoder, Encoder, Seq2Seq
from edgeseq.modules import (
    CertaintyUnits,
    ConvolutionUnit,
    CrossAttention,
    DecoderBlock,
    DepthPredictor,
    DynamicConv,
    EncoderBlock,
    ExitHeads,
    FeedForward,
    HaltingUnits,
    LightweightConv,
    SelfAttention,
    SentenceDepth,
    TokenDepth,
    TokenEmbedding,
    TokenMixer,
)
from edgeseq_runtime.tokenizer import PAD_ID

_CERTAINTY_HIDDEN_DIM = 32

_CONVOLUTIONS: dict[str, type[LightweightConv | DynamicConv]] = {
    "lightweight": LightweightConv,
    "dynamic": DynamicConv,
}


def build_model(config: ModelConfig, vocab_size: int, predictors: Sequence[PredictorConfig] = ()) -> Seq2Seq:
    """Assembles the model that a configuration describes, with fresh weights.

    Args:
        config: the `[model]` table.
        vocab_size: number of pieces of the tokenizer.
        predictors: the `[[predictors]]` that the model has.

    Returns:
        The model, in training mode.
    """
    source_embedding = TokenEmbedding(vocab_size, config.dim, PAD_ID, config.dropout)
    target_embedding = source_embedding
    if not config.tied_embeddings:
        target_embedding = TokenEmbedding(vocab_size, config.dim, PAD_ID, config.dropout)
    return Seq2Seq(
        _build_encoder(config, source_embedding),
        _build_decoder(config, target_embedding, vocab_size),
        {predictor.name: build_predictor(config, predictor) for predictor in predictors},
    )


def build_predictor(config: ModelConfig, predictor: PredictorConfig) -> DepthPredictor:
    """Creates a depth predictor that has learnt nothing yet."""
    blocks = len(config.decoder.reaches)
    if predictor.kind == "certainty":
        return CertaintyUnits(blocks, _CERTAINTY_HIDDEN_DIM)
    if predictor.kind == "halting":
        return HaltingUnits(config.dim, blocks, shared=predictor.units == "shared")
    return (TokenDepth if predictor.kind == "multinomial" else SentenceDepth)(config.dim, blocks)


def _build_encoder(config: ModelConfig, embedding: TokenEmbedding) -> Encoder:
    stack = config.encoder
    blocks = [
        EncoderBlock(
            _build_mixer(config, stack, reach, causal=False),
            FeedForward(config.dim, stack.feed_forward_dim, config.activation_dropout),
            config.norm,
            config.dropout,
        )
        for reach in stack.reaches
    ]
    norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()
    return Encoder(embedding, blocks, norm)


def _build_decoder(config: ModelConfig, embedding: TokenEmbedding, vocab_size: int) -> Decoder:
    stack = config.decoder
    blocks = [
        DecoderBlock(
            _build_mixer(config, stack, reach, causal=True),
            CrossAttention(config.dim, config.attention_heads, config.attention_dropout),
            FeedForward(config.dim, stack.feed_forward_dim, config.activation_dropout),
            config.norm,
            config.dropout,
        )
        for reach in stack.reaches
    ]
    exit_heads = ExitHeads(
        config.dim,
        vocab_size,
        len(blocks),
        tied=config.head == "tied",
        embedding=embedding.table if config.tied_embeddings and config.head == "tied" else None,
    )
    return Decoder(embedding, blocks, exit_heads)


def _build_mixer(config: ModelConfig, stack: StackConfig, reach: int, causal: bool) -> TokenMixer:
    if stack.mixer == "attention":
        return SelfAttention(config.dim, config.attention_heads, reach, causal, config.attention_dropout)
    operator = _CONVOLUTIONS[stack.mixer](config.dim, stack.convolution_heads, reach, causal, config.weight_dropout)
    return ConvolutionUnit(operator, stack.glu)
