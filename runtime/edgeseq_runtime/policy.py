"""Depth policies: after which decoder block each token stops.

A user names one (``full``, ``3``, ``adaptive``, ``adaptive:NAME``, ``halting:TAU``, ``halting:TAU@1,4``);
:func:`parse_policy` turns the name into an object that the engine asks after every block. The
arithmetic is numpy on one row at a time, so that a decision never depends on a row's neighbours.

The halting unit of block n gives chi_n = sigmoid(w_n . exit_state_n + b_n); a token stops at the
first n < N with chi_n > tau (the geometric-like distribution of Elbayad et al., 2020, section 3.2).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from edgeseq_runtime.arrays import BoolArray, FloatArray
from edgeseq_runtime.errors import PolicyError
from edgeseq_runtime.manifest import Manifest

DEFAULT_POINT = "default"
"""The operating point that ``adaptive`` stands for."""


class DepthPolicy(Protocol):
    """What an engine asks of a policy. Implementations hold no state of a decode."""

    @property
    def name(self) -> str:
        """The policy in full, such as ``3`` or ``halting:0.45``."""

    def decides(self, block: int) -> bool:
        """Whether any token may stop after a block, from 1 to N - 1; where not, ``stops`` is not asked."""

    def stops(self, block: int, exit_states: FloatArray) -> BoolArray:
        """Decide which tokens stop after a block.

        Args:
            block: The block that has just run, from 1 to N - 1; after block N all tokens stop.
            exit_states: (rows, dim), the exit states of the tokens that ran it.

        Returns:
            (rows,), True where the token stops.
        """


@dataclass(frozen=True)
class FixedDepth:
    """Every token stops after the same block.

    Attributes:
        depth: The block, from 1 to N.
        name: How the user called it: the number, or ``full``.
    """

    depth: int
    name: str

    def decides(self, block: int) -> bool:
        """Only that block does; see :class:`DepthPolicy`."""
        return block == self.depth

    def stops(self, block: int, exit_states: FloatArray) -> BoolArray:
        """Decide by the block's number alone; see :class:`DepthPolicy`."""
        return np.full(len(exit_states), block >= self.depth)


@dataclass(frozen=True, eq=False)
class HaltingUnits:
    """Weights of the halting units: one row for all blocks, or one row per block below N.

    Attributes:
        weight: (units, dim).
        bias: (units,).
    """

    weight: FloatArray
    bias: FloatArray

    def logits(self, block: int, exit_states: FloatArray) -> FloatArray:
        """Compute w_n . exit_state_n + b_n of each row.

        Args:
            block: The block n, from 1 to N - 1.
            exit_states: (rows, dim).

        Returns:
            (rows,), the logit of chi_n. A row's bits do not depend on the other rows: one dot
            product per row, where a matrix product would choose its kernel by their number.
        """
        unit = block - 1 if len(self.weight) > 1 else 0
        products = np.vecdot(np.ascontiguousarray(exit_states), self.weight[unit])
        logits: FloatArray = products + self.bias[unit]
        return logits


@dataclass(frozen=True, eq=False)
class Halting:
    """A token stops after the first block whose halting unit exceeds a threshold.

    Attributes:
        units: The units' weights.
        threshold: tau, from 0 to 1.
        exits: The blocks after which tokens may stop; None means all below N.
    """

    units: HaltingUnits
    threshold: float
    exits: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """``halting:``, the threshold, and the exits unless they are all."""
        exits = "" if self.exits is None else "@" + ",".join(map(str, self.exits))
        return f"halting:{self.threshold:g}{exits}"

    def decides(self, block: int) -> bool:
        """Exits do; see :class:`DepthPolicy`."""
        return self.exits is None or block in self.exits

    def stops(self, block: int, exit_states: FloatArray) -> BoolArray:
        """Compare chi with tau, as logits; see :class:`DepthPolicy`."""
        weight, limit = self._limits[block - 1 if len(self._limits) > 1 else 0]
        stops: BoolArray = np.vecdot(np.ascontiguousarray(exit_states), weight) > limit
        return stops

    @cached_property
    def _limits(self) -> list[tuple[FloatArray, np.float32]]:
        """Each unit's weight, and what its product with a state has to exceed."""
        # sigmoid is monotonic: chi > tau is logit > logit(tau), which needs no exp, nor the bias, on every row.
        threshold = np.float32(_logit(self.threshold))
        return [(weight, threshold - bias) for weight, bias in zip(self.units.weight, self.units.bias, strict=True)]


