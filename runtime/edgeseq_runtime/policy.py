"""Depth policies: after which decoder block each token stops.

The engine asks one after each block. How a user names it is told in ``policy_names``.

Decisions are made on one row at a time and never depend on a row's neighbours.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.predictors import CertaintyUnits, DepthClassifier, HaltingUnits, mean_memory
from edgeseq_runtime.row_sums import row_sums

SPECULATIVE = "speculative"
"""The policy that gives what ``full`` gives, by drafts."""

CONFIDENCE = "confidence"
"""The predictor that every bundle has."""


@dataclass(frozen=True, eq=False)
class LinearStop:
    """A token stops after the first block below N where the product of a weight and its exit state exceeds a limit.

    The graphs compute the products, each row's by itself, so that no rounding depends on a row's neighbours.

    Attributes:
        weights: (N - 1, d), of each block below N.
        limits: (N - 1,), infinite where a block is not asked.
    """

    weights: FloatArray
    limits: FloatArray

    @cached_property
    def rows(self) -> list[FloatArray]:
        """The weight of each block, (1, d)."""
        return [self.weights[index : index + 1] for index in range(len(self.weights))]

    @cached_property
    def within(self) -> FloatArray:
        """The limits of tokens that may go no deeper than block 1, 2 ... N: (N, N - 1)."""
        blocks = np.arange(1, len(self.limits) + 1)
        return np.where(blocks >= np.arange(1, len(blocks) + 2)[:, None], np.float32(-np.inf), self.limits)

    @classmethod
    def never(cls, model: ModelFacts) -> "LinearStop":
        """No token stops below N."""
        below = model.decoder_blocks - 1
        return cls(np.zeros((below, model.dim), dtype=np.float32), np.full(below, np.inf, dtype=np.float32))


class DepthPolicy(Protocol):
    """What an engine asks of a policy. Implementations hold no state of a decode."""

    @property
    def name(self) -> str:
        """The policy in full, such as ``3`` or ``halting:0.45``."""

    @property
    def reads_logits(self) -> bool:
        """Whether ``plan`` wants the logits of the exit."""

    @property
    def draft_depth(self) -> int | None:
        """The block whose exit drafts tokens that the blocks above it verify; None where nothing is drafted."""

    @property
    def linear_stop(self) -> LinearStop | None:
        """What decides, where products with exit states do; None where ``plan`` has to be asked."""

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        """Say how deep the tokens of each sentence may go at most.

        Args:
            memory: (rows, source, dim), the encoder's output.
            lengths: (rows,), source lengths, EOS included.

        Returns:
            (rows,), from 1 to N.
        """

    def decides(self, block: int) -> bool:
        """Whether anything is decided after a block, from 1 to N - 1; where not, ``plan`` is not asked."""

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        """Say where tokens will stop, as far as that is known after a block.

        Args:
            block: The block that has just run, from 1 to N - 1.
            exit_states: (rows, dim), the exit states of the tokens that ran it.
            logits: (rows, vocab), of the block's exit head; None unless ``reads_logits``.

        Returns:
            (rows,), the depth of each token: ``block`` or less to stop now, N while nothing else is known.
        """

    def decision_flops(self, block: int) -> int:
        """FLOPs of deciding after a block, per token that ran it, exit heads not counted; 0: of a sentence."""


class _Policy:
    """What most policies answer."""

    reads_logits = False

    draft_depth: int | None = None

    linear_stop: LinearStop | None = None

    def __init__(self, name: str, model: ModelFacts) -> None:
        self.name = name
        self._depth = model.decoder_blocks
        self._dim = model.dim

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        """No limit; see :class:`DepthPolicy`."""
        return np.full(len(lengths), self._depth, dtype=np.int64)

    def decides(self, block: int) -> bool:
        """Never; see :class:`DepthPolicy`."""
        return False

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        """Nothing is known; see :class:`DepthPolicy`."""
        return np.full(len(exit_states), self._depth, dtype=np.int64)

    def decision_flops(self, block: int) -> int:
        """None; see :class:`DepthPolicy`."""
        return 0


class FixedDepth(_Policy):
    """Every token stops after the same block.

    Attributes:
        name: How the user called it: the number, or ``full``.
        depth: The block, from 1 to N.
    """

    def __init__(self, name: str, model: ModelFacts, depth: int) -> None:
        """Stop after block ``depth``."""
        super().__init__(name, model)
        self.depth = depth
        self.linear_stop = LinearStop.never(model)

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        """The same for all; see :class:`DepthPolicy`."""
        return np.full(len(lengths), self.depth, dtype=np.int64)


class Speculative(FixedDepth):
    """Every token stops after block N, and a sentence alone gets there sooner: block ``draft_depth`` drafts."""

    def __init__(self, model: ModelFacts, draft_depth: int) -> None:
        """Draft with the exit of a block, from 1 to N - 1."""
        super().__init__(f"{SPECULATIVE}:{draft_depth}", model, model.decoder_blocks)
        self.draft_depth = draft_depth


@dataclass(frozen=True)
class Thresholds:
    """What a signal has to exceed after each asked block.

    Attributes:
        values: Threshold of each asked block, from 0 to 1, the lowest block first.
        blocks: The asked blocks, from 1 to N - 1, ascending.
        every: Whether these are all blocks below N.
    """

    values: tuple[float, ...]
    blocks: tuple[int, ...]
    every: bool

    def __str__(self) -> str:
        """One threshold if they are equal, and the blocks unless they are all: ``0.9@1,2``."""
        values = self.values[:1] if len(set(self.values)) == 1 else self.values
        listed = ",".join(map(_spell, values))
        return listed if self.every else listed + "@" + ",".join(map(str, self.blocks))

    @cached_property
    def by_block(self) -> dict[int, float]:
        """Asked block to threshold."""
        return dict(zip(self.blocks, self.values, strict=True))


class Halting(_Policy):
    """A token stops after the first asked block whose halting unit exceeds its threshold."""

    def __init__(self, name: str, model: ModelFacts, units: HaltingUnits, thresholds: Thresholds) -> None:
        """Compare chi of ``units``, which are called ``name``, with ``thresholds``."""
        super().__init__(f"{name}:{thresholds}", model)
        # sigmoid is monotonic: chi > tau is logit > logit(tau), which needs no exp, nor the bias, on every row.
        stop = LinearStop.never(model)
        for block, threshold in thresholds.by_block.items():
            unit = units.unit(block)
            stop.weights[block - 1] = units.weight[unit]
            stop.limits[block - 1] = np.float32(_logit(threshold)) - units.bias[unit]
        self.linear_stop: LinearStop = stop
        self._asked = frozenset(thresholds.blocks)

    def decides(self, block: int) -> bool:
        """Asked blocks do; see :class:`DepthPolicy`."""
        return block in self._asked

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        """Stop or go on; see :class:`DepthPolicy`."""
        scores = np.vecdot(np.ascontiguousarray(exit_states), self.linear_stop.weights[block - 1])
        return np.where(scores > self.linear_stop.limits[block - 1], block, self._depth)

    def decision_flops(self, block: int) -> int:
        """One dot product, 2 d; see :class:`DepthPolicy`."""
        return 2 * self._dim if block in self._asked else 0


class Confidence(_Policy):
    """A token stops after the first asked block whose exit gives some piece a probability above the threshold."""

    reads_logits = True

    def __init__(self, model: ModelFacts, thresholds: Thresholds) -> None:
        """Compare the largest probability with ``thresholds``."""
        super().__init__(f"{CONFIDENCE}:{thresholds}", model)
        self._thresholds = thresholds.by_block

    def decides(self, block: int) -> bool:
        """Asked blocks do; see :class:`DepthPolicy`."""
        return block in self._thresholds

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        """Stop or go on; see :class:`DepthPolicy`."""
        assert logits is not None, "this policy reads logits"
        return np.where(largest_probability(logits) > self._thresholds[block], block, self._depth)


class Certainty(_Policy):
    """A token stops after the first asked block whose certainty unit exceeds its threshold."""

    reads_logits = True

    def __init__(self, name: str, model: ModelFacts, units: CertaintyUnits, thresholds: Thresholds) -> None:
        """Compare chi of ``units``, which are called ``name``, with ``thresholds``."""
        super().__init__(f"{name}:{thresholds}", model)
        self._units = units
        self._limits = {block: np.float32(_logit(value)) for block, value in thresholds.by_block.items()}

    def decides(self, block: int) -> bool:
        """Asked blocks do; see :class:`DepthPolicy`."""
        return block in self._limits

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        """Stop or go on; see :class:`DepthPolicy`."""
        assert logits is not None, "this policy reads logits"
        return np.where(self._units.logits(block, logits) > self._limits[block], block, self._depth)

    def decision_flops(self, block: int) -> int:
        """A hidden layer on two numbers, 6 per unit; see :class:`DepthPolicy`."""
        return 6 * self._units.contract_weight.shape[1] if block in self._limits else 0


class Multinomial(_Policy):
    """A token's depth is chosen once, after block 1."""

    def __init__(self, name: str, model: ModelFacts, classifier: DepthClassifier, quantile: float | None) -> None:
        """Choose by ``classifier``; see :func:`choose_depths` for ``quantile``."""
        super().__init__(_with_quantile(name, quantile), model)
        self._classifier = classifier
        self._quantile = quantile

    def decides(self, block: int) -> bool:
        """Block 1 does; see :class:`DepthPolicy`."""
        return block == 1

    def plan(self, block: int, exit_states: FloatArray, logits: FloatArray | None) -> IntArray:
        """Choose a depth for good; see :class:`DepthPolicy`."""
        return choose_depths(self._classifier.probabilities(exit_states), self._quantile)

    def decision_flops(self, block: int) -> int:
        """N dot products, 2 N d; see :class:`DepthPolicy`."""
        return 2 * self._depth * self._dim if block == 1 else 0


