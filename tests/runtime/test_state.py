"""Windows and rows: moving data about must never change what a row remembers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.policy import FixedDepth
from edgeseq_runtime.state import BlockState, DecoderState, Exits, Window, padded_length

DIM = 2


class Row:
    """What a window should hold of one row: a dictionary, and the current position."""

    def __init__(self) -> None:
        self.position = 0
        self.known: dict[int, np.ndarray] = {}

    def copy(self) -> "Row":
        twin = Row()
        twin.position, twin.known = self.position, dict(self.known)
        return twin

    def history(self, reach: int) -> np.ndarray:
        zero = np.zeros(DIM, dtype=np.float32)
        return np.stack([self.known.get(p, zero) for p in range(self.position - reach, self.position)])

    def gaps(self, reach: int) -> list[int]:
        return [p for p in range(max(0, self.position - reach), self.position) if p not in self.known]


@pytest.mark.parametrize("reach", [1, 2, 6, 14])
@given(seed=st.integers(0, 10_000))
def test_window_equals_a_dictionary(reach: int, seed: int) -> None:
    """Rows at positions of their own; gaps filled in late; rows dropped, repeated and begun anew."""
    generator = np.random.default_rng(seed)
    rows = [Row() for _ in range(generator.integers(1, 5))]
    window = Window(len(rows), reach, DIM)
    for _ in range(60):
        if generator.random() < 0.1:
            chosen = generator.integers(0, len(rows), generator.integers(1, 6))
            window.select(chosen)
            rows = [rows[row].copy() for row in chosen]
        if generator.random() < 0.1:
            begun = np.flatnonzero(generator.random(len(rows)) < 0.5)
            window.clear(begun)
            for row in begun:
                rows[row] = Row()
        active = np.flatnonzero(generator.random(len(rows)) < 0.7)
        fill_gaps(window, rows, active, reach, generator)
        positions = np.array([rows[row].position for row in active], dtype=np.int64)
        history = window.history(active, positions)
        assert history.flags.c_contiguous
        vectors = generator.standard_normal((len(active), DIM)).astype(np.float32)
        window.put(active, positions, vectors)
        for index, row in enumerate(active):
            np.testing.assert_array_equal(history[index], rows[row].history(reach))
            rows[row].known[rows[row].position] = vectors[index]
        for each in rows:
            each.position += 1  # those that were not active leave a gap


def fill_gaps(window: Window, rows: list[Row], active: np.ndarray, reach: int, generator: np.random.Generator) -> None:
    pairs = [(row, position) for row in active for position in rows[row].gaps(reach)]
    if not pairs:
        return
    vectors = generator.standard_normal((len(pairs), DIM)).astype(np.float32)
    index, positions = np.array(pairs).T
    window.put(index, positions, vectors)
    np.testing.assert_array_equal(window.get(index, positions), vectors)
    for (row, position), vector in zip(pairs, vectors, strict=True):
        rows[row].known[position] = vector


def test_control_a_gap_that_is_not_filled_is_seen() -> None:
    """What comes out in its place is a vector of another position."""
    window, row = Window(1, 3, DIM), np.array([0])
    for position in (0, 1, 2, 4, 5):
        window.put(row, np.array([position]), np.full((1, DIM), position, dtype=np.float32))
    assert window.history(row, np.array([6]))[0, :, 0].tolist() == [0, 4, 5]


def test_control_a_row_that_is_not_cleared_is_seen() -> None:
    window, row = Window(1, 3, DIM), np.array([0])
    window.put(row, np.array([2]), np.ones((1, DIM), dtype=np.float32))
    assert window.history(row, np.array([0]))[0, :, 0].tolist() == [0, 0, 1]
    window.clear(row)
    assert not window.history(row, np.array([0])).any()


def state_of(lengths: list[int], value: float, *, entered: bool) -> DecoderState:
    """A state with one block, every number of which is ``value``."""
    rows, source = len(lengths), padded_length(max(lengths))
    window = Window(rows, 3, DIM)
    window.put(np.arange(rows), np.zeros(rows, dtype=np.int64), np.full((rows, DIM), value, np.float32))
    cross = (
        np.full((rows, 1, DIM, source), value, dtype=np.float32),
        np.full((rows, 1, source, DIM), value, dtype=np.float32),
    )
    return DecoderState(
        policy=FixedDepth(1, "1"),
        memory=np.full((rows, source, DIM), value, dtype=np.float32),
        source_bias=np.full((rows, 1, 1, source), value, dtype=np.float32),
        lengths=np.array(lengths),
        blocks=[
            BlockState(
                window=window,
                filled=np.full(rows, 5),
                entered=np.full(rows, entered),
                all_entered=entered,
                cross=cross if entered else None,
            )
        ],
        copied=None,
        positions=np.full(rows, 5),
    )


@pytest.mark.parametrize("entered", [False, True])
@pytest.mark.parametrize(("lengths", "source"), [([3, 4, 2], 4), ([3, 9, 2], 12), ([20, 4, 2], 20)])
def test_adopted_rows_start_anew_and_the_others_go_on(lengths: list[int], source: int, entered: bool) -> None:
    """The source axis grows for a longer sentence, and shrinks when the longest has left."""
    state = state_of([lengths[0], 14, 2], 1, entered=True)
    other = state_of([lengths[1], lengths[2]], 2, entered=entered)
    state.adopt(np.array([1, 2]), other, np.array([0, 1]))
    assert state.lengths.tolist() == lengths
    assert state.positions.tolist() == [5, 0, 0]
    assert state.memory.shape == (3, source, DIM)
    assert state.source_bias.shape == (3, 1, 1, source)
    assert state.memory[:, 0, 0].tolist() == [1, 2, 2]
    shared = padded_length(max(lengths[1:]))
    assert (state.source_bias[1:, ..., shared:] == -np.inf).all()
    (block,) = state.blocks
    assert block.filled.tolist() == [5, 0, 0]
    assert block.entered.tolist() == [True, entered, entered]
    assert block.all_entered == entered
    assert block.cross is not None
    key, value = block.cross
    assert key.shape == (3, 1, DIM, source)
    assert value.shape == (3, 1, source, DIM)
    assert key[:, 0, 0, 0].tolist() == value[:, 0, 0, 0].tolist() == ([1, 2, 2] if entered else [1, 1, 1])
    assert block.window is not None
    assert block.window.get(np.arange(3), np.zeros(3, dtype=np.int64))[:, 0].tolist() == [1, 0, 0]


def test_source_lengths_are_padded_to_multiples_of_four() -> None:
    assert [padded_length(length) for length in (1, 4, 5, 1025)] == [4, 4, 8, 1028]


def test_exits_come_back_in_the_order_of_rows() -> None:
    exits = Exits.of_none(3, DIM)
    states = np.arange(6, dtype=np.float32).reshape(3, 2)
    exits.leave(2, np.array([1]), states[1:2], -states[1:2])
    exits.leave(3, np.array([0, 2]), states[[0, 2]], -states[[0, 2]])
    np.testing.assert_array_equal(exits.exit_states, states)
    np.testing.assert_array_equal(exits.last_states, -states)
    assert exits.depths.tolist() == [3, 2, 3]
    assert Exits.of_all(2, states, -states).depths.tolist() == [2, 2, 2]
