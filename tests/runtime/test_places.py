"""Where steps read and write, against a simulation that names what lies in every cell."""

import copy
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime import places as places_module
from edgeseq_runtime.places import Layout, StepPlaces
from tiny_bundle import tiny_facts

HEADS = 4
KERNEL_SIZES = [[3, 5, 1, 7], [1], [1, 1, 6], [4, 2], [9, 3, 3, 3]]
WINDOWS = [[3, 5, 1, 7], [0, 0, 0], [5, 0, 2, 40]]
STACKS = [*(("dynamic", sizes) for sizes in KERNEL_SIZES), *(("attention", sizes) for sizes in WINDOWS)]

Indices = dict[str, np.ndarray]


class Simulation:
    """Rows of a batch in plain Python. A cell holds the name of what was written there last.

    Attributes:
        positions: Current position of each row.
        filled: By block, of each row the first position without a column, as the engine counts it.
        states: By cell, the row and position whose state it is.
        columns: By block and cell, the row, head and position whose column it is.
        made: By block and row, the positions that ever got a column.
        catches_up: How many columns were made late.
        grown: How often rings got another size.
    """

    def __init__(self, layout: Layout, rows: int) -> None:
        self.layout = layout
        self.positions = [0] * rows
        self.reaches = [reach or 10_000 for reach in layout._model.decoder_reaches]
        self.grown = 0
        self.filled = [[0] * rows for _ in self.reaches]
        self.states: dict[int, tuple[int, int]] = {}
        self.columns: list[dict[int, tuple[int, int, int]]] = [{} for _ in self.reaches]
        self.made: list[list[set[int]]] = [[set() for _ in range(rows)] for _ in self.reaches]
        self.catches_up = 0

    def begin_anew(self, row: int) -> None:
        """Give the row to another sentence, which clears its columns and leaves its states."""
        self.positions[row] = 0
        for block, _ in enumerate(self.filled):
            self.filled[block][row] = 0
            self.made[block][row] = set()
            self.columns[block] = {cell: name for cell, name in self.columns[block].items() if name[0] != row}

    def step(self, depths: list[int]) -> None:
        """Take each row to its depth and check all indices on the way."""
        rows = len(depths)
        self._fit()
        places = StepPlaces(self.layout, np.array(self.positions))
        own = places.own_cells[:, 0].tolist()
        assert len(set(own)) == rows
        self.states.update(zip(own, enumerate(self.positions), strict=True))
        for block, size in enumerate(self.layout.ring_sizes, start=1):
            going = np.array([depths[row] >= block for row in places.active])
            if not going.any():
                break
            if not going.all():
                places.narrow(going.nonzero()[0])
            active = [row for row in range(rows) if depths[row] >= block]
            assert places.active.tolist() == active
            assert places.positions.tolist() == [self.positions[row] for row in active]
            indices = places.block_indices(size, np.array(self.filled[block - 1]))
            self._check_block(block - 1, size, active, indices)
        self.positions = [position + 1 for position in self.positions]

    def _fit(self) -> None:
        """Take the layout that holds the farthest row, and move everything to where it has it."""
        old, new = self.layout, self.layout.holding(max(self.positions))
        if new is old:
            return
        self.layout = new
        self.grown += 1
        self.states = {
            row * new.reach + position: (row, position)
            for row, position in self.states.values()
            if position < new.reach
        }
        for block, (size, new_size) in enumerate(zip(old.ring_sizes, new.ring_sizes, strict=True)):
            self.columns[block] = {
                cell // size * new_size + cell % size: name
                for cell, name in self.columns[block].items()
                if cell % size < new_size
            }

    def _check_block(self, block: int, size: int, active: list[int], indices: Indices) -> None:
        check_form(indices)
        assert indices["active_rows"][:, 0].tolist() == active
        now = [(row, self.positions[row]) for row in active]
        assert [self.states.get(cell) for cell in indices["own_cells"][:, 0].tolist()] == now
        pending = [pair for row in active for pair in self._pending(block, row)]
        # The active rows' own states first, then the copied ones, row by row, oldest first.
        assert [self.states.get(cell) for cell in indices["read_cells"].tolist()] == now + pending
        written = indices["written_columns"][:, 0].tolist()
        names = [(row, head, position) for row, position in now + pending for head in range(HEADS)]
        assert len(set(written)) == len(written) == len(names)
        self.columns[block].update(zip(written, names, strict=True))
        for row, position in now + pending:
            assert position not in self.made[block][row]
            self.made[block][row].add(position)
            self.filled[block][row] = self.positions[row] + 1
        self.catches_up += len(pending)
        if "tap_places" in indices:
            self._check_taps(block, size, active, indices["tap_places"][:, 0, :, 0])
        else:
            self._check_bias(block, size, active, indices["place_bias"])

    def _pending(self, block: int, row: int) -> list[tuple[int, int]]:
        position = self.positions[row]
        reach = range(max(0, position - self.reaches[block] + 1), position)
        return [(row, earlier) for earlier in reach if earlier not in self.made[block][row]]

    def _check_taps(self, block: int, kernel_size: int, active: list[int], taps: np.ndarray) -> None:
        """In the order of its taps, a row's ring holds its last K columns: the last tap reads the newest."""
        assert taps.shape == (len(active), HEADS, kernel_size)
        for index, row in enumerate(active):
            newest = self.positions[row]
            for head in range(HEADS):
                first = (row * HEADS + head) * kernel_size
                ring = [self.columns[block].get(first + place) for place in range(kernel_size)]
                by_tap = dict(zip(taps[index, head].tolist(), ring, strict=True))
                expected = [
                    (row, head, position) if position >= 0 else None
                    for position in range(newest - kernel_size + 1, newest + 1)
                ]
                assert [by_tap[tap] for tap in range(kernel_size)] == expected

    def _check_bias(self, block: int, size: int, active: list[int], bias: np.ndarray) -> None:
        """What attention reads of a row's ring is its last positions, each once, and nothing else."""
        assert bias.shape == (len(active), 1, 1, 1, size)
        assert set(bias.ravel().tolist()) <= {0.0, -np.inf}
        for index, row in enumerate(active):
            newest = self.positions[row]
            for head in range(HEADS):
                first = (row * HEADS + head) * size
                read = [self.columns[block].get(first + place) for place in np.flatnonzero(bias[index] == 0).tolist()]
                expected = [
                    (row, head, position) for position in range(max(0, newest - self.reaches[block] + 1), newest + 1)
                ]
                assert sorted(name or (-1, -1, -1) for name in read) == expected


