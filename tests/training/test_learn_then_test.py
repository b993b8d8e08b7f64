"""Learn then Test: p-values, the order of tests, and the guarantee over a thousand draws."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq.errors import CalibrationError
from edgeseq.evaluation.learn_then_test import (
    Floats,
    binomial_cdf,
    choose_guaranteed,
    hoeffding_bentkus,
    safest_first,
    sentences_needed,
)

DELTA, EPSILON = 0.1, 0.05
SENTENCES, DRAWS = 400, 1000

# Expected losses of ten policies, from the safest to the cheapest. The fifth is the first above delta, and barely.
EXPECTED = np.array([0.0, 0.02, 0.04, 0.06, 0.1005, 0.11, 0.12, 0.15, 0.2, 0.4])


# --- p-values


@given(st.integers(1, 30), st.sampled_from([0.05, 0.3, 0.5, 0.9]))
def test_binomial_cdf_is_the_sum_of_its_terms(number: int, probability: float) -> None:
    exact = Fraction(probability)
    terms = [math.comb(number, k) * exact**k * (1 - exact) ** (number - k) for k in range(number + 1)]
    expected = [float(sum(terms[: k + 1])) for k in range(number + 1)]
    np.testing.assert_allclose(binomial_cdf(number, probability), expected, rtol=1e-9)


def test_p_values_are_the_smaller_of_both_bounds() -> None:
    losses = np.zeros((100, 3))
    losses[:5, 1] = 1
    losses[:40, 2] = 0.5
    p_values = hoeffding_bentkus(losses, DELTA)
    assert p_values[0] == pytest.approx(0.9**100)  # Hoeffding's
    bentkus = math.e * sum(math.comb(100, k) * 0.1**k * 0.9 ** (100 - k) for k in range(6))
    divergence = 0.05 * math.log(0.05 / 0.1) + 0.95 * math.log(0.95 / 0.9)
    assert p_values[1] == pytest.approx(min(bentkus, math.exp(-100 * divergence)))
    assert p_values[2] == 1  # a mean above delta says nothing against the hypothesis


@pytest.mark.parametrize("spread", [False, True])
def test_p_values_are_valid_where_the_hypothesis_holds(spread: bool) -> None:
    """With expected loss delta, a p-value is at most epsilon with probability at most epsilon."""
    generator = np.random.default_rng(0)
    shape = (SENTENCES, 2000)
    losses = generator.beta(0.5, 4.5, shape) if spread else (generator.random(shape) < DELTA).astype(np.float64)
    assert losses.mean() == pytest.approx(DELTA, abs=0.002)
    for epsilon in (0.02, 0.1, 0.3):
        assert (hoeffding_bentkus(losses, DELTA) <= epsilon).mean() <= epsilon + 3 * math.sqrt(epsilon / shape[1])
    # Control: the mean compared with delta, without a test, rejects half of the time.
    assert (losses.mean(axis=0) <= DELTA).mean() > 0.4


# --- The order of tests


def test_the_first_failure_ends_the_tests() -> None:
    losses = np.zeros((200, 4))
    losses[:60, 2] = 1
    chosen = choose_guaranteed(losses, DELTA, EPSILON)
    assert chosen is not None
    assert (chosen.policy, chosen.mean_loss) == (1, 0)
    assert chosen.p_value == pytest.approx(0.9**200)
    # Control: alone, the last policy would pass.
    assert choose_guaranteed(losses[:, 3:], DELTA, EPSILON) is not None


def test_no_policy_passes_with_too_few_sentences() -> None:
    needed = sentences_needed(DELTA, EPSILON)
    assert needed == 29
    assert choose_guaranteed(np.zeros((needed - 1, 2)), DELTA, EPSILON) is None
    assert choose_guaranteed(np.zeros((needed, 2)), DELTA, EPSILON) is not None


def test_policies_that_cost_more_for_as_much_loss_are_left_out() -> None:
    mean_losses = np.array([0.3, 0.0, 0.1, 0.2, 0.1, 0.0])
    costs = np.array([1.0, 7.0, 3.0, 3.5, 4.0, 6.0])
    assert safest_first(mean_losses, costs).tolist() == [5, 2, 0]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=8))
def test_losses_rise_and_costs_fall_along_the_order(policies: list[tuple[int, int]]) -> None:
    mean_losses, costs = (np.array([policy[side] for policy in policies], dtype=np.float64) for side in (0, 1))
    order = safest_first(mean_losses, costs)
    assert (np.diff(mean_losses[order]) > 0).all()
    assert (np.diff(costs[order]) < 0).all()
    for index in range(len(policies)):
        assert ((mean_losses[order] <= mean_losses[index]) & (costs[order] <= costs[index])).any()


# --- The guarantee


def draw_losses(generator: np.random.Generator) -> Floats:
    """Losses of one draw of sentences; a hard sentence is hard for all policies."""
    return (generator.random((SENTENCES, 1)) < EXPECTED).astype(np.float64)


def test_a_thousand_draws_keep_the_guarantee() -> None:
    generator = np.random.default_rng(7)
    violations = saved = without_test = 0
    for _ in range(DRAWS):
        losses = draw_losses(generator)
        chosen = choose_guaranteed(losses, DELTA, EPSILON)
        policy = 0 if chosen is None else chosen.policy
        violations += bool(EXPECTED[policy] > DELTA)
        saved += policy > 0
        without_test += bool(EXPECTED[np.flatnonzero(losses.mean(axis=0) <= DELTA)[-1]] > DELTA)
    allowed = EPSILON + 3 * math.sqrt(EPSILON * (1 - EPSILON) / DRAWS)
    assert violations / DRAWS <= allowed
    assert violations, "the test of the guarantee would be empty: no violation ever came near"
    assert saved / DRAWS > 0.9
    assert without_test / DRAWS > allowed  # control: choose by the mean alone


# --- What cannot be guaranteed


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(CalibrationError, match=f"delta is {delta}, expected more than 0 and less than 1"):
        hoeffding_bentkus(np.zeros((5, 1)), delta)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_epsilon_out_of_range_is_refused(epsilon: float) -> None:
    with pytest.raises(CalibrationError, match=f"epsilon is {epsilon}, expected more than 0 and less than 1"):
        choose_guaranteed(np.zeros((5, 1)), DELTA, epsilon)


def test_losses_out_of_range_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"losses go from 0\.0 to 1\.5, expected 0 to 1"):
        hoeffding_bentkus(np.array([[0.0], [1.5]]), DELTA)
    with pytest.raises(CalibrationError, match="there is no sentence to test with: give more text"):
        hoeffding_bentkus(np.zeros((0, 2)), DELTA)
