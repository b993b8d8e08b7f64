"""Depth predictors: small weight tables that say how many blocks a token needs.

The arithmetic is numpy on one row at a time, so that a decision never depends on a row's
neighbours: one dot product per row, where a matrix product would choose its kernel by their number.
What is done with the probabilities is the business of ``policy``.
"""

from dataclasses import dataclass

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.row_sums import row_sums


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


@dataclass(frozen=True, eq=False)
class CertaintyUnits:
    """chi_n from how certain exit n is of its best piece: two numbers, a hidden layer, one unit; per block below N.

    The numbers are the log-odds of the best piece, and its lead over the next one in
    log-probability; both cut at +-15 and divided by 5.

    Attributes:
        expand_weight: (N - 1, hidden, 2).
        expand_bias: (N - 1, hidden).
        contract_weight: (N - 1, hidden).
        contract_bias: (N - 1,).
    """

    expand_weight: FloatArray
    expand_bias: FloatArray
    contract_weight: FloatArray
    contract_bias: FloatArray

    def logits(self, block: int, logits: FloatArray) -> FloatArray:
        """Compute the logits of chi_n from those of exit n, (rows, vocab): (rows,)."""
        unit = block - 1
        hidden = np.vecdot(certainty(logits)[:, None], self.expand_weight[unit]) + self.expand_bias[unit]
        result: FloatArray = np.vecdot(np.maximum(hidden, 0), self.contract_weight[unit]) + self.contract_bias[unit]
        return result

    def probabilities(self, block: int, logits: FloatArray) -> FloatArray:
        """Compute chi_n from the logits of exit n, (rows, vocab): (rows,)."""
        chi: FloatArray = np.reciprocal(1 + np.exp(-self.logits(block, logits)), dtype=np.float32)
        return chi


Predictor = HaltingUnits | CertaintyUnits | DepthClassifier

_MAX_CERTAINTY = np.float32(15)
_CERTAINTY_SCALE = np.float32(5)


def certainty(logits: FloatArray) -> FloatArray:
    """Say how certain exits are: (rows, vocab) to (rows, 2); see :class:`CertaintyUnits`."""
    rows = np.arange(len(logits))
    best = logits.argmax(axis=-1)
    highest = logits[rows, best]
    others = logits.copy()
    others[rows, best] = -np.inf
    lead = highest - others.max(axis=-1)
    rest = row_sums(np.exp(others - highest[:, None]))
    odds = -np.log(np.maximum(rest, np.exp(-_MAX_CERTAINTY)))
    both: FloatArray = np.stack((odds, lead), axis=-1).clip(-_MAX_CERTAINTY, _MAX_CERTAINTY)
    return both / _CERTAINTY_SCALE


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