def check_form(indices: Indices) -> None:
    """What a graph is bound to: contiguous, of the signature's types and ranks."""
    places = "tap_places" if "tap_places" in indices else "place_bias"
    ranks = {"active_rows": 2, "own_cells": 2, "read_cells": 1, "written_columns": 2, places: 5}
    assert {name: index.ndim for name, index in indices.items()} == ranks
    for name, index in indices.items():
        assert index.dtype == (np.float32 if name == "place_bias" else np.int64)
        assert index.flags.c_contiguous


def layout_of(reaches: list[int], mixer: str = "dynamic") -> Layout:
    return Layout(tiny_facts(decoder_reaches=reaches, mixer=mixer, glu=False, heads=HEADS, convolution_heads=HEADS))


def simulate(layout: Layout, seed: int) -> Simulation:
    """Some rows at random depths, mostly shallow, each beginning anew now and then."""
    generator = np.random.default_rng(seed)
    rows = 1 + seed % 4
    simulation = Simulation(layout, rows)
    shallow = generator.choice([0.2, 0.6, 0.9])
    for _ in range(40):
        for row in np.flatnonzero(generator.random(rows) < 0.05).tolist():
            simulation.begin_anew(row)
        depths = generator.integers(1, len(layout.ring_sizes) + 1, rows)
        depths[generator.random(rows) < shallow] = 1
        simulation.step(depths.tolist())
    return simulation


def simulate_often(layout: Layout) -> None:
    """One to four rows, and what one run does not come across, another does."""
    for seed in range(8):
        simulate(layout, seed)


@pytest.mark.parametrize(("mixer", "reaches"), STACKS)
@given(seed=st.integers(0, 10_000))
def test_places_equal_a_simulation(mixer: str, reaches: list[int], seed: int) -> None:
    simulate(layout_of(reaches, mixer), seed)


def test_columns_are_made_late_in_the_simulation_and_rings_grow() -> None:
    """Or the property above would say little."""
    assert simulate(layout_of([3, 5, 1, 7]), 0).catches_up > 10
    simulations = [simulate(layout_of([5, 0, 2, 40], "attention"), seed) for seed in range(8)]
    assert min(simulation.catches_up for simulation in simulations) > 10
    assert max(simulation.grown for simulation in simulations) > 2, "no ring shrank again"
    assert simulate(layout_of([3, 5, 1, 7], "attention"), 0).grown == 0


