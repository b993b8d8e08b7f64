"""Where a step reads and writes in the state tensors: the engine's index arithmetic.

Nothing is ever moved. Each row of a batch has a ring of cells in ``states``, and for each block and
head a ring of K cells in ``columns``; position p lies in place p mod the ring's size, where it
replaces the position that has just got out of reach. See ``signatures`` for the tensors' shapes.
"""

import numpy as np

from edgeseq_runtime.arrays import IntArray
from edgeseq_runtime.manifest import ModelFacts

_REMEMBERED = 10_000
"""Entries after which a memo is emptied: some megabytes at usual kernel sizes."""


class Layout:
    """Sizes of a model's rings, and where things lie in them.

    Attributes:
        kernel_sizes: K of each block, from block 1.
        heads: Groups of channels with taps of their own, H.
        reach: Cells of a row in ``states``: the current position, and all that a block may have to
            catch up with.
    """

    def __init__(self, model: ModelFacts) -> None:
        """Derive them from the model's facts."""
        self.kernel_sizes = model.decoder_kernel_sizes
        self.heads = model.convolution_heads
        self.reach = max(self.kernel_sizes)
        self._tap_orders = {size: self._order_taps(size) for size in set(self.kernel_sizes)}
        # The arithmetic on a few numbers costs as much as that on many, so its results are kept.
        self._alone: dict[tuple[int, int], tuple[IntArray, IntArray]] = {}
        self._catch_ups: dict[tuple[int, int, int, int, int], tuple[IntArray, IntArray]] = {}

    def column_cells(self, kernel_size: int, rows: IntArray, positions: IntArray) -> IntArray:
        """Cells of ``columns``, (m, H): of each row and head the position beside it."""
        size = self.heads * kernel_size
        first = rows * size + positions % kernel_size
        return first[:, None] + np.arange(0, size, kernel_size)

    def rings(self, kernel_size: int, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Where all rows of a batch put their new columns, and in what order their taps read the rings.

        Args:
            kernel_size: K.
            positions: (R,), the rows' current positions.

        Returns:
            Cells of ``columns`` (R, H), and for each place of a ring the tap that reads it (R, H, K).
        """
        if len(positions) > 1:
            return self._rings(kernel_size, positions)
        key = (kernel_size, int(positions[0]) % kernel_size)
        if key not in self._alone:
            self._alone[key] = self._rings(kernel_size, positions)
        return self._alone[key]

    def catch_up(self, kernel_size: int, row: int, position: int, gap: int) -> tuple[IntArray, IntArray]:
        """Where a row finds the copied states of its last positions, and puts the columns made of them.

        Args:
            kernel_size: K.
            row: The row.
            position: Its current position.
            gap: How many positions before it have no column. The newest K - 1 at most are needed.

        Returns:
            Cells of ``states`` (m,) and of ``columns`` (m · H, 1). Not to be written to.
        """
        count = min(gap, kernel_size - 1)
        key = (kernel_size, row, position % kernel_size, position % self.reach, count)
        found = self._catch_ups.get(key)  # once: another thread may empty the memo at any moment
        if found is None:
            if len(self._catch_ups) >= _REMEMBERED:
                self._catch_ups.clear()
            positions = np.arange(position - count, position)
            columns = self.column_cells(kernel_size, np.full(count, row), positions)
            found = row * self.reach + positions % self.reach, columns.reshape(-1, 1)
            self._catch_ups[key] = found
        return found

    def _rings(self, kernel_size: int, positions: IntArray) -> tuple[IntArray, IntArray]:
        cells = self.column_cells(kernel_size, np.arange(len(positions)), positions)
        return cells, self._tap_orders[kernel_size].take(positions % kernel_size, axis=0)

    def _order_taps(self, kernel_size: int) -> IntArray:
        """By the place of the current position, which the last tap reads, as the one before reads the place before."""
        places = np.arange(kernel_size)
        orders = (places - places[:, None] - 1) % kernel_size  # (current place, place)
        return np.repeat(orders[:, None], self.heads, axis=1)


class StepPlaces:
    """Places of one step, for the rows that are still going up. Starts with all rows.

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
        self._all_positions = positions
        # By kernel size: of all rows, and of the active ones.
        self._rings: dict[int, tuple[IntArray, IntArray]] = {}
        self._active_rings: dict[int, tuple[IntArray, IntArray]] = {}
        rows = np.arange(len(positions))
        self._take(np.stack((rows, positions, rows * layout.reach + positions % layout.reach, positions + 1)))

    def _take(self, table: IntArray) -> None:
        self._table = table  # one array, so that narrowing is one operation
        self.active, self.positions, own_cells, self.next_positions = table
        self.own_cells = own_cells.reshape(-1, 1)

    def narrow(self, going: IntArray) -> None:
        """Go on with some of the active rows: those at the places ``going``, (m,)."""
        self._take(self._table.take(going, axis=1))
        self._active_rings.clear()

    def block_indices(self, kernel_size: int, filled: IntArray) -> dict[str, IntArray]:
        """Give the indices of a block's graph, by the names of its inputs.

        A row's positions since it last ran the block are pending: they have no columns yet. The
        call makes those within the convolution's reach; older ones are dropped.

        Args:
            kernel_size: K of the block.
            filled: (R,), for each row the first position that has no column in the block yet.
        """
        columns, taps = self._rings_of_active(kernel_size)
        read, written = [self.own_cells.reshape(-1)], [columns]
        gaps = self.positions - filled.take(self.active)
        behind = gaps.nonzero()[0].tolist()
        for index in behind:
            row, position = self.active.item(index), self.positions.item(index)
            cells, columns = self._layout.catch_up(kernel_size, row, position, gaps.item(index))
            read.append(cells)
            written.append(columns)
        return {
            "active_rows": self.active.reshape(-1, 1),
            "own_cells": self.own_cells,
            "read_cells": np.concatenate(read) if behind else read[0],
            "written_columns": np.concatenate(written) if behind else written[0],
            "tap_places": taps,
        }

    def _rings_of_active(self, kernel_size: int) -> tuple[IntArray, IntArray]:
        """Cells of the active rows' new columns (n · H, 1), and the order of their taps (n, H, K)."""
        if kernel_size not in self._active_rings:
            if kernel_size not in self._rings:
                self._rings[kernel_size] = self._layout.rings(kernel_size, self._all_positions)
            columns, taps = self._rings[kernel_size]
            if len(self.active) < len(columns):
                columns, taps = columns.take(self.active, axis=0), taps.take(self.active, axis=0)
            self._active_rings[kernel_size] = columns.reshape(-1, 1), taps
        return self._active_rings[kernel_size]
