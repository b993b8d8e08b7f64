"""A sentence decoded alone: one graph for the whole step gives the same bits as block after block."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.errors import BundleError
from edgeseq_runtime.policy import DepthPolicy
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tiny_bundle import write_tiny_bundle

NEVER = [PAD_ID, BOS_ID]
STEPS = 50  # more than the widest ring has places
SOURCE = [5, 17, 42, 9, 30, EOS_ID]
OTHER = [33, 8, EOS_ID]

ONCE_A_TOKEN = ["full", "1", "3", "halting:0.5", "halting:0.3@2", "halting:0.4,0.6,0.5", "shared:0.5", "by-sentence"]
ASKED_ON_THE_WAY = ["confidence:0.1", "certainty:0.5", "multinomial"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("alone") / "b"
    write_tiny_bundle(folder)
    return load_bundle(folder)


def open_engine(bundle: Bundle) -> Engine:
    return Engine(Path(bundle.path), bundle.manifest.model, device="cpu")


def begin(engine: Engine, policy: DepthPolicy, *, alone: bool, source: list[int] = SOURCE) -> DecoderState:
    state = engine.encode([source], policy)
    assert state.alone is not None
    if not alone:
        state.alone = None
    return state


def feed(
    engine: Engine, state: DecoderState, depths: np.ndarray | None = None, steps: int = STEPS
) -> tuple[np.ndarray, np.ndarray]:
    """Feed tokens at random: logits (steps, rows, vocab), and depths (steps, rows)."""
    generator = np.random.default_rng(3)
    tokens = generator.integers(4, 60, (steps, 1)).repeat(state.rows, axis=1)
    tokens[0] = BOS_ID
    found = []
    for number in range(steps):
        forced = None if depths is None else depths[number : number + 1].repeat(state.rows)
        step = engine.step(state, tokens[number], depths=forced)
        found.append((step.logits.copy(), step.depths))
    logits, used = zip(*found, strict=True)
    return np.array(logits), np.array(used)


def shallow_runs() -> np.ndarray:
    """Depths, now and then the policy's choice. In long shallow runs much is left pending."""
    generator = np.random.default_rng(4)
    depths = generator.integers(0, 5, STEPS)
    depths[generator.random(STEPS) < 0.7] = 1
    return depths


@pytest.mark.parametrize("text", ONCE_A_TOKEN)
def test_a_whole_step_equals_block_after_block_in_bits(bundle: Bundle, text: str) -> None:
    engine, policy = open_engine(bundle), bundle.policy(text)
    for depths in (None, shallow_runs()):
        states = [begin(engine, policy, alone=alone) for alone in (True, False)]
        (logits, used), (expected, wanted) = (feed(engine, state, depths) for state in states)
        np.testing.assert_array_equal(used, wanted)
        np.testing.assert_array_equal(logits, expected)
        np.testing.assert_array_equal(states[0].filled, states[1].filled)
        for block, other in zip(states[0].blocks, states[1].blocks, strict=True):
            np.testing.assert_array_equal(block.tensors["columns"], other.tensors["columns"])


@pytest.mark.parametrize("text", ONCE_A_TOKEN)
@pytest.mark.parametrize("given", [False, True])
def test_decoding_ahead_equals_step_after_step(bundle: Bundle, text: str, *, given: bool) -> None:
    """Tokens, depths, and the state in which a row is left: at EOS, or after as many tokens as were asked for."""
    engine, policy = open_engine(bundle), bundle.policy(text)
    depths = shallow_runs().clip(1).tolist() if given else None
    for most in (1, 7, STEPS):
        ahead, stepped = (begin(engine, policy, alone=True) for _ in range(2))
        found = engine.run_ahead(ahead, BOS_ID, most, NEVER, depths[:most] if depths else None)
        tokens, used = [BOS_ID], list[int]()
        while len(used) < most and tokens[-1] != EOS_ID:
            forced = np.array(depths[len(used) :][:1]) if depths else None
            step = engine.step(stepped, np.array(tokens[-1:]), depths=forced)
            step.logits[:, NEVER] = -np.inf
            tokens.append(int(step.logits.argmax()))
            used.append(int(step.depths[0]))
        assert found == (tokens[1:], used)
        assert ahead.positions == stepped.positions
        assert (
            engine.step(ahead, np.array([9])).logits.tobytes() == engine.step(stepped, np.array([9])).logits.tobytes()
        )


@pytest.mark.parametrize("never", [[], [EOS_ID], [*range(1, 40)]])
def test_decoding_ahead_never_chooses_what_it_must_not(plain: Bundle, never: list[int]) -> None:
    engine, policy = open_engine(plain), plain.policy("halting:0.5")
    found = engine.run_ahead(begin(engine, policy, alone=True), BOS_ID, STEPS, never)
    assert found is not None
    assert not set(found[0]) & set(never)
    assert len(found[0]) == STEPS or found[0].index(EOS_ID) == len(found[0]) - 1


