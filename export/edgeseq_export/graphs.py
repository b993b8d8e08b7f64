"""The parts of a model as modules with explicit inputs and outputs, one for each graph of a bundle.

Each computes what the trained modules compute, takes its inputs in the order of its signature and returns
its outputs in that order; state comes in and new columns go out. Nothing here knows of ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from edgeseq.models import Encoder, Seq2Seq
from edgeseq.modules import CrossAttention, DecoderBlock, ExitHeads, TokenEmbedding
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.signatures import GraphSignature, expected_signatures


class EncoderGraph(nn.Module):
    """source, padding_mask → memory."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, source: Tensor, padding_mask: Tensor) -> Tensor:
        """Encodes int64 (rows, source) into (rows, source, d)."""
        return self.encoder(source, padding_mask)


class EmbedGraph(nn.Module):
    """tokens, position → x."""

    def __init__(self, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Embeds int64 (rows, positions) into (rows, positions, d)."""
        return self.embedding(tokens, position)


class CrossGraph(nn.Module):
    """memory → cross_key, cross_value."""

    def __init__(self, attention: CrossAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Projects (rows, source, d) once for all steps."""
        return self.attention.project(memory)


class BlockGraph(nn.Module):
    """x, history, cross_key, cross_value, source_bias → next_x, exit_state, columns."""

    def __init__(self, block: DecoderBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, x: Tensor, history: Tensor, cross_key: Tensor, cross_value: Tensor, source_bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs new positions (rows, positions, d)."""
        return self.block.step(x, history, cross_key, cross_value, source_bias)


class HistorylessBlockGraph(nn.Module):
    """The same for a convolution of one tap, which reads no history."""

    def __init__(self, block: DecoderBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, x: Tensor, cross_key: Tensor, cross_value: Tensor, source_bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs new positions (rows, positions, d)."""
        return self.block.step(x, x[:, :0], cross_key, cross_value, source_bias)


class BackfillGraph(nn.Module):
    """states → columns."""

    def __init__(self, block: DecoderBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, states: Tensor) -> Tensor:
        """Projects copied states (pending, d)."""
        return self.block.backfill(states)


class HeadGraph(nn.Module):
    """exit_state → logits."""

    def __init__(self, heads: ExitHeads, block: int) -> None:
        super().__init__()
        self.heads = heads
        self.block = block

    def forward(self, exit_state: Tensor) -> Tensor:
        """Classifies (rows, d) into (rows, vocab)."""
        return self.heads(exit_state, self.block)


@dataclass(frozen=True)
class GraphPart:
    """A module and the signature of the graph it becomes."""

    signature: GraphSignature
    module: nn.Module


def split_model(model: Seq2Seq, facts: ModelFacts) -> Iterator[GraphPart]:
    """Yields the parts of a model, in the order of `expected_signatures`."""
    for signature in expected_signatures(facts):
        yield GraphPart(signature, _part(model, signature).eval())


def _part(model: Seq2Seq, signature: GraphSignature) -> nn.Module:
    decoder = model.decoder
    if signature.role == "encoder":
        return EncoderGraph(model.encoder)
    if signature.role == "embed":
        return EmbedGraph(decoder.embedding)
    if signature.role == "head":
        return HeadGraph(decoder.exit_heads, signature.block or 1)
    assert signature.block is not None
    block = decoder.blocks[signature.block - 1]
    assert isinstance(block, DecoderBlock)
    if signature.role == "cross":
        return CrossGraph(block.cross_attention)
    if signature.role == "backfill":
        return BackfillGraph(block)
    return BlockGraph(block) if block.kernel_size > 1 else HistorylessBlockGraph(block)
