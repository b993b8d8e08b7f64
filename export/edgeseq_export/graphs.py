"""The parts of a model as modules with explicit inputs and outputs, one for each graph of a bundle.

Each computes what the trained modules compute, takes its inputs in the order of its signature and returns
its outputs in that order. State comes in whole and goes out with the parts that changed replaced. Nothing here knows
of ONNX: these modules are what the graphs are compared with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from edgeseq.models import Encoder, Seq2Seq
from edgeseq.models.seq2seq import Decoder
from edgeseq.modules import ConvolutionUnit, CrossAttention, DecoderBlock, ExitHeads, SelfAttention, TokenEmbedding
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.records import CandidateWeights
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

    def __init__(self, block: DecoderBlock, *, asked: bool) -> None:
        super().__init__()
        self.block = block
        self.asked = asked

    def forward(self, states: Tensor, exit_states: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Runs the block's own step, on what it needs of the past read off the rings, oldest first.

        Arguments and shapes are those of the graph's signature; `others` begins with the tensors of columns. Results
        are next_states, next_exit_states, the next tensors of columns, and stop_scores where the block is asked.
        """
        others, stop_weight = (others[:-1], others[-1]) if self.asked else (others, None)
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
            *(() if stop_weight is None else ((exit_state.squeeze(1) * stop_weight).sum(-1),)),
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

        Arguments and shapes are those of the graph's signature. Results are next_states, exit_states, the next
        tensors of columns, and stop_scores where the block is asked.
        """
        others, stop_weight = (others[:-1], others[-1:]) if self.block.asked else (others, ())
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
            *stop_weight,
        )
        return result


def _in_order(rings: Tensor, order: Tensor) -> Tensor:
    """Reads rings (n, H, C, D/H) in the order of places (n, H, C): (n, C, D)."""
    return rings.gather(2, order.unsqueeze(-1).expand_as(rings)).transpose(1, 2).flatten(2)


class StepGraph(nn.Module):
    """A whole step of a row that is decoded alone: embedding, blocks until it stops, exit head."""

    def __init__(self, decoder: Decoder, *, tied: bool, shortlist: bool = False) -> None:
        super().__init__()
        self.shortlist = shortlist
        self.embedding = decoder.embedding
        self.blocks = decoder.blocks
        self.exit_heads = decoder.exit_heads
        self.tied = tied

    def forward(
        self, tokens: Tensor, position_vectors: Tensor, position: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        """Runs blocks until one stops, each on the last columns in the order of its taps.

        Arguments, results and shapes are those of the graph's signature.
        """
        number = len(self.blocks)
        rest = list(others)
        candidates = [rest.pop(), rest.pop()][::-1] if self.shortlist else None
        stop_weights, stop_limits = (rest.pop(0), rest.pop(0)) if number > 1 else (None, None)
        states = rest.pop(0).clone()
        filled = rest.pop(0).clone() if number > 1 else None
        columns, sources, source_bias = rest[:number], rest[number:-1], rest[-1]
        now = int(position)
        x = (self.embedding.table(tokens) * self.embedding.scale + position_vectors).unsqueeze(1)
        for index, block in enumerate(cast("list[DecoderBlock]", list(self.blocks))):
            size = cast("ConvolutionUnit", block.mixer).convolution.kernel_size
            heads = block.mixer.heads
            rings = columns[index].view(heads, size, -1).clone()
            first = now if filled is None or index == 0 else int(filled[index - 1])
            for pending in range(max(first, now - size + 1), now):
                (column,) = block.backfill(states[[pending % len(states)]])
                rings[:, pending % size] = column.view(heads, -1)
            past = (
                rings[:, (now + 1 + torch.arange(size - 1)) % size]
                .transpose(0, 1)
                .reshape(1, size - 1, block.mixer.dim)
            )
            key, value = sources[2 * index : 2 * index + 2]
            x, exit_state, (column,) = block.step(x, (past,), key, value, source_bias)
            rings[:, now % size] = column.view(heads, -1)
            columns[index] = rings.view(columns[index].shape)
            if filled is not None and index > 0:
                filled[index - 1] = now + 1
            if stop_weights is None or stop_limits is None or index == number - 1:
                break
            if exit_state[0, 0] @ stop_weights[index] > stop_limits[index]:
                break
        states[now % len(states)] = x[0, 0]
        if candidates is None:
            logits = self.exit_heads(exit_state[:, 0], index + 1)
        else:
            logits = candidate_logits(exit_state[:, 0], *candidates)
        depth = torch.tensor([index + 1])
        return (logits, depth, states, *(() if filled is None else (filled,)), *columns)


class HeadGraph(nn.Module):
    """exit_states → logits."""

    def __init__(self, heads: ExitHeads, block: int) -> None:
        super().__init__()
        self.heads = heads
        self.block = block

    def forward(self, exit_states: Tensor) -> Tensor:
        """Classifies (rows, d) into (rows, vocab)."""
        return self.heads(exit_states, self.block)


class CandidatesGraph(nn.Module):
    """candidates → candidate_weights, of a tied exit head."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.embedding = decoder.embedding
        self.heads = decoder.exit_heads

    def forward(self, candidates: Tensor) -> Tensor:
        """Takes the head's weights for ids (rows, candidates): (rows, d, candidates)."""
        return self.heads.weight(1)[candidates].transpose(1, 2)


