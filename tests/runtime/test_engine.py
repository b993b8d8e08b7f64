"""The engine: lazy equals eager, batched equals single, both in bits; it equals the naive way, and the torch model."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from eager_engine import EagerEngine
from edgeseq_runtime import engine as engine_module
from edgeseq_runtime.engine import Engine, Step
from edgeseq_runtime.errors import BundleError, InputError
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.places import Layout, StepPlaces
from edgeseq_runtime.policy import FixedDepth
from edgeseq_runtime.sessions import Graph
from edgeseq_runtime.state import BlockState, DecoderState
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID
from naive_decoder import NaiveDecoder, torch_logits
from tiny_bundle import tiny_facts, tiny_model, write_tiny_bundle

STEPS = 60  # more than the widest ring has places, so that every ring goes round
TOLERANCE = 1e-4  # of logits with a spread of about 5, after 60 steps in float32

MODELS: dict[str, dict[str, object]] = {
    "pre-norm, tied, gated": {},
    "post-norm, untied, not gated": {"norm": "post", "head": "untied", "glu": False},
    "lightweight": {"mixer": "lightweight"},
    "one wide block above, none between": {"decoder_reaches": [1, 1, 40]},
    "upper blocks without history": {"decoder_reaches": [5, 1, 1]},
    "attention": {"mixer": "attention", "glu": False, "decoder_reaches": [0, 0, 0, 0]},
    "attention in windows, post-norm, untied": {
        "mixer": "attention",
        "glu": False,
        "decoder_reaches": [3, 5, 1, 7],
        "norm": "post",
        "head": "untied",
    },
    "attention in windows and without": {"mixer": "attention", "glu": False, "decoder_reaches": [6, 0, 40]},
    "a single block": {"decoder_reaches": [3], "predictors": (), "operating_point": None},
}


class Case:
    """A bundle with the tokens and depths that tests feed it."""

    def __init__(self, folder: Path, changes: dict[str, object]) -> None:
        write_tiny_bundle(folder, **changes)  # type: ignore[arg-type]
        self.folder = folder
        settings = {name: value for name, value in changes.items() if name != "operating_point"}
        self.facts = tiny_facts(**{name: value for name, value in settings.items() if name != "predictors"})
        self.model = tiny_model(**settings)  # type: ignore[arg-type]
        generator = np.random.default_rng(0)
        lengths = generator.integers(1, 14, 9)
        vocabulary = (4, self.facts.vocab_size)
        self.sources = [[*generator.integers(*vocabulary, n).tolist(), EOS_ID] for n in lengths]
        rows = len(self.sources)
        self.tokens = generator.integers(*vocabulary, (STEPS, rows))
        self.tokens[0] = BOS_ID
        # Long shallow runs, so that rows come back to block N after more than K - 1 of them.
        deepest = self.facts.decoder_blocks
        self.depths = generator.integers(1, deepest + 1, (STEPS, rows))
        self.depths[generator.random((STEPS, rows)) < 0.7] = 1

    def fixed(self, depth: int = 1) -> FixedDepth:
        return FixedDepth(str(depth), self.facts, depth)

    def engine(self, kind: type[Engine] = Engine) -> Engine:
        return kind(self.folder, self.facts, device="cpu")

    def logits(self, engine: Engine, rows: list[int]) -> np.ndarray:
        """Feed the rows their tokens at their depths: (steps, rows, vocab)."""
        state = engine.encode([self.sources[row] for row in rows], self.fixed())
        return np.stack(
            [
                engine.step(state, tokens[rows], depths=depths[rows]).logits.copy()
                for tokens, depths in zip(self.tokens, self.depths, strict=True)
            ]
        )

    def torch_logits(self, row: int) -> np.ndarray:
        """What the torch model makes of the same row: (steps, vocab)."""
        return torch_logits(self.model, self.sources[row], self.tokens[:, row].tolist(), self.depths[:, row].tolist())

    @property
    def everyone(self) -> list[int]:
        return list(range(len(self.sources)))


@pytest.fixture(autouse=True)
def _half_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are so small here that one row in eight would be any."""
    monkeypatch.setattr(engine_module, "ENTERED_SHARE", 2)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("engine") / "b", MODELS[request.param])


