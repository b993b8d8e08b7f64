"""The engine's rows: dropped, repeated, reordered, and given to other sentences."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest

from edgeseq_runtime.places import Layout
from edgeseq_runtime.state import BlockState, DecoderState
from engine_cases import STEPS, Case
from naive_decoder import NaiveDecoder

pytestmark = pytest.mark.usefixtures("half_of_a_batch")

Past = tuple[int, list[int], list[int]]
"""What a row has come through: its sentence, the tokens it was fed, and their depths."""


def select_at_random(case: Case) -> tuple[list[Past], np.ndarray]:
    """Step while rows are dropped, repeated and reordered; give the rows' pasts and their last logits."""
    engine = case.engine()
    generator = np.random.default_rng(5)
    state = engine.encode(case.sources, case.fixed())
    pasts: list[Past] = [(row, [], []) for row in case.everyone]
    parents = None
    for step in range(STEPS):
        if step and step % 5 == 0:
            parents = generator.integers(0, len(pasts), generator.integers(1, 9))
            pasts = [(s, list(t), list(d)) for s, t, d in (pasts[parent] for parent in parents)]
        tokens, depths = case.tokens[step, : len(pasts)], case.depths[step, : len(pasts)]
        logits = engine.step(state, tokens, parents, depths).logits
        parents = None
        for (_, fed, used), token, depth in zip(pasts, tokens, depths, strict=True):
            fed.append(int(token))
            used.append(int(depth))
    return pasts, logits


def test_rows_can_be_dropped_repeated_and_reordered(case: Case) -> None:
    """As a beam search does: each row goes on from its parent's past."""
    pasts, logits = select_at_random(case)
    naive = NaiveDecoder(case.folder, case.facts)
    for row, past in enumerate(pasts[:3]):
        np.testing.assert_array_equal(logits[row], naive.logits(*past_of(case, past))[-1])


def past_of(case: Case, past: Past) -> tuple[list[int], list[int], list[int]]:
    sentence, fed, used = past
    return case.sources[sentence], fed, used


