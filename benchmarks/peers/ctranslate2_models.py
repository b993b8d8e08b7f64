"""CTranslate2 models made here: of a training run of edgeseq, or of random weights.

What can be converted is the Transformer as CTranslate2 has it: unlimited self-attention in both stacks, layer norm
before each branch, one table for source, target and output.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from ctranslate2.specs import common_spec, transformer_spec
from numpy.typing import NDArray
from torch import nn

from edgeseq.models import Seq2Seq
from edgeseq.modules import DecoderBlock, EncoderBlock
from edgeseq.modules.embedding import sinusoid
from edgeseq_export.random_models import RandomSizes
from transformer_modules import POSITIONS, decoder_blocks, encoder_blocks, load_transformer, mixer_of

HEAD_DIM = 64
ComputeType = Literal["int8", "float32"]
SPECIAL_PIECES = ("<blank>", "<unk>", "<s>", "</s>")

Weights = Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]


def write_random_transformer(folder: Path, sizes: RandomSizes) -> None:
    """Writes CTranslate2's int8 model of a Transformer with random weights; piece 7 is called `piece7`."""
    generator = np.random.default_rng(0)
    dim = sizes.dim

    def draw(inner: int, outer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        weight = (generator.standard_normal((outer, inner)) / inner**0.5).astype(np.float32)
        return weight, np.zeros(outer, dtype=np.float32)

    def layers(blocks: int, inputs: tuple[tuple[int, int], ...]) -> Weights:
        norm = (np.ones(dim, dtype=np.float32), np.zeros(dim, dtype=np.float32))
        for _ in range(blocks):
            for inner, outer in inputs:
                yield norm if inner == 0 else draw(inner, outer)
        yield norm

    self_attention = ((0, 0), (dim, 3 * dim), (dim, dim))
    cross_attention = ((0, 0), (dim, dim), (dim, 2 * dim), (dim, dim))
    feed_forward = ((0, 0), (dim, sizes.feed_forward_dim), (sizes.feed_forward_dim, dim))
    _write(
        folder,
        [*SPECIAL_PIECES, *(f"piece{number}" for number in range(len(SPECIAL_PIECES), sizes.vocab_size))],
        (sizes.encoder_blocks, sizes.decoder_blocks),
        dim // HEAD_DIM,
        draw(dim, sizes.vocab_size)[0],
        layers(sizes.encoder_blocks, self_attention + feed_forward),
        layers(sizes.decoder_blocks, self_attention + cross_attention + feed_forward),
        "int8",
    )


@torch.no_grad()
def convert_run(run: Path, folder: Path, compute_type: ComputeType) -> None:
    """Writes CTranslate2's model of a finished training run.

    Raises:
        click.ClickException: the run's model is not of the kind that can be converted.
    """
    tokenizer, model = load_transformer(run)
    _write(
        folder,
        tokenizer.pieces(list(range(tokenizer.vocab_size))),
        (len(model.encoder.blocks), len(model.decoder.blocks)),
        mixer_of(encoder_blocks(model)[0]).heads,
        model.decoder.embedding.table.weight.numpy(),
        _encoder_weights(model),
        _decoder_weights(model),
        compute_type,
    )


def _encoder_weights(model: Seq2Seq) -> Weights:
    for block in encoder_blocks(model):
        yield from _self_attention(block)
        yield from _feed_forward(block)
    assert isinstance(model.encoder.norm, nn.LayerNorm)
    yield _pair(model.encoder.norm)


def _decoder_weights(model: Seq2Seq) -> Weights:
    for block in decoder_blocks(model):
        yield from _self_attention(block)
        attention = block.cross_attention
        yield _pair(block.cross_norm.norm)
        yield _pair(attention.query_projection)
        yield _fused(attention.key_projection, attention.value_projection)
        yield _pair(attention.output_projection)
        yield from _feed_forward(block)
    assert isinstance(block.exit_norm, nn.LayerNorm)
    yield _pair(block.exit_norm)


def _self_attention(block: EncoderBlock | DecoderBlock) -> Weights:
    mixer = mixer_of(block)
    yield _pair(block.mixer_norm.norm)
    yield _fused(mixer.query_projection, mixer.key_projection, mixer.value_projection)
    yield _pair(mixer.output_projection)


def _feed_forward(block: EncoderBlock | DecoderBlock) -> Weights:
    yield _pair(block.feed_forward_norm.norm)
    yield _pair(block.feed_forward.expand)
    yield _pair(block.feed_forward.contract)


def _pair(layer: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weights = dict(layer.named_parameters())
    weight = weights["weight"].numpy()
    return weight, weights["bias"].numpy() if "bias" in weights else np.zeros(len(weight), dtype=np.float32)


def _fused(*layers: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weights, biases = zip(*map(_pair, layers), strict=True)
    return np.concatenate(weights), np.concatenate(biases)


def _write(
    folder: Path,
    pieces: list[str],
    blocks: tuple[int, int],
    heads: int,
    table: NDArray[np.float32],
    encoder_weights: Weights,
    decoder_weights: Weights,
    compute_type: ComputeType,
) -> None:
    """Fills a specification; weights come in the order in which a block uses them, a stack's own norm last."""
    spec = transformer_spec.TransformerSpec.from_config(
        blocks, heads, pre_norm=True, activation=common_spec.Activation.RELU
    )
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    encoder, decoder = spec.encoder, spec.decoder
    encoder.embeddings[0].weight = decoder.embeddings.weight = decoder.projection.weight = table
    decoder.projection.bias = np.zeros(len(table), dtype=np.float32)
    for stack, weights in ((encoder, encoder_weights), (decoder, decoder_weights)):
        stack.position_encodings.encodings = sinusoid(torch.arange(POSITIONS), table.shape[1]).numpy()
        for layer in stack.layer:
            _fill_norm(layer.self_attention.layer_norm, weights)
            _fill(layer.self_attention.linear, weights)
            if hasattr(layer, "attention"):
                _fill_norm(layer.attention.layer_norm, weights)
                _fill(layer.attention.linear, weights)
            _fill_norm(layer.ffn.layer_norm, weights)
            _fill([layer.ffn.linear_0, layer.ffn.linear_1], weights)
        _fill_norm(stack.layer_norm, weights)
        assert next(weights, None) is None, "there are more weights than layers"
    spec.config.layer_norm_epsilon = 1e-5
    spec.validate()
    spec.optimize(quantization=compute_type)
    folder.mkdir(parents=True)
    spec.save(str(folder))


def _fill(layers: list[common_spec.LinearSpec], weights: Weights) -> None:
    for layer in layers:
        layer.weight, layer.bias = next(weights)


def _fill_norm(norm: common_spec.LayerNormSpec, weights: Weights) -> None:
    norm.gamma, norm.beta = next(weights)
