"""Speculative depth: what is drafted and verified is full depth, bit for bit, whatever the drafts are worth."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeseq_runtime import Translator
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.search import NEVER_CHOSEN, greedy
from edgeseq_runtime.speculation import DRAFTED, Speculation
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID
from tiny_bundle import tiny_sentences, write_tiny_bundle

ENDLESS = (*NEVER_CHOSEN, EOS_ID)
STEPS = 50  # more than the widest ring has places
SOURCE = [5, 17, 42, 9, 30, EOS_ID]
OTHER = [33, 8, EOS_ID]
LINES = tiny_sentences(12, seed=5)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a shortlist."""
    return write_tiny_bundle(tmp_path_factory.mktemp("speculation") / "b", shortlist=True)


def open_engine(bundle: Bundle) -> Engine:
    return Engine(bundle.path, bundle.manifest.model, "cpu")


def begin(engine: Engine, bundle: Bundle, policy: str, source: Sequence[int] = SOURCE) -> DecoderState:
    return engine.encode([source], bundle.policy(policy))


def run(engine: Engine, state: DecoderState, most: int, token: int = BOS_ID) -> list[int]:
    found = engine.run_ahead(state, token, most, ENDLESS)
    assert found is not None
    assert found[1] == [engine.full_depth] * len(found[0])
    return found[0]


def assert_same_state(one: DecoderState, other: DecoderState) -> None:
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_array_equal(one.filled, other.filled)
    for block, wanted in zip(one.blocks, other.blocks, strict=True):
        np.testing.assert_array_equal(block.tensors["columns"], wanted.tensors["columns"])


