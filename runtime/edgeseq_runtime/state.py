"""What the engine remembers of one batch while it decodes.

All of it is indexed by row, and every row has its own target position. So dropping, repeating or
reordering hypotheses, and giving the row of a finished sentence to the next, are plain indexing.
Dimension legend: R rows, S padded source, d model width, H heads, K taps of a block.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseq_runtime.arrays import BoolArray, FloatArray, IntArray
from edgeseq_runtime.places import Layout, StepPlaces
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.sessions import BoundGraph, OutputMemory
from edgeseq_runtime.shortlist import BatchCandidates

if TYPE_CHECKING:
    from edgeseq_runtime.row_alone import RowAlone
    from edgeseq_runtime.speculation import Speculation

SOURCE_MULTIPLE = 4
"""Source lengths are padded to a multiple of this, or the last bits would depend on padding."""


def padded_length(length: int) -> int:
    """Source length as the graphs see it."""
    return -(-length // SOURCE_MULTIPLE) * SOURCE_MULTIPLE


@dataclass(slots=True)
class BlockState:
    """What one decoder block needs of the past. Source keys and values come when rows first enter it.

    Attributes:
        tensors: What is kept of earlier positions, by the names of the graph's inputs:
            (R · H · C, d/H), per row and head a ring of C cells; zeros before the start.
        filled: (R,), first position of each row that has no column yet: a row of the batch's ``filled``.
        behind: Whether that may be a position before the current one, of any row.
        entered: (R,), rows whose source keys and values are there.
        all_entered: Whether ``entered`` is all True.
        cross: Keys (R, H, d/H, S) and values (R, H, S, d/H) of the source; None until a row enters.
    """

    tensors: dict[str, FloatArray]
    filled: IntArray
    entered: BoolArray
    behind: bool = False
    all_entered: bool = False
    cross: tuple[FloatArray, FloatArray] | None = None

    @classmethod
    def before_start(cls, layout: Layout, size: int, filled: IntArray, dim: int) -> "BlockState":
        """Nothing has run yet; a ring has ``size`` cells."""
        shape = (len(filled) * layout.heads * size, dim // layout.heads)
        return cls(
            tensors={name: np.zeros(shape, dtype=np.float32) for name in layout.tensors},
            filled=filled,
            entered=np.zeros(len(filled), dtype=np.bool_),
        )

    def start_again(self) -> None:
        """Go back to before the start, without sources; the tensors stay where they are."""
        for tensor in self.tensors.values():
            tensor.fill(0)
        self.filled.fill(0)
        self.entered.fill(False)
        self.behind = self.all_entered = False
        self.cross = None

    def select(self, rows: IntArray) -> None:
        """Keep, repeat and reorder what rows have decoded."""
        count = len(self.filled)
        self.tensors = {name: _select_cells(tensor, count, rows) for name, tensor in self.tensors.items()}
        self.filled = self.filled[rows]

    def overwrite(self, rows: IntArray, sources: IntArray) -> None:
        """Let rows have decoded what other rows have."""
        for tensor in self.tensors.values():
            _overwrite_cells(tensor, len(self.filled), rows, sources)
        self.filled[rows] = self.filled[sources]

    def resize_rings(self, size: int, new_size: int) -> None:
        """Give rings of ``size`` cells, which have not gone round, another size."""
        self.tensors = {name: _resize_rings(tensor, size, new_size) for name, tensor in self.tensors.items()}

    def select_sources(self, rows: IntArray) -> None:
        """Keep, repeat and reorder what rows have of their sources."""
        self.entered = self.entered[rows]
        if self.cross is not None:
            key, value = self.cross
            self.cross = key.take(rows, axis=0), value.take(rows, axis=0)

    def adopt(self, rows: IntArray, other: "BlockState", other_rows: IntArray) -> None:
        """Take rows back to before the start, with the source of rows of another state."""
        for tensor in self.tensors.values():
            tensor.reshape(len(self.filled), -1)[rows] = 0
        self.filled[rows] = 0
        self.entered[rows] = False
        if self.cross is not None and other.cross is not None:
            for own, new, axis in zip(self.cross, other.cross, (3, 2), strict=True):
                _replace_rows(own, rows, new, other_rows, axis)
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
        layout: Sizes of the rings, and where things lie in them.
        policy: Decides each token's depth.
        memory: (R, S, d), the encoder's output.
        source_bias: (R, 1, 1, S), 0 at source tokens, -inf at padding.
        lengths: (R,), source lengths.
        sentences: (R,), a number for the source of each row, its own among all that are encoded.
        limits: (R,), greatest depth of each row's tokens.
        positions: (R,), target position of each row's next token, 0 for bos.
        states: (R · reach, d), a ring per row: what its token's next block reads and, once it has
            stopped, the copied state of which skipped columns are made.
        exit_states: (R, d), what the exit heads read of each row's newest token.
        logits: (R, columns), memory for what they make of it: a column for each piece of the vocabulary, or for
            each candidate.
        stop_scores: (R,), memory for the products that say where tokens stop.
        filled: (N, R), for each block the first position of each row that has no column yet.
        blocks: State of each decoder block, from block 1.
        candidates: What a shortlist has chosen for the rows; None without one.
        draft_candidates: What it has chosen for drafts of the only row; None where they have the columns of others.
        bound: Graphs bound to the arrays above, made as they are needed.
        places: Of the newest step; None where rows or rings have changed since.
        alone: Takes whole steps, where there is one row from the start and the policy allows it.
        moved: Whether any array is another than in the last step that ``alone`` took.
        speculation: Drafts and verifies what ``alone`` would do, where the policy wants it.
    """

    layout: Layout
    policy: DepthPolicy
    memory: FloatArray
    source_bias: FloatArray
    lengths: IntArray
    sentences: IntArray
    limits: IntArray
    positions: IntArray
    states: FloatArray
    exit_states: FloatArray
    logits: FloatArray
    stop_scores: OutputMemory
    filled: IntArray
    blocks: list[BlockState]
    candidates: BatchCandidates | None = None
    draft_candidates: BatchCandidates | None = None
    bound: dict[tuple[str, int | None], BoundGraph] = field(default_factory=dict)
    places: StepPlaces | None = None
    alone: "RowAlone | None" = None
    moved: bool = True
    speculation: "Speculation | None" = None

    @classmethod
    def before_start(
        cls,
        layout: Layout,
        policy: DepthPolicy,
        memory: FloatArray,
        source_bias: FloatArray,
        lengths: IntArray,
        sentences: IntArray,
        vocab_size: int,
        candidates: BatchCandidates | None = None,
    ) -> "DecoderState":
        """Encoded sentences of which nothing is decoded yet."""
        rows, _, dim = memory.shape
        limits = policy.limits(memory, lengths)
        filled = np.zeros((len(layout.ring_sizes), rows), dtype=np.int64)
        return cls(
            layout=layout,
            policy=policy,
            memory=memory,
            source_bias=source_bias,
            lengths=lengths,
            sentences=sentences,
            limits=limits,
            positions=np.zeros(rows, dtype=np.int64),
            states=np.zeros((rows * layout.reach, dim), dtype=np.float32),
            exit_states=np.zeros((rows, dim), dtype=np.float32),
            logits=np.empty((rows, vocab_size if candidates is None else candidates.width), dtype=np.float32),
            stop_scores=OutputMemory(rows),
            filled=filled,
            blocks=[
                BlockState.before_start(layout, size, of_block, dim)
                for size, of_block in zip(layout.ring_sizes, filled, strict=True)
            ],
            candidates=candidates,
        )

    def start_again(
        self,
        policy: DepthPolicy,
        memory: FloatArray,
        source_bias: FloatArray,
        lengths: IntArray,
        sentences: IntArray,
        candidates: BatchCandidates | None = None,
    ) -> None:
        """Take other sentences, as many as before, and decode them from the start in the same memory.

        Graphs stay bound to it, which spares a sentence alone a twentieth of its time. Not for rings that grow.
        """
        self.policy = policy
        self.memory, self.source_bias = memory, source_bias
        self.lengths, self.sentences = lengths, sentences
        self.limits = policy.limits(memory, lengths)
        self.positions = np.zeros_like(lengths)
        self.candidates, self.draft_candidates = candidates, None
        if candidates is not None and candidates.width != self.logits.shape[1]:
            self.logits = np.empty((self.rows, candidates.width), dtype=np.float32)
        for block in self.blocks:
            block.start_again()
        self.moved = True

    def repeated(self, count: int) -> "DecoderState":
        """Room for ``count`` copies of the only row, of which nothing is decoded yet."""
        memory = np.broadcast_to(self.memory, (count, *self.memory.shape[1:]))
        lengths, sentences = self.lengths.repeat(count), self.sentences.repeat(count)
        return DecoderState.before_start(
            self.layout, self.policy, memory, self.source_bias, lengths, sentences, self.logits.shape[1]
        )

    def repeat_source(self, other: "DecoderState", above: int) -> None:
        """Let all rows have the source of another state's only row, in the blocks above one, which it has entered."""
        self.source_bias = other.source_bias.repeat(self.rows, axis=0)
        for past, given in zip(self.blocks[above:], other.blocks[above:], strict=True):
            assert given.cross is not None
            key, value = given.cross
            past.cross = key.repeat(self.rows, axis=0), value.repeat(self.rows, axis=0)
            past.all_entered = True
        if other.candidates is not None:
            self.candidates = other.candidates.repeated(self.rows)
            if self.logits.shape[1] != self.candidates.width:
                self.logits = np.empty((self.rows, self.candidates.width), dtype=np.float32)

    @property
    def rows(self) -> int:
        """Number of hypotheses."""
        return len(self.lengths)

    @property
    def candidate_ids(self) -> IntArray | None:
        """(R, columns), the piece of each column of the logits; None where there is one for every piece."""
        return None if self.candidates is None else self.candidates.ids

    def begin_step(self) -> StepPlaces:
        """Places of a step at the rows' current positions."""
        if self.places is None:
            self.places = StepPlaces(self.layout, self.positions)
        else:
            self.places.begin(self.positions)
        return self.places

    def skip_blocks_above(self, block: int) -> None:
        """Note that some row stops after a block, and leaves a position without columns in all above."""
        for past in self.blocks[block:]:
            past.behind = True

    def select(self, rows: IntArray) -> None:
        """Keep, repeat and reorder hypotheses.

        Args:
            rows: For each row from now on, the row it continues.
        """
        if len(rows) != self.rows:
            self._select_other_number(rows)
            self._select_sources(rows)
            return
        # Half the hypotheses of a beam continue where they are; and graphs stay bound to arrays that stay.
        changed = (rows != np.arange(self.rows)).nonzero()[0]
        if not len(changed):
            return
        sources = rows[changed]
        _overwrite_cells(self.states, self.rows, changed, sources)
        self.exit_states[changed] = self.exit_states.take(sources, axis=0)
        self.positions = self.positions[rows]
        for block in self.blocks:
            block.overwrite(changed, sources)
        # Hypotheses that change places within their sentence leave its keys and values where they are.
        if (self.sentences[sources] != self.sentences[changed]).any():
            self._select_sources(rows)

    def _select_other_number(self, rows: IntArray) -> None:
        """Keep, repeat and reorder what has been decoded, for more or fewer rows than there are."""
        self.moved = True
        self.places = None
        self.speculation = None  # it holds tensors that are replaced here
        if self.alone is not None:  # on it goes block by block, as there is more than one row or none
            self.alone = None
            self.skip_blocks_above(0)
        self.logits = np.empty((len(rows), self.logits.shape[1]), dtype=np.float32)
        self.stop_scores = OutputMemory(len(rows))
        self.states = _select_cells(self.states, self.rows, rows)
        self.exit_states = self.exit_states.take(rows, axis=0)
        self.positions = self.positions[rows]
        for block in self.blocks:
            block.select(rows)
        self.filled = np.array([block.filled for block in self.blocks])
        for block, filled in zip(self.blocks, self.filled, strict=True):
            block.filled = filled

    def fit_rings(self) -> None:
        """Let rings that must hold all positions follow the farthest row."""
        old = self.layout
        new = old.holding(int(self.positions.max()))
        if new is old:
            return
        self.layout = new
        self.places = None
        self.states = _resize_rings(self.states, old.reach, new.reach)
        for block, size, new_size in zip(self.blocks, old.ring_sizes, new.ring_sizes, strict=True):
            if size != new_size:
                block.resize_rings(size, new_size)

    def _select_sources(self, rows: IntArray) -> None:
        self.memory = self.memory.take(rows, axis=0)
        self.source_bias = self.source_bias.take(rows, axis=0)
        self.lengths = self.lengths[rows]
        self.sentences = self.sentences[rows]
        self.limits = self.limits[rows]
        for block in self.blocks:
            block.select_sources(rows)
        if self.candidates is not None:
            self.candidates.select(rows)

    def adopt(self, rows: IntArray, other: "DecoderState", other_rows: IntArray) -> None:
        """Give rows to sentences that another state has encoded and not begun to decode.

        Args:
            rows: Rows to overwrite, each once.
            other: State of the same engine; its source axis may be cut or padded.
            other_rows: For each of ``rows``, the row of ``other`` it takes.
        """
        self.moved = True
        self.lengths[rows] = other.lengths[other_rows]
        self.sentences[rows] = other.sentences[other_rows]
        self.limits[rows] = other.limits[other_rows]
        self.positions[rows] = 0
        # The source axis follows the longest sentence there is: it is in the largest arrays of all.
        longest = padded_length(int(self.lengths.max()))
        if longest != self.memory.shape[1]:
            self.resize_source(longest)
        _replace_rows(self.memory, rows, other.memory, other_rows, axis=1)
        _replace_rows(self.source_bias, rows, other.source_bias, other_rows, axis=3, fill=-np.inf)
        for block, other_block in zip(self.blocks, other.blocks, strict=True):
            block.adopt(rows, other_block, other_rows)
        if self.speculation is not None:
            self.draft_candidates = other.draft_candidates
        if self.candidates is not None and other.candidates is not None:
            self.candidates.adopt(rows, other.candidates, other_rows)
            if self.logits.shape[1] != self.candidates.width:
                self.logits = np.empty((self.rows, self.candidates.width), dtype=np.float32)

    def resize_source(self, length: int) -> None:
        """Cut or pad the source axis of everything."""
        self.memory = _resize(self.memory, 1, length)
        self.source_bias = _resize(self.source_bias, 3, length, fill=-np.inf)
        for block in self.blocks:
            block.resize_source(length)


