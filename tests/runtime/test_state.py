"""Rows and their state: moving data about must never change what a row remembers."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.places import Layout, StepPlaces
from edgeseq_runtime.policy import FixedDepth
from edgeseq_runtime.state import BlockState, DecoderState, padded_length
from tiny_bundle import tiny_facts

DIM, HEADS = 4, 2
REACHES = [3, 5, 1, 4]
FACTS = tiny_facts(dim=DIM, convolution_heads=HEADS, decoder_reaches=REACHES)
LAYOUT = Layout(FACTS)
ATTENTION = Layout(tiny_facts(dim=DIM, heads=HEADS, mixer="attention", glu=False, decoder_reaches=[0, 5, 20, 0]))
FACTORS = {"columns": -2, "keys": 3, "values": -5}
"""What the graphs of these tests make of a state: a multiple of it, for each tensor of columns."""
LONGEST = 18


def limit_of(sentence: int) -> int:
    """Greatest depth of a sentence's tokens, by its number."""
    return sentence % 4 + 1


class Limiting(FixedDepth):
    """Gives each sentence a limit of its own."""

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        return np.array([limit_of(int(row[0, 0])) for row in memory])


LIMITING = Limiting("limiting", FACTS, 4)


class Row:
    """What the state should hold of one row.

    Attributes:
        sentence: Number of the sentence that it translates.
        length: Of that sentence's source.
        position: Of its next token.
        states: The state of each position: read by the next block, or copied.
        columns: By block, the state that each position's column is made of, where there is one.
    """

    def __init__(self, sentence: int, length: int) -> None:
        self.sentence = sentence
        self.length = length
        self.position = 0
        self.states: list[np.ndarray] = []
        self.columns: list[dict[int, np.ndarray]] = [{} for _ in REACHES]

    def copy(self) -> "Row":
        twin = Row(self.sentence, self.length)
        twin.position = self.position
        twin.states = list(self.states)
        twin.columns = [dict(columns) for columns in self.columns]
        return twin

    def window(self, block: int, size: int) -> np.ndarray:
        """What the columns of the last positions are made of, oldest first: (size, d)."""
        zero = np.zeros(DIM, dtype=np.float32)
        return np.stack([self.columns[block].get(p, zero) for p in range(self.position - size + 1, self.position + 1)])


def sentences(rows: list[Row], layout: Layout = LAYOUT) -> DecoderState:
    """A state before the start. All numbers of a row's source are the sentence's number."""
    lengths = np.array([row.length for row in rows])
    source = padded_length(int(lengths.max()))
    numbers = np.array([row.sentence for row in rows], dtype=np.float32)
    shown = np.arange(source) < lengths[:, None]
    memory = np.where(shown[..., None], numbers[:, None, None], np.float32(0)) + np.zeros(DIM, np.float32)
    bias = np.where(shown, np.float32(0), np.float32(-np.inf)).reshape(len(rows), 1, 1, source)
    return DecoderState.before_start(layout, LIMITING, memory, bias, lengths, numbers.astype(np.int64), 5)


