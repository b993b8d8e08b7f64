"""On one machine, a sentence's result does not depend on its batch, and laziness changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deciding import DECIDING, FIXED, PER_TOKEN, deciding_policies
from eager_engine import EagerEngine
from edgeseq_runtime import Translation, Translator
from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.places import Layout
from edgeseq_runtime.policy import DepthPolicy, FixedDepth
from edgeseq_runtime.search import greedy
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID

NAMES = [*FIXED, "adaptive", *DECIDING]
"""See `deciding`."""


@pytest.fixture(scope="module")
def policies(bundle: Path, sentences: list[str]) -> dict[str, str]:
    """Name to spelling."""
    few = [sentence for sentence in sentences if sentence][:60]
    return {"adaptive": "adaptive", **deciding_policies(Translator(bundle, device="cpu"), few)}


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Bundle:
    return load_bundle(bundle)


def bits(translations: Sequence[Translation]) -> list[tuple[object, ...]]:
    """Everything of a result; scores are sums over all hidden states, compared as they are."""
    return [(t.text, tuple(t.tokens), tuple(t.depths), t.score) for t in translations]


@pytest.mark.parametrize("name", NAMES)
def test_batched_equals_single_in_bits(name: str, policies: dict[str, str], bundle: Path, sentences: list[str]) -> None:
    """2,000 sentences of mixed length at batches of 1, 7 and 32; 500 where the policy is not the one to be used."""
    assert len(sentences) == 2000
    text = sentences if name == "adaptive" else sentences[-500:]
    translator = Translator(bundle, depth=policies[name], device="cpu")
    single = bits(list(translator.translate_iter(text, batch_size=1, max_length=12, scores=True)))
    for batch_size in (7, 32):
        batched = translator.translate(text, batch_size=batch_size, max_length=12, scores=True)
        assert bits(batched) == single
    if name in DECIDING:
        depths = {depth for _, _, used, _ in single for depth in used}  # type: ignore[attr-defined]
        assert len(depths) > 1, "the policy never decides"


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["full", "halting", "confidence", "certainty"])
def test_batched_equals_single_in_bits_with_shortlists(
    name: str, size: int, policies: dict[str, str], bundle: Path, sentences: list[str]
) -> None:
    """Each sentence has candidates of its own, and batches pad them."""
    text = sentences[-500:] if size == 1 else sentences[-80:]
    translator = Translator(bundle, depth=policies[name], device="cpu", shortlist=True)
    single = translator.translate(text, batch_size=1, max_length=12, scores=True, beam=size)
    for batch_size in (7, 32):
        batched = translator.translate(text, batch_size=batch_size, max_length=12, scores=True, beam=size)
        assert bits(batched) == bits(single)
    assert len({translation.candidates for translation in single}) > 30


def test_arithmetic_that_mixes_rows_is_seen(
    bundle: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: exit states scaled by the batch's largest value and back, as per-tensor quantisation does."""
    original = Engine._classify

    def mixed(engine: Engine, state: DecoderState, block: int, rows: IntArray | None) -> FloatArray:
        state.exit_states[:] = _quantise(state.exit_states)
        return original(engine, state, block, rows)

    monkeypatch.setattr(Engine, "_classify", mixed)
    translator = Translator(bundle, depth="full", device="cpu")
    few = sentences[:64]
    single = bits(translator.translate(few, batch_size=1, max_length=12, scores=True))
    assert bits(translator.translate(few, batch_size=32, max_length=12, scores=True)) != single


def _quantise(states: FloatArray) -> FloatArray:
    scale = np.abs(states).max() / 127
    return (np.round(states / scale) * scale).astype(np.float32)


def decode(
    engine: Engine, loaded: Bundle, policy: DepthPolicy, text: list[str]
) -> list[tuple[tuple[int, ...], tuple[int, ...], float | None]]:
    sources = [[*loaded.tokenizer.encode(line), EOS_ID] for line in text]
    hypotheses = greedy(engine, sources, policy, [40] * len(sources), want_scores=True)
    return [(tuple(h.tokens), tuple(h.depths), h.score) for h in hypotheses]


