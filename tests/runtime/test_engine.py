"""The engine: lazy equals eager, batched equals single, both in bits; it equals the naive way, and the torch model."""

from collections.abc import Callable

import numpy as np
import pytest

from eager_engine import EagerEngine
from edgeseq_runtime.engine import Engine, Step
from edgeseq_runtime.errors import BundleError, InputError
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.places import StepPlaces
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import EOS_ID
from engine_cases import Case
from naive_decoder import NaiveDecoder
from tiny_bundle import tiny_facts

pytestmark = pytest.mark.usefixtures("half_of_a_batch")
TOLERANCE = 1e-4  # of logits with a spread of about 5, after 60 steps in float32


def returns_after_long_absence(facts: ModelFacts, depths: np.ndarray) -> bool:
    """Whether some row enters block N after more than K_N - 1 tokens without it."""
    deepest, reach = facts.decoder_blocks, facts.decoder_reaches[-1] - 1
    return any((np.diff(np.flatnonzero(row == deepest)) > reach + 1).any() for row in depths.T)


def test_depths_exercise_everything(plain: Case) -> None:
    assert set(plain.depths.ravel()) == {1, 2, 3, 4}
    assert returns_after_long_absence(plain.facts, plain.depths)


def test_engine_equals_the_naive_decoder(case: Case) -> None:
    """The same graphs, one sentence at a time, without rings that turn: the same bits."""
    naive = NaiveDecoder(case.folder, case.facts)
    logits = case.logits(case.engine(), case.everyone)
    for row in case.everyone[:3]:
        expected = naive.logits(case.sources[row], case.tokens[:, row], case.depths[:, row])
        np.testing.assert_array_equal(logits[:, row], np.stack(expected))


def test_engine_equals_the_torch_model(case: Case) -> None:
    """Training's own forward, which copies states upward by one `where`: equal but for rounding."""
    logits = case.logits(case.engine(), case.everyone)
    for row in case.everyone:
        expected = case.torch_logits(row)
        assert np.ptp(expected) > 3
        np.testing.assert_allclose(logits[:, row], expected, rtol=0, atol=TOLERANCE)


def test_lazy_backfill_equals_eager(case: Case) -> None:
    eager = case.engine(EagerEngine)
    assert isinstance(eager, EagerEngine)
    expected = case.logits(eager, case.everyone)
    np.testing.assert_array_equal(case.logits(case.engine(), case.everyone), expected)
    assert eager.backfilled == (case.facts.decoder_blocks - case.depths).sum()
    assert (eager.backfilled > 0) == (case.facts.decoder_blocks > 1)


def test_batched_equals_single(case: Case) -> None:
    engine = case.engine()
    batched = case.logits(engine, case.everyone)
    for row in case.everyone:
        np.testing.assert_array_equal(case.logits(engine, [row])[:, 0], batched[:, row])
    shuffled = case.everyone[::-1]
    np.testing.assert_array_equal(case.logits(engine, shuffled), batched[:, shuffled])


Break = Callable[[pytest.MonkeyPatch], None]


def break_copied_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the exit state upward in place of the last state."""
    original = Engine._run_blocks

    def run(
        self: Engine, state: DecoderState, places: StepPlaces, tokens: np.ndarray, depths: np.ndarray | None
    ) -> Step:
        cells = places.own_cells[:, 0]
        step = original(self, state, places, tokens, depths)
        state.states[cells] = state.exit_states
        return step

    monkeypatch.setattr(Engine, "_run_blocks", run)


def break_backfill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave skipped columns out."""
    _change_filled(monkeypatch, lambda positions, filled, kernel_size: positions)


def break_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the oldest column within reach for out of reach."""
    _change_filled(
        monkeypatch, lambda positions, filled, kernel_size: np.maximum(filled, positions - (kernel_size - 2))
    )


def _change_filled(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
) -> None:
    """Mislead the places about which columns there are."""
    original = StepPlaces.block_indices

    def indices(self: StepPlaces, kernel_size: int, filled: np.ndarray | None) -> dict[str, np.ndarray]:
        if filled is None:
            return original(self, kernel_size, filled)
        claimed = change(self._positions, filled, kernel_size)
        return original(self, kernel_size, np.minimum(claimed, self._positions))

    monkeypatch.setattr(StepPlaces, "block_indices", indices)


def break_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read each ring one place further on than where the current position lies."""
    original = StepPlaces.block_indices

    def indices(self: StepPlaces, kernel_size: int, filled: np.ndarray | None) -> dict[str, np.ndarray]:
        found = original(self, kernel_size, filled)
        return found | {
            name: np.roll(found[name], 1, axis=-1) for name in ("tap_places", "place_bias") if name in found
        }

    monkeypatch.setattr(StepPlaces, "block_indices", indices)


