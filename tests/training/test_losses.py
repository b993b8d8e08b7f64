"""Losses: the fused classifier against torch's cross-entropy, weights and sampling of exits, the exit loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import edgeseq.training.losses
from edgeseq.training.losses import (
    ExitWeights,
    Teacher,
    classify_and_score,
    exit_loss,
    exit_weights,
    gain_loss,
    gradient_scales,
    sample_exits,
)
from ramp import greatest_difference, ramp

TOKENS, DIM, VOCAB = 11, 6, 9
TOLERANCE = 1e-6
CLEARLY = 1e-4


def states_weight_labels(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    states = (scale * ramp(TOKENS, DIM)).requires_grad_()
    weight = (scale * ramp(VOCAB, DIM, start=200)).requires_grad_()
    return states, weight, torch.arange(TOKENS).mul(5).remainder(VOCAB)


def results(smoothing: float, *, scale: float = 1.0, fused: bool = True) -> dict[str, Tensor]:
    """Loss, plain likelihood and gradients of an upstream gradient of 3, fused or by torch."""
    states, weight, labels = states_weight_labels(scale)
    if fused:
        loss, likelihood = classify_and_score(states, weight, labels, smoothing)
        assert not likelihood.requires_grad
    else:
        logits = states @ weight.T
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        likelihood = F.cross_entropy(logits, labels)
    (3 * loss).backward()
    assert states.grad is not None
    assert weight.grad is not None
    return {"loss": loss, "likelihood": likelihood, "states": states.grad, "weight": weight.grad}


@pytest.mark.parametrize("chunk", [1, 4, TOKENS - 1, TOKENS, TOKENS + 1, 512])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_fused_loss_is_cross_entropy_in_value_and_gradients(
    monkeypatch: pytest.MonkeyPatch, chunk: int, smoothing: float
) -> None:
    monkeypatch.setattr(edgeseq.training.losses, "_CHUNK", chunk)
    expected = results(smoothing, fused=False)
    for name, value in results(smoothing).items():
        assert greatest_difference(value, expected[name]) < TOLERANCE, name


@given(smoothing=st.floats(0, 0.99), scale=st.floats(0.01, 3))
def test_the_fused_loss_holds_for_any_smoothing_and_any_size_of_logits(smoothing: float, scale: float) -> None:
    expected = results(smoothing, scale=scale, fused=False)
    for name, value in results(smoothing, scale=scale).items():
        assert greatest_difference(value, expected[name]) < 1e-5 * max(scale, 1), name


def test_the_fused_loss_differs_from_unsmoothed_or_otherwise_smoothed_cross_entropy() -> None:
    """Control of the equalities above."""
    ours = results(0.1)
    for smoothing in (0.0, 0.1 * VOCAB / (VOCAB - 1)):  # the latter: smoothing over all pieces but the right one
        other = results(smoothing, fused=False)
        assert all(greatest_difference(ours[name], other[name]) > CLEARLY for name in ("loss", "states", "weight"))


def test_a_hopeless_token_costs_a_finite_loss_and_has_the_exact_gradient() -> None:
    """Its probability is zero in float32; the loss counts the smallest number instead, 87 nats."""
    states = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    loss, likelihood = classify_and_score(states, torch.eye(2), torch.tensor([1]), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert float(likelihood) == pytest.approx(87.34, abs=0.01)
    assert states.grad is not None
    assert states.grad[0].tolist() == pytest.approx([0.95, -0.95])


def test_the_fused_loss_under_autocast_is_near_the_exact_one() -> None:
    states, weight, labels = states_weight_labels()
    states, weight = states.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = classify_and_score(states, weight, labels, 0.1)
    loss.backward()
    exact = results(0.1, fused=False)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact["loss"].detach()), rel=1e-2)
    assert states.grad is not None
    assert states.grad.dtype == torch.float32
    assert greatest_difference(3 * states.grad, exact["states"].float()) < 5e-3


# --- Self-distillation


def distilled(smoothing: float, share: float, *, fused: bool = True) -> dict[str, Tensor]:
    """Loss, plain likelihood and gradients with a teacher, fused or by a plain formula."""
    states, weight, labels = states_weight_labels()
    told = (2 * ramp(TOKENS, DIM, start=500)).requires_grad_(), ramp(VOCAB, DIM, start=700).requires_grad_()
    if fused:
        loss, likelihood = classify_and_score(states, weight, labels, smoothing, Teacher(*told, share))
    else:
        logits = states @ weight.T
        target = torch.softmax(told[0] @ told[1].T, dim=-1).detach()
        own = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        loss = (1 - share) * own - share * (target * torch.log_softmax(logits, dim=-1)).sum(-1).mean()
        likelihood = F.cross_entropy(logits, labels)
    (3 * loss).backward()
    assert states.grad is not None
    assert weight.grad is not None
    assert [tensor.grad for tensor in told] == [None, None], "the teacher gets no gradient"
    return {"loss": loss, "likelihood": likelihood, "states": states.grad, "weight": weight.grad}


@pytest.mark.parametrize("chunk", [1, 4, TOKENS, 512])
@pytest.mark.parametrize(("smoothing", "share"), [(0.0, 0.5), (0.1, 0.3), (0.1, 0.0), (0.7, 0.9)])
def test_a_teacher_is_a_part_of_the_target_in_value_and_gradients(
    monkeypatch: pytest.MonkeyPatch, chunk: int, smoothing: float, share: float
) -> None:
    monkeypatch.setattr(edgeseq.training.losses, "_CHUNK", chunk)
    expected = distilled(smoothing, share, fused=False)
    for name, value in distilled(smoothing, share).items():
        assert greatest_difference(value, expected[name]) < TOLERANCE, name


def test_a_teachers_share_matters() -> None:
    """Control of the equality above: another share, or none."""
    ours = distilled(0.1, 0.3)
    for other in (distilled(0.1, 0.5, fused=False), results(0.1, fused=False)):
        assert all(greatest_difference(ours[name], other[name]) > CLEARLY for name in ("loss", "states", "weight"))
        assert greatest_difference(ours["likelihood"], other["likelihood"]) < TOLERANCE


def test_a_share_of_nothing_is_no_teacher() -> None:
    plain = results(0.1)
    for name, value in distilled(0.1, 0.0).items():
        assert greatest_difference(value, plain[name]) < TOLERANCE


def test_a_teacher_under_autocast_is_near_the_exact_one() -> None:
    states, weight, labels = states_weight_labels()
    states, weight = states.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    teacher = Teacher((2 * ramp(TOKENS, DIM, start=500)).float(), ramp(VOCAB, DIM, start=700).float(), 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = classify_and_score(states, weight, labels, 0.1, teacher)
    loss.backward()
    exact = distilled(0.1, 0.3, fused=False)
    assert float(loss.detach()) == pytest.approx(float(exact["loss"].detach()), rel=1e-2)
    assert states.grad is not None
    assert greatest_difference(3 * states.grad, exact["states"].float()) < 5e-3


# --- Gradient scaling


@pytest.mark.parametrize(
    ("gamma", "blocks", "scales", "up"),
    [
        (1.0, 4, [3, 2, 1, 1], [1 / 2, 1, 1]),
        (0.5, 4, [1.5, 1, 0.5, 1], [1, 2, 1]),
        (0.3, 2, [0.3, 1], [1]),
        (0.5, 1, [1], []),
    ],
)
def test_gradient_scales_are_those_of_appendix_a(
    gamma: float, blocks: int, scales: list[float], up: list[float]
) -> None:
    """γ_n = γ (N - n), the last 1; what comes back from above block n is divided by γ_(n+1)."""
    found_scales, found_up = gradient_scales(gamma, blocks)
    assert found_scales == pytest.approx(scales)
    assert found_up == pytest.approx(up)


# --- Weights of exits


@pytest.mark.parametrize(
    ("scheme", "unscaled"),
    [
        ("uniform", [1, 1, 1, 1]),
        ("n", [1, 2, 3, 4]),
        ("sqrt_n", [1, math.sqrt(2), math.sqrt(3), 2]),
        ("inverse_sqrt_n", [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 1 / 2]),
        ("inverse_n", [1, 1 / 2, 1 / 3, 1 / 4]),
    ],
)
def test_weights_follow_their_scheme_and_sum_to_one(scheme: ExitWeights, unscaled: list[float]) -> None:
    weights = exit_weights(scheme, 4)
    assert weights == pytest.approx([weight / sum(unscaled) for weight in unscaled])
    assert sum(weights) == pytest.approx(1)
    assert exit_weights(scheme, 1) == [1]


# --- Sampling of exits


def all_draws(monkeypatch: pytest.MonkeyPatch, weights: list[float]) -> list[dict[int, float]]:
    """Every draw that can happen; torch.randint makes each as likely as the others."""
    draws, asked = [], []
    for outcome in range(1, len(weights)):

        def randint(
            low: int, high: int, size: tuple[int, ...], generator: torch.Generator, at: int = outcome
        ) -> Tensor:
            asked.append((low, high, size))
            return torch.tensor(at)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", randint)
            draws.append(sample_exits(weights, torch.default_generator))
    assert set(asked) == {(1, len(weights), ())}
    return draws


@pytest.mark.parametrize("scheme", ["uniform", "n", "inverse_sqrt_n"])
@pytest.mark.parametrize("blocks", [2, 3, 6])
def test_the_expectation_over_all_draws_is_the_loss_of_all_exits(
    monkeypatch: pytest.MonkeyPatch, scheme: ExitWeights, blocks: int
) -> None:
    weights = exit_weights(scheme, blocks)
    draws = all_draws(monkeypatch, weights)
    expected = [sum(draw.get(block, 0) for draw in draws) / len(draws) for block in range(1, blocks + 1)]
    assert expected == pytest.approx(weights)
    for draw in draws:
        assert list(draw)[-1] == blocks  # its likelihood is the one to be logged
        assert len(draw) == 2
    # Control: weights that are not multiplied by N - 1 give a biased loss, unless there is one to draw from.
    plain = [sum(weights[block - 1] for draw in draws if block in draw) / len(draws) for block in range(1, blocks + 1)]
    assert (plain == pytest.approx(weights)) == (blocks == 2)


def test_draws_come_from_the_generator() -> None:
    weights = exit_weights("uniform", 6)
    generator = torch.Generator().manual_seed(3)
    first = [sample_exits(weights, generator) for _ in range(40)]
    generator.manual_seed(3)
    assert [sample_exits(weights, generator) for _ in range(40)] == first
    assert {min(draw) for draw in first} == {1, 2, 3, 4, 5}


def test_a_single_exit_is_taken_as_it_is() -> None:
    assert sample_exits([1.0], torch.default_generator) == {1: 1.0}


# --- Exit loss


def test_the_exit_loss_is_minus_the_mean_log_chance_of_the_oracles_depth() -> None:
    stop = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    loss = exit_loss(stop.log(), torch.tensor([2, 3]))
    assert float(loss) == pytest.approx(-(math.log(0.3) + math.log(0.8)) / 2)
    shifted = -(math.log(0.5) + math.log(0.1)) / 2  # control: depths counted from zero
    assert float(loss) != pytest.approx(shifted)


def test_the_gain_loss_is_the_mean_of_every_units_own() -> None:
    chances = torch.tensor([[0.9, 0.2], [0.4, 0.5]], dtype=torch.float64)
    loss = gain_loss(chances.logit(), torch.tensor([[True, False], [False, True]]))
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.6) + math.log(0.5)) / 4
    assert float(loss) == pytest.approx(expected)
    turned = -(math.log(0.1) + math.log(0.2) + math.log(0.4) + math.log(0.5)) / 4  # control: the other way round
    assert float(loss) != pytest.approx(turned)
