"""What the engine remembers of one batch while it decodes.

All of it is indexed by row, so dropping, repeating or reordering hypotheses is plain indexing.
Dimension legend: R rows, S padded source, d model width, H heads, K taps of a block.
"""

from dataclasses import dataclass

import numpy as np

from edgeseq_runtime.arrays import BoolArray, FloatArray, IntArray
from edgeseq_runtime.policy import DepthPolicy

SPARE_POSITIONS = 16
"""Positions a window takes in before it has to be moved to the front: memory against copying."""


class Window:
    """The newest vectors of each row by position, in constant memory.

    A window reaches back ``reach`` positions from the current one, and holds zeros for positions
    before the start. When it is full, the newest ``reach`` positions move to the front, once in
    SPARE_POSITIONS steps.
    """

    def __init__(self, rows: int, reach: int, dim: int) -> None:
        """Start before position 0.

        Args:
            rows: R.
            reach: Positions before the current one that are kept.
            dim: d.
        """
        self._reach = reach
        self._first = -reach
        self._array: FloatArray = np.zeros((rows, reach + SPARE_POSITIONS, dim), dtype=np.float32)
        self._history: FloatArray = np.zeros((rows, reach, dim), dtype=np.float32)

    def make_room(self, position: int) -> None:
        """Make ``position`` writable, keeping ``reach`` positions before it."""
        capacity = self._array.shape[1]
        if position - self._first < capacity:
            return
        start = position - self._reach - self._first
        kept = self._array[:, start:].copy()
        self._array[:, : kept.shape[1]] = kept
        self._first += start

    def history(self, rows: IntArray | None, position: int) -> FloatArray:
        """Vectors of the ``reach`` positions before ``position``, (rows, reach, d), oldest first.

        Args:
            rows: Which rows; None means all.
            position: The current position.

        Returns:
            Contiguous memory of this window, valid until the next call.
        """
        count = len(self._array) if rows is None else len(rows)
        history = self._history[:count]
        # Positions before the start are zeros and were never written: only the others are copied.
        live = min(position, self._reach)
        newest = slice(position - live - self._first, position - self._first)
        history[:, self._reach - live :] = self._array[slice(None) if rows is None else rows, newest]
        return history

    def write(self, rows: IntArray | None, position: int, vectors: FloatArray) -> None:
        """Store one vector per row, (rows, d); rows None means all."""
        if rows is None:
            self._array[:, position - self._first] = vectors
        else:
            self._array[rows, position - self._first] = vectors

    def gather(self, rows: IntArray, positions: IntArray) -> FloatArray:
        """Copy single vectors, (m, d): of each row the position beside it."""
        return self._array[rows, positions - self._first]

    def scatter(self, rows: IntArray, positions: IntArray, vectors: FloatArray) -> None:
        """Store single vectors, (m, d): for each row the position beside it."""
        self._array[rows, positions - self._first] = vectors

    def select(self, rows: IntArray, position: int) -> None:
        """Keep, repeat and reorder rows, moving what is in reach of ``position`` to the front."""
        start = position - self._reach
        live = self._array[rows, start - self._first : position - self._first]
        self._array = np.empty((len(rows), *self._array.shape[1:]), dtype=np.float32)
        self._array[:, : live.shape[1]] = live
        self._first = start
        if len(rows) > len(self._history):
            self._history = np.zeros((len(rows), *self._history.shape[1:]), dtype=np.float32)


@dataclass(slots=True)
class BlockState:
    """What one decoder block needs of the past. Filled in when rows first enter the block.

    Attributes:
        window: Columns of its convolution; None with one tap.
        filled: (R,), first position of each row whose column is not in the window.
        entered: (R,), rows whose source keys and values are there.
        all_entered: Whether ``entered`` is all True.
        cross: Keys (R, H, d/H, S) and values (R, H, S, d/H) of the source; None until a row enters.
    """

    window: Window | None
    filled: IntArray
    entered: BoolArray
    all_entered: bool = False
    cross: tuple[FloatArray, FloatArray] | None = None

    def select(self, rows: IntArray, position: int) -> None:
        """Keep, repeat and reorder rows."""
        if self.window is not None:
            self.window.select(rows, position)
        self.filled = self.filled[rows]
        self.entered = self.entered[rows]
        if self.cross is not None:
            key, value = self.cross
            self.cross = key.take(rows, axis=0), value.take(rows, axis=0)


@dataclass(slots=True)
class DecoderState:
    """One batch in the middle of its decoding. Made by ``Engine.encode``, advanced by its ``step``.

    Attributes:
        policy: Decides each token's depth.
        memory: (R, S, d), the encoder's output.
        source_bias: (R, 1, 1, S), 0 at source tokens, -inf at padding.
        lengths: (R,), source lengths.
        blocks: State of each decoder block, from block 1.
        copied: Each row's newest last states, from which skipped columns are made; None when
            no block above the first has a history.
        position: Target position of the next step, 0 for bos.
    """

    policy: DepthPolicy
    memory: FloatArray
    source_bias: FloatArray
    lengths: IntArray
    blocks: list[BlockState]
    copied: Window | None
    position: int = 0

    @property
    def rows(self) -> int:
        """Number of hypotheses."""
        return len(self.lengths)

    def select(self, rows: IntArray) -> None:
        """Keep, repeat and reorder hypotheses.

        Args:
            rows: For each row from now on, the row it continues.
        """
        self.memory = self.memory.take(rows, axis=0)
        self.source_bias = self.source_bias.take(rows, axis=0)
        self.lengths = self.lengths[rows]
        for block in self.blocks:
            block.select(rows, self.position)
        if self.copied is not None:
            self.copied.select(rows, self.position)


@dataclass(slots=True)
class Exits:
    """Where the rows of one step stopped, and what they left. Complete when every row has left.

    Attributes:
        exit_states: (R, d), what the exit heads read.
        last_states: (R, d), what is copied upward to the blocks that a row skipped.
        depths: (R,), the block at which each row stopped, from 1.
    """

    exit_states: FloatArray
    last_states: FloatArray
    depths: IntArray

    @classmethod
    def of_all(cls, block: int, exit_states: FloatArray, last_states: FloatArray) -> "Exits":
        """All rows stopped at the same block; the arrays are taken over, not copied."""
        depths = np.full(len(exit_states), block, dtype=np.int64)
        return cls(exit_states, last_states, depths)

    @classmethod
    def of_none(cls, rows: int, dim: int) -> "Exits":
        """No row has stopped yet."""
        return cls(
            np.empty((rows, dim), dtype=np.float32),
            np.empty((rows, dim), dtype=np.float32),
            np.zeros(rows, dtype=np.int64),
        )

    def leave(self, block: int, rows: IntArray, exit_states: FloatArray, last_states: FloatArray) -> None:
        """Record that ``rows`` stopped after ``block``; their states are (rows, d)."""
        self.exit_states[rows] = exit_states
        self.last_states[rows] = last_states
        self.depths[rows] = block
