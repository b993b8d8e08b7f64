"""Oracles: which depth is best, against loops over every token and block."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeseq.training.oracles import oracle_depths, smooth_over_positions, sum_over_sentence, worth_stopping
from ramp import greatest_difference, ramp


def costs_of(penalty: float, blocks: int) -> Tensor:
    """λ n."""
    return penalty * torch.arange(1, blocks + 1, dtype=torch.float64)


def depth_of(scores: list[float], penalty: float) -> int:
    """The oracle's depth of a single token."""
    return int(oracle_depths(torch.tensor(scores, dtype=torch.float64), costs_of(penalty, len(scores))))


def smooth_by_loops(scores: Tensor, valid: Tensor, sigma: float) -> Tensor:
    result = torch.zeros_like(scores)
    for row in range(scores.shape[0]):
        for t in range(scores.shape[1]):
            for other in range(scores.shape[1]):
                if valid[row, other]:
                    result[row, t] += math.exp(-((t - other) ** 2) / sigma) * scores[row, other]
    return result


def depths_by_loops(scores: Tensor, valid: Tensor, sigma: float, penalty: float) -> list[list[int]]:
    smoothed = smooth_by_loops(scores, valid, sigma) if sigma else scores
    result = []
    for row in smoothed.tolist():
        depths = []
        for token in row:
            gains = [score - penalty * block for block, score in enumerate(token, start=1)]
            depths.append(gains.index(max(gains)) + 1)  # the first of equals
        result.append(depths)
    return result


@pytest.mark.parametrize(
    ("log_likelihoods", "penalty", "depth"),
    [
        ([-3.0, -2.0, -1.0], 0.0, 3),
        ([-3.0, -2.0, -1.0], 0.9, 3),  # each block gains 1, more than it costs
        ([-3.0, -2.0, -1.0], 1.1, 1),
        ([-3.0, -1.0, -0.8], 0.5, 2),  # the last block gains too little
        ([-1.0, -2.0, -3.0], 0.0, 1),  # a token may get worse with depth
        ([-2.0, -5.0, -0.5], 0.5, 3),  # and better again
    ],
)
def test_likelihood_picks_the_block_that_is_worth_its_cost(
    log_likelihoods: list[float], penalty: float, depth: int
) -> None:
    assert depth_of(log_likelihoods, penalty) == depth


@pytest.mark.parametrize(
    ("correct", "penalty", "depth"),
    [
        ([0, 1, 1, 1], 0.05, 2),  # the lowest that gets it right
        ([0, 1, 0, 1], 0.05, 2),
        ([0, 0, 0, 1], 0.05, 4),
        ([0, 0, 0, 1], 0.4, 1),  # not worth three more blocks
        ([0, 0, 0, 0], 0.05, 1),  # hopeless
        ([1, 1, 1, 1], 0.0, 1),
    ],
)
def test_correctness_picks_the_lowest_block_that_is_right(correct: list[float], penalty: float, depth: int) -> None:
    assert depth_of(correct, penalty) == depth


@pytest.mark.parametrize("blocks", [2, 3, 6, 12])
def test_the_lowest_depth_wins_ties(blocks: int) -> None:
    assert depth_of([-1.0] * blocks, 0.0) == 1
    for lowest in range(1, blocks + 1):
        assert depth_of([-2.0] * (lowest - 1) + [-1.0] * (blocks - lowest + 1), 0.0) == lowest


@given(
    sigma=st.sampled_from([0.0, 0.3, 2.0, 10.0]),
    penalty=st.sampled_from([0.0, 0.1, 0.5]),
    lengths=st.lists(st.integers(1, 7), min_size=2, max_size=2),
    start=st.integers(0, 1000),
)
def test_depths_are_those_of_the_loops(sigma: float, penalty: float, lengths: list[int], start: int) -> None:
    scores = ramp(2, 7, 4, start=start)
    valid = torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    depths = oracle_depths(smooth_over_positions(scores, valid, sigma), costs_of(penalty, 4))
    expected = torch.tensor(depths_by_loops(scores, valid, sigma, penalty))
    assert torch.equal(depths[valid], expected[valid])


