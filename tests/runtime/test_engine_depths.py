"""Which blocks the engine runs: what policies of every kind say, forced depths, and both in one batch."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from eager_engine import EagerEngine
from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.errors import InputError
from edgeseq_runtime.exit_heads import StepLogits
from edgeseq_runtime.policy import DepthPolicy, FixedDepth
from edgeseq_runtime.state import DecoderState
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID
from naive_decoder import NaiveDecoder
from tiny_bundle import POLICIES, VOCAB_SIZE, write_tiny_bundle

STEPS, ROWS, BLOCKS = 24, 7, 4


def draw_sources() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [[*generator.integers(4, VOCAB_SIZE, length).tolist(), EOS_ID] for length in generator.integers(1, 14, ROWS)]


SOURCES = draw_sources()
TOKENS = np.random.default_rng(1).integers(4, VOCAB_SIZE, (STEPS, ROWS))
TOKENS[0] = BOS_ID
EVERYONE = list(range(ROWS))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("untied") / "b", head="untied", norm="post")


@pytest.fixture(scope="module", params=["tied", "untied"])
def bundle(request: pytest.FixtureRequest, tiny_bundle: Path, untied: Path) -> Bundle:
    return load_bundle(tiny_bundle if request.param == "tied" else untied)


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@cache
def open_engine(bundle: Bundle, kind: type[Engine] = Engine) -> Engine:
    """One engine of a kind for all tests: state lives elsewhere."""
    return kind(bundle.path, bundle.manifest.model, device="cpu")


def feed(
    engine: Engine, policy: DepthPolicy, rows: list[int], forced: IntArray | None = None
) -> tuple[FloatArray, IntArray]:
    """Feed rows their tokens: logits (steps, rows, vocab) and depths (steps, rows)."""
    state = engine.encode([SOURCES[row] for row in rows], policy)
    logits, depths = [], []
    for number, tokens in enumerate(TOKENS):
        step = engine.step(state, tokens[rows], depths=None if forced is None else forced[number, rows])
        logits.append(step.logits.copy())
        depths.append(step.depths)
    return np.stack(logits), np.stack(depths)


# --- What the policies say


@dataclass
class Scripted:
    """Says what it is told, and remembers what it was asked.

    Attributes:
        plans: Block to what it says of each row of the batch; blocks without are not asked.
        first: Limits of the rows.
        asked: (block, rows, whether there were logits) of each question.
    """

    plans: dict[int, list[int]]
    first: list[int]
    reads_logits: bool = False
    draft_depth = None
    linear_stop: None = None
    name: str = "scripted"
    asked: list[tuple[int, int, bool]] = field(default_factory=list)
    active: dict[int, list[int]] = field(default_factory=dict)

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        assert len(memory) == len(lengths) == len(self.first)
        return np.array(self.first)

    def decides(self, block: int) -> bool:
        return block in self.plans

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        self.asked.append((block, len(exit_states), logits is not None))
        if logits is not None:
            assert logits.shape == (len(exit_states), VOCAB_SIZE)
        return np.array([self.plans[block][row] for row in self.active[block]])

    def decision_flops(self, block: int) -> int:
        return 0


def test_a_policy_is_asked_where_it_decides_about_the_rows_that_go_on(bundle: Bundle) -> None:
    """Its answers become depths; where it is not asked, or says N, rows go on."""
    policy = Scripted(
        {1: [1, 4, 4, 4, 2, 4], 3: [0, 3, 4, 4, 0, 3]}, [4] * 6, active={1: list(range(6)), 3: [1, 2, 3, 5]}
    )
    engine = open_engine(bundle)
    state = engine.encode(SOURCES[:6], policy)
    assert engine.step(state, TOKENS[0, :6]).depths.tolist() == [1, 3, 4, 4, 2, 3]
    assert policy.asked == [(1, 6, False), (3, 4, False)]


def test_a_plan_for_later_holds_without_being_asked_again(bundle: Bundle) -> None:
    """As a depth chosen once does; a later plan may lower it, never raise it."""
    policy = Scripted({1: [3, 2, 4, 1], 2: [4, 4, 2, 0]}, [4, 4, 4, 4], active={1: [0, 1, 2, 3], 2: [0, 1, 2]})
    engine = open_engine(bundle)
    state = engine.encode(SOURCES[:4], policy)
    assert engine.step(state, TOKENS[0, :4]).depths.tolist() == [3, 2, 2, 1]
    assert policy.asked == [(1, 4, False), (2, 3, False)]


def test_limits_bound_what_is_planned(bundle: Bundle) -> None:
    policy = Scripted({2: [4, 4, 2, 0]}, [3, 4, 4, 1], active={2: [0, 1, 2]})
    engine = open_engine(bundle)
    state = engine.encode(SOURCES[:4], policy)
    assert engine.step(state, TOKENS[0, :4]).depths.tolist() == [3, 4, 2, 1]
    assert policy.asked == [(2, 3, False)]


def test_a_policy_gets_logits_only_where_it_reads_them(bundle: Bundle) -> None:
    policy = Scripted({1: [1, 4, 4], 2: [0, 2, 4]}, [4] * 3, reads_logits=True, active={1: [0, 1, 2], 2: [1, 2]})
    engine = open_engine(bundle)
    state = engine.encode(SOURCES[:3], policy)
    assert engine.step(state, TOKENS[0, :3]).depths.tolist() == [1, 2, 4]
    assert policy.asked == [(1, 3, True), (2, 2, True)]


# --- Every kind of policy, in bits


@pytest.mark.parametrize("text", POLICIES)
def test_the_depths_used_are_what_the_policy_says_of_the_states_on_the_way(bundle: Bundle, text: str) -> None:
    """Logits and depths equal those of the naive decoder, forced along the depths that were found."""
    policy = bundle.policy(text)
    logits, depths = feed(open_engine(bundle), policy, EVERYONE)
    naive = NaiveDecoder(bundle.path, bundle.manifest.model)
    for row in EVERYONE[:3]:
        expected = naive.logits(SOURCES[row], TOKENS[:, row], depths[:, row])
        np.testing.assert_array_equal(logits[:, row], np.stack(expected))
    if not isinstance(policy, FixedDepth):
        assert len(set(depths.ravel().tolist())) > 1, "the policy never decides"


@pytest.mark.parametrize("text", POLICIES)
def test_batched_equals_single_in_bits(bundle: Bundle, text: str) -> None:
    policy, engine = bundle.policy(text), open_engine(bundle)
    logits, depths = feed(engine, policy, EVERYONE)
    for row in EVERYONE:
        alone, used = feed(engine, policy, [row])
        np.testing.assert_array_equal(used[:, 0], depths[:, row])
        np.testing.assert_array_equal(alone[:, 0], logits[:, row])


@pytest.mark.parametrize("text", POLICIES)
def test_lazy_backfill_equals_eager_in_bits(bundle: Bundle, text: str) -> None:
    policy, eager = bundle.policy(text), open_engine(bundle, EagerEngine)
    assert isinstance(eager, EagerEngine)
    eager.backfilled = 0
    lazily, depths = feed(open_engine(bundle), policy, EVERYONE)
    eagerly, expected = feed(eager, policy, EVERYONE)
    np.testing.assert_array_equal(depths, expected)
    np.testing.assert_array_equal(lazily, eagerly)
    assert eager.backfilled == (BLOCKS - depths).sum()


class Mixing:
    """A policy whose decisions depend on batch mates: it reads states and logits less their means over rows."""

    draft_depth = None
    linear_stop = None

    def __init__(self, policy: DepthPolicy) -> None:
        self._policy = policy
        self.name, self.reads_logits = policy.name, policy.reads_logits
        self.decides, self.decision_flops = policy.decides, policy.decision_flops

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        return self._policy.limits(memory - memory.mean(axis=0), lengths)

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        mixed = None if logits is None else logits - logits.mean(axis=0)
        return self._policy.plan(block, exit_states - exit_states.mean(axis=0), mixed)


@pytest.mark.parametrize("text", ["halting:0.5", "halting:0.4,0.6,0.5", "confidence:0.1", "multinomial", "by-sentence"])
def test_control_a_policy_that_mixes_rows_is_seen(plain: Bundle, text: str) -> None:
    policy, engine = Mixing(plain.policy(text)), open_engine(plain)
    depths = feed(engine, policy, EVERYONE)[1]
    assert any((feed(engine, policy, [row])[1][:, 0] != depths[:, row]).any() for row in EVERYONE)


# --- Forced depths


def force_some(seed: int) -> IntArray:
    """Half of the tokens are forced, the others (0) left to the policy."""
    generator = np.random.default_rng(seed)
    forced = generator.integers(1, BLOCKS + 1, (STEPS, ROWS))
    forced[generator.random((STEPS, ROWS)) < 0.5] = 0
    return forced


@pytest.mark.parametrize("text", POLICIES)
def test_forced_and_free_rows_share_a_batch(bundle: Bundle, text: str) -> None:
    """A forced token goes where it is told, whatever the policy says; a free one as if it were alone."""
    forced, policy, engine = force_some(3), bundle.policy(text), open_engine(bundle)
    logits, depths = feed(engine, policy, EVERYONE, forced)
    np.testing.assert_array_equal(depths[forced > 0], forced[forced > 0])
    for row in EVERYONE:
        alone, used = feed(engine, policy, [row], forced)
        np.testing.assert_array_equal(used[:, 0], depths[:, row])
        np.testing.assert_array_equal(alone[:, 0], logits[:, row])
    naive = NaiveDecoder(bundle.path, bundle.manifest.model)
    expected = naive.logits(SOURCES[0], TOKENS[:, 0], depths[:, 0])
    np.testing.assert_array_equal(logits[:, 0], np.stack(expected))
    # Control: free tokens see what forced ones left, so that their logits are not those of a decode without them.
    unforced, otherwise = feed(engine, policy, EVERYONE)
    assert (otherwise != depths)[forced > 0].any()
    free = forced == 0
    # Block 2 reads what block 1 left, wherever a token went from there, and block 3 has a single tap.
    assert (unforced != logits)[free].any() == (depths[free] == BLOCKS).any()


@pytest.mark.parametrize("text", POLICIES)
def test_zeros_leave_everything_to_the_policy(bundle: Bundle, text: str) -> None:
    policy, engine = bundle.policy(text), open_engine(bundle)
    logits, depths = feed(engine, policy, EVERYONE)
    zeros, used = feed(engine, policy, EVERYONE, np.zeros((STEPS, ROWS), dtype=np.int64))
    np.testing.assert_array_equal(used, depths)
    np.testing.assert_array_equal(zeros, logits)


def test_forced_depths_exceed_a_sentences_limit(plain: Bundle) -> None:
    """They stand instead of the policy's choice, not under it."""
    engine = open_engine(plain)
    state = engine.encode(SOURCES[:3], plain.policy("1"))
    assert engine.step(state, TOKENS[0, :3], depths=np.array([4, 0, 2])).depths.tolist() == [4, 1, 2]