def test_only_a_row_alone_is_decoded_ahead(plain: Bundle) -> None:
    engine = open_engine(plain)
    assert engine.run_ahead(engine.encode([SOURCE, OTHER], plain.policy("full")), BOS_ID, 5, NEVER) is None
    assert engine.run_ahead(engine.encode([SOURCE], plain.policy("confidence:0.1")), BOS_ID, 5, NEVER) is None


def test_halting_stops_at_several_depths(plain: Bundle) -> None:
    """Or the comparison above would say little."""
    engine = open_engine(plain)
    for text in ("halting:0.5", "shared:0.5"):
        used = feed(engine, begin(engine, plain.policy(text), alone=True))[1]
        assert len(set(used.ravel().tolist())) > 1


@pytest.mark.parametrize("text", ASKED_ON_THE_WAY)
def test_a_policy_that_is_asked_on_the_way_is_asked(plain: Bundle, text: str) -> None:
    assert open_engine(plain).encode([SOURCE], plain.policy(text)).alone is None


def test_rows_of_a_batch_go_block_after_block(plain: Bundle) -> None:
    assert open_engine(plain).encode([SOURCE, OTHER], plain.policy("full")).alone is None


@pytest.mark.parametrize("other", [OTHER, [*SOURCE[:-1], *OTHER, *OTHER]])
def test_the_row_can_be_given_to_another_sentence(plain: Bundle, other: list[int]) -> None:
    """A shorter or a longer one: its tensors are other arrays then."""
    engine, policy = open_engine(plain), plain.policy("halting:0.5")
    state = begin(engine, policy, alone=True)
    feed(engine, state)
    engine.adopt(state, np.array([0]), engine.encode([other], policy), np.array([0]))
    logits, used = feed(engine, state)
    expected, wanted = feed(engine, begin(engine, policy, alone=False, source=other))
    np.testing.assert_array_equal(used, wanted)
    np.testing.assert_array_equal(logits, expected)


def test_a_row_that_becomes_two_goes_on_block_after_block(plain: Bundle) -> None:
    """With everything that the whole steps left pending."""
    engine, policy = open_engine(plain), plain.policy("halting:0.5")
    found = []
    for alone in (True, False):
        state = begin(engine, policy, alone=alone)
        feed(engine, state, np.where(np.arange(20) % 7 == 0, 4, 1), steps=20)
        engine.step(state, np.array([9, 11]), parents=np.array([0, 0]), depths=np.array([4, 1]))
        assert state.alone is None
        found.append(feed(engine, state)[0])
    np.testing.assert_array_equal(found[0], found[1])


def forget_pending(state: DecoderState) -> None:
    state.filled[:] = state.positions[0]


def turn_rings(state: DecoderState) -> None:
    state.blocks[3].tensors["columns"][:] = np.roll(state.blocks[3].tensors["columns"], 1, axis=0)


def lose_copied_states(state: DecoderState) -> None:
    state.states[:] = 0


@pytest.mark.parametrize("damage", [forget_pending, turn_rings, lose_copied_states])
def test_control_damage_is_seen(plain: Bundle, damage: Callable[[DecoderState], None]) -> None:
    """What a whole step reads of the past matters to what it gives."""
    engine, policy = open_engine(plain), plain.policy("full")
    depths = np.array([4, 4, 1, 1, 1])
    found = []
    for damaged in (False, True):
        state = begin(engine, policy, alone=True)
        feed(engine, state, depths, steps=5)
        if damaged:
            damage(state)
        found.append(engine.step(state, np.array([7])).logits.copy())
    assert not np.array_equal(found[0], found[1])


def test_control_arrays_that_are_not_bound_anew_are_seen(plain: Bundle) -> None:
    engine, policy = open_engine(plain), plain.policy("full")
    state = begin(engine, policy, alone=True)
    feed(engine, state)
    engine.adopt(state, np.array([0]), engine.encode([OTHER], policy), np.array([0]))
    for block in state.blocks:
        block.all_entered = True
    state.moved = False
    found = feed(engine, state)[0]
    assert not np.array_equal(found, feed(engine, begin(engine, policy, alone=True, source=OTHER))[0])


def test_a_bundle_that_is_replaced_while_it_is_open_is_not_mixed_with_the_new_one(tmp_path: Path) -> None:
    """What is ready goes on; a graph that is wanted only now would be another model's."""
    write_tiny_bundle(tmp_path / "b")
    bundle = load_bundle(tmp_path / "b")
    engine, policy = open_engine(bundle), bundle.policy("full")
    state = begin(engine, policy, alone=True)
    (tmp_path / "b").rename(tmp_path / "old")
    write_tiny_bundle(tmp_path / "b", seed=2)
    feed(engine, state)
    with pytest.raises(BundleError, match="b has changed since it was opened: open it again"):
        feed(engine, engine.encode([SOURCE, OTHER], policy))
