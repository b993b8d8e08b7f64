"""Where a step reads and writes in the state tensors: the engine's index arithmetic.

Nothing is ever moved. Each row of a batch has a ring of cells in ``states``, and for each block and
head a ring in each tensor that holds columns: of K cells for a convolution, of a window's cells for
self-attention. Position p lies in place p mod the ring's size, where it replaces the position that
has just got out of reach. Where attention reads all positions, no ring may go round: its size is a
capacity that grows with them. See ``signatures`` for the tensors' shapes.
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from edgeseq_runtime.arrays import AnyArray, FloatArray, IntArray
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.signatures import mixer_state

FIRST_CAPACITY = 16
"""Cells of a growing ring at first. A multiple of 4, and it only doubles: otherwise the last bits
of scores and their sums would depend on the capacity, hence on a row's batch mates."""

_REMEMBERED = 10_000
"""Entries after which a memo is emptied: some megabytes at usual kernel sizes."""

_LONGEST_REMEMBERED = 128
"""Positions in an entry of a memo, at most: those of rings that grow may be thousands."""


class Layout:
    """Sizes of a model's rings, and where things lie in them.

    Attributes:
        tensors: Names of the tensors that hold columns.
        places: Name of the block's input that says what lies in the places of a ring.
        ring_sizes: Cells of a ring of each block, from block 1: taps, window or capacity.
        heads: Groups of channels, each with rings of its own, H.
        reach: Cells of a row in ``states``: the current position, and all that a block may have to
            catch up with.
        grows: Whether any block reads all positions, so that they must be fewer than ``capacity``.
        capacity: Cells of the rings of such blocks.
        read_places: Gives what a block's graph takes under the name ``places``, (R, ...), of a ring's size and the
            rows' positions.
    """

    def __init__(
        self, model: ModelFacts, capacity: int = FIRST_CAPACITY, family: dict[int, "Layout"] | None = None
    ) -> None:
        """Derive them from the model's facts.

        Args:
            model: The facts.
            capacity: Cells of rings that grow.
            family: Layouts of the same model by their capacities, this one among them.
        """
        kept = mixer_state(model)
        self.tensors, self.places = kept.tensors, kept.places
        self.ring_sizes = [reach or capacity for reach in model.decoder_reaches]
        self.heads = model.mixer_heads
        self.reach = max(self.ring_sizes)
        self.grows = 0 in model.decoder_reaches
        self.capacity = capacity
        self._model = model
        self._family = {capacity: self} if family is None else family
        self.read_places = _READERS[self.places](self.heads)
        # The arithmetic on a few numbers costs as much as that on many, so its results are kept.
        self._alone: dict[tuple[int, int], tuple[IntArray, AnyArray]] = {}
        self._catch_ups: dict[tuple[int, int, int, int, int], tuple[IntArray, IntArray]] = {}

    def holding(self, longest: int) -> "Layout":
        """The layout for rows of which the farthest is at position ``longest``.

        Rings double until they hold it, and shrink once it fills less than a quarter of them: not
        sooner, or rows that come and go would have them copied to and fro.
        """
        if not self.grows or self.capacity // 4 <= longest < self.capacity:
            return self
        capacity = FIRST_CAPACITY
        while capacity <= longest:
            capacity *= 2
        if capacity not in self._family:
            self._family.setdefault(capacity, type(self)(self._model, capacity, self._family))
        return self._family[capacity]

    def column_cells(self, size: int, rows: IntArray, positions: IntArray) -> IntArray:
        """Cells of a tensor of columns, (m, H): of each row and head the position beside it."""
        row_size = self.heads * size
        first = rows * row_size + positions % size
        return first[:, None] + np.arange(0, row_size, size)

    def rings(self, size: int, positions: IntArray) -> tuple[IntArray, AnyArray]:
        """Where all rows of a batch put their new columns, and what lies in the places of their rings.

        Args:
            size: Cells of a ring.
            positions: (R,), the rows' current positions.

        Returns:
            Cells (R, H), and what the block's graph takes under the name ``places``, (R, ...).
        """
        if len(positions) > 1:
            return self._rings(size, positions)
        position = int(positions[0])
        # A ring that has gone round once looks the same at every turn.
        key = (size, position if position < size else size + position % size)
        if key not in self._alone:
            if size > _LONGEST_REMEMBERED:
                return self._rings(size, positions)
            self._alone[key] = self._rings(size, positions)
        return self._alone[key]

    def catch_up(self, size: int, row: int, position: int, gap: int) -> tuple[IntArray, IntArray]:
        """Where a row finds the copied states of its last positions, and puts the columns made of them.

        Args:
            size: Cells of a ring.
            row: The row.
            position: Its current position.
            gap: How many positions before it have no column. The newest ``size`` - 1 at most are needed.

        Returns:
            Cells of ``states`` (m,) and of the columns (m · H, 1). Not to be written to.
        """
        count = min(gap, size - 1)
        key = (size, row, position % size, position % self.reach, count)
        found = self._catch_ups.get(key)  # once: another thread may empty the memo at any moment
        if found is None:
            positions = np.arange(position - count, position)
            columns = self.column_cells(size, np.full(count, row), positions)
            found = row * self.reach + positions % self.reach, columns.reshape(-1, 1)
            if count > _LONGEST_REMEMBERED:
                return found
            if len(self._catch_ups) >= _REMEMBERED:
                self._catch_ups.clear()
            self._catch_ups[key] = found
        return found

    def _rings(self, size: int, positions: IntArray) -> tuple[IntArray, AnyArray]:
        cells = self.column_cells(size, np.arange(len(positions)), positions)
        return cells, self.read_places(size, positions)