def break_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention see the padding."""
    original = Engine.encode

    def encode(self: Engine, *arguments: object, **settings: object) -> DecoderState:
        state = original(self, *arguments, **settings)  # type: ignore[arg-type]
        state.source_bias[:] = 0
        return state

    monkeypatch.setattr(Engine, "encode", encode)


DAMAGES = [break_copied_state, break_backfill, break_reach, break_places]


@pytest.mark.parametrize("damage", DAMAGES)
def test_control_damage_is_seen_in_bits(either: Case, damage: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    naive = NaiveDecoder(either.folder, either.facts)
    expected = np.stack(naive.logits(either.sources[0], either.tokens[:, 0], either.depths[:, 0]))
    damage(monkeypatch)
    assert not np.array_equal(either.logits(either.engine(), [0, 1])[:, 0], expected)


@pytest.mark.parametrize("damage", DAMAGES)
def test_control_damage_is_more_than_rounding(either: Case, damage: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance that the torch model is given hides nothing."""
    damage(monkeypatch)
    differences = np.abs(either.logits(either.engine(), [0, 1])[:, 0] - either.torch_logits(0))
    assert differences.max() > 100 * TOLERANCE


@pytest.mark.parametrize("damage", [break_backfill, break_reach])
def test_control_a_lazy_engine_that_leaves_columns_out_is_not_eager(
    either: Case, damage: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eager engine leaves nothing to be filled later, so the damage does not touch it."""
    expected = either.logits(either.engine(EagerEngine), either.everyone)
    damage(monkeypatch)
    np.testing.assert_array_equal(either.logits(either.engine(EagerEngine), either.everyone), expected)
    assert not np.array_equal(either.logits(either.engine(), either.everyone), expected)


def test_control_an_eager_engine_that_fills_nothing_is_not_lazy(either: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = either.logits(either.engine(), either.everyone)

    def claim(self: EagerEngine, state: DecoderState, block: int, rows: np.ndarray) -> None:
        state.blocks[block - 1].filled[rows] = state.positions[rows]

    monkeypatch.setattr(EagerEngine, "_fill", claim)
    assert not np.array_equal(either.logits(either.engine(EagerEngine), either.everyone), expected)


def test_control_visible_padding_is_seen(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    shortest = min(plain.everyone, key=lambda row: len(plain.sources[row]))
    break_bias(monkeypatch)
    engine = plain.engine()
    batched = plain.logits(engine, plain.everyone)[:, shortest]
    assert not np.array_equal(plain.logits(engine, [shortest])[:, 0], batched)


def test_decodes_share_an_engine_and_nothing_else(either: Case) -> None:
    """Two states advanced in turn, their graphs bound to different arrays."""
    engine = either.engine()
    expected = either.logits(engine, [0, 1, 2]), either.logits(engine, [3, 4])
    groups = ([0, 1, 2], [3, 4])
    states = [engine.encode([either.sources[row] for row in rows], either.fixed()) for rows in groups]
    for step, (tokens, depths) in enumerate(zip(either.tokens, either.depths, strict=True)):
        for number, (state, rows) in enumerate(zip(states, groups, strict=True)):
            logits = engine.step(state, tokens[rows], depths=depths[rows]).logits
            np.testing.assert_array_equal(logits, expected[number][step])


def test_depths_are_not_overwritten_by_the_next_step(plain: Case) -> None:
    """Logits may be."""
    engine = plain.engine()
    state = engine.encode(plain.sources[:2], plain.fixed(4))
    first = engine.step(state, plain.tokens[0, :2])
    depths = first.depths.copy()
    engine.step(state, plain.tokens[1, :2], depths=np.array([1, 2]))
    np.testing.assert_array_equal(first.depths, depths)


def test_long_batches_are_encoded_in_parts(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plain.engine().encode(plain.sources, plain.fixed()).memory
    for tokens in (1, 8, 30):
        monkeypatch.setattr("edgeseq_runtime.sentence_encoder.ENCODER_TOKENS", tokens)
        parts = plain.engine().encode(plain.sources, plain.fixed()).memory
        np.testing.assert_array_equal(parts, whole)


def test_sources_are_padded_to_a_multiple_of_four(plain: Case) -> None:
    state = plain.engine().encode([[5, EOS_ID], [5, 6, 7, 8, EOS_ID]], plain.fixed())
    assert state.memory.shape == (2, 8, 16)
    np.testing.assert_array_equal(state.source_bias[0, 0, 0], [0, 0, *[-np.inf] * 6])


@pytest.mark.parametrize("sources", [[], [[5, EOS_ID], []]])
def test_empty_sources_are_refused(plain: Case, sources: list[list[int]]) -> None:
    with pytest.raises(InputError, match="at least one source sentence, and none empty"):
        plain.engine().encode(sources, plain.fixed())


def test_wrong_steps_are_refused(plain: Case) -> None:
    engine = plain.engine()
    state = engine.encode(plain.sources[:2], plain.fixed())
    with pytest.raises(InputError, match=r"tokens has the shape \(3,\), expected \(2,\)"):
        engine.step(state, np.zeros(3, dtype=np.int64))
    with pytest.raises(InputError, match=r"depths are \[1, 5\], expected 1 to 4"):
        engine.step(state, np.zeros(2, dtype=np.int64), depths=np.array([1, 5]))
    with pytest.raises(InputError, match=r"tokens has the shape \(2,\), expected \(1,\)"):
        engine.step(state, np.zeros(2, dtype=np.int64), parents=np.array([1]))
    assert state.rows == 2, "a step that is refused changes nothing"


def test_graph_of_another_model_is_refused_by_name(plain: Case) -> None:
    other = tiny_facts(decoder_reaches=[3, 5, 1, 9])
    with pytest.raises(BundleError, match=r"block_4\.onnx is not the graph the manifest declares"):
        plain.logits(Engine(plain.folder, other, device="cpu"), [0, 1])