def test_a_policy_is_not_asked_where_all_rows_are_forced(plain: Bundle) -> None:
    policy = Scripted({1: [1] * 3}, [4] * 3, active={1: [0, 1, 2]})
    engine = open_engine(plain)
    state = engine.encode(SOURCES[:3], policy)
    assert engine.step(state, TOKENS[0, :3], depths=np.array([2, 3, 4])).depths.tolist() == [2, 3, 4]
    assert policy.asked == []


@pytest.mark.parametrize("depth", [-1, 5])
def test_depths_out_of_range_are_refused(plain: Bundle, depth: int) -> None:
    engine = open_engine(plain)
    state = engine.encode(SOURCES[:2], plain.policy("full"))
    with pytest.raises(InputError) as error:
        engine.step(state, np.zeros(2, dtype=np.int64), depths=np.array([1, depth]))
    assert str(error.value) == f"depths are [1, {depth}], expected 1 to 4, or 0 for the policy's choice"


# --- Limits of sentences


def decode_with_changes(bundle: Bundle) -> tuple[list[int], list[list[int]]]:
    """Rows are reordered, repeated, dropped and given to other sentences: the row's sentence, and depths, per step."""
    engine, generator = open_engine(bundle), np.random.default_rng(7)
    policy = bundle.policy("by-sentence")
    state = engine.encode(SOURCES[:5], policy)
    other = engine.encode(SOURCES, policy)
    sentences = np.arange(5)
    told, used = [], []
    parents = None
    for step in range(STEPS):
        if step % 3 == 2:
            parents = generator.integers(0, len(sentences), generator.integers(2, 7))
            sentences = sentences[parents]
        depths = engine.step(state, TOKENS[step, : len(sentences)], parents).depths
        parents = None
        told += sentences.tolist()
        used.append(depths.tolist())
        if step % 4 == 3:
            free = np.flatnonzero(generator.random(len(sentences)) < 0.4)
            sentences[free] = generator.integers(0, ROWS, len(free))
            engine.adopt(state, free, other, sentences[free])
    return told, used


