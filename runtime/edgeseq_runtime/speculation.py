"""Speculative depth: a shallow exit drafts tokens, the blocks above it verify several in one call each.

The *drafter* takes steps of a sentence alone to a shallow block d, and the best token of that exit to the next step.
Blocks d + 1 to N then run the drafted positions together, as rows of a batch, and so does the exit head of block N. As
long as its best token is the one that was drafted, the next position has seen the right token; the first that is not
is corrected, and what was drafted after it is dropped. So tokens and state are the same bits as those of full
depth, which runs the blocks a row at a time.

Each row of the verifying batch is at a position of its own, with its own copy of the sentence's past: a ring has no
place for what comes later.

Dimensions: k rows, N blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.places import BlockPlaces, ConsecutivePlaces
from edgeseq_runtime.row_alone import RowAlone, best_piece
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import EOS_ID

DRAFTED = 4
"""Positions that are verified together, k. From 3 to 8, what they gain is about the same."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What runs the blocks above the drafter: parts of an engine.

    Attributes:
        run_block: Runs a block on rows of a state, at places.
        classify: Gives the logits of rows of a state, by the exit head after a block.
        depth: Number N of blocks.
    """

    run_block: Callable[[DecoderState, int, BlockPlaces], None]
    classify: Callable[[DecoderState, int, IntArray | None], FloatArray]
    depth: int


class Speculation:
    """Decodes the only row of a state to full depth by drafting and verifying.

    Attributes:
        draft_depth: The block d whose exit drafts.
        verifications: How often blocks above it have run.
        accepted: Tokens that they gave.
    """

    def __init__(self, state: DecoderState, drafter: RowAlone, draft_depth: int, verifier: Verifier) -> None:
        """Make room for drafts.

        Args:
            state: Of one row. What is drafted of it goes into its own tensors of blocks 1 to d.
            drafter: Takes its steps; never stops by itself.
            draft_depth: From 1 to N - 1.
            verifier: Runs blocks d + 1 to N.
        """
        self.draft_depth = draft_depth
        self.verifications = 0
        self.accepted = 0
        self._state = state
        self._drafter = drafter
        self._drafting = replace(state, candidates=state.draft_candidates, bound={}, alone=None, speculation=None)
        self._verifier = verifier
        self._batch = state.repeated(DRAFTED)
        self._places = ConsecutivePlaces(state.layout, DRAFTED)
        drafting = state.blocks[:draft_depth]
        self._before = [
            [(tensor, np.empty_like(tensor)) for block in drafting for tensor in block.tensors.values()]
            for _ in range(DRAFTED)
        ]

    def decode(self, token: int, most: int, never: Sequence[int]) -> list[int]:
        """Find the tokens that full depth would choose.

        Args:
            token: The token at the row's current position.
            most: Tokens to find at most.
            never: Ids that are not chosen.

        Returns:
            The tokens, up to EOS. The state is as if they had been decoded at full depth.

        Raises:
            DeviceError: onnxruntime fails.
        """
        self._begin()
        found: list[int] = []
        while len(found) < most and token != EOS_ID:
            drafted = self._draft(token, min(DRAFTED, most - len(found)), never)
            best = self._verify(len(drafted), never)
            kept = 1
            while kept < len(drafted) and drafted[kept - 1] == best[kept - 1]:
                kept += 1
            self._keep(kept, len(drafted))
            found += best[:kept]
            token = found[-1]
        return found

    def _begin(self) -> None:
        """Take over what is known of the sentence."""
        state, drafting, batch = self._state, self._drafting, self._batch
        drafting.source_bias, drafting.positions, drafting.moved = state.source_bias, state.positions, True
        drafting.candidates = state.draft_candidates
        columns = state.logits.shape[1] if drafting.candidates is None else drafting.candidates.width
        if drafting.logits is state.logits or drafting.logits.shape[1] != columns:
            drafting.logits = np.empty((1, columns), dtype=np.float32)
        batch.repeat_source(state, self.draft_depth)
        for own, rows in self._pasts():
            rows[:] = own

    def _draft(self, token: int, most: int, never: Sequence[int]) -> list[int]:
        """Find tokens with the drafter, up to EOS; the verifying rows get the states it leaves."""
        drafting, reach = self._drafting, self._state.layout.reach
        drafted: list[int] = []
        while len(drafted) < most and token != EOS_ID:
            row = len(drafted)
            for tensor, kept in self._before[row]:
                np.copyto(kept, tensor)
            place = int(drafting.positions[0]) % reach
            self._drafter.step(drafting, token, self.draft_depth, forced=True)
            self._batch.states[row * reach + place] = drafting.states[place]
            token = self._best_draft(never)
            drafted.append(token)
        return drafted

    def _best_draft(self, never: Sequence[int]) -> int:
        """Choose the token of the drafter's newest step."""
        pieces = self._drafting.candidate_ids
        return best_piece(self._drafting.logits[0], None if pieces is None else pieces[0], never)

    def _verify(self, count: int, never: Sequence[int]) -> list[int]:
        """Find the best token at each of the drafted positions."""
        batch, verifier = self._batch, self._verifier
        self._places.begin(int(self._state.positions[0]), count)
        for block in range(self.draft_depth + 1, verifier.depth + 1):
            verifier.run_block(batch, block, self._places)
        logits = verifier.classify(batch, verifier.depth, None if count == DRAFTED else self._places.active)
        pieces = None if batch.candidate_ids is None else batch.candidate_ids[0]  # those of one sentence
        return [best_piece(row, pieces, never) for row in logits]

    def _keep(self, kept: int, drafted: int) -> None:
        """Go on after the first ``kept`` of the drafted positions, as if the others had not been."""
        state = self._state
        if kept < drafted:
            for tensor, before in self._before[kept]:
                np.copyto(tensor, before)
        for own, rows in self._pasts():
            own[:] = rows[kept - 1]
            rows[:] = own
        state.positions = state.positions + kept
        state.filled[:] = state.positions
        self._drafting.positions = state.positions
        self.verifications += 1
        self.accepted += kept

    def _pasts(self) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Tensors of the blocks above the drafter: the state's, and those of the verifying rows, (k, ...)."""
        above = slice(self.draft_depth, None)
        for own, copies in zip(self._state.blocks[above], self._batch.blocks[above], strict=True):
            for name, tensor in own.tensors.items():
                yield tensor, copies.tensors[name].reshape(DRAFTED, *tensor.shape)
