"""Learning-rate schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq.training.schedules import rate_factor

schedules = pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine"])


@schedules
def test_the_rate_rises_linearly_to_its_peak(schedule: str) -> None:
    factors = [rate_factor(step, 100, 10, schedule) for step in range(10)]  # type: ignore[arg-type]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def test_inverse_sqrt_falls_with_the_root_of_the_step() -> None:
    for step in (10, 11, 39, 99, 4000):
        assert rate_factor(step, 100, 10, "inverse_sqrt") == pytest.approx(math.sqrt(10 / (step + 1)))
    assert rate_factor(39, 100, 10, "inverse_sqrt") == pytest.approx(0.5)  # four times the steps, half the rate


def test_cosine_falls_to_zero_at_the_end() -> None:
    assert rate_factor(10, 110, 10, "cosine") == 1
    assert rate_factor(60, 110, 10, "cosine") == pytest.approx(0.5)
    assert rate_factor(109, 110, 10, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert rate_factor(110, 110, 10, "cosine") == pytest.approx(0, abs=1e-12)
    assert rate_factor(500, 110, 10, "cosine") == pytest.approx(0, abs=1e-12)


@schedules
@given(total=st.integers(1, 200), warmup=st.integers(0, 300))
def test_the_rate_is_positive_continuous_and_falls_after_the_peak(schedule: str, total: int, warmup: int) -> None:
    factors = [rate_factor(step, total, warmup, schedule) for step in range(total)]  # type: ignore[arg-type]
    assert all(0 < factor <= 1 for factor in factors)
    peak = min(warmup, total)
    rise, fall = factors[:peak], factors[max(peak - 1, 0) :]
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    assert max(factors) == 1


@schedules
def test_a_phase_shorter_than_its_warm_up_still_reaches_the_peak(schedule: str) -> None:
    assert [rate_factor(step, 4, 100, schedule) for step in range(4)] == [0.25, 0.5, 0.75, 1]  # type: ignore[arg-type]