@pytest.mark.parametrize("sigma", [0.7, 2.0, 30.0])
def test_smoothing_is_the_double_loop(sigma: float) -> None:
    scores = ramp(2, 7, 4)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    smoothed = smooth_over_positions(scores, valid, sigma)
    assert greatest_difference(smoothed, smooth_by_loops(scores, valid, sigma)) < 1e-12
    for broken in (  # controls: padding counts; a normalised kernel; a kernel of another width
        smooth_by_loops(scores, torch.ones_like(valid), sigma),
        smoothed / smooth_by_loops(torch.ones_like(scores), valid, sigma),
        smooth_by_loops(scores, valid, 2 * sigma**2),
    ):
        assert greatest_difference(smoothed, broken) > 1e-3


def test_no_smoothing_is_sigma_zero() -> None:
    scores = ramp(2, 7, 4)
    assert smooth_over_positions(scores, torch.ones(2, 7, dtype=torch.bool), 0.0) is scores


def test_smoothing_lets_neighbours_decide() -> None:
    """A token that is right at block 1, among tokens that need block 3, goes to block 3."""
    scores = torch.tensor([[[0.0, 0, 1], [1, 1, 1], [0, 0, 1]]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    costs = costs_of(0.05, 3)
    assert oracle_depths(scores, costs).tolist() == [[3, 1, 3]]
    assert oracle_depths(smooth_over_positions(scores, valid, 2.0), costs).tolist() == [[3, 3, 3]]


@given(
    scores=st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=6),
    penalty=st.floats(0, 1),
)
def test_a_block_is_worth_stopping_at_when_no_later_one_is_worth_its_price(
    scores: list[list[float]], penalty: float
) -> None:
    """Against the definition, one block at a time; the lowest such block is the oracle's depth."""
    table = torch.tensor([scores], dtype=torch.float64)
    stop = worth_stopping(table, costs_of(penalty, 4))
    depths = oracle_depths(table, costs_of(penalty, 4))
    for token, row in enumerate(scores):
        net = [score - penalty * block for block, score in enumerate(row, start=1)]
        assert stop[0, token].tolist() == [net[n] >= max(net[n + 1 :]) for n in range(3)]
        lowest = next((n for n in range(1, 4) if stop[0, token, n - 1]), 4)
        assert lowest == int(depths[0, token])


def test_agreement_is_worth_stopping_at_wherever_it_occurs() -> None:
    """A token that agrees, parts and agrees again may stop at either place, not between."""
    scores = torch.tensor([[[1.0, 0.0, 1.0, 1.0]]])
    assert worth_stopping(scores, costs_of(0.05, 4)).tolist() == [[[True, False, True]]]
    assert oracle_depths(scores, costs_of(0.05, 4)).tolist() == [[1]]


def test_prices_decide_which_depth_is_worth_it() -> None:
    """Measured prices instead of a block each: here the second block is nearly free, and the third dear."""
    scores = torch.tensor([-3.0, -2.5, -1.0])
    assert int(oracle_depths(scores, 0.9 * torch.tensor([1.0, 2.0, 3.0]))) == 3
    assert int(oracle_depths(scores, 0.9 * torch.tensor([1.0, 1.1, 3.0]))) == 2
    assert worth_stopping(scores, 0.9 * torch.tensor([1.0, 1.1, 3.0])).tolist() == [False, True]


def test_a_sentence_sums_the_scores_of_its_tokens() -> None:
    scores = ramp(2, 4, 3)
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    summed = sum_over_sentence(scores, valid)
    assert summed.shape == (2, 1, 3)
    for row, length in enumerate((4, 2)):
        for block in range(3):
            expected = sum(float(scores[row, t, block]) for t in range(length))
            assert float(summed[row, 0, block]) == pytest.approx(expected)
    assert greatest_difference(summed, scores.sum(dim=1, keepdim=True)) > 1e-2  # control: padding counts
    # The depth of the sum is neither the mean of the tokens' depths nor that of any one token.
    table = torch.tensor([[[0.0, 0.6, 1.0], [0.0, 0.6, -1.0], [1.0, 0.6, 0.0]]])
    one = oracle_depths(sum_over_sentence(table, torch.ones(1, 3, dtype=torch.bool)), costs_of(0.0, 3))
    assert (one.tolist(), oracle_depths(table, costs_of(0.0, 3)).tolist()) == ([[2]], [[3, 2, 1]])
