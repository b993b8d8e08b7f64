"""On one machine, a sentence's result does not depend on its batch, and laziness changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eager_engine import EagerEngine
from edgeseq_runtime import Translation, Translator
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.policy import DepthPolicy, FixedDepth
from edgeseq_runtime.search import greedy
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID

POLICIES = ["full", "2", "adaptive", "halting:0.5"]


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Bundle:
    return load_bundle(bundle)


def bits(translations: Sequence[Translation]) -> list[tuple[object, ...]]:
    """Everything of a result; scores are sums over all hidden states, compared as they are."""
    return [(t.text, tuple(t.tokens), tuple(t.depths), t.score) for t in translations]


@pytest.mark.parametrize("policy", POLICIES)
def test_batched_equals_single_in_bits(policy: str, bundle: Path, sentences: list[str]) -> None:
    """2,000 sentences of mixed length at batches of 1, 7 and 32."""
    assert len(sentences) == 2000
    translator = Translator(bundle, depth=policy, device="cpu")
    single = bits(list(translator.translate_iter(sentences, batch_size=1, max_length=12, scores=True)))
    for batch_size in (7, 32):
        batched = translator.translate(sentences, batch_size=batch_size, max_length=12, scores=True)
        assert bits(batched) == single
    if policy.startswith("halting"):
        depths = {depth for _, _, used, _ in single for depth in used}  # type: ignore[attr-defined]
        assert len(depths) > 1, "the policy never decides"


def test_arithmetic_that_mixes_rows_is_seen(
    bundle: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: exit states scaled by the batch's largest value and back, as per-tensor quantisation does."""
    original = Engine._logits

    def mixed(engine: Engine, exits: object) -> object:
        exits.exit_states = _quantise(exits.exit_states)  # type: ignore[attr-defined]
        return original(engine, exits)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_logits", mixed)
    translator = Translator(bundle, depth="full", device="cpu")
    few = sentences[:64]
    single = bits(translator.translate(few, batch_size=1, max_length=12, scores=True))
    assert bits(translator.translate(few, batch_size=32, max_length=12, scores=True)) != single


def _quantise(states: np.ndarray) -> np.ndarray:
    scale = np.abs(states).max() / 127
    return (np.round(states / scale) * scale).astype(np.float32)


def decode(engine: Engine, loaded: Bundle, policy: DepthPolicy, text: list[str]) -> list[tuple[object, ...]]:
    sources = [[*loaded.tokenizer.encode(line), EOS_ID] for line in text]
    hypotheses = greedy(engine, sources, policy, [40] * len(sources), want_scores=True)
    return [(tuple(h.tokens), tuple(h.depths), h.score) for h in hypotheses]


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6])
def test_lazy_backfill_equals_eager_in_bits(threshold: float, loaded: Bundle, sentences: list[str]) -> None:
    facts = loaded.manifest.model
    policy = loaded.policy(f"halting:{threshold}")
    text = [sentence for sentence in sentences[:96] if sentence]
    eager = EagerEngine(loaded.path, facts, device="cpu")
    assert decode(Engine(loaded.path, facts, device="cpu"), loaded, policy, text) == decode(eager, loaded, policy, text)


def random_depths(engine: Engine, loaded: Bundle, text: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Feeds random tokens at random depths; returns all logits and the depths, both (steps, rows, ...)."""
    generator = np.random.default_rng(seed)
    facts = loaded.manifest.model
    sources = [[*loaded.tokenizer.encode(line), EOS_ID] for line in text]
    state: DecoderState = engine.encode(sources, FixedDepth(1, "1"))
    tokens = np.full(len(text), BOS_ID)
    # Long runs at low depth, so that a return to block N comes after more than K - 1 shallow tokens.
    depths = np.where(generator.random((60, len(text))) < 0.85, 1, generator.integers(1, 5, (60, len(text))))
    logits = []
    for row in depths:
        logits.append(engine.step(state, tokens, depths=row).logits)
        tokens = generator.integers(4, facts.vocab_size, len(text))
    return np.stack(logits), depths


def test_lazy_equals_eager_over_long_random_depths(loaded: Bundle, sentences: list[str]) -> None:
    facts = loaded.manifest.model
    text = [sentence for sentence in sentences[:24] if sentence]
    eager = EagerEngine(loaded.path, facts, device="cpu")
    lazy_logits, depths = random_depths(Engine(loaded.path, facts, device="cpu"), loaded, text, seed=5)
    eager_logits, _ = random_depths(eager, loaded, text, seed=5)
    assert np.array_equal(lazy_logits, eager_logits)
    assert set(np.unique(depths)) == {1, 2, 3, 4}, "not every depth occurred"
    reach = max(facts.decoder_kernel_sizes[1:]) - 1
    assert any(
        depths[step, row] == 4 and (depths[max(0, step - reach - 1) : step, row] == 1).all()
        for step in range(reach + 1, len(depths))
        for row in range(depths.shape[1])
    ), "no return to block N after more than K - 1 shallow tokens"


def test_a_backfill_one_column_short_is_seen(loaded: Bundle, sentences: list[str]) -> None:
    """Control: the oldest column that the convolution reaches is taken for out of reach."""

    class Short(Engine):
        def _backfill(self, state: DecoderState, block: int, active: object) -> None:
            past = state.blocks[block - 1]
            past.filled = np.maximum(past.filled, state.positions - self._reaches[block - 1] + 1)
            super()._backfill(state, block, active)  # type: ignore[arg-type]

    facts = loaded.manifest.model
    text = [sentence for sentence in sentences[:24] if sentence]
    expected, _ = random_depths(Engine(loaded.path, facts, device="cpu"), loaded, text, seed=5)
    found, _ = random_depths(Short(loaded.path, facts, device="cpu"), loaded, text, seed=5)
    assert not np.array_equal(expected, found)