@pytest.fixture(scope="module", params=["plain", "attention in windows and without"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A case of each mixer, whose depths are 1 to 4."""
    changes = {} if request.param == "plain" else {"mixer": "attention", "glu": False, "decoder_reaches": [3, 0, 5, 7]}
    return Case(tmp_path_factory.mktemp("engine") / "b", changes)


@pytest.fixture(scope="module")
def unbounded(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Attention to all positions in every block."""
    return Case(tmp_path_factory.mktemp("engine") / "b", MODELS["attention"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("engine") / "b", {})


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
        claimed = change(self._all_positions, filled, kernel_size)
        return original(self, kernel_size, np.minimum(claimed, self._all_positions))

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

    def encode(self: Engine, *arguments: object) -> DecoderState:
        state = original(self, *arguments)  # type: ignore[arg-type]
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


Past = tuple[int, list[int], list[int]]
"""What a row has come through: its sentence, the tokens it was fed, and their depths."""


def select_at_random(case: Case) -> tuple[list[Past], np.ndarray]:
    """Step while rows are dropped, repeated and reordered; give the rows' pasts and their last logits."""
    engine = case.engine()
    generator = np.random.default_rng(5)
    state = engine.encode(case.sources, case.fixed())
    pasts: list[Past] = [(row, [], []) for row in case.everyone]
    parents = None
    for step in range(STEPS):
        if step and step % 5 == 0:
            parents = generator.integers(0, len(pasts), generator.integers(1, 9))
            pasts = [(s, list(t), list(d)) for s, t, d in (pasts[parent] for parent in parents)]
        tokens, depths = case.tokens[step, : len(pasts)], case.depths[step, : len(pasts)]
        logits = engine.step(state, tokens, parents, depths).logits
        parents = None
        for (_, fed, used), token, depth in zip(pasts, tokens, depths, strict=True):
            fed.append(int(token))
            used.append(int(depth))
    return pasts, logits


def test_rows_can_be_dropped_repeated_and_reordered(case: Case) -> None:
    """As a beam search does: each row goes on from its parent's past."""
    pasts, logits = select_at_random(case)
    naive = NaiveDecoder(case.folder, case.facts)
    for row, past in enumerate(pasts[:3]):
        np.testing.assert_array_equal(logits[row], naive.logits(*past_of(case, past))[-1])


def past_of(case: Case, past: Past) -> tuple[list[int], list[int], list[int]]:
    sentence, fed, used = past
    return case.sources[sentence], fed, used


@pytest.mark.parametrize("name", ["tensors", "filled", "states"])
def test_control_rows_that_are_not_selected_are_seen(either: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One array keeps the rows in the order they had."""
    kind = DecoderState if name == "states" else BlockState
    original = kind.select

    def select(self: DecoderState | BlockState, rows: np.ndarray) -> None:
        before = getattr(self, name)
        original(self, rows)  # type: ignore[arg-type]
        if isinstance(self, BlockState) and name == "tensors":
            self.tensors = {key: np.resize(tensor, self.tensors[key].shape) for key, tensor in before.items()}
        else:
            setattr(self, name, np.resize(before, getattr(self, name).shape))

    monkeypatch.setattr(kind, "select", select)
    pasts, logits = select_at_random(either)
    naive = NaiveDecoder(either.folder, either.facts)
    expected = [naive.logits(*past_of(either, past))[-1] for past in pasts]
    assert not np.array_equal(logits, np.stack(expected))


def record_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A list to which each run adds its graph's file, and how many rows it runs on, where an input tells."""
    runs: list[tuple[str, int]] = []
    originals = {name: getattr(Graph, name) for name in ("run", "run_bound")}

    def record(name: str) -> Callable[..., object]:
        def run(self: Graph, *arguments: object) -> object:
            feed: dict[str, np.ndarray] = arguments[-1]  # type: ignore[assignment]
            rows = next((len(feed[name]) for name in ("active_rows", "tokens", "memory") if name in feed), 0)
            runs.append((self._file, rows))
            return originals[name](self, *arguments)

        return run

    for name in originals:
        monkeypatch.setattr(Graph, name, record(name))
    return runs


def test_skipped_blocks_are_not_run(either: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed depth runs nothing above it: no block, no keys and values."""
    runs = record_runs(monkeypatch)
    engine = either.engine()
    state = engine.encode(either.sources[:2], either.fixed(2))
    for tokens in either.tokens[:3, :2]:
        assert engine.step(state, tokens).depths.tolist() == [2, 2]
    files = [file for file, _ in runs]
    step = ["block_1.onnx", "block_2.onnx", "head.onnx"]
    assert [file for file in files if not file.startswith(("encoder", "cross"))] == step * 3
    assert sorted(file for file in files if file.startswith("cross")) == [
        "cross_1.onnx", "cross_2.onnx",
    ]  # fmt: skip


def test_blocks_run_on_the_rows_that_go_on_and_no_others(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call each, backfill included; none where all rows have stopped."""
    runs = record_runs(monkeypatch)
    engine = plain.engine()
    state = engine.encode(plain.sources[:6], plain.fixed())
    for depths in ([1, 1, 1, 1, 1, 1], [1, 4, 1, 2, 1, 2], [3, 3, 3, 3, 3, 3]):
        runs.clear()
        engine.step(state, plain.tokens[0, :6], depths=np.array(depths))
        expected = [(f"block_{block}.onnx", sum(depth >= block for depth in depths)) for block in range(1, 5)]
        assert [run for run in runs if run[0].startswith("block")] == [run for run in expected if run[1]]


def test_backfill_is_lazy_and_bounded(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is filled before a row comes back, and then no more than the convolution reaches (K = 3, 5, 1, 7)."""
    original = StepPlaces.block_indices
    reads: list[int] = []  # of blocks 2 and above

    def indices(self: StepPlaces, kernel_size: int, filled: np.ndarray | None) -> dict[str, np.ndarray]:
        found = original(self, kernel_size, filled)
        reads.append(len(found["read_cells"]) - len(self.active))
        return found

    monkeypatch.setattr(StepPlaces, "block_indices", indices)
    engine = plain.engine()
    state = engine.encode(plain.sources[:1], plain.fixed())
    state.alone = None  # which takes whole steps
    for depth, expected in ((1, []), (1, []), (4, [2, 0, 2]), *[(1, [])] * 9, (2, [4]), (4, [0, 0, 6])):
        reads.clear()
        engine.step(state, plain.tokens[0, :1], depths=np.array([depth]))
        assert reads == expected


def test_keys_and_values_are_computed_once_per_row(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows enter block 4 one after another; when so many of them have, here half, the rest come along."""
    runs = record_runs(monkeypatch)
    engine = plain.engine()
    state = engine.encode(plain.sources[:6], plain.fixed())
    for deep in ([0], [0], [3], [1, 3], [5], [0, 1, 2, 3, 4, 5]):
        depths = np.ones(6, dtype=np.int64)
        depths[deep] = 4
        engine.step(state, plain.tokens[0, :6], depths=depths)
    assert [rows for file, rows in runs if file == "cross_4.onnx"] == [1, 1, 4]


def give_rows_away(case: Case) -> Iterator[tuple[np.ndarray, list[Past]]]:
    """Step while rows begin anew with longer and shorter sources; give logits and pasts now and then."""
    engine = case.engine()
    rows = 3
    generator = np.random.default_rng(6)
    state = engine.encode(case.sources[:rows], case.fixed())
    other = engine.encode(case.sources, case.fixed())
    pasts: list[Past] = [(row, [], []) for row in range(rows)]
    for step in range(STEPS):
        if step % 9 == 4:
            free = np.flatnonzero(generator.random(rows) < 0.5)
            sentences = generator.integers(0, len(case.sources), len(free))
            if len(free):
                engine.adopt(state, free, other, sentences)
            for row, begun in zip(free.tolist(), sentences.tolist(), strict=True):
                pasts[row] = (begun, [], [])
        tokens, depths = case.tokens[step, :rows], case.depths[step, :rows]
        logits = engine.step(state, tokens, depths=depths).logits
        for (_, fed, used), token, depth in zip(pasts, tokens, depths, strict=True):
            fed.append(int(token))
            used.append(int(depth))
        if step % 9 in (3, 5):
            yield logits, pasts


def test_rows_can_be_given_to_other_sentences(case: Case) -> None:
    """Rows begin anew at different steps and give the same bits."""
    naive = NaiveDecoder(case.folder, case.facts)
    for logits, pasts in give_rows_away(case):
        for row, past in enumerate(pasts):
            np.testing.assert_array_equal(logits[row], naive.logits(*past_of(case, past))[-1])


def begins_anew_as_if_alone(case: Case) -> bool:
    naive = NaiveDecoder(case.folder, case.facts)
    return all(
        np.array_equal(logits[row], naive.logits(*past_of(case, past))[-1])
        for logits, pasts in give_rows_away(case)
        for row, past in enumerate(pasts)
    )


def keep_when_adopting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave an attribute of rows that begin anew as it was."""
    kind: type[DecoderState | BlockState] = DecoderState if name == "positions" else BlockState
    original = kind.adopt

    def adopt(self: DecoderState | BlockState, *arguments: object) -> None:
        before = copy.deepcopy(getattr(self, name))
        original(self, *arguments)  # type: ignore[arg-type]
        setattr(self, name, before)

    monkeypatch.setattr(kind, "adopt", adopt)


@pytest.mark.parametrize("name", ["tensors", "positions"])
def test_control_a_row_that_keeps_something_of_the_sentence_before_is_seen(
    plain: Case, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_when_adopting(name, monkeypatch)
    assert not begins_anew_as_if_alone(plain)


def test_control_such_a_row_is_seen_where_it_attends_to_its_past(
    unbounded: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old keys and values alone would do no harm: they are not read before they are replaced."""
    keep_when_adopting("positions", monkeypatch)
    assert not begins_anew_as_if_alone(unbounded)


def test_rings_of_all_positions_follow_the_farthest_row(unbounded: Case) -> None:
    """They double at positions 16 and 32, and are short again when all rows have begun anew."""
    engine = unbounded.engine()
    state = engine.encode(unbounded.sources[:2], unbounded.fixed())
    capacities = []
    for tokens, depths in zip(unbounded.tokens[:40, :2], unbounded.depths[:40, :2], strict=True):
        engine.step(state, tokens, depths=depths)
        capacities.append(len(state.states) // 2)
    assert capacities == [16] * 16 + [32] * 16 + [64] * 8
    other = engine.encode(unbounded.sources[2:4], unbounded.fixed())
    engine.adopt(state, np.array([1]), other, np.array([0]))
    logits = engine.step(state, unbounded.tokens[0, :2], depths=np.array([4, 4])).logits
    assert len(state.states) // 2 == 64, "row 0 still needs its past"
    naive = NaiveDecoder(unbounded.folder, unbounded.facts)
    (expected,) = naive.logits(unbounded.sources[2], unbounded.tokens[:1, 1], [4])
    np.testing.assert_array_equal(logits[1], expected)
    engine.adopt(state, np.array([0]), other, np.array([1]))
    logits = engine.step(state, unbounded.tokens[0, :2], depths=np.array([4, 4])).logits
    assert len(state.states) // 2 == 16
    (expected,) = naive.logits(unbounded.sources[3], unbounded.tokens[:1, 0], [4])
    np.testing.assert_array_equal(logits[0], expected)
    first, second = naive.logits(unbounded.sources[2], unbounded.tokens[[0, 0], [1, 1]], [4, 4])
    np.testing.assert_array_equal(logits[1], second)
    assert not np.array_equal(first, second)


def test_control_rings_of_all_positions_that_do_not_grow_are_seen(
    unbounded: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal as long as 16 places suffice, and no longer."""
    expected = unbounded.logits(unbounded.engine(), [0])
    monkeypatch.setattr(Layout, "holding", lambda self, longest: self)
    found = unbounded.logits(unbounded.engine(), [0])
    np.testing.assert_array_equal(found[:16], expected[:16])
    assert not np.array_equal(found[16:], expected[16:])


def test_bits_do_not_depend_on_how_far_other_rows_are(unbounded: Case) -> None:
    """A row whose mate is 40 positions ahead has longer rings than alone."""
    engine = unbounded.engine()
    alone = unbounded.logits(engine, [1])[:12, 0]
    state = engine.encode([unbounded.sources[0]] * 2, unbounded.fixed())
    for tokens in unbounded.tokens[:40, :2]:
        engine.step(state, tokens, depths=np.array([2, 2]))
    engine.adopt(state, np.array([1]), engine.encode([unbounded.sources[1]], unbounded.fixed()), np.array([0]))
    for tokens, depths, expected in zip(unbounded.tokens[:12, :2], unbounded.depths[:12, :2], alone, strict=True):
        found = engine.step(state, tokens, depths=depths).logits[1]
        assert len(state.states) // 2 == 64
        np.testing.assert_array_equal(found, expected)


def replace_the_only_row_that_was_deep(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a row that enters block 4, begins anew, and enters it again; and those of the new sentence alone."""
    engine = case.engine()
    state = engine.encode(case.sources[:4], case.fixed())
    engine.step(state, case.tokens[0, :4], depths=np.array([1, 1, 4, 1]))
    engine.adopt(state, np.array([2]), engine.encode(case.sources[5:7], case.fixed()), np.array([1]))
    found = engine.step(state, case.tokens[0, :4], depths=np.array([1, 1, 4, 1])).logits[2]
    alone = engine.encode([case.sources[6]], case.fixed())
    return found, engine.step(alone, case.tokens[0, [2]], depths=np.array([4])).logits[0]


def test_a_row_that_begins_anew_enters_blocks_anew(plain: Case) -> None:
    """Its keys and values are there from the sentence before, where those of most rows are not."""
    found, expected = replace_the_only_row_that_was_deep(plain)
    np.testing.assert_array_equal(found, expected)


def test_control_keys_and_values_of_the_sentence_before_are_seen(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BlockState.adopt

    def adopt(self: BlockState, *arguments: object) -> None:
        before = self.entered.copy()
        original(self, *arguments)  # type: ignore[arg-type]
        self.entered[:] = before

    monkeypatch.setattr(BlockState, "adopt", adopt)
    found, expected = replace_the_only_row_that_was_deep(plain)
    assert not np.array_equal(found, expected)


def test_a_row_alone_computes_only_what_it_enters(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of a batch that takes over rows are made ahead, but not for a single row."""
    runs = record_runs(monkeypatch)
    engine = plain.engine()
    for rows, expected in ((1, 0), (2, 4)):
        state = engine.encode(plain.sources[:rows], plain.fixed())
        other = engine.encode(plain.sources[:3], plain.fixed())
        engine.step(state, plain.tokens[0, :rows], depths=np.full(rows, 4))
        runs.clear()
        for number in (0, 1):
            engine.adopt(state, np.array([0]), other, np.array([number]))
        assert sum(file.startswith("cross") for file, _ in runs) == expected


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
        monkeypatch.setattr("edgeseq_runtime.engine.ENCODER_TOKENS", tokens)
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


def test_graph_of_another_model_is_refused_by_name(plain: Case) -> None:
    other = tiny_facts(decoder_reaches=[3, 5, 1, 9])
    with pytest.raises(BundleError, match=r"block_4\.onnx is not the graph the manifest declares"):
        plain.logits(Engine(plain.folder, other, device="cpu"), [0, 1])