class ShortlistHeadGraph(nn.Module):
    """exit_states, candidate_weights, candidate_bias → logits."""

    def __init__(self, heads: ExitHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, exit_states: Tensor, candidate_weights: Tensor, candidate_bias: Tensor) -> Tensor:
        """Classifies (rows, d) into (rows, candidates)."""
        return candidate_logits(exit_states, candidate_weights, candidate_bias)


def candidate_logits(exit_states: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Multiplies (rows, d) with each row's own weights (rows, d, candidates), and adds a bias (rows, candidates)."""
    return torch.einsum("rd,rdc->rc", exit_states, weights) + bias


@dataclass(frozen=True)
class GraphPart:
    """A module and the signature of the graph it becomes."""

    signature: GraphSignature
    module: nn.Module


def split_model(model: Seq2Seq, facts: ModelFacts, shortlist: CandidateWeights | None = None) -> Iterator[GraphPart]:
    """Yields the parts of a model, in the order of `expected_signatures`, whose arguments these are."""
    for signature in expected_signatures(facts, shortlist):
        yield GraphPart(signature, _part(model, facts, signature).eval())


def _part(model: Seq2Seq, facts: ModelFacts, signature: GraphSignature) -> nn.Module:
    decoder = model.decoder
    if signature.role == "encoder":
        return EncoderGraph(model.encoder)
    if signature.role == "head":
        return HeadGraph(decoder.exit_heads, signature.block or 1)
    if signature.role in ("step", "shortlist_step"):
        return StepGraph(decoder, tied=facts.head == "tied", shortlist=signature.role == "shortlist_step")
    if signature.role in ("candidates", "shortlist_head"):
        return CandidatesGraph(decoder) if signature.role == "candidates" else ShortlistHeadGraph(decoder.exit_heads)
    return _part_of_block(decoder, facts, signature)


def _part_of_block(decoder: Decoder, facts: ModelFacts, signature: GraphSignature) -> nn.Module:
    assert signature.block is not None
    block = decoder.blocks[signature.block - 1]
    assert isinstance(block, DecoderBlock)
    if signature.role == "cross":
        return CrossGraph(block.cross_attention)
    asked = signature.block < facts.decoder_blocks
    graph = (AttentionBlockGraph if isinstance(block.mixer, SelfAttention) else ConvolutionBlockGraph)(
        block, asked=asked
    )
    return FirstBlockGraph(decoder.embedding, graph) if signature.block == 1 else graph
