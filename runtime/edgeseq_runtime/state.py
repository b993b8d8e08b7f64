"""What the engine remembers of one batch while it decodes.

All of it is indexed by row, and every row has its own target position. So dropping, repeating or
reordering hypotheses, and giving the row of a finished sentence to the next, are plain indexing.
Dimension legend: R rows, S padded source, d model width, H heads, K taps of a block.
"""

from dataclasses import dataclass

import numpy as np

from edgeseq_runtime.arrays import BoolArray, FloatArray, IntArray
from edgeseq_runtime.policy import DepthPolicy

SOURCE_MULTIPLE = 4
"""Source lengths are padded to a multiple of this, or the last bits would depend on padding."""


def padded_length(length: int) -> int:
    """Source length as the graphs see it."""
    return -(-length // SOURCE_MULTIPLE) * SOURCE_MULTIPLE


class Window:
    """The vectors of each row's newest ``reach`` positions: a ring per row, in constant memory.

    The vector of a position lies at the position modulo ``reach``, so it replaces the one that has
    just got out of reach, and nothing is ever moved. Before the start there are zeros.
    """

    def __init__(self, rows: int, reach: int, dim: int) -> None:
        """Start before position 0.

        Args:
            rows: R.
            reach: Positions before the current one that are kept, at least 1.
            dim: d.
        """
        self._reach = reach
        # Row p % reach: the places of positions p - reach to p - 1 in the ring.
        self._places = np.add.outer(np.arange(reach), np.arange(reach)) % reach
        self._vectors: FloatArray = np.zeros((rows * reach, dim), dtype=np.float32)

    def history(self, rows: IntArray, positions: IntArray) -> FloatArray:
        """Vectors of the ``reach`` positions before each row's current one, oldest first.

        Args:
            rows: (n,), which rows.
            positions: (n,), their current positions.

        Returns:
            A copy, (n, reach, d).
        """
        places = self._places.take(positions % self._reach, axis=0)
        return self._vectors.take(places + (rows * self._reach)[:, None], axis=0)

    def get(self, rows: IntArray, positions: IntArray) -> FloatArray:
        """Copy single vectors, (m, d): of each row the position beside it."""
        return self._vectors.take(rows * self._reach + positions % self._reach, axis=0)

    def put(self, rows: IntArray, positions: IntArray, vectors: FloatArray) -> None:
        """Store single vectors, (m, d): for each row the position beside it."""
        self._vectors[rows * self._reach + positions % self._reach] = vectors

    def select(self, rows: IntArray) -> None:
        """Keep, repeat and reorder rows."""
        dim = self._vectors.shape[1]
        kept = self._vectors.reshape(-1, self._reach, dim).take(rows, axis=0)
        self._vectors = kept.reshape(-1, dim)

    def clear(self, rows: IntArray) -> None:
        """Take rows back to before the start."""
        self._vectors.reshape(-1, self._reach, self._vectors.shape[1])[rows] = 0


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

    def select(self, rows: IntArray) -> None:
        """Keep, repeat and reorder rows."""
        if self.window is not None:
            self.window.select(rows)
        self.filled = self.filled[rows]
        self.entered = self.entered[rows]
        if self.cross is not None:
            key, value = self.cross
            self.cross = key.take(rows, axis=0), value.take(rows, axis=0)

    def adopt(self, rows: IntArray, other: "BlockState", other_rows: IntArray) -> None:
        """Take rows back to before the start, with the source of rows of another state."""
        if self.window is not None:
            self.window.clear(rows)
        self.filled[rows] = 0
        self.entered[rows] = False
        if self.cross is not None and other.cross is not None:
            for own, new in zip(self.cross, other.cross, strict=True):
                own[rows] = new[other_rows]
            self.entered[rows] = other.entered[other_rows]
        self.all_entered = bool(self.entered.all())

    def resize_source(self, length: int) -> None:
        """Cut or pad the source axis."""
        if self.cross is not None:
            key, value = self.cross
            self.cross = _resize(key, 3, length), _resize(value, 2, length)


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
        positions: (R,), target position of each row's next token, 0 for bos.
    """

    policy: DepthPolicy
    memory: FloatArray
    source_bias: FloatArray
    lengths: IntArray
    blocks: list[BlockState]
    copied: Window | None
    positions: IntArray

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
        self.positions = self.positions[rows]
        for block in self.blocks:
            block.select(rows)
        if self.copied is not None:
            self.copied.select(rows)

    def adopt(self, rows: IntArray, other: "DecoderState", other_rows: IntArray) -> None:
        """Give rows to sentences that another state has encoded and not begun to decode.

        Args:
            rows: Rows to overwrite, each once.
            other: State of the same engine; its source axis may be cut or padded.
            other_rows: For each of ``rows``, the row of ``other`` it takes.
        """
        self.lengths[rows] = other.lengths[other_rows]
        self.positions[rows] = 0
        # One source length for both; that of the longest sentence left, so it shrinks again too.
        longest = max(int(self.lengths.max()), int(other.lengths.max()))
        for state in (self, other):
            state.resize_source(padded_length(longest))
        self.memory[rows] = other.memory[other_rows]
        self.source_bias[rows] = other.source_bias[other_rows]
        for block, other_block in zip(self.blocks, other.blocks, strict=True):
            block.adopt(rows, other_block, other_rows)
        if self.copied is not None:
            self.copied.clear(rows)

    def resize_source(self, length: int) -> None:
        """Cut or pad the source axis of everything."""
        if length == self.memory.shape[1]:
            return
        self.memory = _resize(self.memory, 1, length)
        self.source_bias = _resize(self.source_bias, 3, length, fill=-np.inf)
        for block in self.blocks:
            block.resize_source(length)


def _resize(array: FloatArray, axis: int, length: int, fill: float = 0.0) -> FloatArray:
    """Cut or pad an axis at its end, into contiguous memory."""
    shape = list(array.shape)
    shape[axis] = length
    resized = np.full(shape, fill, dtype=np.float32)
    kept = (*[slice(None)] * axis, slice(min(length, array.shape[axis])))
    resized[kept] = array[kept]
    return resized


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
