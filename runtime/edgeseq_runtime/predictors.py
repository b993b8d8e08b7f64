"""Depth predictors: small weight tables that say how many blocks a token needs.

The arithmetic is numpy on one row at a time, so that a decision never depends on a row's
neighbours: one dot product per row, where a matrix product would choose its kernel by their number.
What is done with the probabilities is the business of ``policy``.
"""

from dataclasses import dataclass

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class HaltingUnits:
    """The units of the geometric-like distribution: one for all blocks, or one per block below N.

    The unit of block n gives chi_n = sigmoid(w_n . exit_state_n + b_n), the chance to stop there
    (Elbayad et al., 2020, equation 12).

    Attributes:
        weight: (units, dim).
        bias: (units,).
    """

    weight: FloatArray
    bias: FloatArray

    def unit(self, block: int) -> int:
        """Row of the weights that serves a block n, from 1 to N - 1."""
        return block - 1 if len(self.weight) > 1 else 0

    def logits(self, block: int, exit_states: FloatArray) -> FloatArray:
        """Compute w_n . exit_state_n + b_n of exit states (rows, dim): (rows,)."""
        unit = self.unit(block)
        logits: FloatArray = np.vecdot(np.ascontiguousarray(exit_states), self.weight[unit]) + self.bias[unit]
        return logits

    def probabilities(self, block: int, exit_states: FloatArray) -> FloatArray:
        """Compute chi_n of exit states (rows, dim): (rows,)."""
        chi: FloatArray = np.reciprocal(1 + np.exp(-self.logits(block, exit_states)))
        return chi


@dataclass(frozen=True, eq=False)
class DepthClassifier:
    """A linear classifier over the depths 1 to N (Elbayad et al., 2020, section 3).

    Attributes:
        weight: (N, dim).
        bias: (N,).
    """

    weight: FloatArray
    bias: FloatArray

    def logits(self, states: FloatArray) -> FloatArray:
        """Score each depth for each of the states (rows, dim): (rows, N)."""
        logits: FloatArray = np.vecdot(np.ascontiguousarray(states)[:, None], self.weight) + self.bias
        return logits

    def probabilities(self, states: FloatArray) -> FloatArray:
        """Compute the distribution of depths for each of the states (rows, dim): (rows, N)."""
        logits = self.logits(states)
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities: FloatArray = shares / shares.sum(axis=-1, keepdims=True)
        return probabilities


Predictor = HaltingUnits | DepthClassifier


def mean_memory(memory: FloatArray, lengths: IntArray) -> FloatArray:
    """Average the encoder's output over each sentence's own positions.

    Args:
        memory: (rows, source, dim).
        lengths: (rows,), source lengths, EOS included.

    Returns:
        (rows, dim). A row's bits depend neither on padding nor on other rows.
    """
    means: FloatArray = np.stack(
        [row[:length].mean(axis=0) for row, length in zip(memory, lengths.tolist(), strict=True)]
    )
    return means