class SequenceDepth(_Policy):
    """All tokens of a sentence stop at a depth chosen from the mean of the encoder's output."""

    def __init__(self, name: str, model: ModelFacts, classifier: DepthClassifier, quantile: float | None) -> None:
        """Choose by ``classifier``; see :func:`choose_depths` for ``quantile``."""
        super().__init__(_with_quantile(name, quantile), model)
        self._classifier = classifier
        self._quantile = quantile
        self.linear_stop = LinearStop.never(model)

    def limits(self, memory: FloatArray, lengths: IntArray) -> IntArray:
        """Choose for each sentence; see :class:`DepthPolicy`."""
        return choose_depths(self._classifier.probabilities(mean_memory(memory, lengths)), self._quantile)

    def decision_flops(self, block: int) -> int:
        """N dot products, 2 N d, per sentence; see :class:`DepthPolicy`."""
        return 2 * self._depth * self._dim if block == 0 else 0


def largest_probability(logits: FloatArray) -> FloatArray:
    """Probability of the best piece in each row of (rows, vocab): (rows,)."""
    highest = logits.max(axis=-1, keepdims=True)
    probability: FloatArray = np.reciprocal(row_sums(np.exp(logits - highest)))
    return probability


def choose_depths(probabilities: FloatArray, quantile: float | None) -> IntArray:
    """Choose a depth from each distribution over depths.

    Args:
        probabilities: (rows, N).
        quantile: None for the depth of greatest probability, the lower one of equals; else the
            lowest depth whose cumulative probability is at least this, from 0 to 1; 1 is depth N.

    Returns:
        (rows,), from 1 to N.
    """
    if quantile is None:
        likeliest: IntArray = probabilities.argmax(axis=-1) + 1
        return likeliest
    # Rounding takes sums to 1 too early, or leaves them short of it: at a quantile of 1 it must not decide.
    reached = (probabilities.cumsum(axis=-1)[:, :-1] >= quantile) & (quantile < 1)
    depths: IntArray = np.where(reached.any(axis=-1), reached.argmax(axis=-1), probabilities.shape[-1] - 1) + 1
    return depths


def _with_quantile(name: str, quantile: float | None) -> str:
    return name if quantile is None else f"{name}:{_spell(quantile)}"


def _spell(threshold: float) -> str:
    """The shortest decimal that reads as the same threshold, without an exponent: a policy's name is parsed again."""
    return np.format_float_positional(threshold, trim="-")


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1 - probability))
