"""How depth policies are spelled: from a user's word to the object that the engine asks.

*   ``full``, ``3``: every token stops after the same block.
*   ``speculative``, ``speculative:2``: what ``full`` gives, the same bits. Of a sentence decoded alone block 1, or
    2, drafts tokens, and the blocks above verify several in one call; see ``speculation``.
*   ``NAME:T`` with a threshold: a token stops after the first block below N whose signal exceeds T.
    The signal is chi of halting units called NAME (Elbayad et al., 2020, section 3.2), the same of certainty units,
    which read how certain an exit is, or for ``confidence`` the largest probability of the exit. ``NAME:T,T,T`` has a
    threshold per block, and ``NAME:T@1,4`` stops after blocks 1 and 4 only.
*   ``NAME``: a depth chosen once, per token after block 1 (multinomial) or per sentence
    (sequence): the one of greatest probability; with ``NAME:T`` the lowest whose cumulative
    probability reaches T.
*   ``adaptive``, ``adaptive:NAME``: an operating point of the bundle.
"""

import math
from collections.abc import Mapping

from edgeseq_runtime.calibration import Calibration
from edgeseq_runtime.errors import PolicyError
from edgeseq_runtime.manifest import THRESHOLD_KINDS, Manifest, ModelFacts
from edgeseq_runtime.policy import (
    CONFIDENCE,
    SPECULATIVE,
    Certainty,
    Confidence,
    DepthPolicy,
    FixedDepth,
    Halting,
    Multinomial,
    SequenceDepth,
    Speculative,
    Thresholds,
)
from edgeseq_runtime.predictors import CertaintyUnits, HaltingUnits, Predictor
from edgeseq_runtime.signatures import has_step

_MOST_DIGITS = 10

DEFAULT_POINT = "default"
"""The operating point that ``adaptive`` stands for."""

BALANCED_POINT = "balanced"
"""The calibrated operating point that it stands for where there is no default."""


def parse_policy(
    text: str | int,
    manifest: Manifest,
    predictors: Mapping[str, Predictor],
    calibration: Calibration | None = None,
) -> DepthPolicy:
    """Turn a user's depth policy into an object.

    Args:
        text: As in this module's description; a depth may also be an int.
        manifest: The bundle's manifest.
        predictors: The bundle's predictors by name.
        calibration: What was measured of the bundle on a machine, None where it was not.

    Raises:
        PolicyError: Misspelt, or the bundle lacks it; the message lists what the bundle has.
    """
    try:
        return _parse(text, manifest, predictors, operating_points(manifest, calibration))
    except _UnusableError as error:
        names = "; ".join(available_policies(manifest, calibration))
        raise PolicyError(f"depth policy {text!r} {error}. This bundle has: {names}") from error


def operating_points(manifest: Manifest, calibration: Calibration | None) -> dict[str, str]:
    """Policies by the name of their operating point.

    Of one name, what was measured on this machine counts. Where export chose no default,
    ``adaptive`` alone stands for the calibrated point "balanced".
    """
    points = {point.name: point.policy for point in manifest.operating_points}
    if calibration is not None:
        points |= {point.name: point.policy for point in calibration.points}
        if DEFAULT_POINT not in points and BALANCED_POINT in points:
            points[DEFAULT_POINT] = points[BALANCED_POINT]
    return points


def available_policies(manifest: Manifest, calibration: Calibration | None = None) -> list[str]:
    """Spellings of the policies that a bundle has, for messages and help."""
    full_depth = manifest.model.decoder_blocks
    names = ["full", "1" if full_depth == 1 else f"1 to {full_depth}"]
    if _may_draft(manifest.model):
        names.append(f"{SPECULATIVE} or {SPECULATIVE}:D with D from 1 to {full_depth - 1}")
    for entry in manifest.predictors:
        if entry.kind in THRESHOLD_KINDS:
            names.append(f"{entry.name}:T with T from 0 to 1")
        else:
            names.append(f"{entry.name} or {entry.name}:T with T from 0 to 1")
    if full_depth > 1:
        by_block = ", and like all thresholds also T,T,... by block or T@1,2" if full_depth > 2 else ""
        names.append(f"{CONFIDENCE}:T with T from 0 to 1{by_block}")
    names += [
        f"adaptive (= {policy})" if name == DEFAULT_POINT else f"adaptive:{name} (= {policy})"
        for name, policy in operating_points(manifest, calibration).items()
    ]
    return names


class _UnusableError(Exception):
    """A policy is misspelt, or the bundle lacks it; the message goes on after the policy."""


