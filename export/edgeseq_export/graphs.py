"""The parts of a model as modules with explicit inputs and outputs, one for each graph of a bundle.

Each computes what the trained modules compute, takes its inputs in the order of its signature and returns
its outputs in that order. State comes in whole and goes out with the parts that changed replaced. Nothing here knows
of ONNX: these modules are what the graphs are compared with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeseq.models import Encoder, Seq2Seq
from edgeseq.modules import CrossAttention, DecoderBlock, ExitHeads, SelfAttention, TokenEmbedding
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


class CrossGraph(nn.Module):
    """memory → cross_key, cross_value."""

    def __init__(self, attention: CrossAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Projects (rows, source, d) once for all steps."""
        return self.attention.project(memory)


class BlockGraph(nn.Module, ABC):
    """A step of a block on some rows of a batch, reading and writing state through indices."""

    def __init__(self, block: DecoderBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, states: Tensor, exit_states: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Runs the block's own step, on what it needs of the past read off the rings, oldest first.

        Arguments and shapes are those of the graph's signature; `others` begins with the tensors of columns. Results
        are next_states, next_exit_states and the next tensors of columns.
        """
        *tensors, cross_key, cross_value, source_bias, active_rows, own_cells, read_cells, written, places = others
        active, own, written = active_rows.squeeze(1), own_cells.squeeze(1), written.squeeze(1)
        heads, column_dim = self.block.mixer.heads, tensors[0].shape[1]
        pending = self.block.backfill(states[read_cells[len(active) :]])
        late, now = written[len(active) * heads :], written[: len(active) * heads]
        filled = [
            tensor.index_copy(0, late, column.reshape(-1, column_dim))
            for tensor, column in zip(tensors, pending, strict=True)
        ]
        rings = [tensor.view(len(exit_states), heads, -1, column_dim)[active] for tensor in filled]  # (n, H, C, D/H)
        own_places = now.view(-1, heads)[:, 0] % rings[0].shape[2]
        next_x, exit_state, columns = self.block.step(
            states[own].unsqueeze(1),
            self.past(rings, places, own_places),
            cross_key[active],
            cross_value[active],
            source_bias[active],
        )
        return (
            states.index_copy(0, own, next_x.squeeze(1)),
            exit_states.index_copy(0, active, exit_state.squeeze(1)),
            *(
                tensor.index_copy(0, now, column.reshape(-1, column_dim))
                for tensor, column in zip(filled, columns, strict=True)
            ),
        )

    @abstractmethod
    def past(self, rings: list[Tensor], places: Tensor, own_places: Tensor) -> tuple[Tensor, ...]:
        """What the mixer's step reads.

        Args:
            rings: (n, H, C, D/H) each.
            places: what the graph is told of them.
            own_places: (n,), where the current position is about to be put.
        """


class ConvolutionBlockGraph(BlockGraph):
    """A block that convolves."""

    def past(self, rings: list[Tensor], places: Tensor, own_places: Tensor) -> tuple[Tensor, ...]:
        """The columns of the last K - 1 positions, in the order of their taps, (n, K - 1, D)."""
        del own_places  # the taps' own order says where the newest column goes
        (ring,) = rings
        return (_in_order(ring, places[:, 0, :, 0].argsort(-1))[:, :-1],)


class AttentionBlockGraph(BlockGraph):
    """A block that attends to its own past."""

    def past(self, rings: list[Tensor], places: Tensor, own_places: Tensor) -> tuple[Tensor, ...]:
        """Keys and values (n, C - 1, D), and the bias of their scores (n, C - 1)."""
        size = places.shape[-1]
        # From the place after the current position's, all around the ring.
        order = (own_places.unsqueeze(1) + 1 + torch.arange(size)) % size  # (n, C)
        keys, values = (_in_order(ring, order.unsqueeze(1).expand(-1, ring.shape[1], -1)) for ring in rings)
        bias = places.flatten(1).gather(1, order)
        return keys[:, :-1], values[:, :-1], bias[:, :-1]


class FirstBlockGraph(nn.Module):
    """The embedding and block 1, which all rows run in every step."""

    def __init__(self, embedding: TokenEmbedding, block: BlockGraph) -> None:
        super().__init__()
        self.embedding = embedding
        self.block = block

    def forward(self, tokens: Tensor, position_vectors: Tensor, states: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Embeds each row's token (rows,) and runs the block on all of them.

        Arguments and shapes are those of the graph's signature. Results are next_states, exit_states and the next
        tensors of columns.
        """
        *tensors_and_sources, own_cells, written, places = others
        x = self.embedding.table(tokens) * self.embedding.scale + position_vectors
        own = own_cells.squeeze(1)
        every_row = torch.arange(len(tokens)).unsqueeze(1)
        result: tuple[Tensor, ...] = self.block(
            states.index_copy(0, own, x),
            torch.empty_like(x),
            *tensors_and_sources,
            every_row,
            own_cells,
            own,
            written,
            places,
        )
        return result


def _in_order(rings: Tensor, order: Tensor) -> Tensor:
    """Reads rings (n, H, C, D/H) in the order of places (n, H, C): (n, C, D)."""
    return rings.gather(2, order.unsqueeze(-1).expand_as(rings)).transpose(1, 2).flatten(2)


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
    if signature.role == "head":
        return HeadGraph(decoder.exit_heads, signature.block or 1)
    assert signature.block is not None
    block = decoder.blocks[signature.block - 1]
    assert isinstance(block, DecoderBlock)
    if signature.role == "cross":
        return CrossGraph(block.cross_attention)
    graph = (AttentionBlockGraph if isinstance(block.mixer, SelfAttention) else ConvolutionBlockGraph)(block)
    return FirstBlockGraph(decoder.embedding, graph) if signature.block == 1 else graph
