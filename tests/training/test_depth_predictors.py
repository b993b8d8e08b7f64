"""Depth predictors as modules: what each reads, and the distribution over depths that it gives."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeseq.modules import HaltingUnits, SentenceDepth, TokenDepth
from edgeseq.modules.predictors import LinearUnits, log_stop_distribution, mean_memory
from ramp import fill_with_ramp, greatest_difference, ramp

ROWS, TIME, DIM, BLOCKS = 2, 3, 6, 4
TOLERANCE = 1e-6
STATES = [ramp(ROWS, TIME, DIM, start=100 * n) for n in range(BLOCKS)]
MEAN = ramp(ROWS, DIM, start=900)


def stop_by_products(halting_logits: list[float]) -> list[float]:
    """q(n) = χ_n · Π_{m<n} (1 - χ_m), and what is left for the last block, as printed in the paper."""
    chances = [1 / (1 + math.exp(-logit)) for logit in halting_logits]
    passed, result = 1.0, []
    for chance in chances:
        result.append(passed * chance)
        passed *= 1 - chance
    return [*result, passed]


@given(st.lists(st.floats(-12, 12), min_size=1, max_size=7))
def test_the_stop_distribution_is_the_product_formula_and_sums_to_one(halting_logits: list[float]) -> None:
    stop = log_stop_distribution(torch.tensor(halting_logits, dtype=torch.float64)).exp()
    assert stop.tolist() == pytest.approx(stop_by_products(halting_logits), abs=1e-12)
    assert float(stop.sum()) == pytest.approx(1, abs=1e-12)


def test_the_stop_distribution_multiplies_the_chances_to_have_passed() -> None:
    """Control: the chances alone, or with the block's own chance to go on, are no such distribution."""
    halting_logits = ramp(5, 3)
    stop = log_stop_distribution(halting_logits).exp()
    chances = torch.sigmoid(halting_logits)
    assert greatest_difference(stop[..., :-1], chances) > 1e-2
    assert greatest_difference(stop[..., :-1], chances * (1 - chances).cumprod(-1)) > 1e-2


def test_the_stop_distribution_stays_finite_at_certainty() -> None:
    halting_logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    log_stop = log_stop_distribution(halting_logits)
    log_stop.sum().backward()
    assert log_stop.isfinite().all()
    assert halting_logits.grad is not None
    assert halting_logits.grad.isfinite().all()
    assert torch.sigmoid(halting_logits).neg().add(1).log().isinf().any()  # control: the logarithm of the chance


def test_a_shared_unit_reads_every_block_and_own_units_each_their_own() -> None:
    states = [ramp(2, 3, DIM, start=100 * n) for n in range(BLOCKS)]
    shared = fill_with_ramp(HaltingUnits(DIM, BLOCKS, shared=True).double())
    own = fill_with_ramp(HaltingUnits(DIM, BLOCKS, shared=False).double())
    assert shared.weight.shape == (1, DIM)
    assert own.weight.shape == (BLOCKS - 1, DIM)
    for n in range(BLOCKS - 1):
        expected = states[n] @ shared.weight[0] + shared.bias[0]
        assert greatest_difference(shared(states)[..., n], expected) < TOLERANCE
        expected = states[n] @ own.weight[n] + own.bias[n]
        assert greatest_difference(own(states)[..., n], expected) < TOLERANCE
    assert greatest_difference(own(states)[..., 1], states[1] @ own.weight[0] + own.bias[0]) > 1e-2  # control


def test_halting_units_do_not_read_the_last_block() -> None:
    states = [ramp(2, DIM, start=100 * n) for n in range(BLOCKS)]
    units = fill_with_ramp(HaltingUnits(DIM, BLOCKS, shared=False).double())
    assert torch.equal(units(states), units([*states[:-1], states[-1] + 1]))
    assert not torch.equal(units(states), units([*states[:-2], states[-2] + 1, states[-1]]))  # control


