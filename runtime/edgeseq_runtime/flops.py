"""Decoder FLOPs of a sentence, from the depths its tokens used.

A count of multiply-adds (two operations each) in the linear maps, after Elbayad et al. (2020),
appendix B, which ignores norms, residuals and non-linearities. Corrected for what edgeseq runs:
convolution blocks beside self-attention, an exit head that is computed once per token, and lazy
bounded backfill. Symbols: d ``dim``, f ``feed_forward_dim``, K_n taps of block n, H
``convolution_heads``, V pieces that an exit head has logits of (``vocab_size``, or those of a
shortlist), S source pieces (EOS included), N decoder blocks, t target positions that self-attention
reads: the current one and all before it, or those in its window.

The count is that of a sentence decoded alone, greedily; its parts are there to count other
searches. In a batch the engine may also make source keys and values for sentences that turn out
never to enter a block, because one call for all is cheaper. This is a model of the work, not of
the time: see the measured table in the project's results.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.policy import DepthPolicy


@dataclass(frozen=True)
class DecoderFlops:
    """FLOPs of a sentence (or, added up, of many) by what they were spent on.

    Attributes:
        blocks: Blocks that ran: convolution or self-attention, encoder-decoder attention and
            feed-forward.
        cross: Keys and values of the source, per block when the sentence first enters it.
        backfill: Columns of positions that had stopped below a block entered later.
        decisions: What the depth policy computes, exit heads not counted.
        head: Exit heads, those that the policy reads included.
    """

    blocks: int = 0
    cross: int = 0
    backfill: int = 0
    decisions: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(astuple(self))

    def __add__(self, other: "DecoderFlops") -> "DecoderFlops":
        """Add part by part."""
        return DecoderFlops(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def decoder_flops(
    model: ModelFacts,
    source_pieces: int,
    depths: Sequence[int],
    policy: DepthPolicy,
    candidates: int | None = None,
) -> DecoderFlops:
    """Count the decoder's FLOPs of one sentence.

    Per visit of block n: ``column + taps + 2 K_n d + 2 d^2`` for a convolution, where ``column`` is
    :func:`column_flops` and ``taps`` is ``2 d H K_n`` if it is dynamic and 0 if lightweight, or
    ``column + 4 d^2 + 4 t d`` for self-attention (query, output; scores, mix); ``4 d^2 + 4 S d``
    for attention over the source; ``4 d f`` for the feed-forward layer. The sentence's first visit
    of a block adds ``4 S d^2`` for keys and values of the source. Each backfilled column costs
    ``column``, an exit head ``2 V d``. A token has one, of the block after which it stops, and
    those that the policy reads on the way. Decisions cost what the policy says: see the classes in
    ``policy``.

    Args:
        model: Facts of the model.
        source_pieces: Source length S, EOS included.
        depths: Depth of each generated token in order, EOS included.
        policy: The policy that chose them.
        candidates: Pieces V of a shortlist that tokens were chosen from; None for the whole vocabulary.

    Returns:
        The counts, exact for lazy bounded backfill: the order of the depths matters.
    """
    dim = model.dim
    visited = [
        [position for position, depth in enumerate(depths) if depth >= n] for n in range(1, model.decoder_blocks + 1)
    ]
    return DecoderFlops(
        blocks=sum(
            len(positions) * visit_flops(model, source_pieces) + mixing_flops(model, reach, positions)
            for positions, reach in zip(visited, model.decoder_reaches, strict=True)
        ),
        cross=sum(4 * source_pieces * dim**2 for positions in visited if positions),
        backfill=column_flops(model) * sum(backfilled_columns(model.decoder_reaches, depths)),
        decisions=policy.decision_flops(0)
        + sum(len(positions) * policy.decision_flops(block) for block, positions in enumerate(visited[:-1], start=1)),
        head=2
        * (candidates or model.vocab_size)
        * dim
        * sum(heads_run(depth, model.decoder_blocks, policy) for depth in depths),
    )


def heads_run(depth: int, blocks: int, policy: DepthPolicy) -> int:
    """Exit heads of one token."""
    if not policy.reads_logits:
        return 1
    read = sum(1 for block in range(1, min(depth, blocks - 1) + 1) if policy.decides(block))
    return read if depth < blocks and policy.decides(depth) else read + 1


def column_flops(model: ModelFacts) -> int:
    """FLOPs of one column: a convolution's input projection, ``2 d^2``, doubled by a gate; a key and a value."""
    return 2 * model.dim**2 * (2 if model.glu or model.mixer == "attention" else 1)


def backfilled_columns(reaches: Sequence[int], depths: Sequence[int]) -> list[int]:
    """Count the columns that lazy bounded backfill computes for each block.

    When a sentence enters block k at position t, the positions since its last visit are pending;
    of those, only the newest K_k - 1 can matter and are computed.

    Args:
        reaches: Taps or window of each block, from block 1; 0 where it reads all positions.
        depths: Depth of each token in order.

    Returns:
        One count per block; the first is 0, because every token visits block 1.
    """
    counts = []
    for block, reach in enumerate(reaches, start=1):
        visited = [position for position, depth in enumerate(depths) if depth >= block]
        gaps = [position - before - 1 for position, before in zip(visited, [-1, *visited], strict=False)]
        counts.append(sum(min(gap, reach - 1) if reach else gap for gap in gaps))
    return counts


def visit_flops(model: ModelFacts, source_pieces: int) -> int:
    """What a visit of any block costs, but for the mixing of positions."""
    dim = model.dim
    return 4 * dim**2 + 4 * source_pieces * dim + 4 * dim * model.feed_forward_dim


def mixing_flops(model: ModelFacts, reach: int, positions: Sequence[int]) -> int:
    """What mixing costs a block that is visited at some positions."""
    dim = model.dim
    if model.mixer == "attention":
        read = sum(min(position + 1, reach) if reach else position + 1 for position in positions)
        return len(positions) * (column_flops(model) + 4 * dim**2) + 4 * read * dim
    taps = 2 * dim * model.convolution_heads * reach if model.mixer == "dynamic" else 0
    return len(positions) * (column_flops(model) + taps + 2 * reach * dim + 2 * dim**2)
