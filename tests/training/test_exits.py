"""Exit heads, halting units, and the distribution of depths that they make."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeseq.modules import ExitHeads, HaltingUnits
from edgeseq.modules.exits import log_stop_distribution
from ramp import fill_with_ramp, greatest_difference, ramp

DIM, VOCAB, BLOCKS = 6, 11, 4
TOLERANCE = 1e-6


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


def test_tied_heads_are_one_classifier_and_untied_ones_are_not() -> None:
    state = ramp(2, DIM)
    tied = fill_with_ramp(ExitHeads(DIM, VOCAB, BLOCKS, tied=True, embedding=None).double())
    untied = fill_with_ramp(ExitHeads(DIM, VOCAB, BLOCKS, tied=False, embedding=None).double())
    assert torch.equal(tied(state, 1), tied(state, BLOCKS))
    assert not torch.equal(untied(state, 1), untied(state, BLOCKS))
    for block in range(1, BLOCKS + 1):
        assert greatest_difference(untied(state, block), state @ untied.weights[block - 1].T) < TOLERANCE
        assert untied.weight(block) is untied.weights[block - 1]


def test_a_head_tied_to_the_embedding_has_its_weight_and_its_gradient() -> None:
    embedding = nn.Embedding(VOCAB, DIM)
    heads = ExitHeads(DIM, VOCAB, BLOCKS, tied=True, embedding=embedding)
    assert heads.weight(3) is embedding.weight
    heads(torch.ones(DIM), 3).sum().backward()
    assert embedding.weight.grad is not None


def test_untied_heads_cannot_share_the_embedding() -> None:
    with pytest.raises(ValueError, match="untied exit heads cannot share the embedding's weight; tie the heads or"):
        ExitHeads(DIM, VOCAB, BLOCKS, tied=False, embedding=nn.Embedding(VOCAB, DIM))