@pytest.mark.parametrize("name", DECIDING)
def test_lazy_backfill_equals_eager_in_bits(
    name: str, policies: dict[str, str], loaded: Bundle, sentences: list[str]
) -> None:
    facts = loaded.manifest.model
    policy = loaded.policy(policies[name])
    text = [sentence for sentence in sentences[:96] if sentence]
    eager = EagerEngine(loaded.path, facts, device="cpu")
    lazily = decode(Engine(loaded.path, facts, device="cpu"), loaded, policy, text)
    assert lazily == decode(eager, loaded, policy, text)
    assert eager.backfilled > 0
    deepens = any(earlier < later for _, depths, _ in lazily for earlier, later in itertools.pairwise(depths))
    assert deepens == (name in PER_TOKEN), "no token went deeper than the one before: no missing column was read"


def random_depths(engine: Engine, loaded: Bundle, text: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Feeds random tokens at random depths; returns all logits and the depths, both (steps, rows, ...)."""
    generator = np.random.default_rng(seed)
    facts = loaded.manifest.model
    sources = [[*loaded.tokenizer.encode(line), EOS_ID] for line in text]
    state: DecoderState = engine.encode(sources, FixedDepth("1", facts, 1))
    tokens = np.full(len(text), BOS_ID)
    # Long runs at low depth, so that a return to block N comes after more than K - 1 shallow tokens.
    depths = np.where(generator.random((60, len(text))) < 0.85, 1, generator.integers(1, 5, (60, len(text))))
    logits = []
    for row in depths:
        logits.append(engine.step(state, tokens, depths=row).logits.copy())
        tokens = generator.integers(4, facts.vocab_size, len(text))
    return np.stack(logits), depths


def test_lazy_equals_eager_over_long_random_depths(loaded: Bundle, sentences: list[str]) -> None:
    facts = loaded.manifest.model
    text = [sentence for sentence in sentences[:24] if sentence]
    eager = EagerEngine(loaded.path, facts, device="cpu")
    lazy_logits, depths = random_depths(Engine(loaded.path, facts, device="cpu"), loaded, text, seed=5)
    eager_logits, _ = random_depths(eager, loaded, text, seed=5)
    assert np.array_equal(lazy_logits, eager_logits)
    assert eager.backfilled == sum((depths < block).sum() for block in range(2, facts.decoder_blocks + 1))
    assert set(np.unique(depths)) == {1, 2, 3, 4}, "not every depth occurred"
    reach = max(facts.decoder_reaches[1:]) - 1
    assert any(
        depths[step, row] == 4 and (depths[max(0, step - reach - 1) : step, row] == 1).all()
        for step in range(reach + 1, len(depths))
        for row in range(depths.shape[1])
    ), "no return to block N after more than K - 1 shallow tokens"


class Short(Layout):
    """Takes the oldest column that the convolution reaches for out of reach."""

    def catch_up(self, kernel_size: int, row: int, position: int, gap: int) -> tuple[IntArray, IntArray]:
        return super().catch_up(kernel_size, row, position, min(gap, max(kernel_size - 2, 0)))


class Forgetful(Layout):
    """Makes no column of a skipped position."""

    def catch_up(self, kernel_size: int, row: int, position: int, gap: int) -> tuple[IntArray, IntArray]:
        return super().catch_up(kernel_size, row, position, 0)


@pytest.mark.parametrize("layout", [Short, Forgetful])
def test_a_backfill_that_misses_columns_is_seen(layout: type[Layout], loaded: Bundle, sentences: list[str]) -> None:
    """Control: the lazy engine makes one column too few, or none; the eager one is right."""
    facts = loaded.manifest.model
    text = [sentence for sentence in sentences[:24] if sentence]
    lazy = Engine(loaded.path, facts, device="cpu")
    lazy._layout = layout(facts)
    found, _ = random_depths(lazy, loaded, text, seed=5)
    expected, _ = random_depths(EagerEngine(loaded.path, facts, device="cpu"), loaded, text, seed=5)
    assert not np.array_equal(expected, found)
