"""Times whole decodes of batches whose source and target lengths are given."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from edgeseq.bench.depths import Replayed
from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.engine import Engine, Step
from edgeseq_runtime.flops import DecoderFlops, decoder_flops
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.search import Hypothesis, greedy
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import EOS_ID

_SENTENCES_A_TURN = 16


@dataclass(frozen=True)
class Shape:
    """What is decoded in one go."""

    batch_size: int
    source_length: int
    """Pieces, EOS included."""
    target_length: int
    """Tokens; none of them is EOS."""


@dataclass(frozen=True)
class Timing:
    """Medians over all rounds."""

    depth: str
    average_depth: float
    tokens_per_second: float
    """Target tokens, encoder included."""
    ms_per_step: float
    """Of the decoder: a token of each sentence."""
    ms_per_sentence: float
    """Of a batch, divided by its sentences."""
    ms_encoder: float
    """Of a batch."""
    mflop_per_token: float
    """Of the decoder, exit heads included."""

    def record(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class _Endless:
    """An engine whose sentences never end by themselves, and that knows how long it has encoded."""

    def __init__(self, engine: Engine) -> None:
        self.full_depth = engine.full_depth
        self.encoder_seconds = 0.0
        self._engine = engine
        self._depths: IntArray | None = None
        self.adopt = engine.adopt
        self.release = engine.release
        self.count_candidates = engine.count_candidates

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool) -> DecoderState:
        self._depths = policy.depths if isinstance(policy, Replayed) else None
        started = time.perf_counter()
        state = self._engine.encode(sources, policy, alone=alone)
        self.encoder_seconds += time.perf_counter() - started
        return state

    def step(
        self, state: DecoderState, tokens: IntArray, parents: IntArray | None = None, depths: IntArray | None = None
    ) -> Step:
        if self._depths is not None:
            depths = self._depths[:, state.positions[0]]
        step = self._engine.step(state, tokens, parents, depths)
        step.logits[:, EOS_ID] = -np.inf
        return step

    def run_ahead(
        self, state: DecoderState, token: int, most: int, never: Sequence[int]
    ) -> tuple[list[int], list[int]] | None:
        first = int(state.positions[0])
        depths = None if self._depths is None else self._depths[0, first : first + most].tolist()
        return self._engine.run_ahead(state, token, most, (*never, EOS_ID), depths)


@dataclass
class _Rounds:
    seconds: list[float] = field(default_factory=list)
    encoder_seconds: list[float] = field(default_factory=list)
    found: list[Hypothesis] = field(default_factory=list)
    """Of the newest decode."""
    candidates: list[int] = field(default_factory=list)
    """Pieces that the tokens of each of them were chosen from."""


def time_depths(
    engine: Engine, model: ModelFacts, policies: Sequence[DepthPolicy], shape: Shape, rounds: int, seed: int = 1
) -> list[Timing]:
    """Times policies in turn, so that a slow phase of the machine meets all of them.

    Args:
        engine: of the model.
        model: facts of it.
        policies: what to time.
        shape: of the batch, which consists of random pieces.
        rounds: turns of each policy, after one that does not count. A turn is 16 sentences, or one batch.
        seed: of the pieces.

    Returns:
        One timing per policy, in order.
    """
    sources = draw_sources(shape, model.vocab_size, seed)
    decoder = _Endless(engine)
    measured = [_Rounds() for _ in policies]
    for number in range(rounds + 1):
        for policy, entry in zip(policies, measured, strict=True):
            for _ in range(max(1, _SENTENCES_A_TURN // shape.batch_size)):
                _decode(decoder, sources, policy, shape, entry if number else _Rounds())
    return [_timing(model, policy, shape, entry) for policy, entry in zip(policies, measured, strict=True)]


def draw_sources(shape: Shape, vocab_size: int, seed: int) -> list[list[int]]:
    """Draws the pieces of a batch, EOS last."""
    generator = np.random.default_rng(seed)
    pieces = generator.integers(EOS_ID + 1, vocab_size, (shape.batch_size, shape.source_length - 1))
    return [[*row, EOS_ID] for row in pieces.tolist()]


def decode_once(
    engine: Engine, sources: Sequence[Sequence[int]], policy: DepthPolicy, shape: Shape
) -> Callable[[], float]:
    """Makes a function that decodes a batch and gives the seconds it took, encoder included."""

    def decode() -> float:
        entry = _Rounds()
        _decode(_Endless(engine), sources, policy, shape, entry)
        return entry.seconds[0]

    return decode


def _decode(
    decoder: _Endless, sources: Sequence[Sequence[int]], policy: DepthPolicy, shape: Shape, entry: _Rounds
) -> None:
    decoder.encoder_seconds = 0.0
    started = time.perf_counter()
    entry.found = greedy(decoder, sources, policy, [shape.target_length] * len(sources))
    entry.seconds.append(time.perf_counter() - started)
    entry.encoder_seconds.append(decoder.encoder_seconds)
    entry.candidates = [decoder.count_candidates(source) for source in sources]


def _timing(model: ModelFacts, policy: DepthPolicy, shape: Shape, entry: _Rounds) -> Timing:
    total, encoder = statistics.median(entry.seconds), statistics.median(entry.encoder_seconds)
    decoder = statistics.median(
        whole - encoding for whole, encoding in zip(entry.seconds, entry.encoder_seconds, strict=True)
    )
    tokens = shape.batch_size * shape.target_length
    flops = sum(
        (
            decoder_flops(model, shape.source_length, found.depths, policy, candidates)
            for found, candidates in zip(entry.found, entry.candidates, strict=True)
        ),
        DecoderFlops(),
    )
    return Timing(
        depth=policy.name,
        average_depth=sum(sum(found.depths) for found in entry.found) / tokens,
        tokens_per_second=tokens / total,
        ms_per_step=1000 * decoder / shape.target_length,
        ms_per_sentence=1000 * total / shape.batch_size,
        ms_encoder=1000 * encoder,
        mflop_per_token=flops.total / tokens / 1e6,
    )