@pytest.mark.parametrize(
    ("capacity", "longest", "expected"),
    [
        (16, 0, 16), (16, 15, 16), (16, 16, 32), (16, 31, 32), (16, 32, 64), (16, 1000, 1024),
        (32, 8, 32), (32, 7, 16), (64, 16, 64), (64, 15, 16), (256, 63, 64), (256, 64, 256),
    ],
)  # fmt: skip
def test_rings_double_when_they_are_full_and_shrink_when_they_are_a_quarter_full(
    capacity: int, longest: int, expected: int
) -> None:
    layout = layout_of([0, 3], "attention").holding(capacity - 1)
    assert layout.capacity == capacity
    found = layout.holding(longest)
    assert found.ring_sizes == [expected, 3]
    assert found.reach == expected
    assert found is layout.holding(longest), "layouts are kept, with what they remember"


def test_rings_of_windows_and_convolutions_do_not_grow() -> None:
    for layout in (layout_of([3, 40], "attention"), layout_of([3, 40])):
        assert layout.holding(1000) is layout
        assert layout.ring_sizes == [3, 40]


def test_all_positions_are_caught_up_with_where_all_are_read() -> None:
    """By hand: two heads, capacity 16; position 9 with columns up to 1 needs those of 2 to 8; and 30 after growth."""
    layout = Layout(tiny_facts(mixer="attention", glu=False, heads=2, decoder_reaches=[0, 3]))
    cells, columns = layout.catch_up(16, 1, 9, 7)
    assert cells.tolist() == [16 + position for position in range(2, 9)]
    assert columns[:4, 0].tolist() == [32 + 2, 48 + 2, 32 + 3, 48 + 3]
    cells, columns = layout.holding(30).catch_up(32, 1, 30, 30)
    assert cells.tolist() == [32 + position for position in range(30)]
    assert columns[-2:, 0].tolist() == [64 + 29, 96 + 29]


def test_long_rings_and_catch_ups_are_not_remembered() -> None:
    """Their number grows with the square of the length."""
    layout = layout_of([0, 0], "attention").holding(1000)
    for position in (200, 201):
        alone = layout.rings(1024, np.array([position]))
        for one, other in zip(alone, layout.rings(1024, np.array([position, 3])), strict=True):
            np.testing.assert_array_equal(one, other[:1])
        layout.catch_up(1024, 0, position, position)
    assert not layout._alone
    assert not layout._catch_ups


def test_long_absence_is_caught_up_with_as_far_as_the_convolution_reaches() -> None:
    """By hand: K = 3, two heads, reach 5; position 9 with columns up to 1 needs those of 7 and 8."""
    layout = Layout(tiny_facts(decoder_reaches=[5, 3], convolution_heads=2))
    places = StepPlaces(layout, np.array([4, 9]))
    places.narrow(np.array([1]))
    indices = places.block_indices(3, np.array([0, 2]))
    assert indices["active_rows"].tolist() == [[1]]
    assert indices["own_cells"].tolist() == [[5 + 4]]
    assert indices["read_cells"].tolist() == [9, 5 + 2, 5 + 3]
    # Row 1 has the cells from 6: of head 0 from 6, of head 1 from 9.
    assert indices["written_columns"][:, 0].tolist() == [6 + 0, 9 + 0, 6 + 1, 9 + 1, 6 + 2, 9 + 2]
    assert indices["tap_places"].tolist() == [[[[[2, 0, 1]]] * 2]]


def test_one_tap_needs_nothing_of_the_past() -> None:
    layout = layout_of([3, 1])
    indices = StepPlaces(layout, np.array([7])).block_indices(1, np.array([0]))
    assert indices["read_cells"].tolist() == [7 % 3]
    assert indices["tap_places"].tolist() == [[[[[0]]] * HEADS]]


Break = Callable[[pytest.MonkeyPatch, Layout], None]


