"""Depth predictors: their arithmetic, against a loop over rows, and that rows do not touch each other."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from edgeseq_runtime.arrays import FloatArray
from edgeseq_runtime.predictors import DepthClassifier, HaltingUnits, mean_memory

DIM, BLOCKS, ROWS = 200, 4, 128
Compute = Callable[[FloatArray], FloatArray]
"""From rows to something of each row, by itself."""


def draw(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


UNITS = HaltingUnits(draw(BLOCKS - 1, DIM, seed=1) / np.float32(10), draw(BLOCKS - 1, seed=2))
SHARED = HaltingUnits(UNITS.weight[:1], UNITS.bias[:1])
CLASSIFIER = DepthClassifier(draw(BLOCKS, DIM, seed=3) / np.float32(10), draw(BLOCKS, seed=4))
STATES = draw(ROWS, DIM, seed=5)


def dot(one: FloatArray, other: FloatArray) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("units", [UNITS, SHARED], ids=["per block", "shared"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_units_are_sigmoids_of_dot_products(units: HaltingUnits, block: int) -> None:
    unit = block - 1 if units is UNITS else 0
    logits = [dot(state, units.weight[unit]) + float(units.bias[unit]) for state in STATES]
    np.testing.assert_allclose(units.logits(block, STATES), logits, atol=1e-5)
    chances = [1 / (1 + math.exp(-logit)) for logit in logits]
    np.testing.assert_allclose(units.probabilities(block, STATES), chances, atol=1e-6)
    # Control: the unit of another block says something else.
    other = [dot(state, UNITS.weight[block % 3]) + float(UNITS.bias[block % 3]) for state in STATES]
    assert np.abs(units.logits(block, STATES) - other).max() > 1e-2 or (units is SHARED and block == 3)


def test_a_classifier_is_a_softmax_of_dot_products() -> None:
    logits = np.array(
        [
            [dot(state, weight) + float(bias) for weight, bias in zip(CLASSIFIER.weight, CLASSIFIER.bias, strict=True)]
            for state in STATES
        ]
    )
    np.testing.assert_allclose(CLASSIFIER.logits(STATES), logits, atol=1e-5)
    shares = np.exp(logits)
    expected = shares / shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(CLASSIFIER.probabilities(STATES), expected, atol=1e-6)
    assert np.abs(CLASSIFIER.probabilities(STATES) - shares).max() > 1e-2  # control: not normalised


def test_a_classifier_survives_large_logits() -> None:
    loud = DepthClassifier(CLASSIFIER.weight * 1000, CLASSIFIER.bias)
    probabilities = loud.probabilities(STATES)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_the_mean_is_over_each_sentences_own_positions() -> None:
    memory = draw(3, 8, DIM, seed=6)
    lengths = np.array([8, 1, 5])
    means = mean_memory(memory, lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(means[row], memory[row, :length].astype(np.float64).mean(axis=0), atol=1e-6)
    assert np.abs(means[2] - memory[2].mean(axis=0)).max() > 1e-2  # control: padding counts
    more = np.concatenate((memory, draw(3, 4, DIM, seed=7)), axis=1)
    np.testing.assert_array_equal(mean_memory(more, lengths), means)


# --- Rows by themselves, in bits


def keeps_rows_apart(compute: Compute, rows: FloatArray) -> bool:
    """Whether each row's result is the same bits alone, in any subset and in any memory layout."""
    whole = compute(rows)
    generator = np.random.default_rng(3)
    for size in (1, 2, 3, 7, 16, 31, 64):
        some = generator.permutation(len(rows))[:size]
        if not np.array_equal(compute(rows[some]), whole[some]):
            return False
        if not np.array_equal(compute(np.asfortranarray(rows[some])), whole[some]):
            return False
    return True


LENGTHS = np.arange(ROWS) % 7 + 1
MEMORY = draw(ROWS, 8, 24, seed=8)


def means_of(memory: FloatArray) -> FloatArray:
    """Of rows that tell their length by their first number."""
    lengths = np.array([int(np.flatnonzero(MEMORY[:, 0, 0] == row[0, 0])[0]) for row in memory])
    return mean_memory(memory, LENGTHS[lengths])


APART: dict[str, tuple[Compute, FloatArray]] = {
    "units": (lambda states: UNITS.logits(2, states), STATES),
    "a shared unit": (lambda states: SHARED.probabilities(2, states), STATES),
    "logits of a classifier": (CLASSIFIER.logits, STATES),
    "a classifier": (CLASSIFIER.probabilities, STATES),
    "means of sentences": (means_of, MEMORY),
}


@pytest.mark.parametrize("name", APART)
def test_no_row_depends_on_its_neighbours(name: str) -> None:
    compute, rows = APART[name]
    assert keeps_rows_apart(compute, rows)


@pytest.mark.parametrize("name", APART)
def test_control_a_number_of_the_whole_batch_is_seen(name: str) -> None:
    """The check above fails for arithmetic that lets rows touch each other."""
    compute, rows = APART[name]

    def mixing(some: FloatArray) -> FloatArray:
        return compute(some) + np.float32(1e-6) * np.abs(some).max()

    assert not keeps_rows_apart(mixing, rows)
