"""The engine: lazy equals eager, batched equals single, both in bits; and it equals the naive way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eager_engine import EagerEngine
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.errors import BundleError, InputError
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.policy import DepthPolicy, FixedDepth, Halting, HaltingUnits
from edgeseq_runtime.sessions import Graph
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID
from naive_decoder import NaiveDecoder
from tiny_bundle import tiny_facts, write_tiny_bundle

STEPS = 60  # more than a window holds, so that every ring goes round

MODELS: dict[str, dict[str, object]] = {
    "pre-norm, tied, gated": {},
    "post-norm, untied, not gated": {"norm": "post", "head": "untied", "glu": False},
    "one wide block above, none between": {"decoder_kernel_sizes": [1, 1, 40]},
    "upper blocks without history": {"decoder_kernel_sizes": [5, 1, 1]},
    "a single block": {"decoder_kernel_sizes": [3], "halting": "none", "operating_point": None},
}


class Case:
    """A bundle with the tokens and depths that tests feed it."""

    def __init__(self, folder: Path, changes: dict[str, object]) -> None:
        write_tiny_bundle(folder, **changes)  # type: ignore[arg-type]
        self.folder = folder
        self.facts = tiny_facts(**{k: v for k, v in changes.items() if k != "operating_point"})
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

    def engine(self, kind: type[Engine] = Engine) -> Engine:
        return kind(self.folder, self.facts, device="cpu")

    def logits(self, engine: Engine, rows: list[int]) -> np.ndarray:
        """Feed the rows their tokens at their depths: (steps, rows, vocab)."""
        state = engine.encode([self.sources[row] for row in rows], FixedDepth(1, "1"))
        return np.stack(
            [
                engine.step(state, tokens[rows], depths=depths[rows]).logits
                for tokens, depths in zip(self.tokens, self.depths, strict=True)
            ]
        )

    @property
    def everyone(self) -> list[int]:
        return list(range(len(self.sources)))


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("engine") / "b", MODELS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("engine") / "b", {})


def returns_after_long_absence(facts: ModelFacts, depths: np.ndarray) -> bool:
    """Whether some row enters block N after more than K_N - 1 tokens without it."""
    deepest, reach = facts.decoder_blocks, facts.decoder_kernel_sizes[-1] - 1
    return any((np.diff(np.flatnonzero(row == deepest)) > reach + 1).any() for row in depths.T)


def test_depths_exercise_everything(plain: Case) -> None:
    assert set(plain.depths.ravel()) == {1, 2, 3, 4}
    assert returns_after_long_absence(plain.facts, plain.depths)


def test_engine_equals_the_naive_decoder(case: Case) -> None:
    """The same graphs, one sentence at a time, without windows: the same bits."""
    naive = NaiveDecoder(case.folder, case.facts)
    logits = case.logits(case.engine(), case.everyone)
    for row in case.everyone[:3]:
        expected = naive.logits(case.sources[row], case.tokens[:, row], case.depths[:, row])
        np.testing.assert_array_equal(logits[:, row], np.stack(expected))


def test_lazy_backfill_equals_eager(case: Case) -> None:
    eager = case.engine(EagerEngine)
    assert isinstance(eager, EagerEngine)
    expected = case.logits(eager, case.everyone)
    np.testing.assert_array_equal(case.logits(case.engine(), case.everyone), expected)
    has_backfill = any(kernel_size > 1 for kernel_size in case.facts.decoder_kernel_sizes[1:])
    assert (eager.backfilled > 0) == has_backfill


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

    def run(self: Engine, *arguments: object) -> object:
        exits = original(self, *arguments)  # type: ignore[arg-type]
        exits.last_states = exits.exit_states
        return exits

    monkeypatch.setattr(Engine, "_run_blocks", run)


def break_backfill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave skipped columns out."""
    monkeypatch.setattr(Engine, "_backfill", lambda *_: None)


def break_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the oldest column within reach for out of reach."""
    original = Engine._backfill

    def backfill(self: Engine, state: DecoderState, block: int, active: np.ndarray) -> None:
        past = state.blocks[block - 1]
        past.filled = np.maximum(past.filled, state.positions - self._reaches[block - 1] + 1)
        original(self, state, block, active)

    monkeypatch.setattr(Engine, "_backfill", backfill)


def break_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention see the padding."""
    original = Engine.encode

    def encode(self: Engine, *arguments: object) -> DecoderState:
        state = original(self, *arguments)  # type: ignore[arg-type]
        state.source_bias[:] = 0
        return state

    monkeypatch.setattr(Engine, "encode", encode)


