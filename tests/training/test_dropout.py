"""Dropout from bytes: rate, scale, and that every one of the eight decisions of a number counts."""

import math

import pytest
import torch

from edgeseq.modules.dropout import Dropout, dropout

DRAWS = 80_000


def expected_rate(probability: float) -> float:
    return min(round(probability * 256), 255) / 256


@pytest.mark.parametrize("probability", [0.1, 0.15, 0.3, 0.5, 0.9, 0.999])
def test_elements_are_zeroed_at_the_rate_and_scaled_so_that_the_mean_stays(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.full((DRAWS,), 3.0)
    result = dropout(x, probability, training=True)
    rate = expected_rate(probability)
    deviation = math.sqrt(rate * (1 - rate) / DRAWS)
    assert abs(float((result == 0).float().mean()) - rate) < 5 * deviation
    kept = result[result != 0].unique()
    assert kept.tolist() == [pytest.approx(3 / (1 - rate))]
    assert abs(float(result.mean()) - 3) < 5 * deviation * 3 / (1 - rate)
    assert abs(float((result != 0).float().mean()) * 3 - 3) > 5 * deviation  # control: survivors that are not scaled


def rate_per_byte(words: torch.Tensor, threshold: int) -> torch.Tensor:
    """How often each of the eight bytes of a 64-bit number falls below a threshold."""
    return (words.view(torch.uint8).view(-1, 8) < threshold).float().mean(dim=0)


def test_all_eight_decisions_of_a_number_have_the_same_rate() -> None:
    torch.manual_seed(0)
    result = dropout(torch.ones(DRAWS), 0.5, training=True)
    tolerance = 5 * math.sqrt(0.25 / (DRAWS / 8))
    assert ((result.view(-1, 8) == 0).float().mean(dim=0) - 0.5).abs().max() < tolerance
    # Control: torch's default range leaves the sign bit zero, and with it the top byte always below 128.
    default_range = torch.empty(DRAWS // 8, dtype=torch.int64).random_()
    assert (rate_per_byte(default_range, 128) - 0.5).abs().max() > tolerance


def test_neighbouring_decisions_are_independent() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(DRAWS), 0.5, training=True) == 0).view(-1, 8).float()
    correlation = torch.corrcoef(dropped.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(DRAWS / 8)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (2, 3, 11)])
def test_any_shape_is_kept(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert dropout(torch.ones(shape), 0.5, training=True).shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    assert dropout(torch.ones(16, dtype=dtype), 0.5, training=True).dtype == dtype


def test_evaluation_and_probability_zero_return_the_input() -> None:
    x = torch.ones(64)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert dropout(x, 0.001, training=True) is x  # rounds to 0/256


def test_the_module_follows_its_mode() -> None:
    torch.manual_seed(0)
    module, x = Dropout(0.5), torch.ones(256)
    assert (module.train()(x) == 0).any()
    assert module.eval()(x) is x


def test_draws_follow_torchs_seed() -> None:
    x = torch.ones(256)
    torch.manual_seed(7)
    first, second = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    torch.manual_seed(7)
    assert torch.equal(dropout(x, 0.5, training=True), first)
    assert not torch.equal(first, second)


def test_gradients_pass_where_elements_do() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, requires_grad=True)
    result = dropout(x, 0.25, training=True)
    result.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, result.detach())
