"""The Transformer of a training run as two modules: the source once, and one step of the target with its cache.

What torch runs and what becomes ONNX graphs for onnxruntime: the form in which Transformers are usually exported, with
every block's keys and values as inputs and outputs of the step.

Dimensions: B rows, S source positions, L earlier target positions, D channels, H heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import torch
from torch import Tensor, nn

from edgeseq.errors import EdgeseqError
from edgeseq.models import Seq2Seq
from edgeseq.modules import CrossAttention, DecoderBlock, EncoderBlock, SelfAttention
from edgeseq.modules.embedding import sinusoid
from edgeseq.training.run import load_run
from edgeseq_runtime.errors import EdgeseqRuntimeError
from edgeseq_runtime.tokenizer import EOS_ID, PAD_ID, Tokenizer

POSITIONS = 1100


def load_transformer(run: Path) -> tuple[Tokenizer, Seq2Seq]:
    """Loads a finished training run.

    Raises:
        click.ClickException: it is not finished, or its model is not the Transformer that other toolkits have.
    """
    try:
        _, tokenizer, model = load_run(run)
    except (EdgeseqError, EdgeseqRuntimeError) as error:
        raise click.ClickException(str(error)) from error
    blocks = [*model.encoder.blocks, *model.decoder.blocks]
    ordinary = all(
        isinstance(block, EncoderBlock | DecoderBlock)
        and isinstance(block.mixer, SelfAttention)
        and not block.mixer.window
        and block.mixer_norm.placement == "pre"
        for block in blocks
    )
    tables = {id(model.decoder.embedding.table.weight), id(model.encoder.embedding.table.weight)}
    if not ordinary or len({*tables, id(model.decoder.exit_heads.weight(1))}) > 1:
        raise click.ClickException(
            f"{run} is not a pre-norm Transformer with unlimited self-attention and one table; no rival can run it"
        )
    return tokenizer, model


class SourceModule(nn.Module):
    """The encoder, and the keys and values that every step reads."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.cross_attentions = nn.ModuleList(block.cross_attention for block in decoder_blocks(model))
        self.positions = nn.Buffer(sinusoid(torch.arange(POSITIONS), model.encoder.embedding.dim))

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        """Maps pieces (B, S), padded, to (B, 1, 1, S), 0 or -inf at padding, and 2 × blocks of (B, H, S, C)."""
        embedding = self.encoder.embedding
        bias = torch.zeros(source.shape).masked_fill(source == PAD_ID, float("-inf"))[:, None, None]
        x = embedding.table(source) * embedding.scale + self.positions[torch.arange(source.shape[1])]
        for block in cast("Iterable[EncoderBlock]", self.encoder.blocks):
            mixer = mixer_of(block)
            y = block.mixer_norm.norm(x)
            keys, values = split(mixer.key_projection(y), mixer.heads), split(mixer.value_projection(y), mixer.heads)
            x = x + attend(mixer, y, keys, values, bias)
            x = x + block.feed_forward(block.feed_forward_norm.norm(x))
        memory = self.encoder.norm(x)
        projected = [
            split(projection(memory), attention.heads).contiguous()
            for attention in cast("Iterable[CrossAttention]", self.cross_attentions)
            for projection in (attention.key_projection, attention.value_projection)
        ]
        return (bias, *projected)