@pytest.mark.parametrize("name", ["tensors", "filled", "states"])
def test_control_rows_that_are_not_selected_are_seen(either: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One array keeps the rows in the order they had."""
    kind = DecoderState if name == "states" else BlockState
    original = kind.select

    def select(self: DecoderState | BlockState, rows: np.ndarray) -> None:
        before = getattr(self, name)
        original(self, rows)  # type: ignore[arg-type]
        if isinstance(self, BlockState) and name == "tensors":
            self.tensors = {key: np.resize(tensor, self.tensors[key].shape) for key, tensor in before.items()}
        else:
            setattr(self, name, np.resize(before, getattr(self, name).shape))

    monkeypatch.setattr(kind, "select", select)
    pasts, logits = select_at_random(either)
    naive = NaiveDecoder(either.folder, either.facts)
    expected = [naive.logits(*past_of(either, past))[-1] for past in pasts]
    assert not np.array_equal(logits, np.stack(expected))


def give_rows_away(case: Case) -> Iterator[tuple[np.ndarray, list[Past]]]:
    """Step while rows begin anew with longer and shorter sources; give logits and pasts now and then."""
    engine = case.engine()
    rows = 3
    generator = np.random.default_rng(6)
    state = engine.encode(case.sources[:rows], case.fixed())
    other = engine.encode(case.sources, case.fixed())
    pasts: list[Past] = [(row, [], []) for row in range(rows)]
    for step in range(STEPS):
        if step % 9 == 4:
            free = np.flatnonzero(generator.random(rows) < 0.5)
            sentences = generator.integers(0, len(case.sources), len(free))
            if len(free):
                engine.adopt(state, free, other, sentences)
            for row, begun in zip(free.tolist(), sentences.tolist(), strict=True):
                pasts[row] = (begun, [], [])
        tokens, depths = case.tokens[step, :rows], case.depths[step, :rows]
        logits = engine.step(state, tokens, depths=depths).logits
        for (_, fed, used), token, depth in zip(pasts, tokens, depths, strict=True):
            fed.append(int(token))
            used.append(int(depth))
        if step % 9 in (3, 5):
            yield logits, pasts


def test_rows_can_be_given_to_other_sentences(case: Case) -> None:
    """Rows begin anew at different steps and give the same bits."""
    naive = NaiveDecoder(case.folder, case.facts)
    for logits, pasts in give_rows_away(case):
        for row, past in enumerate(pasts):
            np.testing.assert_array_equal(logits[row], naive.logits(*past_of(case, past))[-1])


def begins_anew_as_if_alone(case: Case) -> bool:
    naive = NaiveDecoder(case.folder, case.facts)
    return all(
        np.array_equal(logits[row], naive.logits(*past_of(case, past))[-1])
        for logits, pasts in give_rows_away(case)
        for row, past in enumerate(pasts)
    )


def keep_when_adopting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave an attribute of rows that begin anew as it was."""
    kind: type[DecoderState | BlockState] = DecoderState if name == "positions" else BlockState
    original = kind.adopt

    def adopt(self: DecoderState | BlockState, *arguments: object) -> None:
        before = copy.deepcopy(getattr(self, name))
        original(self, *arguments)  # type: ignore[arg-type]
        setattr(self, name, before)

    monkeypatch.setattr(kind, "adopt", adopt)


@pytest.mark.parametrize("name", ["tensors", "positions"])
def test_control_a_row_that_keeps_something_of_the_sentence_before_is_seen(
    plain: Case, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_when_adopting(name, monkeypatch)
    assert not begins_anew_as_if_alone(plain)


def test_control_such_a_row_is_seen_where_it_attends_to_its_past(
    unbounded: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old keys and values alone would do no harm: they are not read before they are replaced."""
    keep_when_adopting("positions", monkeypatch)
    assert not begins_anew_as_if_alone(unbounded)


def test_rings_of_all_positions_follow_the_farthest_row(unbounded: Case) -> None:
    """They double at positions 16 and 32, and are short again when all rows have begun anew."""
    engine = unbounded.engine()
    state = engine.encode(unbounded.sources[:2], unbounded.fixed())
    capacities = []
    for tokens, depths in zip(unbounded.tokens[:40, :2], unbounded.depths[:40, :2], strict=True):
        engine.step(state, tokens, depths=depths)
        capacities.append(len(state.states) // 2)
    assert capacities == [16] * 16 + [32] * 16 + [64] * 8
    other = engine.encode(unbounded.sources[2:4], unbounded.fixed())
    engine.adopt(state, np.array([1]), other, np.array([0]))
    logits = engine.step(state, unbounded.tokens[0, :2], depths=np.array([4, 4])).logits
    assert len(state.states) // 2 == 64, "row 0 still needs its past"
    naive = NaiveDecoder(unbounded.folder, unbounded.facts)
    (expected,) = naive.logits(unbounded.sources[2], unbounded.tokens[:1, 1], [4])
    np.testing.assert_array_equal(logits[1], expected)
    engine.adopt(state, np.array([0]), other, np.array([1]))
    logits = engine.step(state, unbounded.tokens[0, :2], depths=np.array([4, 4])).logits
    assert len(state.states) // 2 == 16
    (expected,) = naive.logits(unbounded.sources[3], unbounded.tokens[:1, 0], [4])
    np.testing.assert_array_equal(logits[0], expected)
    first, second = naive.logits(unbounded.sources[2], unbounded.tokens[[0, 0], [1, 1]], [4, 4])
    np.testing.assert_array_equal(logits[1], second)
    assert not np.array_equal(first, second)


def test_control_rings_of_all_positions_that_do_not_grow_are_seen(
    unbounded: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal as long as 16 places suffice, and no longer."""
    expected = unbounded.logits(unbounded.engine(), [0])
    monkeypatch.setattr(Layout, "holding", lambda self, longest: self)
    found = unbounded.logits(unbounded.engine(), [0])
    np.testing.assert_array_equal(found[:16], expected[:16])
    assert not np.array_equal(found[16:], expected[16:])


def test_bits_do_not_depend_on_how_far_other_rows_are(unbounded: Case) -> None:
    """A row whose mate is 40 positions ahead has longer rings than alone."""
    engine = unbounded.engine()
    alone = unbounded.logits(engine, [1])[:12, 0]
    state = engine.encode([unbounded.sources[0]] * 2, unbounded.fixed())
    for tokens in unbounded.tokens[:40, :2]:
        engine.step(state, tokens, depths=np.array([2, 2]))
    engine.adopt(state, np.array([1]), engine.encode([unbounded.sources[1]], unbounded.fixed()), np.array([0]))
    for tokens, depths, expected in zip(unbounded.tokens[:12, :2], unbounded.depths[:12, :2], alone, strict=True):
        found = engine.step(state, tokens, depths=depths).logits[1]
        assert len(state.states) // 2 == 64
        np.testing.assert_array_equal(found, expected)


def replace_the_only_row_that_was_deep(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a row that enters block 4, begins anew, and enters it again; and those of the new sentence alone."""
    engine = case.engine()
    state = engine.encode(case.sources[:4], case.fixed())
    engine.step(state, case.tokens[0, :4], depths=np.array([1, 1, 4, 1]))
    engine.adopt(state, np.array([2]), engine.encode(case.sources[5:7], case.fixed()), np.array([1]))
    found = engine.step(state, case.tokens[0, :4], depths=np.array([1, 1, 4, 1])).logits[2]
    alone = engine.encode([case.sources[6]], case.fixed())
    return found, engine.step(alone, case.tokens[0, [2]], depths=np.array([4])).logits[0]


def test_a_row_that_begins_anew_enters_blocks_anew(plain: Case) -> None:
    """Its keys and values are there from the sentence before, where those of most rows are not."""
    found, expected = replace_the_only_row_that_was_deep(plain)
    np.testing.assert_array_equal(found, expected)


def test_control_keys_and_values_of_the_sentence_before_are_seen(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BlockState.adopt

    def adopt(self: BlockState, *arguments: object) -> None:
        before = self.entered.copy()
        original(self, *arguments)  # type: ignore[arg-type]
        self.entered[:] = before

    monkeypatch.setattr(BlockState, "adopt", adopt)
    found, expected = replace_the_only_row_that_was_deep(plain)
    assert not np.array_equal(found, expected)