@pytest.mark.parametrize("damage", [break_copied_state, break_backfill, break_reach])
def test_control_broken_backfill_is_seen(plain: Case, damage: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    naive = NaiveDecoder(plain.folder, plain.facts)
    expected = np.stack(naive.logits(plain.sources[0], plain.tokens[:, 0], plain.depths[:, 0]))
    damage(monkeypatch)
    assert not np.array_equal(plain.logits(plain.engine(), [0])[:, 0], expected)


def test_control_visible_padding_is_seen(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    shortest = min(plain.everyone, key=lambda row: len(plain.sources[row]))
    break_bias(monkeypatch)
    engine = plain.engine()
    batched = plain.logits(engine, plain.everyone)[:, shortest]
    assert not np.array_equal(plain.logits(engine, [shortest])[:, 0], batched)


def test_rows_can_be_dropped_repeated_and_reordered(case: Case) -> None:
    """As a beam search does: each row goes on from its parent's past."""
    engine = case.engine()
    generator = np.random.default_rng(5)
    state = engine.encode(case.sources, FixedDepth(1, "1"))
    pasts: list[tuple[int, list[int], list[int]]] = [(row, [], []) for row in case.everyone]
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
    naive = NaiveDecoder(case.folder, case.facts)
    for row, (source, fed, used) in enumerate(pasts[:3]):
        np.testing.assert_array_equal(logits[row], naive.logits(case.sources[source], fed, used)[-1])


def test_skipped_blocks_are_not_run(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed depth runs nothing above it: no block, no keys and values, no backfill."""
    run = Graph.run
    files: list[str] = []

    def record(self: Graph, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        files.append(self._file)
        return run(self, feed)

    monkeypatch.setattr(Graph, "run", record)
    engine = plain.engine()
    state = engine.encode(plain.sources[:2], FixedDepth(2, "2"))
    for tokens in plain.tokens[:3, :2]:
        assert engine.step(state, tokens).depths.tolist() == [2, 2]
    step = ["embed.onnx", "block_1.onnx", "block_2.onnx", "head.onnx"]
    assert [file for file in files if not file.startswith(("encoder", "cross"))] == step * 3
    assert sorted(file for file in files if file.startswith("cross")) == [
        "cross_1.onnx", "cross_2.onnx",
    ]  # fmt: skip


def test_keys_and_values_are_computed_once_per_row(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows enter block 4 one after another; when half of them has, the rest comes along."""
    run = Graph.run
    sizes: list[int] = []

    def record(self: Graph, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self._file == "cross_4.onnx":
            sizes.append(len(feed["memory"]))
        return run(self, feed)

    monkeypatch.setattr(Graph, "run", record)
    engine = plain.engine()
    state = engine.encode(plain.sources[:6], FixedDepth(1, "1"))
    for deep in ([0], [0], [3], [1, 3], [5], [0, 1, 2, 3, 4, 5]):
        depths = np.ones(6, dtype=np.int64)
        depths[deep] = 4
        engine.step(state, plain.tokens[0, :6], depths=depths)
    assert sizes == [1, 1, 4]


def test_policy_decides_after_each_block(plain: Case) -> None:
    """The engine asks on the rows that go on, in order, and the answers become the depths."""
    asked: list[tuple[int, int]] = []

    class Alternate:
        name = "alternate"

        def stops(self, block: int, exit_states: np.ndarray) -> np.ndarray:
            asked.append((block, len(exit_states)))
            return np.arange(len(exit_states)) % 2 == 0

    engine = plain.engine()
    state = engine.encode(plain.sources[:8], Alternate())
    assert engine.step(state, plain.tokens[0, :8]).depths.tolist() == [1, 2, 1, 3, 1, 2, 1, 4]
    assert asked == [(1, 8), (2, 4), (3, 2)]


def test_halting_depths_do_not_depend_on_the_batch(plain: Case) -> None:
    generator = np.random.default_rng(7)
    units = HaltingUnits(generator.standard_normal((3, 16)).astype(np.float32), np.zeros(3, dtype=np.float32))
    policy: DepthPolicy = Halting(units, 0.5)
    engine = plain.engine()

    def depths(rows: list[int]) -> np.ndarray:
        state = engine.encode([plain.sources[row] for row in rows], policy)
        return np.stack([engine.step(state, tokens[rows]).depths for tokens in plain.tokens])

    batched = depths(plain.everyone)
    assert set(batched.ravel()) == {1, 2, 3, 4}
    for row in plain.everyone:
        np.testing.assert_array_equal(depths([row])[:, 0], batched[:, row])


def test_rows_can_be_given_to_other_sentences(case: Case) -> None:
    """Rows begin anew at different steps, with longer and shorter sources, and give the same bits."""
    engine = case.engine()
    generator = np.random.default_rng(6)
    state = engine.encode(case.sources[:3], FixedDepth(1, "1"))
    other = engine.encode(case.sources, FixedDepth(1, "1"))
    pasts: list[tuple[int, list[int], list[int]]] = [(row, [], []) for row in range(3)]
    naive = NaiveDecoder(case.folder, case.facts)
    for step in range(STEPS):
        if step % 9 == 4:
            rows = np.flatnonzero(generator.random(3) < 0.5)
            sentences = generator.integers(0, len(case.sources), len(rows))
            if len(rows):
                engine.adopt(state, rows, other, sentences)
            for row, begun in zip(rows.tolist(), sentences.tolist(), strict=True):
                pasts[row] = (begun, [], [])
        tokens, depths = case.tokens[step, :3], case.depths[step, :3]
        logits = engine.step(state, tokens, depths=depths).logits
        for (_, fed, used), token, depth in zip(pasts, tokens, depths, strict=True):
            fed.append(int(token))
            used.append(int(depth))
        if step % 9 in (3, 5):
            for row, (sentence, fed, used) in enumerate(pasts):
                expected = naive.logits(case.sources[sentence], fed, used)[-1]
                np.testing.assert_array_equal(logits[row], expected)


def test_a_row_alone_computes_only_what_it_enters(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of a batch that takes over rows are made ahead, but not for a single row."""
    run = Graph.run
    files: list[str] = []

    def record(self: Graph, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        files.append(self._file)
        return run(self, feed)

    monkeypatch.setattr(Graph, "run", record)
    engine = plain.engine()
    for rows, expected in ((1, 0), (2, 4)):
        state = engine.encode(plain.sources[:rows], FixedDepth(1, "1"))
        other = engine.encode(plain.sources[:3], FixedDepth(1, "1"))
        engine.step(state, plain.tokens[0, :rows], depths=np.full(rows, 4))
        files.clear()
        for number in (0, 1):
            engine.adopt(state, np.array([0]), other, np.array([number]))
        assert sum(file.startswith("cross") for file in files) == expected


def test_long_batches_are_encoded_in_parts(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plain.engine().encode(plain.sources, FixedDepth(1, "1")).memory
    for tokens in (1, 8, 30):
        monkeypatch.setattr("edgeseq_runtime.engine.ENCODER_TOKENS", tokens)
        parts = plain.engine().encode(plain.sources, FixedDepth(1, "1")).memory
        np.testing.assert_array_equal(parts, whole)


def test_sources_are_padded_to_a_multiple_of_four(plain: Case) -> None:
    state = plain.engine().encode([[5, EOS_ID], [5, 6, 7, 8, EOS_ID]], FixedDepth(1, "1"))
    assert state.memory.shape == (2, 8, 16)
    np.testing.assert_array_equal(state.source_bias[0, 0, 0], [0, 0, *[-np.inf] * 6])


@pytest.mark.parametrize("sources", [[], [[5, EOS_ID], []]])
def test_empty_sources_are_refused(plain: Case, sources: list[list[int]]) -> None:
    with pytest.raises(InputError, match="at least one source sentence, and none empty"):
        plain.engine().encode(sources, FixedDepth(1, "1"))


def test_wrong_steps_are_refused(plain: Case) -> None:
    engine = plain.engine()
    state = engine.encode(plain.sources[:2], FixedDepth(1, "1"))
    with pytest.raises(InputError, match=r"tokens has the shape \(3,\), expected \(2,\)"):
        engine.step(state, np.zeros(3, dtype=np.int64))
    with pytest.raises(InputError, match=r"depths are \[1, 5\], expected 1 to 4"):
        engine.step(state, np.zeros(2, dtype=np.int64), depths=np.array([1, 5]))


def test_threads_out_of_range_are_refused(plain: Case) -> None:
    with pytest.raises(InputError, match="threads is 0, expected at least 1"):
        Engine(plain.folder, plain.facts, device="cpu", threads=0)


def test_graph_of_another_model_is_refused_by_name(plain: Case) -> None:
    other = tiny_facts(decoder_kernel_sizes=[3, 5, 1, 9])
    with pytest.raises(BundleError, match=r"block_4\.onnx is not the graph the manifest declares"):
        Engine(plain.folder, other, device="cpu")