def test_halting_units_start_undecided() -> None:
    units = HaltingUnits(DIM, BLOCKS, shared=False)
    assert torch.sigmoid(units([torch.ones(DIM)] * BLOCKS)).tolist() == [0.5] * (BLOCKS - 1)


def test_halting_gives_the_stop_distribution_of_its_units() -> None:
    units = fill_with_ramp(HaltingUnits(DIM, BLOCKS, shared=False).double())
    log_q = units.log_distribution(STATES, MEAN)
    assert log_q.shape == (ROWS, TIME, BLOCKS)
    expected = [stop_by_products(row) for row in units(STATES).flatten(0, 1).tolist()]
    assert greatest_difference(log_q.exp().flatten(0, 1), torch.tensor(expected, dtype=torch.float64)) < TOLERANCE


def softmax_by_loops(classifier: LinearUnits, states: Tensor) -> Tensor:
    rows = []
    for state in states.tolist():
        scores = [
            math.exp(sum(w * x for w, x in zip(weight, state, strict=True)) + bias)
            for weight, bias in zip(classifier.weight.tolist(), classifier.bias.tolist(), strict=True)
        ]
        rows.append([score / sum(scores) for score in scores])
    return torch.tensor(rows, dtype=torch.float64)


def test_token_depth_reads_the_first_exit_state_of_each_token() -> None:
    classifier = fill_with_ramp(TokenDepth(DIM, BLOCKS).double())
    log_q = classifier.log_distribution(STATES, MEAN)
    assert log_q.shape == (ROWS, TIME, BLOCKS)
    assert greatest_difference(log_q.exp().flatten(0, 1), softmax_by_loops(classifier, STATES[0].flatten(0, 1))) < 1e-9
    assert torch.equal(classifier.log_distribution([STATES[0], *STATES[2:]], -MEAN), log_q)
    assert not torch.equal(classifier.log_distribution(STATES[1:], MEAN), log_q)  # control: another block's states


def test_sentence_depth_reads_the_mean_memory_once_per_sentence() -> None:
    classifier = fill_with_ramp(SentenceDepth(DIM, BLOCKS).double())
    log_q = classifier.log_distribution(STATES, MEAN)
    assert log_q.shape == (ROWS, 1, BLOCKS)
    assert greatest_difference(log_q[:, 0].exp(), softmax_by_loops(classifier, MEAN)) < 1e-9
    assert torch.equal(classifier.log_distribution([], MEAN), log_q)
    assert not torch.equal(classifier.log_distribution(STATES, -MEAN), log_q)  # control


@pytest.mark.parametrize("kind", [TokenDepth, SentenceDepth])
def test_classifiers_start_without_a_favourite(kind: type[TokenDepth | SentenceDepth]) -> None:
    classifier = kind(DIM, BLOCKS).double()
    q = classifier.log_distribution(STATES, MEAN).exp()
    assert greatest_difference(q, torch.full_like(q, 1 / BLOCKS)) < TOLERANCE


def test_one_block_leaves_nothing_to_decide() -> None:
    message = r"a decoder of 1 block\(s\) leaves a depth predictor nothing to decide"
    for kind in (TokenDepth, SentenceDepth):
        with pytest.raises(ValueError, match=message):
            kind(DIM, 1)
    with pytest.raises(ValueError, match=message):
        HaltingUnits(DIM, 1, shared=True)


def test_the_mean_of_the_memory_is_over_real_positions() -> None:
    memory = ramp(2, 5, DIM)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    mean = mean_memory(memory, padding)
    assert greatest_difference(mean[0], memory[0].mean(dim=0)) < 1e-12
    assert greatest_difference(mean[1], (memory[1, 0] + memory[1, 1]) / 2) < 1e-12
    assert greatest_difference(mean_memory(memory, None), memory.mean(dim=1)) < 1e-12
    assert greatest_difference(mean, mean_memory(memory, None)) > 1e-2  # control: padding counts
    memory[1, 2:] = torch.inf  # whatever stands there
    assert torch.equal(mean_memory(memory, padding), mean)