def cross_of(state: DecoderState) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values (one attention head) whose numbers are those of the memory."""
    return state.memory.transpose(0, 2, 1)[:, None].copy(), state.memory[:, None].copy()


def step(state: DecoderState, rows: list[Row], generator: np.random.Generator) -> None:
    """What the engine and its graphs do, with random numbers for results; ``rows`` goes along."""
    state.fit_rings()
    places = StepPlaces(state.layout, state.positions)
    vectors = generator.standard_normal((len(rows), DIM)).astype(np.float32)
    state.states[places.own_cells[:, 0]] = vectors
    for row, vector in zip(rows, vectors, strict=True):
        row.states.append(vector)
    for block, (past, size) in enumerate(zip(state.blocks, state.layout.ring_sizes, strict=True)):
        if block:
            going = generator.random(len(places.active)) < 0.5
            if not going.any():
                break
            places.narrow(going.nonzero()[0])
        indices = run_block(state, block, places)
        vectors = generator.standard_normal((len(places.active), DIM)).astype(np.float32)
        for index, (number, vector) in enumerate(zip(places.active.tolist(), vectors, strict=True)):
            row = rows[number]
            for position in range(max(0, row.position - size + 1), row.position + 1):
                row.columns[block].setdefault(position, row.states[position])
            assert past.filled[number] == row.position + 1
            check_rings(past, number, index, indices, row.window(block, size))
            row.states[-1] = vector
        state.states[places.own_cells[:, 0]] = vectors
    state.positions = state.positions + 1
    for each in rows:
        each.position += 1


def run_block(state: DecoderState, block: int, places: StepPlaces) -> dict[str, np.ndarray]:
    """Write the columns that a block's graph writes; give what it is told of places."""
    past = state.blocks[block]
    indices = places.block_indices(state.layout.ring_sizes[block], past.filled)
    read = state.states[indices["read_cells"]].reshape(-1, DIM // HEADS)
    for name, tensor in past.tensors.items():
        tensor[indices["written_columns"][:, 0]] = FACTORS[name] * read
    past.filled[places.active] = places.positions + 1
    return indices


def check_rings(past: BlockState, row: int, index: int, indices: dict[str, np.ndarray], window: np.ndarray) -> None:
    """What a row reads of its rings is what its last positions' columns are made of, (size, d)."""
    size = len(window)
    if "tap_places" in indices:
        order = np.argsort(indices["tap_places"][index, 0, 0, 0])
    else:
        # Newest first, as many as are read, wherever the newest lies.
        held = int((indices["place_bias"][index] == 0).sum())
        newest = int(past.filled[row]) - 1
        order = np.arange(newest - held + 1, newest + 1) % size
        assert sorted(order.tolist()) == np.flatnonzero(indices["place_bias"][index] == 0).tolist()
        window = window[size - held :]
    for name, tensor in past.tensors.items():
        rings = tensor.reshape(len(past.filled), HEADS, size, -1)
        found = rings[row][:, order].transpose(1, 0, 2).reshape(-1, DIM)
        np.testing.assert_array_equal(found, FACTORS[name] * window)


def check_sources(state: DecoderState, rows: list[Row]) -> None:
    """Each row attends to the whole of its own sentence and to nothing else."""
    assert state.rows == len(rows)
    assert state.lengths.tolist() == [row.length for row in rows]
    assert state.sentences.tolist() == [row.sentence for row in rows]
    assert state.limits.tolist() == [limit_of(row.sentence) for row in rows]
    assert state.positions.tolist() == [row.position for row in rows]
    source = state.memory.shape[1]
    assert source % 4 == 0
    assert state.source_bias.shape == (len(rows), 1, 1, source)
    for number, row in enumerate(rows):
        shown = np.arange(source) < row.length
        assert shown.sum() == row.length
        np.testing.assert_array_equal(state.source_bias[number, 0, 0], np.where(shown, 0, -np.inf))
        np.testing.assert_array_equal(state.memory[number, :, 0], np.where(shown, row.sentence, 0))
        for past in state.blocks:
            assert past.all_entered <= bool(past.entered.all())
            if past.entered[number]:
                assert past.cross is not None
                key, value = past.cross
                np.testing.assert_array_equal(key[number, 0, 0], state.memory[number, :, 0])
                np.testing.assert_array_equal(value[number, 0, :, 0], state.memory[number, :, 0])


def walk(seed: int, steps: int = 40, layout: Layout = LAYOUT) -> None:
    """Rows at positions of their own, dropped, repeated, reordered, and given to other sentences."""
    generator = np.random.default_rng(seed)
    numbers = iter(range(1, 1000))

    def begin(count: int) -> list[Row]:
        return [Row(next(numbers), int(generator.integers(1, LONGEST))) for _ in range(count)]

    rows = begin(int(generator.integers(1, 5)))
    state = sentences(rows, layout)
    for _ in range(steps):
        if generator.random() < 0.15:
            parents = generator.integers(0, len(rows), generator.integers(1, 6))
            state.select(parents)
            rows = [rows[parent].copy() for parent in parents]
        if generator.random() < 0.15:
            free = np.flatnonzero(generator.random(len(rows)) < 0.5)
            new = begin(len(free) + 1)
            other = sentences(new, layout)
            for past in other.blocks[: generator.integers(0, 5)]:
                past.cross = cross_of(other)
                past.entered[:] = True
            chosen = generator.integers(0, len(new), len(free))  # hypotheses of a sentence are several rows
            state.adopt(free, other, chosen)
            for index, number in zip(free.tolist(), chosen.tolist(), strict=True):
                rows[index] = new[number].copy()
        if generator.random() < 0.2:
            past = state.blocks[generator.integers(0, 4)]
            past.cross = cross_of(state)
            past.entered |= generator.random(len(rows)) < 0.7
            past.all_entered = bool(past.entered.all())
        check_sources(state, rows)
        step(state, rows, generator)


def walk_often() -> None:
    """What one walk does not come across, another does."""
    for seed in range(20):
        walk(seed)
        walk(seed, layout=ATTENTION)


@pytest.mark.parametrize("layout", [LAYOUT, ATTENTION], ids=["convolution", "attention"])
@given(seed=st.integers(0, 10_000))
def test_state_equals_a_list_of_rows(layout: Layout, seed: int) -> None:
    """What is read of the rings is what a dictionary of columns holds."""
    walk(seed, layout=layout)


def test_rings_of_the_walk_grow_and_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the property above would say little of rings that hold all positions."""
    original = BlockState.resize_rings
    sizes: list[tuple[int, int]] = []

    def resize(self: BlockState, size: int, new_size: int) -> None:
        sizes.append((size, new_size))
        original(self, size, new_size)

    monkeypatch.setattr(BlockState, "resize_rings", resize)
    walk_often()
    assert {(16, 32), (32, 64), (32, 16)} <= set(sizes)


@pytest.mark.parametrize("name", ["keys", "values", "states"])
def test_control_rings_that_are_not_moved_when_they_grow_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of the new size, but everything where it was."""
    kind: type[DecoderState | BlockState] = DecoderState if name == "states" else BlockState
    method = "fit_rings" if name == "states" else "resize_rings"
    original = getattr(kind, method)

    def tensors_of(state: DecoderState | BlockState) -> dict[str, np.ndarray]:
        return {"states": state.states} if isinstance(state, DecoderState) else state.tensors

    def resize(self: DecoderState | BlockState, *arguments: int) -> None:
        before = tensors_of(self)[name]
        original(self, *arguments)
        after = tensors_of(self)[name]
        if after is not before:
            after[:] = np.resize(before, after.shape)

    monkeypatch.setattr(kind, method, resize)
    with pytest.raises(AssertionError):
        walk_often()


def test_all_rings_follow_the_farthest_row() -> None:
    """By hand, at the boundary: 16 cells hold positions up to 15; a quarter full, they shrink."""
    state = sentences([Row(1, 3), Row(2, 3)], ATTENTION)
    for farthest, capacity in ((0, 16), (15, 16), (16, 32), (31, 32), (32, 64), (16, 64), (15, 16), (100, 128)):
        state.positions = np.array([0, farthest])
        state.fit_rings()
        assert len(state.states) == 2 * max(capacity, 20)
        sizes = [len(past.tensors[name]) // (2 * HEADS) for past in state.blocks for name in ("keys", "values")]
        assert sizes == [capacity, capacity, 5, 5, 20, 20, capacity, capacity]
    held = state.blocks[0].tensors["keys"]
    state.fit_rings()
    assert state.blocks[0].tensors["keys"] is held, "nothing is copied where the size stays"


def keep(kind: type[DecoderState | BlockState], method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an attribute be what it was before each call of a method that selects rows, but for the number of rows."""
    original = getattr(kind, method)

    def select(self: DecoderState | BlockState, rows: np.ndarray) -> None:
        before = getattr(self, name)
        original(self, rows)
        if isinstance(self, BlockState) and name == "tensors":
            self.tensors = {key: np.resize(tensor, self.tensors[key].shape) for key, tensor in before.items()}
        elif isinstance(before, np.ndarray):
            setattr(self, name, np.resize(before, getattr(self, name).shape))
        elif before is not None:
            setattr(self, name, tuple(np.resize(array, (len(rows), *array.shape[1:])) for array in before))

    monkeypatch.setattr(kind, method, select)


@pytest.mark.parametrize(
    ("kind", "method", "name"),
    [
        (DecoderState, "select", "states"),
        (DecoderState, "select", "positions"),
        (DecoderState, "_select_sources", "memory"),
        (DecoderState, "_select_sources", "limits"),
        (BlockState, "select", "tensors"),
        (BlockState, "select", "filled"),
        (BlockState, "select_sources", "entered"),
        (BlockState, "select_sources", "cross"),
    ],
)
def test_control_what_is_not_selected_is_seen(
    kind: type[DecoderState | BlockState], method: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(kind, method, name, monkeypatch)
    with pytest.raises(AssertionError):
        walk_often()


def test_control_rows_that_are_not_overwritten_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockState, "overwrite", lambda *_: None)
    with pytest.raises(AssertionError):
        walk_often()


def test_as_many_rows_stay_in_the_same_memory() -> None:
    """Graphs are bound to it, and what is not overwritten is not copied."""
    state = sentences([Row(1, 6)] * 3)
    held = [state.states, state.exit_states, state.filled, *(past.tensors["columns"] for past in state.blocks)]
    state.select(np.array([2, 1, 0]))
    now = [state.states, state.exit_states, state.filled, *(past.tensors["columns"] for past in state.blocks)]
    assert all(after is before for after, before in zip(now, held, strict=True))


def test_control_sources_that_stay_where_another_sentence_comes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = DecoderState.select

    def select(self: DecoderState, rows: np.ndarray) -> None:
        real = self.sentences[rows]
        self.sentences = np.zeros_like(self.sentences)
        original(self, rows)
        self.sentences = real

    monkeypatch.setattr(DecoderState, "select", select)
    with pytest.raises(AssertionError):
        walk_often()


def test_hypotheses_that_change_places_leave_their_sentence_where_it_is() -> None:
    """The arrays that hold sources are the largest: none of them is copied."""
    rows = [Row(1, 6), Row(1, 6), Row(2, 3), Row(2, 3)]
    state = sentences(rows)
    for past in state.blocks:
        past.cross = cross_of(state)
        past.entered[:] = past.all_entered = True
    held = [state.memory, state.source_bias, *(array for past in state.blocks for array in past.cross or ())]
    state.states[:, 0] = np.arange(len(state.states))
    state.positions = np.array([3, 4, 5, 6])
    state.select(np.array([1, 0, 3, 3]))
    assert state.positions.tolist() == [4, 3, 6, 6]
    assert (state.states[:: LAYOUT.reach, 0] / LAYOUT.reach).tolist() == [1, 0, 3, 3]
    now = [state.memory, state.source_bias, *(array for past in state.blocks for array in past.cross or ())]
    assert all(after is before for after, before in zip(now, held, strict=True))


@pytest.mark.parametrize("name", ["tensors", "entered"])
def test_control_what_is_not_taken_back_to_the_start_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BlockState.adopt

    def adopt(self: BlockState, rows: np.ndarray, other: BlockState, other_rows: np.ndarray) -> None:
        before = copy.deepcopy(getattr(self, name))
        original(self, rows, other, other_rows)
        setattr(self, name, before)

    monkeypatch.setattr(BlockState, "adopt", adopt)
    with pytest.raises(AssertionError):
        walk_often()


def test_control_limits_of_the_sentence_before_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = DecoderState.adopt

    def adopt(self: DecoderState, rows: np.ndarray, other: DecoderState, other_rows: np.ndarray) -> None:
        before = self.limits.copy()
        original(self, rows, other, other_rows)
        self.limits[:] = before

    monkeypatch.setattr(DecoderState, "adopt", adopt)
    with pytest.raises(AssertionError):
        walk_often()


def test_control_a_bias_that_is_not_resized_as_the_memory_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = DecoderState.resize_source

    def resize(self: DecoderState, length: int) -> None:
        original(self, length)
        self.source_bias[np.isneginf(self.source_bias)] = 0

    monkeypatch.setattr(DecoderState, "resize_source", resize)
    with pytest.raises(AssertionError):
        walk_often()


@pytest.mark.parametrize("entered", [False, True])
def test_adopted_rows_start_anew_and_the_others_go_on(entered: bool) -> None:
    state, other = sentences([Row(1, 14), Row(2, 3), Row(3, 2)]), sentences([Row(4, 5), Row(5, 9)])
    state.positions[:] = 5
    for each, value in ((state, True), (other, entered)):
        for past in each.blocks:
            past.tensors["columns"][:] = 1
            past.filled[:] = 5
            past.entered[:] = past.all_entered = value
            past.cross = cross_of(each) if value else None
    state.adopt(np.array([1, 2]), other, np.array([1, 0]))
    assert state.lengths.tolist() == [14, 9, 5]
    assert state.positions.tolist() == [5, 0, 0]
    assert state.limits.tolist() == [limit_of(1), limit_of(5), limit_of(4)]
    assert state.memory[:, 0, 0].tolist() == [1, 5, 4]
    for past in state.blocks:
        assert past.filled.tolist() == [5, 0, 0]
        assert past.entered.tolist() == [True, entered, entered]
        assert past.all_entered == entered
        assert past.tensors["columns"].reshape(3, -1).min(axis=1).tolist() == [1, 0, 0]
        assert past.tensors["columns"].reshape(3, -1).max(axis=1).tolist() == [1, 0, 0]
        assert past.cross is not None
        assert past.cross[0][:, 0, 0, 0].tolist() == ([1, 5, 4] if entered else [1, 2, 3])


@pytest.mark.parametrize(
    ("length", "source"),
    [(1, 8), (8, 8), (9, 12), (16, 16), (17, 20), (40, 40)],
)
def test_the_source_axis_follows_the_longest_sentence(length: int, source: int) -> None:
    """It grows for a longer one and shrinks when the longest has left; where it fits, nothing is copied."""
    state = sentences([Row(1, 16), Row(2, 7)])
    for past in state.blocks:
        past.cross = cross_of(state)
        past.entered[:] = past.all_entered = True
    memory = state.memory
    rows = [Row(3, length), Row(2, 7)]
    state.adopt(np.array([0]), sentences(rows[:1]), np.array([0]))
    assert state.memory.shape == (2, source, DIM)
    assert (state.memory is memory) == (source == 16)
    for past in state.blocks:
        assert past.cross is not None
        assert past.cross[0].shape == (2, 1, DIM, source)
        assert past.cross[1].shape == (2, 1, source, DIM)
    check_sources(state, rows)


def test_arrays_stay_contiguous() -> None:
    """The engine binds graphs to their memory."""
    state = sentences([Row(1, 6), Row(2, 10)])
    for past in state.blocks:
        past.cross = cross_of(state)
        past.entered[:] = True
    for change in (
        lambda: state.select(np.array([1, 0, 1])),
        lambda: state.adopt(np.array([2]), sentences([Row(3, 20)]), np.array([0])),
        lambda: state.adopt(np.array([0, 2]), sentences([Row(3, 2)]), np.array([0, 0])),
        lambda: state.select(np.array([1])),
    ):
        change()
        arrays = [state.states, state.exit_states, state.memory, state.source_bias]
        for past in state.blocks:
            arrays += [*past.tensors.values(), *(past.cross or ())]
        for array in arrays:
            assert array.flags.c_contiguous
            assert array.dtype == np.float32


def test_source_lengths_are_padded_to_multiples_of_four() -> None:
    assert [padded_length(length) for length in (1, 4, 5, 1025)] == [4, 4, 8, 1028]
