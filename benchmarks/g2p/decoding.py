"""Decoding with depths that no user asks for: drawn at random per token, or measured along the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.bundle import Bundle
from edgeseq_runtime.engine import Engine, Step
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.search import Hypothesis, greedy, output_limit
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID

ROWS = 64


class UniformDepths(Engine):
    """An engine whose tokens stop at depths drawn uniformly from 1 to N (U in table 1 of Elbayad et al.)."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        super().__init__(bundle.path, bundle.manifest.model, device="cpu")
        self._generator = np.random.default_rng(seed)

    def step(
        self,
        state: DecoderState,
        tokens: IntArray,
        parents: IntArray | None = None,
        depths: IntArray | None = None,
    ) -> Step:
        """Draws the depth of each token, unless it is given."""
        if depths is None:
            depths = self._generator.integers(1, self.full_depth + 1, size=len(tokens))
        return super().step(state, tokens, parents, depths)


def decode(bundle: Bundle, engine: Engine, words: Sequence[str], policy: DepthPolicy) -> list[Hypothesis]:
    """Decodes greedily, as `Translator.translate` does."""
    sources = [source_ids(bundle, word) for word in words]
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    ordered = [sources[index] for index in order]
    found = greedy(engine, ordered, policy, [output_limit(len(source)) for source in ordered], rows=ROWS)
    results = dict(zip(order, found, strict=True))
    return [results[index] for index in range(len(results))]


def forced_depths(
    bundle: Bundle, engine: Engine, words: Sequence[str], references: Sequence[str], policy: DepthPolicy
) -> list[int]:
    """Gives the depths that a policy chooses when the decoder is fed the reference instead of its own output.

    Returns:
        One depth per token of all references, EOS included, in no particular order.
    """
    pairs = [
        (source_ids(bundle, word), [*bundle.tokenizer.encode(reference), EOS_ID])
        for word, reference in zip(words, references, strict=True)
    ]
    depths: list[int] = []
    pairs.sort(key=lambda pair: len(pair[1]))
    for start in range(0, len(pairs), ROWS):
        batch = pairs[start : start + ROWS]
        state = engine.encode([source for source, _ in batch], policy)
        targets = [target for _, target in batch]
        fed = [BOS_ID] * len(targets)
        parents = None
        position = 0
        while targets:
            depths += engine.step(state, np.array(fed), parents).depths.tolist()
            going = [row for row, target in enumerate(targets) if len(target) > position + 1]
            fed = [targets[row][position] for row in going]
            targets = [targets[row] for row in going]
            parents = np.array(going)
            position += 1
    return depths


def source_ids(bundle: Bundle, word: str) -> list[int]:
    """Turns a word into what the encoder reads."""
    return [*bundle.tokenizer.encode(word), EOS_ID]
