"""What the engine runs: no block, backfill or keys and values that no row needs."""

from collections.abc import Callable

import numpy as np
import pytest

from edgeseq_runtime.places import StepPlaces
from edgeseq_runtime.sessions import Graph
from engine_cases import Case

pytestmark = pytest.mark.usefixtures("half_of_a_batch")


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


def test_hypotheses_of_a_sentence_share_keys_and_values(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = record_runs(monkeypatch)
    engine = plain.engine()
    state = engine.encode(plain.sources[:2], plain.fixed(2))
    engine.step(state, plain.tokens[0, :6], parents=np.array([0, 0, 0, 1, 1, 1]))
    assert [run for run in runs if run[0].startswith("cross")] == [("cross_1.onnx", 2), ("cross_2.onnx", 2)]
    apart = engine.encode(plain.sources[:2], plain.fixed(2))
    engine.step(apart, plain.tokens[0, [0, 3]])
    for past, other in zip(state.blocks[:2], apart.blocks[:2], strict=True):
        assert past.cross is not None
        assert other.cross is not None
        for shared, own in zip(past.cross, other.cross, strict=True):
            np.testing.assert_array_equal(shared, own[[0, 0, 0, 1, 1, 1]])


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