class StepModule(nn.Module):
    """One more piece of each row."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.decoder = model.decoder
        # A copy: onnxruntime's quantisation leaves out a product with a transpose, and breaks on a table used twice.
        self.head = nn.Buffer(model.decoder.exit_heads.weight(len(model.decoder.blocks)).detach().T.contiguous())
        self.positions = nn.Buffer(sinusoid(torch.arange(POSITIONS), model.decoder.embedding.dim))

    def forward(
        self, tokens: Tensor, position: Tensor, bias: Tensor, cross: list[Tensor], past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Runs all blocks.

        Args:
            tokens: int64 (B,), the pieces before.
            position: int64 (1,), how many there were before them: L.
            bias: (B, 1, 1, S), of the source.
            cross: 2 × blocks of (B, H, S, C), keys and values of the source.
            past: 2 × blocks of (B, H, L, C), keys and values of the positions before.

        Returns:
            Logits (B, vocabulary), then 2 × blocks of (B, H, L + 1, C): the next step's past.
        """
        embedding = self.decoder.embedding
        x = (embedding.table(tokens) * embedding.scale + self.positions[position]).unsqueeze(1)
        present = []
        for index, block in enumerate(cast("Iterable[DecoderBlock]", self.decoder.blocks)):
            mixer = mixer_of(block)
            y = block.mixer_norm.norm(x)
            keys = torch.cat((past[2 * index], split(mixer.key_projection(y), mixer.heads)), dim=2)
            values = torch.cat((past[2 * index + 1], split(mixer.value_projection(y), mixer.heads)), dim=2)
            present += [keys, values]
            x = x + attend(mixer, y, keys, values, None)
            y = block.cross_norm.norm(x)
            x = x + attend(block.cross_attention, y, cross[2 * index], cross[2 * index + 1], bias)
            x = x + block.feed_forward(block.feed_forward_norm.norm(x))
        last = block.exit_norm(x[:, 0])
        return (last @ self.head, *present)


@dataclass(frozen=True)
class Example:
    """A module with what an exporter has to see."""

    module: nn.Module
    arguments: tuple[Any, ...]
    names: list[str]
    """Of its inputs."""
    axes: tuple[Any, ...]
    """Which axes of each argument may have any length."""


@torch.no_grad()
def example_inputs(model: Seq2Seq) -> tuple[Example, Example]:
    """Both modules; sizes of the examples all differ, and none is 1, so that nothing is taken for fixed."""
    source, step = SourceModule(model).eval(), StepModule(model).eval()
    pieces = torch.full((3, 7), EOS_ID)
    bias, *cross = source(pieces)
    past = [array[:, :, :5].contiguous() for array in cross]
    any_length = torch.export.Dim.DYNAMIC
    step_axes = (
        {0: any_length},
        None,
        {0: any_length, 3: any_length},
        [{0: any_length, 2: any_length}] * len(cross),
        [{0: any_length, 2: any_length}] * len(past),
    )
    names = [f"{kind}_{number}" for kind in ("cross", "past") for number in range(len(cross))]
    return (
        Example(source, (pieces,), ["source"], ({0: any_length, 1: any_length},)),
        Example(
            step,
            (pieces[:, 0], torch.tensor([past[0].shape[2]]), bias, cross, past),
            ["tokens", "position", "bias", *names],
            step_axes,
        ),
    )


def encoder_blocks(model: Seq2Seq) -> list[EncoderBlock]:
    """The blocks, as what they are."""
    return list(cast("Iterable[EncoderBlock]", model.encoder.blocks))


def decoder_blocks(model: Seq2Seq) -> list[DecoderBlock]:
    """The blocks, as what they are."""
    return list(cast("Iterable[DecoderBlock]", model.decoder.blocks))


def mixer_of(block: EncoderBlock | DecoderBlock) -> SelfAttention:
    """What mixes the positions, as what it is."""
    assert isinstance(block.mixer, SelfAttention)
    return block.mixer


def split(x: Tensor, heads: int) -> Tensor:
    """Gives each head its channels, (B, L, D) → (B, H, L, C)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def attend(
    attention: SelfAttention | CrossAttention, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """Reads keys and values (B, H, S, C) from positions (B, L, D)."""
    scores = split(attention.query_projection(x) * attention.scale, attention.heads) @ keys.transpose(-1, -2)
    weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    mixed: Tensor = attention.output_projection((weights @ values).transpose(1, 2).flatten(2))
    return mixed
