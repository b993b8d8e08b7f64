"""The logits of a step: whatever a policy has read on the way, each row's come from the block where it stopped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.exit_heads import StepLogits

BLOCKS, DIM, VOCAB = 4, 3, 5
HEADS = np.random.default_rng(0).standard_normal((BLOCKS, VOCAB, DIM)).astype(np.float32)


def states_after(block: int, rows: int) -> FloatArray:
    """Exit states of all rows after a block, each number its own."""
    return (np.arange(rows * DIM).reshape(rows, DIM) * 10 + block).astype(np.float32)


class Step:
    """A step of an engine, without graphs: rows go to given depths, and some blocks' logits are read on the way.

    Attributes:
        runs: (block, row) of each run of an exit head on a row, rows told by their states.
    """

    def __init__(self, depths: list[int], read: set[int], *, tied: bool) -> None:
        self.depths = np.array(depths)
        self.read = read
        self.tied = tied
        self.exit_states = np.zeros((len(depths), DIM), dtype=np.float32)
        self.runs: list[tuple[int, int]] = []

    def classify(self, block: int, rows: IntArray | None) -> FloatArray:
        exit_states = self.exit_states if rows is None else self.exit_states[rows]
        for state in exit_states:
            row, first = divmod(int(state[0]), 10 * DIM)
            assert block in {first, 0}, "a head runs on states of another block"
            self.runs.append((first, row))
        return np.stack([self.head(block) @ state for state in exit_states])

    def head(self, block: int) -> FloatArray:
        weight: FloatArray = HEADS[0 if self.tied else block - 1]
        return weight

    def logits(self, kind: type[StepLogits] = StepLogits) -> FloatArray:
        heads = kind(self.exit_states, self.classify, tied=self.tied)
        for block in range(1, BLOCKS + 1):
            active: IntArray = np.flatnonzero(self.depths >= block)
            self.exit_states[active] = states_after(block, len(self.depths))[active]
            stopped = self.depths[active] == block
            if block in self.read and len(active):
                logits = heads.classify(block, active)
                if stopped.any():
                    heads.keep(active, logits, stopped)
        return heads.finish(self.depths)

    @property
    def expected(self) -> FloatArray:
        """Each row classified by itself."""
        return np.stack(
            [
                self.head(int(depth)) @ states_after(int(depth), len(self.depths))[row]
                for row, depth in enumerate(self.depths)
            ]
        )


DEPTHS = st.lists(st.integers(1, BLOCKS), min_size=1, max_size=7)
READ = st.sets(st.integers(1, BLOCKS - 1))


@given(depths=DEPTHS, read=READ, tied=st.booleans())
def test_logits_are_those_of_each_row_at_its_own_block(depths: list[int], read: set[int], tied: bool) -> None:
    step = Step(depths, read, tied=tied)
    np.testing.assert_array_equal(step.logits(), step.expected)


@given(depths=DEPTHS, read=READ, tied=st.booleans())
def test_no_head_runs_twice_on_a_row(depths: list[int], read: set[int], tied: bool) -> None:
    """Where the policy reads, once after each such block the row ran; and after the one where it stopped."""
    step = Step(depths, read, tied=tied)
    step.logits()
    expected = [
        (block, row)
        for row, depth in enumerate(depths)
        for block in range(1, depth + 1)
        if block in read or block == depth
    ]
    assert sorted(step.runs) == sorted(expected)


@pytest.mark.parametrize("tied", [True, False])
def test_one_call_serves_all_rows_of_a_step_without_reading(tied: bool) -> None:
    calls = 0

    class Counting(Step):
        def classify(self, block: int, rows: IntArray | None) -> FloatArray:
            nonlocal calls
            calls += 1
            return super().classify(block, rows)

    Counting([1, 3, 3, 4], set(), tied=tied).logits()
    assert calls == (1 if tied else 3)


class Forgetful(StepLogits):
    """Keeps nothing: heads are run again."""

    def keep(self, active: IntArray, logits: FloatArray, stopped: np.ndarray) -> None:
        pass


class Misplaced(StepLogits):
    """Keeps the logits of other rows."""

    def keep(self, active: IntArray, logits: FloatArray, stopped: np.ndarray) -> None:
        super().keep(active, logits[::-1], stopped)


def test_control_logits_that_are_not_kept_are_seen() -> None:
    step = Step([1, 2, 2, 4], {1, 2}, tied=False)
    step.logits(Forgetful)
    assert len(step.runs) > len(set(step.runs))


def test_control_logits_in_wrong_places_are_seen() -> None:
    step = Step([1, 2, 2, 4], {1, 2}, tied=True)
    assert not np.array_equal(step.logits(Misplaced), step.expected)