def test_limits_stay_with_their_sentences(plain: Bundle) -> None:
    alone = [int(feed(open_engine(plain), plain.policy("by-sentence"), [row])[1][0, 0]) for row in EVERYONE]
    assert len(set(alone)) > 2
    sentences, used = decode_with_changes(plain)
    assert [depth for depths in used for depth in depths] == [alone[sentence] for sentence in sentences]


@pytest.mark.parametrize("method", ["_select_sources", "adopt"])
def test_control_limits_that_stay_behind_are_seen(plain: Bundle, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = decode_with_changes(plain)
    original = getattr(DecoderState, method)

    def forget(self: DecoderState, *arguments: object) -> None:
        before = self.limits.copy()
        original(self, *arguments)
        self.limits = np.resize(before, self.limits.shape)

    monkeypatch.setattr(DecoderState, method, forget)
    assert decode_with_changes(plain) != expected


# --- Exit heads


def test_confidence_runs_each_head_once_per_row(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in rows: the asked blocks that each token ran, and its last one unless that was asked."""
    rows = 0
    classify = Engine._classify

    def count(self: Engine, state: DecoderState, block: int, of_rows: IntArray | None) -> FloatArray:
        nonlocal rows
        rows += state.rows if of_rows is None else len(of_rows)
        return classify(self, state, block, of_rows)

    monkeypatch.setattr(Engine, "_classify", count)
    _, depths = feed(open_engine(bundle), bundle.policy("confidence:0.08,0.12@1,3"), EVERYONE)
    expected = {1: 1, 2: 2, 3: 2, 4: 3}
    assert set(depths.ravel().tolist()) <= {1, 3, 4}
    assert rows == sum(expected[depth] for depth in depths.ravel().tolist())


def test_control_logits_of_another_block_are_seen(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the policy read is kept, but mixed up between the rows that stop together."""
    policy = bundle.policy("confidence:0.1")
    expected, _ = feed(open_engine(bundle), policy, EVERYONE)
    keep = StepLogits.keep

    def mistake(self: StepLogits, active: IntArray, logits: FloatArray, stopped: np.ndarray) -> None:
        keep(self, active, logits[::-1], stopped)

    monkeypatch.setattr(StepLogits, "keep", mistake)
    assert not np.array_equal(feed(open_engine(bundle), policy, EVERYONE)[0], expected)