def order_taps(kernel_size: int, heads: int) -> IntArray:
    """The tap that reads each place of a convolution's ring.

    The last tap reads the place of the current position, as the one before reads the place before.

    Args:
        kernel_size: Taps K, and cells of the ring.
        heads: H; the same for all of them.

    Returns:
        By the place of the current position, (K, 1, H, 1, K).
    """
    places = np.arange(kernel_size)
    orders = (places - places[:, None] - 1) % kernel_size  # (current place, place)
    return np.repeat(orders.reshape(kernel_size, 1, 1, 1, kernel_size), heads, axis=2)


class _TapPlaces:
    """The tap that reads each place of a convolution's ring: (R, 1, H, 1, K)."""

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self._orders: dict[int, IntArray] = {}

    def __call__(self, kernel_size: int, positions: IntArray) -> IntArray:
        if kernel_size not in self._orders:
            self._orders[kernel_size] = order_taps(kernel_size, self._heads)
        return self._orders[kernel_size].take(positions % kernel_size, axis=0)


class _PlaceBias:
    """What attention adds to the scores of a ring's places, 0 or, where no position lies yet, -inf: (R, 1, 1, 1, size).

    Attention does not ask in what order positions lie.
    """

    def __init__(self, heads: int) -> None:
        del heads  # the same for all

    def __call__(self, size: int, positions: IntArray) -> FloatArray:
        held = np.arange(size) <= positions[:, None]
        return np.where(held, np.float32(0), np.float32(-np.inf)).reshape(-1, 1, 1, 1, size)


_READERS: dict[str, Callable[[int], Callable[[int, IntArray], AnyArray]]] = {
    "tap_places": _TapPlaces,
    "place_bias": _PlaceBias,
}


class BlockPlaces(Protocol):
    """Where some rows of a batch read and write in a block above the first.

    Attributes:
        active: (n,), the rows, in order.
        next_positions: (n,), the positions after their current ones.
    """

    active: IntArray
    next_positions: IntArray

    def block_indices(self, size: int, filled: IntArray | None) -> dict[str, AnyArray]:
        """Give what the block's graph is told of places, by the names of its inputs.

        Args:
            size: Cells of one of the block's rings.
            filled: (R,), for each row the first position that has no column in the block yet; None
                where nothing is pending.
        """


class ConsecutivePlaces:
    """Places of rows that are one row at consecutive positions, each with its own copy of the past; of convolutions.

    The row j positions ahead finds what it skips in the cells of the rows before it, which run the same blocks in the
    same calls.

    Attributes:
        active: (n,), the rows, in order.
        next_positions: (n,), the positions after their current ones.
    """

    def __init__(self, layout: Layout, rows: int) -> None:
        """Make room for up to ``rows`` positions."""
        self._layout = layout
        self._rows = np.arange(rows)
        self._found: dict[tuple[int, int, int], dict[str, AnyArray]] = {}
        # What is given lies in the same arrays at every step: graphs stay bound to them.
        self._held: dict[tuple[int, int], dict[str, AnyArray]] = {}

    def begin(self, position: int, count: int) -> None:
        """Go to ``count`` positions from ``position`` on."""
        self._position = position
        self.active = self._rows[:count]
        self.next_positions = self.active + (position + 1)

    def block_indices(self, size: int, filled: IntArray | None) -> dict[str, AnyArray]:
        """Give what the block's graph is told of places; each row makes the columns of those before it, too.

        Args:
            size: Cells of one of the block's rings.
            filled: What rows skip is known without.
        """
        del filled
        count, reach = len(self.active), self._layout.reach
        # Rings look the same whenever they and the longest are at the same place.
        key = (size, self._position % math.lcm(reach, size), count)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            found = self._found[key] = self._find(size)
        held = self._held.get((size, count))
        if held is None:
            held = self._held[size, count] = {name: array.copy() for name, array in found.items()}
            return held
        for name, array in held.items():
            np.copyto(array, found[name])
        return held

    def _find(self, size: int) -> dict[str, AnyArray]:
        positions = self.active + self._position
        own_cells = self.active * self._layout.reach + positions % self._layout.reach
        row, before = np.tril_indices(len(positions), -1)
        within_reach = row - before < size
        row, before = row[within_reach], before[within_reach]
        columns = self._layout.column_cells(
            size, np.append(self.active, row), positions[np.append(self.active, before)]
        )
        return {
            "active_rows": self.active.reshape(-1, 1),
            "own_cells": own_cells.reshape(-1, 1),
            "read_cells": np.append(own_cells, own_cells[before]),
            "written_columns": columns.reshape(-1, 1),
            self._layout.places: self._layout.read_places(size, positions),
        }


