"""Windows and rows: moving data about must never change what a row remembers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.state import Exits, Window

DIM = 2


class Model:
    """What a window should hold: a dictionary per row."""

    def __init__(self, rows: int) -> None:
        self.rows: list[dict[int, np.ndarray]] = [{} for _ in range(rows)]

    def history(self, row: int, reach: int, position: int) -> np.ndarray:
        zero = np.zeros(DIM, dtype=np.float32)
        known = self.rows[row]
        return np.stack([known.get(p, zero) for p in range(position - reach, position)])


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was not set holds NaN, so that reading it shows."""
    empty = np.empty

    def poisoned(*arguments: object, **keywords: object) -> np.ndarray:
        array: np.ndarray = empty(*arguments, **keywords)  # type: ignore[call-overload]
        if array.dtype == np.float32:
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", poisoned)


@pytest.mark.parametrize("reach", [1, 4, 15, 16, 17, 40])
@given(data=st.data())
def test_window_equals_a_dictionary(reach: int, data: st.DataObject) -> None:
    """Random writes, gaps that are filled in late, dropped and repeated rows, over 120 steps."""
    generator = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    rows = int(generator.integers(1, 5))
    window, model = Window(rows, reach, DIM), Model(rows)
    for position in range(120):
        if generator.random() < 0.1:
            chosen = generator.integers(0, rows, generator.integers(1, 6))
            window.select(chosen, position)
            model.rows = [dict(model.rows[row]) for row in chosen]
            rows = len(chosen)
        if generator.random() < 0.3:
            continue  # a block that no row enters for a while
        window.make_room(position)
        active = np.flatnonzero(generator.random(rows) < 0.7)
        fill_gaps(window, model, active, reach, position, generator)
        history = window.history(active, position)
        for index, row in enumerate(active.tolist()):
            np.testing.assert_array_equal(history[index], model.history(row, reach, position))
        vectors = generator.standard_normal((len(active), DIM)).astype(np.float32)
        window.write(active, position, vectors)
        for row, vector in zip(active.tolist(), vectors, strict=True):
            model.rows[row][position] = vector


def fill_gaps(
    window: Window,
    model: Model,
    active: np.ndarray,
    reach: int,
    position: int,
    generator: np.random.Generator,
) -> None:
    pairs = [
        (row, earlier)
        for row in active
        for earlier in range(max(0, position - reach), position)
        if earlier not in model.rows[row]
    ]
    if not pairs:
        return
    vectors = generator.standard_normal((len(pairs), DIM)).astype(np.float32)
    rows, positions = np.array(pairs).T
    window.scatter(rows, positions, vectors)
    np.testing.assert_array_equal(window.gather(rows, positions), vectors)
    for (row, earlier), vector in zip(pairs, vectors, strict=True):
        model.rows[row][earlier] = vector


def test_control_a_gap_that_is_not_filled_is_seen() -> None:
    """The test above would notice: unset memory comes out as NaN, or as an older vector."""
    window = Window(1, 3, DIM)
    rows = np.array([0])
    for position in range(36):
        window.make_room(position)
        if position % 7:
            window.write(rows, position, np.full((1, DIM), position, dtype=np.float32))
        window.select(rows, position + 1)
    assert np.isnan(window.history(rows, 36)).any()


def test_all_rows_is_the_same_as_every_row() -> None:
    window = Window(3, 4, DIM)
    for position in range(6):
        window.make_room(position)
        window.write(None, position, np.full((3, DIM), position, dtype=np.float32))
    every = window.history(np.arange(3), 6).copy()
    np.testing.assert_array_equal(window.history(None, 6), every)
    np.testing.assert_array_equal(every[0, :, 0], [2, 3, 4, 5])


def test_history_is_contiguous() -> None:
    window = Window(3, 4, DIM)
    assert window.history(None, 0).flags.c_contiguous
    assert window.history(np.array([0, 2]), 0).flags.c_contiguous


def test_window_keeps_its_size_over_any_length() -> None:
    window = Window(2, 5, DIM)
    before = window._array.nbytes
    for position in range(500):
        window.make_room(position)
        window.write(None, position, np.zeros((2, DIM), dtype=np.float32))
    assert window._array.nbytes == before


def test_exits_come_back_in_the_order_of_rows() -> None:
    exits = Exits.of_none(3, DIM)
    states = np.arange(6, dtype=np.float32).reshape(3, 2)
    exits.leave(2, np.array([1]), states[1:2], -states[1:2])
    exits.leave(3, np.array([0, 2]), states[[0, 2]], -states[[0, 2]])
    np.testing.assert_array_equal(exits.exit_states, states)
    np.testing.assert_array_equal(exits.last_states, -states)
    assert exits.depths.tolist() == [3, 2, 3]
    assert Exits.of_all(2, states, -states).depths.tolist() == [2, 2, 2]