def break_reach(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    """One cell too few in each ring of states."""
    layout.reach -= 1


def break_catch_up(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    """One column too few."""
    original = Layout.catch_up

    def short(self: Layout, kernel_size: int, row: int, position: int, gap: int) -> tuple[np.ndarray, np.ndarray]:
        return original(self, kernel_size, row, position, max(0, min(gap, kernel_size - 2)))

    monkeypatch.setattr(Layout, "catch_up", short)


def break_places(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    """The first tap reads the newest column; attention reads the places after the newest position's."""
    original = layout.read_places
    layout.read_places = lambda size, positions: original(size, positions)[..., ::-1].copy()


def break_narrowing(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    """Rings of the rows that were active before."""
    original = StepPlaces.narrow

    def narrow(self: StepPlaces, going: np.ndarray) -> None:
        before = dict(self._active_rings)
        original(self, going)
        self._active_rings.update(before)

    monkeypatch.setattr(StepPlaces, "narrow", narrow)


def break_memo(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    """Remember by less than what the result depends on."""
    original, known = Layout.catch_up, dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]()

    def catch_up(self: Layout, kernel_size: int, row: int, position: int, gap: int) -> tuple[np.ndarray, np.ndarray]:
        key = kernel_size, row, position % kernel_size, min(gap, kernel_size - 1)
        return known.setdefault(key, original(self, kernel_size, row, position, gap))

    monkeypatch.setattr(Layout, "catch_up", catch_up)


@pytest.mark.parametrize("mixer", ["dynamic", "attention"])
@pytest.mark.parametrize("damage", [break_reach, break_catch_up, break_places, break_narrowing, break_memo])
def test_control_the_simulation_sees_damage(damage: Break, mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of([5, 5, 3, 7], mixer)
    simulate(layout, 0)
    damage(monkeypatch, layout)
    with pytest.raises(AssertionError):
        simulate_often(layout)


def test_control_the_simulation_sees_rings_that_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they have gone round, the first positions are lost."""
    monkeypatch.setattr(Layout, "holding", lambda self, longest: self)
    with pytest.raises(AssertionError):
        simulate_often(layout_of([0, 0], "attention"))


def all_catch_ups(layout: Layout) -> list[tuple[list[int], list[int]]]:
    found = []
    for position in range(1, 30):
        for gap in range(1, min(position, 9) + 1):
            for row in range(3):
                cells, columns = layout.catch_up(7, row, position, gap)
                found.append((cells.tolist(), columns[:, 0].tolist()))
    return found


def test_what_is_remembered_equals_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for the first time, again, and by a layout that forgets at once."""
    layout = layout_of([5, 7])
    first = all_catch_ups(layout)
    assert all_catch_ups(layout) == first
    monkeypatch.setattr(places_module, "_REMEMBERED", 1)
    forgetful = layout_of([5, 7])
    assert all_catch_ups(forgetful) == first
    assert len(forgetful._catch_ups) <= 1


def test_a_row_alone_has_the_places_it_has_in_a_batch() -> None:
    """Rings of single rows are remembered, those of batches computed."""
    layout = layout_of([5, 7])
    for position in [*range(12), *range(12)]:
        alone_columns, alone_taps = layout.rings(7, np.array([position]))
        columns, taps = layout.rings(7, np.array([position, 3]))
        np.testing.assert_array_equal(alone_columns, columns[:1])
        np.testing.assert_array_equal(alone_taps, taps[:1])


def test_steps_do_not_write_to_what_is_remembered() -> None:
    layout = layout_of([3, 5, 1, 7])
    simulate_often(layout)
    remembered = [*layout._alone.items(), *layout._catch_ups.items()]
    assert layout._alone
    assert layout._catch_ups
    before = copy.deepcopy(remembered)
    simulate_often(layout)
    np.testing.assert_equal(remembered, before)


def test_what_is_remembered_may_be_forgotten_at_any_moment() -> None:
    """As another thread does that empties the memo between two looks at it."""

    class Emptied(dict[Any, Any]):
        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            self.clear()
            return found

    layout = layout_of([5, 7])
    expected = all_catch_ups(layout)
    layout._catch_ups = Emptied(layout._catch_ups)
    assert all_catch_ups(layout) == expected


def test_threads_share_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while what it remembers is thrown away, here at every second question."""
    expected = all_catch_ups(layout_of([5, 7]))
    monkeypatch.setattr(places_module, "_REMEMBERED", 2)
    layout = layout_of([5, 7])
    wrong: list[object] = []

    def work() -> None:
        try:
            wrong.extend("another result" for _ in range(10) if all_catch_ups(layout) != expected)
        except KeyError as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert len(layout._catch_ups) <= 2 + len(workers)