def halting_units_asked(policy: DepthPolicy, blocks: int) -> list[int]:
    """Blocks whose halting units a policy asks, of a model of ``blocks`` blocks: none but for halting."""
    return [block for block in range(1, blocks) if isinstance(policy, Halting) and policy.decides(block)]


def parse_policy(text: str | int, manifest: Manifest, halting: HaltingUnits | None) -> DepthPolicy:
    """Turn a user's depth policy into an object.

    Args:
        text: ``full``, a depth from 1 to N (also as int), ``adaptive``, ``adaptive:NAME`` or
            ``halting:TAU``, or ``halting:TAU@1,4`` to stop after blocks 1 and 4 only.
        manifest: The bundle's manifest.
        halting: The bundle's halting units, None where it has none.

    Raises:
        PolicyError: Misspelt, or the bundle lacks it; the message lists what the bundle has.
    """
    spelled = str(text).strip() if isinstance(text, str) else text
    full_depth = manifest.model.decoder_blocks
    if spelled == "full":
        return FixedDepth(full_depth, "full")
    if isinstance(spelled, int) and not isinstance(spelled, bool):
        spelled = str(spelled)
    if not isinstance(spelled, str):
        raise _refusal(text, "is not a str or int", manifest)
    if spelled.isascii() and spelled.isdigit():
        depth = int(spelled)
        if not 1 <= depth <= full_depth:
            raise _refusal(text, "is not a depth of this model", manifest)
        return FixedDepth(depth, str(depth))
    kind, separator, argument = spelled.partition(":")
    if kind == "adaptive" and (argument or not separator):
        return _operating_point(text, argument or DEFAULT_POINT, manifest, halting)
    if kind == "halting" and argument:
        if halting is None:
            raise _refusal(text, "needs halting units, which this bundle lacks", manifest)
        threshold, separator, exits = argument.partition("@")
        return Halting(
            halting, _threshold(text, threshold, manifest), _exits(text, exits, manifest) if separator else None
        )
    raise _refusal(text, "is not known", manifest)


def available_policies(manifest: Manifest) -> list[str]:
    """Spellings of the policies that a bundle has, for messages and help."""
    full_depth = manifest.model.decoder_blocks
    names = ["full", "1" if full_depth == 1 else f"1 to {full_depth}"]
    if manifest.model.halting != "none":
        names.append("halting:TAU with TAU from 0 to 1, or halting:TAU@EXITS such as halting:0.9@1,2")
    for point in manifest.operating_points:
        if point.name == DEFAULT_POINT:
            names.append(f"adaptive (= {point.policy})")
        else:
            names.append(f"adaptive:{point.name} (= {point.policy})")
    return names


def _operating_point(text: str | int, name: str, manifest: Manifest, halting: HaltingUnits | None) -> DepthPolicy:
    for point in manifest.operating_points:
        if point.name == name:
            return parse_policy(point.policy, manifest, halting)
    raise _refusal(text, f"needs the operating point {name!r}, which this bundle lacks", manifest)


def _threshold(text: str | int, argument: str, manifest: Manifest) -> float:
    try:
        threshold = float(argument)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise _refusal(text, f"has the threshold {argument!r}, expected 0 to 1", manifest)
    return threshold


def _exits(text: str | int, argument: str, manifest: Manifest) -> tuple[int, ...]:
    numbers = argument.split(",")
    last = manifest.model.decoder_blocks - 1
    if not all(number.isascii() and number.isdigit() and 1 <= int(number) <= last for number in numbers):
        raise _refusal(text, f"has the exits {argument!r}, expected numbers from 1 to {last} with commas", manifest)
    return tuple(sorted(set(map(int, numbers))))


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability / (1 - probability))


def _refusal(text: object, reason: str, manifest: Manifest) -> PolicyError:
    names = "; ".join(available_policies(manifest))
    return PolicyError(f"depth policy {text!r} {reason}. This bundle has: {names}")
