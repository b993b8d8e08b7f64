"""The parts of a model as modules with explicit inputs and outputs, one for each graph of a bundle.

Each computes what the trained modules compute, takes its inputs in the order of its signature and returns
its outputs in that order. State comes in whole and goes out with the parts that changed replaced. Nothing here knows
of ONNX: these modules are what the graphs are compared with.
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
    """tokens, position_vectors, states, own_cells → next_states."""

    def __init__(self, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, tokens: Tensor, position_vectors: Tensor, states: Tensor, own_cells: Tensor) -> Tensor:
        """Puts the embedding of each row's token (rows,) into its cell of (cells, d)."""
        x = self.embedding.table(tokens) * self.embedding.scale + position_vectors
        return states.index_copy(0, own_cells.squeeze(1), x)


class CrossGraph(nn.Module):
    """memory → cross_key, cross_value."""

    def __init__(self, attention: CrossAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Projects (rows, source, d) once for all steps."""
        return self.attention.project(memory)


class BlockGraph(nn.Module):
    """A step of a block on some rows of a batch, reading and writing state through indices."""

    def __init__(self, block: DecoderBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self,
        states: Tensor,
        exit_states: Tensor,
        columns: Tensor,
        cross_key: Tensor,
        cross_value: Tensor,
        source_bias: Tensor,
        active_rows: Tensor,
        own_cells: Tensor,
        read_cells: Tensor,
        written_columns: Tensor,
        tap_places: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the block's own step, on histories read off the rings by the order of their taps.

        Shapes are those of the graph's signature, results next_states, next_exit_states, next_columns.
        """
        active, own = active_rows.squeeze(1), own_cells.squeeze(1)
        column_dim = columns.shape[1]
        pending = self.block.backfill(states[read_cells[len(active) :]])
        _, heads, kernel_size = tap_places.shape
        # Place of each tap, from the oldest column to the newest, in the rings of the active rows.
        order = tap_places.argsort(-1)  # (n, H, K)
        written = written_columns.squeeze(1)
        filled = columns.index_copy(0, written[len(active) * heads :], pending.reshape(-1, column_dim))
        rings = filled.view(-1, heads, kernel_size, column_dim)[active]
        history = rings.gather(2, order.unsqueeze(-1).expand_as(rings)).transpose(1, 2).flatten(2)[:, :-1]
        next_x, exit_state, new = self.block.step(
            states[own].unsqueeze(1), history, cross_key[active], cross_value[active], source_bias[active]
        )
        return (
            states.index_copy(0, own, next_x.squeeze(1)),
            exit_states.index_copy(0, active, exit_state.squeeze(1)),
            filled.index_copy(0, written[: len(active) * heads], new.reshape(-1, column_dim)),
        )


class HeadGraph(nn.Module):
    """exit_states → logits."""

    def __init__(self, heads: ExitHeads, block: int) -> None:
        super().__init__()
        self.heads = heads
        self.block = block

    def forward(self, exit_states: Tensor) -> Tensor:
        """Classifies (rows, d) into (rows, vocab)."""
        return self.heads(exit_states, self.block)


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
    return BlockGraph(block)