def draft_as_told(monkeypatch: pytest.MonkeyPatch, tokens: Sequence[int], wrong: float) -> None:
    """Drafts what will be found, but for a share of mistakes."""
    mistakes = np.random.default_rng(2).random(len(tokens)) < wrong

    def choose(self: Speculation, never: Sequence[int]) -> int:
        place = int(self._drafting.positions[0]) - 1
        return tokens[place] ^ int(mistakes[place])

    monkeypatch.setattr(Speculation, "_best_draft", choose)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_drafts_change_neither_tokens_nor_state(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, depth: int, wrong: float
) -> None:
    engine = open_engine(bundle)
    for most in (1, DRAFTED, STEPS):
        plain, drafted = begin(engine, bundle, "full"), begin(engine, bundle, f"speculative:{depth}")
        expected = run(engine, plain, most)
        draft_as_told(monkeypatch, expected, wrong)
        assert run(engine, drafted, most) == expected
        assert_same_state(drafted, plain)
        speculation = drafted.speculation
        assert speculation is not None
        assert speculation.accepted == most
        fewest = -(-most // DRAFTED)
        assert {0.0: fewest, 1.0: most}.get(wrong, speculation.verifications) == speculation.verifications
        assert fewest <= speculation.verifications <= most
        steps = [engine.step(state, np.array([9])).logits.tobytes() for state in (drafted, plain)]
        assert steps[0] == steps[1]


@pytest.mark.parametrize("depth", [1, 3])
def test_its_own_drafts_change_nothing_either(bundle: Bundle, depth: int) -> None:
    engine = open_engine(bundle)
    plain, drafted = begin(engine, bundle, "full"), begin(engine, bundle, f"speculative:{depth}")
    assert run(engine, drafted, STEPS) == run(engine, plain, STEPS)
    assert_same_state(drafted, plain)


def test_it_goes_on_from_anywhere(bundle: Bundle) -> None:
    """Steps before it, forced ones too, and steps between two runs."""
    engine = open_engine(bundle)
    found = []
    for policy in ("full", "speculative"):
        state = begin(engine, bundle, policy)
        depths = np.array([engine.full_depth])
        for token in (BOS_ID, 17, 9):
            engine.step(state, np.array([token]), depths=depths)
        first = run(engine, state, 6, 40)
        engine.step(state, np.array([11]))
        found.append((first, run(engine, state, 20, 12)))
    assert found[0] == found[1]


@pytest.mark.parametrize("policy", ["full", "speculative:1", "speculative:3"])
def test_a_released_state_is_as_good_as_new(bundle: Bundle, policy: str) -> None:
    """Whatever policy it was decoded with."""
    used = open_engine(bundle)
    for before in ("full", "speculative:2", "halting:0.5", policy):
        state = begin(used, bundle, before)
        assert used.run_ahead(state, BOS_ID, STEPS, ENDLESS)
        used.release(state)
        again = begin(used, bundle, policy, OTHER)
        assert again is state
        expected = run(open_engine(bundle), begin(open_engine(bundle), bundle, policy, OTHER), STEPS)
        assert run(used, again, STEPS) == expected
        used.release(again)


def test_a_batch_is_not_kept(bundle: Bundle) -> None:
    engine = open_engine(bundle)
    batch = engine.encode([SOURCE, OTHER], bundle.policy("full"))
    engine.release(batch)
    assert begin(engine, bundle, "full") is not batch


@pytest.mark.parametrize("rows", [1, 3])
def test_sentences_that_share_a_row_get_what_full_depth_gives(bundle: Bundle, rows: int) -> None:
    engine = open_engine(bundle)
    sources = [SOURCE, OTHER, [*SOURCE[:-1], *OTHER, *OTHER], [8, 33, 50, EOS_ID]]
    limits = [20, 30, 40, 25]
    prefixes = [[], [7, 8], [], [9]]
    plain, drafted = (
        greedy(engine, sources, bundle.policy(policy), limits, prefixes=prefixes, rows=rows)
        for policy in ("full", "speculative")
    )
    assert drafted == plain


def test_a_repeated_row_goes_on_without_drafts(bundle: Bundle) -> None:
    engine = open_engine(bundle)
    found = []
    for policy in ("full", "speculative"):
        state = begin(engine, bundle, policy)
        run(engine, state, 5)
        engine.step(state, np.array([9]), parents=np.array([0]))
        found.append(run(engine, state, 10))
    assert found[0] == found[1]


# --- In a translator


@pytest.mark.parametrize("shortlist", [False, True], ids=["drafts from a shortlist", "all from a shortlist"])
def test_translations_are_those_of_full_depth(listed: Path, *, shortlist: bool) -> None:
    translator = Translator(listed, device="cpu", depth="speculative", shortlist=shortlist)
    assert translator.policy.name == "speculative:1"
    whole = translator.translate(LINES, depth="full", batch_size=1)
    assert translator.translate(LINES, batch_size=1) == whole
    assert translator.translate(LINES, batch_size=5) == whole
    assert ["".join(translator.stream(line)) for line in LINES] == [result.text for result in whole]
    prefix = LINES[0].split()[0]
    assert translator.translate(LINES[1], prefix=prefix) == translator.translate(LINES[1], prefix=prefix, depth="full")
    scored = translator.translate(LINES[:3], batch_size=1, scores=True)
    assert scored == translator.translate(LINES[:3], batch_size=1, scores=True, depth="full")
    beams = [translator.translate(LINES[:3], beam=3, depth=depth) for depth in (None, "full")]
    assert beams[0] == beams[1]


def test_drafts_are_from_the_shortlist_and_translations_need_not_be(
    listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = Translator(listed, device="cpu", depth="speculative")
    shortlist = translator.bundle.shortlist
    assert shortlist is not None
    drafted: list[int] = []
    original = Speculation._best_draft

    def remember(self: Speculation, never: Sequence[int]) -> int:
        drafted.append(original(self, never))
        return drafted[-1]

    monkeypatch.setattr(Speculation, "_best_draft", remember)
    outside = 0
    for line in LINES:
        source = translator.source_ids(line)
        candidates = set(shortlist.candidates(source).tolist())
        drafted.clear()
        (found,) = greedy(translator.engine, [source], translator.policy, [20])
        assert set(drafted) <= candidates
        outside += len(set(found.tokens) - candidates)
    assert outside


# --- Controls: what the equalities above would not survive


def keep_wrong_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of drafts that were dropped, in the drafter's blocks."""
    original = Speculation.__init__

    def forgetful(self: Speculation, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        self._before = [[] for _ in self._before]

    monkeypatch.setattr(Speculation, "__init__", forgetful)


def keep_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose past holds what was dropped, in the blocks above."""
    original = Speculation._pasts

    def last(self: Speculation) -> object:
        for own, rows in original(self):
            turned = np.broadcast_to(rows[-1], rows.shape).copy()
            yield own, turned
            rows[:] = own

    monkeypatch.setattr(Speculation, "_pasts", last)


def believe_the_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Speculation._verify

    def believing(self: Speculation, count: int, never: Sequence[int]) -> list[int]:
        original(self, count, never)
        return self._best_drafts  # type: ignore[attr-defined]

    original_draft = Speculation._draft

    def remembering(self: Speculation, token: int, most: int, never: Sequence[int]) -> list[int]:
        self._best_drafts = original_draft(self, token, most, never)  # type: ignore[attr-defined]
        return self._best_drafts  # type: ignore[attr-defined]

    monkeypatch.setattr(Speculation, "_draft", remembering)
    monkeypatch.setattr(Speculation, "_verify", believing)


@pytest.mark.parametrize("damage", [keep_wrong_columns, keep_the_last_row, believe_the_drafts])
def test_control_a_broken_speculation_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[pytest.MonkeyPatch], None]
) -> None:
    write_tiny_bundle(tmp_path / "b")
    bundle = load_bundle(tmp_path / "b")
    engine = open_engine(bundle)
    plain = begin(engine, bundle, "full")
    run(engine, plain, STEPS)
    damage(monkeypatch)
    drafted = begin(engine, bundle, "speculative")
    run(engine, drafted, STEPS)
    with pytest.raises(AssertionError):
        assert_same_state(drafted, plain)


def test_control_a_state_that_keeps_its_past_is_seen(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(bundle)
    expected = engine.step(begin(engine, bundle, "full", OTHER), np.array([BOS_ID])).logits
    state = begin(engine, bundle, "full")
    run(engine, state, STEPS)
    engine.release(state)
    pasts = [block.tensors["columns"].copy() for block in state.blocks]
    again = begin(engine, bundle, "full", OTHER)
    for block, past in zip(again.blocks, pasts, strict=True):
        block.tensors["columns"][:] = past
    assert not np.array_equal(engine.step(again, np.array([BOS_ID])).logits, expected)