def _parse(
    text: str | int, manifest: Manifest, predictors: Mapping[str, Predictor], points: Mapping[str, str]
) -> DepthPolicy:
    spelled = str(text).strip() if isinstance(text, str) else text
    model = manifest.model
    if spelled == "full":
        return FixedDepth("full", model, model.decoder_blocks)
    if isinstance(spelled, int) and not isinstance(spelled, bool):
        spelled = str(spelled)
    if not isinstance(spelled, str):
        raise _UnusableError("is not a str or int")
    if _is_number(spelled):
        depth = int(spelled)
        if not 1 <= depth <= model.decoder_blocks:
            raise _UnusableError("is not a depth of this model")
        return FixedDepth(str(depth), model, depth)
    name, separator, argument = spelled.partition(":")
    if separator and not argument:
        raise _UnusableError(f"has nothing after {name + ':'!r}")
    if name == SPECULATIVE:
        return _speculative(argument or "1", model)
    if name != "adaptive":
        return _named_policy(name, argument, manifest, predictors)
    point = argument or DEFAULT_POINT
    if point not in points:
        raise _missing_point(point)
    return _parse(points[point], manifest, predictors, {})  # no point stands for another one


def _missing_point(point: str) -> _UnusableError:
    way_out = "edgeseq calibrate finds best, balanced and fast, and with --guarantee guaranteed"
    if point == DEFAULT_POINT:
        way_out = "edgeseq export chooses it by --valid-src and --valid-ref, and edgeseq calibrate finds others"
    return _UnusableError(f"needs the operating point {point!r}, which this bundle lacks: {way_out}")


def _is_number(text: str) -> bool:
    """Whether this is a number of blocks that may be, in digits; Python reads no number of thousands of them."""
    return text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS


def _may_draft(model: ModelFacts) -> bool:
    return model.decoder_blocks > 1 and has_step(model)


def _speculative(argument: str, model: ModelFacts) -> DepthPolicy:
    if not _may_draft(model):
        raise _UnusableError("needs a decoder of convolutions, of two blocks at least")
    deepest = model.decoder_blocks - 1
    if not (_is_number(argument) and 1 <= int(argument) <= deepest):
        raise _UnusableError(f"drafts after block {argument!r}, expected a number from 1 to {deepest}")
    return Speculative(model, int(argument))


def _named_policy(name: str, argument: str, manifest: Manifest, predictors: Mapping[str, Predictor]) -> DepthPolicy:
    model = manifest.model
    if name == CONFIDENCE and model.decoder_blocks > 1:
        return Confidence(model, _thresholds(name, argument, model.decoder_blocks))
    entry = next((entry for entry in manifest.predictors if entry.name == name), None)
    if entry is None:
        raise _UnusableError("is not known")
    predictor = predictors[name]
    if isinstance(predictor, HaltingUnits):
        return Halting(name, model, predictor, _thresholds(name, argument, model.decoder_blocks))
    if isinstance(predictor, CertaintyUnits):
        return Certainty(name, model, predictor, _thresholds(name, argument, model.decoder_blocks))
    quantile = _probability(argument) if argument else None
    policy = Multinomial if entry.kind == "multinomial" else SequenceDepth
    return policy(name, model, predictor, quantile)


def _thresholds(name: str, argument: str, depth: int) -> Thresholds:
    if not argument:
        raise _UnusableError(f"lacks a threshold, as in '{name}:0.9'")
    listed, separator, asked = argument.partition("@")
    every = tuple(range(1, depth))
    blocks = _blocks(asked, depth - 1) if separator else every
    values = [_probability(value) for value in listed.split(",")]
    if len(values) == 1:
        values *= len(blocks)
    if len(values) != len(blocks):
        raise _UnusableError(f"has {len(values)} thresholds for {len(blocks)} blocks; give one, or one each")
    return Thresholds(tuple(values), blocks, every=blocks == every)


def _probability(argument: str) -> float:
    try:
        threshold = float(argument)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise _UnusableError(f"has the threshold {argument!r}, expected 0 to 1")
    return threshold


def _blocks(argument: str, last: int) -> tuple[int, ...]:
    numbers = argument.split(",")
    if not all(_is_number(number) and 1 <= int(number) <= last for number in numbers):
        raise _UnusableError(f"has the blocks {argument!r}, expected numbers from 1 to {last} with commas")
    blocks = tuple(map(int, numbers))
    if list(blocks) != sorted(set(blocks)):
        raise _UnusableError(f"has the blocks {argument!r}, expected each once and in order")
    return blocks
