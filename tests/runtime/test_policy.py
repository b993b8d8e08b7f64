"""Depth policies: the arithmetic of stopping."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.policy import DepthPolicy, FixedDepth, Halting, Thresholds, choose_depths, largest_probability
from edgeseq_runtime.predictors import DepthClassifier, HaltingUnits
from tiny_bundle import POLICIES, VOCAB_SIZE, tiny_facts

DIM, BLOCKS, ROWS = 16, 4, 200
FACTS = tiny_facts()
BELOW = (1, 2, 3)


def draw(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


UNITS = HaltingUnits(draw(3, DIM), draw(3, seed=1))
STATES = draw(ROWS, DIM, seed=2)
LOGITS = draw(ROWS, VOCAB_SIZE, seed=3) * np.linspace(0.05, 3, ROWS, dtype=np.float32)[:, None]
LENGTHS = np.arange(ROWS) % 11 + 1
MEMORY = draw(ROWS, 12, DIM, seed=4) + draw(ROWS, 1, DIM, seed=5)
"""Sentences of different content, so that their means differ."""


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def thresholds(*values: float, blocks: tuple[int, ...] = BELOW) -> Thresholds:
    return Thresholds(values * len(blocks) if len(values) == 1 else values, blocks, every=blocks == BELOW)


def plan(policy: DepthPolicy, block: int, rows: slice | IntArray = slice(None)) -> list[int]:
    """What a policy says of the states of this page."""
    return policy.plan(block, STATES[rows], LOGITS[rows] if policy.reads_logits else None).tolist()


# --- Fixed depths


def test_a_fixed_depth_is_a_limit_and_decides_nothing() -> None:
    policy = FixedDepth("2", FACTS, 2)
    assert policy.limits(MEMORY, LENGTHS).tolist() == [2] * ROWS
    assert not any(policy.decides(block) for block in BELOW)
    assert plan(policy, 1) == [BLOCKS] * ROWS
    assert [policy.decision_flops(block) for block in (0, *BELOW)] == [0] * 4


def test_policies_that_decide_per_token_set_no_limit(bundle: Bundle) -> None:
    for text in ("halting:0.5", "confidence:0.5", "multinomial", "full"):
        assert bundle.policy(text).limits(MEMORY, LENGTHS).tolist() == [BLOCKS] * ROWS


# --- Halting


@pytest.mark.parametrize("units", [UNITS, HaltingUnits(UNITS.weight[:1], UNITS.bias[:1])], ids=["per block", "shared"])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_halting_is_the_sigmoid_rule(units: HaltingUnits, threshold: float) -> None:
    policy = Halting("halting", FACTS, units, thresholds(threshold))
    for block in BELOW:
        unit = block - 1 if len(units.weight) > 1 else 0
        chances = [
            1 / (1 + math.exp(-(float(np.dot(state, units.weight[unit])) + units.bias[unit])))
            for state in STATES.astype(np.float64)
        ]
        expected = [block if chance > threshold else BLOCKS for chance in chances]
        assert plan(policy, block) == expected
        assert set(expected) == {block, BLOCKS}


def test_every_block_has_its_own_threshold() -> None:
    policy = Halting("halting", FACTS, UNITS, thresholds(0.1, 0.5, 0.9))
    for block, threshold in zip(BELOW, (0.1, 0.5, 0.9), strict=True):
        assert plan(policy, block) == plan(Halting("halting", FACTS, UNITS, thresholds(threshold)), block)
        # Control: the threshold of another block stops other tokens.
        assert plan(policy, block) != plan(Halting("halting", FACTS, UNITS, thresholds(0.3)), block)


def test_blocks_that_are_not_asked_decide_nothing() -> None:
    policy = Halting("halting", FACTS, UNITS, thresholds(0.4, blocks=(1, 3)))
    assert policy.name == "halting:0.4@1,3"
    assert [policy.decides(block) for block in BELOW] == [True, False, True]
    everywhere = Halting("halting", FACTS, UNITS, thresholds(0.4))
    for block in (1, 3):
        assert plan(policy, block) == plan(everywhere, block)
    assert all(everywhere.decides(block) for block in BELOW)


def test_extreme_thresholds_always_and_never_stop(bundle: Bundle) -> None:
    """However large the numbers are that speak for the other thing."""
    loud = HaltingUnits(UNITS.weight * 1000, UNITS.bias)
    for threshold, depth in ((0.0, 1), (1.0, BLOCKS)):
        assert plan(Halting("halting", FACTS, loud, thresholds(threshold)), 1) == [depth] * ROWS
        confidence = bundle.policy(f"confidence:{threshold:g}")
        certain = np.where(np.arange(VOCAB_SIZE) == 7, np.float32(500), LOGITS)
        assert confidence.plan(1, STATES, certain).tolist() == [depth] * ROWS


# --- Confidence


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6])
def test_confidence_is_the_largest_probability(bundle: Bundle, threshold: float) -> None:
    policy = bundle.policy(f"confidence:{threshold}")
    assert policy.reads_logits
    shares = np.exp(LOGITS.astype(np.float64))
    largest = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
    np.testing.assert_allclose(largest_probability(LOGITS), largest, rtol=1e-6)
    expected = np.where(largest > threshold, 2, BLOCKS).tolist()
    assert plan(policy, 2) == expected
    assert set(expected) == {2, BLOCKS}
    # Control: not the margin to the second best.
    second = np.sort(shares / shares.sum(axis=1, keepdims=True), axis=1)[:, -2]
    assert np.where(largest - second > threshold, 2, BLOCKS).tolist() != expected


def test_confidence_has_thresholds_and_blocks_too(bundle: Bundle) -> None:
    policy = bundle.policy("confidence:0.1,0.5@1,3")
    assert [policy.decides(block) for block in BELOW] == [True, False, True]
    assert plan(policy, 1) == plan(bundle.policy("confidence:0.1"), 1)
    assert plan(policy, 3) == plan(bundle.policy("confidence:0.5"), 3)
    assert plan(policy, 3) != plan(bundle.policy("confidence:0.1"), 3)


def test_only_certainty_and_confidence_read_logits(bundle: Bundle) -> None:
    read = {text.partition(":")[0] for text in POLICIES if bundle.policy(text).reads_logits}
    assert read == {"certainty", "confidence"}


# --- A depth at once


def choose_by_loops(probabilities: list[float], quantile: float | None) -> int:
    """The definition, with exact sums."""
    if quantile is None:
        return probabilities.index(max(probabilities)) + 1
    for depth in range(1, len(probabilities)):
        if math.fsum(probabilities[:depth]) >= quantile and quantile < 1:
            return depth
    return len(probabilities)


SHARES = st.lists(st.integers(0, 16), min_size=BLOCKS, max_size=BLOCKS).filter(any)
"""Divided by their sum they are distributions, whose sums are far from the quantiles below, in spite of rounding."""


@given(shares=SHARES, quantile=st.sampled_from([None, 0.0, 0.123, 0.337, 0.703, 0.971, 1.0]))
def test_a_depth_is_the_likeliest_or_a_quantile(shares: list[int], quantile: float | None) -> None:
    probabilities = (np.array([shares]) / sum(shares)).astype(np.float32)
    assert choose_depths(probabilities, quantile).tolist() == [choose_by_loops(probabilities[0].tolist(), quantile)]


@pytest.mark.parametrize(
    ("quantile", "depths"),
    [(None, [2, 1, 4]), (0.0, [1, 1, 1]), (0.2, [2, 1, 2]), (0.5, [2, 1, 4]), (0.8, [3, 2, 4]), (1.0, [4, 4, 4])],
)
def test_depths_worked_by_hand(quantile: float | None, depths: list[int]) -> None:
    rows = [[0.125, 0.5, 0.25, 0.125], [0.5, 0.5, 0, 0], [0.125, 0.125, 0.125, 0.625]]
    probabilities = np.array(rows, dtype=np.float32)
    assert choose_depths(probabilities, quantile).tolist() == depths


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=BLOCKS, max_size=BLOCKS),
    quantiles=st.lists(st.floats(0, 1), min_size=2, max_size=6),
)
def test_a_greater_quantile_never_gives_a_lower_depth(logits: list[float], quantiles: list[float]) -> None:
    classifier = DepthClassifier(np.zeros((BLOCKS, DIM), dtype=np.float32), np.array(logits, dtype=np.float32))
    probabilities = classifier.probabilities(STATES[:1])
    depths = [int(choose_depths(probabilities, quantile)[0]) for quantile in [0, *sorted(quantiles), 1]]
    assert depths == sorted(depths)
    assert (depths[0], depths[-1]) == (1, BLOCKS)


@pytest.mark.parametrize(
    "row",
    [
        [0.0999999] * 10,  # the sum of all falls short of 1
        [1, 1e-9, 1e-9, 1e-9],  # the first sum is 1 already
        [0.25000003, 0.25000003, 0.5, 1e-8],  # sums exceed 1 below N
    ],
    ids=str,
)
def test_a_quantile_of_one_is_full_depth_whatever_rounding_does(row: list[float]) -> None:
    probabilities = np.array([row], dtype=np.float32)
    sums = probabilities.cumsum(axis=1)[0]
    assert sums[-1] < 1 or sums[-2] >= 1  # control: the plain rule would give no depth, or another
    assert choose_depths(probabilities, 1.0).tolist() == [len(row)]


@pytest.mark.parametrize("quantile", [None, 0.3, 0.8])
def test_a_multinomial_policy_chooses_after_block_1(bundle: Bundle, quantile: float | None) -> None:
    policy = bundle.policy("multinomial" if quantile is None else f"multinomial:{quantile}")
    assert [policy.decides(block) for block in BELOW] == [True, False, False]
    classifier = bundle.predictors["multinomial"]
    assert isinstance(classifier, DepthClassifier)
    expected = [choose_by_loops(row, quantile) for row in classifier.probabilities(STATES).tolist()]
    assert plan(policy, 1) == expected
    assert set(expected) == {1, 2, 3, 4}


@pytest.mark.parametrize("quantile", [None, 0.3, 0.8])
def test_a_sequence_policy_limits_each_sentence(bundle: Bundle, quantile: float | None) -> None:
    policy = bundle.policy("by-sentence" if quantile is None else f"by-sentence:{quantile}")
    assert not any(policy.decides(block) for block in BELOW)
    classifier = bundle.predictors["by-sentence"]
    assert isinstance(classifier, DepthClassifier)
    means = np.stack([row[:length].mean(axis=0) for row, length in zip(MEMORY, LENGTHS, strict=True)])
    expected = [choose_by_loops(row, quantile) for row in classifier.probabilities(means).tolist()]
    assert policy.limits(MEMORY, LENGTHS).tolist() == expected
    assert set(expected) == {1, 2, 3, 4}
    # Control: padding would change some of them.
    padded = classifier.probabilities(MEMORY.mean(axis=1)).tolist()
    assert [choose_by_loops(row, quantile) for row in padded] != expected


# --- What holds for all


@pytest.mark.parametrize("text", POLICIES)
def test_decisions_do_not_depend_on_batch_mates(bundle: Bundle, text: str) -> None:
    policy = bundle.policy(text)
    generator = np.random.default_rng(3)
    for block in [block for block in BELOW if policy.decides(block)]:
        whole = np.array(plan(policy, block))
        assert len(set(whole)) > 1 or text.startswith("certainty")
        for size in (1, 2, 7, 31):
            rows = generator.permutation(ROWS)[:size]
            assert plan(policy, block, rows) == whole[rows].tolist()
    limits = policy.limits(MEMORY, LENGTHS)
    for size in (1, 2, 7, 31):
        rows = generator.permutation(ROWS)[:size]
        assert policy.limits(MEMORY[rows], LENGTHS[rows]).tolist() == limits[rows].tolist()


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        ("full", [0, 0, 0, 0]),
        ("2", [0, 0, 0, 0]),
        ("halting:0.5", [0, 32, 32, 32]),
        ("halting:0.5@2", [0, 0, 32, 0]),
        ("shared:0.5", [0, 32, 32, 32]),
        ("confidence:0.5", [0, 0, 0, 0]),  # exit heads are counted elsewhere
        ("multinomial", [0, 128, 0, 0]),
        ("multinomial:0.5", [0, 128, 0, 0]),
        ("by-sentence", [128, 0, 0, 0]),
    ],
)
def test_decisions_cost_a_multiplication_and_an_addition_per_weight(
    bundle: Bundle, text: str, flops: list[int]
) -> None:
    """With d = 16 and N = 4: a unit 2 · 16, a classifier 2 · 4 · 16; index 0 is the sentence."""
    assert [bundle.policy(text).decision_flops(block) for block in (0, *BELOW)] == flops
