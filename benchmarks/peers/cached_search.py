"""Translating with a model that is called once per step and given its cache back: the driver of several rivals.

The searches are edgeseq's own, so that the engines differ and nothing else. A batch is of similar lengths, and rows
that have ended leave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from edgeseq_runtime.beam import BeamOptions, beam_search
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.search import greedy, output_limit
from edgeseq_runtime.tokenizer import EOS_ID, PAD_ID, Tokenizer
from translations import Translate, Translated

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]


class Array(Protocol):
    """A numpy array or a tensor."""

    def __getitem__(self, rows: Ids, /) -> Self: ...


A = TypeVar("A", bound=Array)


class CachedModel(Protocol[A]):
    """What an engine runs."""

    def encode(self, source: Ids) -> tuple[list[A], list[A]]:
        """From padded pieces (B, S) to what every step reads, and an empty past."""

    def step(self, tokens: Ids, source: list[A], past: list[A]) -> tuple[Logits, list[A]]:
        """From the pieces before (B,) to logits (B, vocabulary) and the longer past."""


@dataclass
class _State(Generic[A]):
    source: list[A]
    past: list[A]
    sentences: Ids
    """(B,), of each row."""


@dataclass(frozen=True)
class _Scored:
    logits: Logits
    depths: Ids
    candidates: None = None
    """There is a logit for every piece."""


class _CachedDecoder(Generic[A]):
    """Is asked by the searches: an `edgeseq_runtime.search.Decoder`."""

    full_depth = 1

    def __init__(self, model: CachedModel[A]) -> None:
        self._model = model

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool) -> _State[A]:
        del policy, alone
        padded = np.full((len(sources), max(map(len, sources))), PAD_ID, dtype=np.int64)
        for row, source in zip(padded, sources, strict=True):
            row[: len(source)] = source
        return _State(*self._model.encode(padded), np.arange(len(sources)))

    def adopt(self, state: _State[A], rows: Ids, other: _State[A], other_rows: Ids) -> None:
        raise NotImplementedError("all rows of a batch begin together")

    def step(self, state: _State[A], tokens: Ids, parents: Ids | None = None, depths: Ids | None = None) -> _Scored:
        del depths
        if parents is not None:
            # What belongs to the source stays where it is while only hypotheses of one sentence change places.
            if not np.array_equal(state.sentences[parents], state.sentences):
                state.source = [array[parents] for array in state.source]
                state.sentences = state.sentences[parents]
            state.past = [array[parents] for array in state.past]
        logits, state.past = self._model.step(tokens, state.source, state.past)
        return _Scored(logits, np.ones(len(tokens), dtype=np.int64))

    def run_ahead(self, *arguments: object) -> None:
        """The search asks for every step."""

    def release(self, state: object) -> None:
        """Nothing is kept."""


def make_translate(model: CachedModel[A], tokenizer: Tokenizer) -> Translate:
    """What translates with a model."""

    def translate(lines: list[str], batch_size: int, beam_size: int) -> list[Translated]:
        return _translate(model, tokenizer, lines, batch_size, beam_size)

    return translate


def _translate(
    model: CachedModel[A], tokenizer: Tokenizer, lines: list[str], batch_size: int, beam_size: int
) -> list[Translated]:
    sources = [[*tokenizer.encode(line), EOS_ID] for line in lines]
    found: list[list[int]] = [[] for _ in lines]
    decoder = _CachedDecoder(model)
    policy = cast("DepthPolicy", None)  # there is one depth
    for batch in batches([len(source) for source in sources], batch_size):
        chosen = [sources[index] for index in batch]
        limits = [output_limit(len(source)) for source in chosen]
        if beam_size == 1:
            best = greedy(decoder, chosen, policy, limits)
        else:
            best = [each[0] for each in beam_search(decoder, chosen, policy, limits, BeamOptions(beam_size))]
        for index, hypothesis in zip(batch, best, strict=True):
            found[index] = [token for token in hypothesis.tokens if token != EOS_ID]
    return [Translated(tokenizer.decode(tokens), len(tokens)) for tokens in found]


def batches(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of lines of similar length, the longest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
