"""Greedy search over anything that can score the next token.

Talks to a two-method protocol and knows nothing of ONNX or text, so that tests can script a
decoder by hand. There is one search loop; collecting whole sentences and streaming both use it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID

State = TypeVar("State")


class Scored(Protocol):
    """What a decoder's step gives."""

    @property
    def logits(self) -> FloatArray:
        """(rows, vocab), of the next token; the search may write into it."""

    @property
    def depths(self) -> IntArray:
        """(rows,), blocks used for it."""


class Decoder(Protocol[State]):
    """What the search needs of an engine."""

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy) -> State:
        """Prepare to decode sentences as the rows of one batch."""

    def step(self, state: State, tokens: IntArray, parents: IntArray | None = None) -> Scored:
        """Feed one token per row; ``parents`` names the rows that continue, None all."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One translation in ids.

    Attributes:
        tokens: Ids, eos included if it was reached within the maximum length.
        depths: Blocks used for each of them.
        score: Mean log-probability of the tokens; None unless asked for.
    """

    tokens: list[int]
    depths: list[int]
    score: float | None


@dataclass(frozen=True, slots=True)
class Emission:
    """The tokens of one step.

    Attributes:
        sentences: (rows,), index into the sources of each row.
        tokens: (rows,), the tokens chosen.
        depths: (rows,), blocks used for them.
        log_probabilities: (rows,), None unless asked for.
    """

    sentences: IntArray
    tokens: IntArray
    depths: IntArray
    log_probabilities: FloatArray | None


def greedy(
    decoder: Decoder[State],
    sources: Sequence[Sequence[int]],
    policy: DepthPolicy,
    max_lengths: Sequence[int],
    *,
    want_scores: bool = False,
) -> list[Hypothesis]:
    """Translate a batch, taking the best token at each step.

    Args:
        decoder: Scores the next tokens.
        sources: Ids of each sentence, eos included.
        policy: Decides depths.
        max_lengths: Most tokens of each translation, eos included; at least 1.
        want_scores: Whether to compute log-probabilities, which costs a pass over all logits.

    Returns:
        One hypothesis per source, in order.
    """
    tokens: list[list[int]] = [[] for _ in sources]
    depths: list[list[int]] = [[] for _ in sources]
    sums = [0.0] * len(sources)
    for step in greedy_steps(decoder, sources, policy, max_lengths, want_scores=want_scores):
        for sentence, token, depth in zip(
            step.sentences.tolist(), step.tokens.tolist(), step.depths.tolist(), strict=True
        ):
            tokens[sentence].append(token)
            depths[sentence].append(depth)
        if step.log_probabilities is not None:
            for sentence, value in zip(step.sentences.tolist(), step.log_probabilities.tolist(), strict=True):
                sums[sentence] += value
    return [
        Hypothesis(ids, used, total / len(ids) if want_scores else None)
        for ids, used, total in zip(tokens, depths, sums, strict=True)
    ]


def greedy_steps(
    decoder: Decoder[State],
    sources: Sequence[Sequence[int]],
    policy: DepthPolicy,
    max_lengths: Sequence[int],
    *,
    want_scores: bool = False,
) -> Iterator[Emission]:
    """Search as :func:`greedy` does, giving the tokens of each step as they are chosen.

    Pad and bos are never chosen. A sentence that ends leaves the batch.
    """
    state = decoder.encode(sources, policy)
    limits = np.asarray(max_lengths, dtype=np.int64)
    sentences = np.arange(len(sources), dtype=np.int64)
    tokens = np.full(len(sources), BOS_ID, dtype=np.int64)
    parents: IntArray | None = None
    length = 0
    while len(sentences):
        step = decoder.step(state, tokens, parents)
        length += 1
        tokens, log_probabilities = _choose(step.logits, want_scores=want_scores)
        yield Emission(sentences, tokens, step.depths, log_probabilities)
        going_on = np.flatnonzero((tokens != EOS_ID) & (length < limits[sentences]))
        if len(going_on) == len(sentences):
            parents = None
        else:
            parents = going_on
            sentences = sentences[going_on]
            tokens = tokens[going_on]


def _choose(logits: FloatArray, *, want_scores: bool) -> tuple[IntArray, FloatArray | None]:
    """Best token of each row, and its log-probability among all ids (pad and bos included)."""
    normaliser = _log_sum_exp(logits) if want_scores else None
    logits[:, PAD_ID] = -np.inf
    logits[:, BOS_ID] = -np.inf
    tokens = logits.argmax(axis=-1)
    if normaliser is None:
        return tokens, None
    chosen: FloatArray = logits[np.arange(len(tokens)), tokens] - normaliser
    return tokens, chosen


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    highest = logits.max(axis=-1)
    result: FloatArray = np.log(np.exp(logits - highest[:, None]).sum(axis=-1)) + highest
    return result
