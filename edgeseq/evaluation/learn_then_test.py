"""Choosing a depth policy with a guarantee: Learn then Test (Angelopoulos et al., 2021, arXiv 2110.01052).

Each sentence has a loss in [0, 1] under each policy. A policy is chosen such that

    P(its expected loss > delta) <= epsilon,

the probability being over the sentences that were drawn to choose with. The loss need not fall with depth, and nothing
is assumed of the model: "the expected loss of policy j exceeds delta" is a null hypothesis, and a policy is taken only
where a test rejects it. Policies are tested in an order fixed beforehand, from the safest to the cheapest, and the
first that is not rejected ends it, so that each test may use all of epsilon (fixed-sequence testing, as CALM does:
Schuster et al., 2022, arXiv 2207.07061). What fixes the order, proposals and their costs, must come from other
sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeseq.errors import CalibrationError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Guaranteed:
    """The cheapest policy that the tests let through."""

    policy: int
    """Its column."""
    mean_loss: float
    """Over the sentences tested."""
    p_value: float
    """Of the hypothesis that its expected loss exceeds delta."""


def choose_guaranteed(losses: Floats, delta: float, epsilon: float) -> Guaranteed | None:
    """Tests policies in order and takes the last before the first that fails.

    Args:
        losses: (sentences, policies), in [0, 1], policies from the safest to the cheapest. The order must not
            depend on these sentences.
        delta: bound of the expected loss, inside (0, 1).
        epsilon: bound of the probability that the chosen policy's expected loss exceeds ``delta``, inside (0, 1).

    Returns:
        The policy; None where not even the first passes.

    Raises:
        CalibrationError: a level is out of range, or a loss is.
    """
    _check_level("epsilon", epsilon)
    p_values = hoeffding_bentkus(losses, delta)
    failed = np.flatnonzero(p_values > epsilon)
    passed = int(failed[0]) if len(failed) else len(p_values)
    if not passed:
        return None
    policy = passed - 1
    return Guaranteed(policy, float(losses[:, policy].mean()), float(p_values[policy]))


def hoeffding_bentkus(losses: Floats, delta: float) -> Floats:
    """Computes p-values of "the expected loss exceeds delta", for independent losses in [0, 1].

    The smaller of two bounds on the probability of a mean so low: Hoeffding's, exp(-n kl(mean, delta)), which is
    tighter for small means, and Bentkus', e P(Binomial(n, delta) <= ceil(n mean)) (Bates et al., 2021, arXiv
    2101.02703, proposition 4).

    Args:
        losses: (sentences, policies).
        delta: inside (0, 1).

    Returns:
        (policies,), from 0 to 1.

    Raises:
        CalibrationError: ``delta`` or a loss is out of range, or there is no sentence.
    """
    _check_level("delta", delta)
    number = len(losses)
    if not number:
        raise CalibrationError("there is no sentence to test with: give more text")
    if not ((losses >= 0) & (losses <= 1)).all():
        raise CalibrationError(f"losses go from {losses.min()} to {losses.max()}, expected 0 to 1")
    totals = losses.sum(axis=0)
    hoeffding = np.exp(-number * _divergence(np.minimum(totals / number, delta), delta))
    bentkus = np.e * binomial_cdf(number, delta)[np.ceil(totals).astype(np.int64)]
    return np.minimum(np.minimum(hoeffding, bentkus), 1.0)


def safest_first(mean_losses: Floats, costs: Floats) -> Indices:
    """Orders the policies that are worth testing: less cost only for more loss.

    Args:
        mean_losses: (policies,), on the sentences that propose; never on those that test.
        costs: (policies,), of the same unit.

    Returns:
        Indices of the Pareto front, from the least loss, hence the greatest cost, to the least cost.
    """
    order = np.lexsort((costs, mean_losses))
    cheapest_so_far = np.minimum.accumulate(np.concatenate(([np.inf], costs[order][:-1])))
    front: Indices = order[costs[order] < cheapest_so_far]
    return front


def sentences_needed(delta: float, epsilon: float) -> int:
    """Computes the sentences that a policy without any loss needs to pass: the least n with (1-delta)^n <= epsilon.

    Raises:
        CalibrationError: a level is out of range.
    """
    _check_level("delta", delta)
    _check_level("epsilon", epsilon)
    return int(np.ceil(np.log(epsilon) / np.log1p(-delta)))


def binomial_cdf(number: int, probability: float) -> Floats:
    """Computes P(Binomial(number, probability) <= k) for k from 0 to number: (number + 1,)."""
    log_factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, number + 1)))))
    chosen = np.arange(number + 1)
    log_shares = (
        log_factorials[-1]
        - log_factorials
        - log_factorials[::-1]
        + chosen * np.log(probability)
        + chosen[::-1] * np.log1p(-probability)
    )
    return np.minimum(np.cumsum(np.exp(log_shares)), 1.0)


def _check_level(name: str, level: float) -> None:
    if not 0 < level < 1:
        raise CalibrationError(f"{name} is {level}, expected more than 0 and less than 1")


def _divergence(means: Floats, delta: float) -> Floats:
    """Computes the Kullback–Leibler divergence of Bernoulli(mean) from Bernoulli(delta), 0 log 0 being 0."""
    rest = 1 - means
    ones = np.where(means > 0, means, 1.0)
    zeros = np.where(rest > 0, rest, 1.0)
    divergence: Floats = means * np.log(ones / delta) + rest * np.log(zeros / (1 - delta))
    return divergence