def _select_cells(cells: FloatArray, rows: int, selected: IntArray) -> FloatArray:
    """Select rows of a tensor that holds several cells per row, in order."""
    kept = cells.reshape(rows, -1).take(selected, axis=0)
    return kept.reshape(-1, cells.shape[1])


def _overwrite_cells(cells: FloatArray, count: int, rows: IntArray, sources: IntArray) -> None:
    """Put the cells of some of ``count`` rows in the place of others'."""
    of_rows = cells.reshape(count, -1)
    of_rows[rows] = of_rows.take(sources, axis=0)


def _resize_rings(cells: FloatArray, size: int, new_size: int) -> FloatArray:
    """Cut or pad the rings of a tensor that holds nothing else."""
    dim = cells.shape[1]
    return _resize(cells.reshape(-1, size, dim), 1, new_size).reshape(-1, dim)


def _resize(array: FloatArray, axis: int, length: int, fill: float = 0.0) -> FloatArray:
    """Cut or pad an axis at its end, into contiguous memory."""
    shape = list(array.shape)
    shape[axis] = length
    resized = np.empty(shape, dtype=np.float32)
    every = np.arange(len(array))
    _replace_rows(resized, every, array, every, axis, fill)
    return resized


def _replace_rows(
    own: FloatArray, rows: IntArray, new: FloatArray, new_rows: IntArray, axis: int, fill: float = 0.0
) -> None:
    """Put rows of one array in the place of rows of another whose ``axis`` is longer or shorter."""
    length = min(own.shape[axis], new.shape[axis])
    before: Any = (slice(None),) * (axis - 1)
    own[(rows, *before, slice(length))] = new[(new_rows, *before, slice(length))]
    if length < own.shape[axis]:
        own[(rows, *before, slice(length, None))] = fill