class StepPlaces:
    """Places of one step, for the rows that are still going up. Starts with all rows.

    What is given for all rows lies in the same arrays at every step: graphs stay bound to them.

    Attributes:
        active: (n,), the rows that are still going up, in order.
        positions: (n,), their current positions.
        own_cells: (n, 1), their cells in ``states``.
        next_positions: (n,), the positions after them.
    """

    def __init__(self, layout: Layout, positions: IntArray) -> None:
        """Start a step.

        Args:
            layout: Sizes of the rings.
            positions: (R,), current position of each row of the batch.
        """
        self._layout = layout
        self._rows = np.arange(len(positions))
        self._active_rows = self._rows.reshape(-1, 1)
        self._first_cells = self._rows * layout.reach
        # Rows, their positions, cells and next positions: one array, so that narrowing is one operation.
        self._whole_table = np.stack((self._rows, *np.empty((3, len(positions)), dtype=np.int64)))
        _, self._positions, self._read_cells, self._next_positions = self._whole_table
        self._own_cells = self._read_cells.reshape(-1, 1)
        # By ring size: of all rows, where they are of this step, and of the active rows.
        self._rings: dict[int, tuple[IntArray, AnyArray]] = {}
        self._fresh: set[int] = set()
        self._active_rings: dict[int, tuple[IntArray, AnyArray]] = {}
        self.begin(positions)

    def begin(self, positions: IntArray) -> None:
        """Start another step of the same rows, at ``positions`` (R,)."""
        self._positions[:] = positions
        np.add(self._first_cells, positions % self._layout.reach, out=self._read_cells)
        np.add(positions, 1, out=self._next_positions)
        self._fresh.clear()
        self._active_rings.clear()
        self._table = self._whole_table
        self.active, self.positions, self.own_cells = self._rows, self._positions, self._own_cells
        self.next_positions = self._next_positions
        self._whole = True

    def narrow(self, going: IntArray) -> None:
        """Go on with some of the active rows: those at the places ``going``, (m,)."""
        self._whole = False
        self._table = self._table.take(going, axis=1)
        self.active, self.positions, own_cells, self.next_positions = self._table
        self.own_cells = own_cells.reshape(-1, 1)
        self._active_rings.clear()

    def first_block_indices(self, size: int) -> dict[str, AnyArray]:
        """Give what the graph of block 1 is told of places; before any row is left out of the step.

        Args:
            size: Cells of one of the block's rings.
        """
        columns, places = self._rings_of_all(size)
        return {"own_cells": self._own_cells, "written_columns": columns, self._layout.places: places}

    def block_indices(self, size: int, filled: IntArray | None) -> dict[str, AnyArray]:
        """Give what the graph of a later block is told of places, by the names of its inputs.

        A row's positions since it last ran the block are pending: they have no columns yet. The
        call makes those within the block's reach; older ones are dropped.

        Args:
            size: Cells of one of the block's rings.
            filled: (R,), for each row the first position that has no column in the block yet; None
                where nothing is pending.
        """
        columns, places = self._rings_of_active(size)
        read_cells = self._read_cells if self._whole else self.own_cells.reshape(-1)
        if filled is not None:
            gaps = (self.positions - filled.take(self.active)).tolist()
            read, written = [read_cells], [columns]
            for row, position, gap in zip(self.active.tolist(), self.positions.tolist(), gaps, strict=True):
                if gap:
                    cells, late = self._layout.catch_up(size, row, position, gap)
                    read.append(cells)
                    written.append(late)
            if len(read) > 1:
                read_cells, columns = np.concatenate(read), np.concatenate(written)
        return {
            "active_rows": self._active_rows if self._whole else self.active.reshape(-1, 1),
            "own_cells": self.own_cells,
            "read_cells": read_cells,
            "written_columns": columns,
            self._layout.places: places,
        }

    def _rings_of_active(self, size: int) -> tuple[IntArray, AnyArray]:
        """Cells of the active rows' new columns (n · H, 1), and what lies in the places of their rings (n, ...)."""
        found = self._active_rings.get(size)
        if found is None:
            found = columns, places = self._rings_of_all(size)
            if not self._whole:
                columns = columns.reshape(len(self._rows), -1).take(self.active, axis=0).reshape(-1, 1)
                found = columns, places.take(self.active, axis=0)
            self._active_rings[size] = found
        return found

    def _rings_of_all(self, size: int) -> tuple[IntArray, AnyArray]:
        """The same of all rows."""
        if size in self._fresh:
            return self._rings[size]
        self._fresh.add(size)
        columns, places = self._layout.rings(size, self._positions)
        if size not in self._rings:
            self._rings[size] = columns.reshape(-1, 1).copy(), places.copy()
        else:
            held_columns, held_places = self._rings[size]
            np.copyto(held_columns, columns.reshape(-1, 1))
            np.copyto(held_places, places)
        return self._rings[size]
