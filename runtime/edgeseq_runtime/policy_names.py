"""How depth policies are spelled: from a user's word to the object that the engine asks."""

import math
from collections.abc import Mapping

from edgeseq_runtime.errors import PolicyError
from edgeseq_runtime.manifest import THRESHOLD_KINDS, Manifest
from edgeseq_runtime.policy import (
    CONFIDENCE,
    Certainty,
    Confidence,
    DepthPolicy,
    FixedDepth,
    Halting,
    Multinomial,
    SequenceDepth,
    Thresholds,
)
from edgeseq_runtime.predictors import CertaintyUnits, HaltingUnits, Predictor

DEFAULT_POINT = "default"
"""The operating point that ``adaptive`` stands for."""


def parse_policy(text: str | int, manifest: Manifest, predictors: Mapping[str, Predictor]) -> DepthPolicy:
    """Turn a user's depth policy into an object.

    Args:
        text: As in this module's description; a depth may also be an int.
        manifest: The bundle's manifest.
        predictors: The bundle's predictors by name.

    Raises:
        PolicyError: Misspelt, or the bundle lacks it; the message lists what the bundle has.
    """
    spelled = str(text).strip() if isinstance(text, str) else text
    model = manifest.model
    if spelled == "full":
        return FixedDepth("full", model, model.decoder_blocks)
    if isinstance(spelled, int) and not isinstance(spelled, bool):
        spelled = str(spelled)
    if not isinstance(spelled, str):
        raise _refusal(text, "is not a str or int", manifest)
    if spelled.isascii() and spelled.isdigit():
        depth = int(spelled)
        if not 1 <= depth <= model.decoder_blocks:
            raise _refusal(text, "is not a depth of this model", manifest)
        return FixedDepth(str(depth), model, depth)
    name, separator, argument = spelled.partition(":")
    if separator and not argument:
        raise _refusal(text, f"has nothing after {name + ':'!r}", manifest)
    return _named_policy(text, name, argument, manifest, predictors)


def available_policies(manifest: Manifest) -> list[str]:
    """Spellings of the policies that a bundle has, for messages and help."""
    full_depth = manifest.model.decoder_blocks
    names = ["full", "1" if full_depth == 1 else f"1 to {full_depth}"]
    for entry in manifest.predictors:
        if entry.kind in THRESHOLD_KINDS:
            names.append(f"{entry.name}:T with T from 0 to 1")
        else:
            names.append(f"{entry.name} or {entry.name}:T with T from 0 to 1")
    if full_depth > 1:
        names.append(f"{CONFIDENCE}:T with T from 0 to 1, and like all thresholds also T,T,... by block or T@1,2")
    for point in manifest.operating_points:
        if point.name == DEFAULT_POINT:
            names.append(f"adaptive (= {point.policy})")
        else:
            names.append(f"adaptive:{point.name} (= {point.policy})")
    return names


def _named_policy(
    text: str | int, name: str, argument: str, manifest: Manifest, predictors: Mapping[str, Predictor]
) -> DepthPolicy:
    model = manifest.model
    if name == "adaptive":
        return _operating_point(text, argument or DEFAULT_POINT, manifest, predictors)
    if name == CONFIDENCE and model.decoder_blocks > 1:
        return Confidence(model, _thresholds(text, name, argument, manifest))
    entry = next((entry for entry in manifest.predictors if entry.name == name), None)
    if entry is None:
        raise _refusal(text, "is not known", manifest)
    predictor = predictors[name]
    if isinstance(predictor, HaltingUnits):
        return Halting(name, model, predictor, _thresholds(text, name, argument, manifest))
    if isinstance(predictor, CertaintyUnits):
        return Certainty(name, model, predictor, _thresholds(text, name, argument, manifest))
    quantile = _probability(text, argument, manifest) if argument else None
    policy = Multinomial if entry.kind == "multinomial" else SequenceDepth
    return policy(name, model, predictor, quantile)


def _operating_point(
    text: str | int, name: str, manifest: Manifest, predictors: Mapping[str, Predictor]
) -> DepthPolicy:
    for point in manifest.operating_points:
        if point.name == name:
            return parse_policy(point.policy, manifest, predictors)
    raise _refusal(text, f"needs the operating point {name!r}, which this bundle lacks", manifest)


def _thresholds(text: str | int, name: str, argument: str, manifest: Manifest) -> Thresholds:
    if not argument:
        raise _refusal(text, f"lacks a threshold, as in '{name}:0.9'", manifest)
    listed, separator, asked = argument.partition("@")
    every = tuple(range(1, manifest.model.decoder_blocks))
    blocks = _blocks(text, asked, manifest) if separator else every
    values = [_probability(text, value, manifest) for value in listed.split(",")]
    if len(values) == 1:
        values *= len(blocks)
    if len(values) != len(blocks):
        raise _refusal(text, f"has {len(values)} thresholds for {len(blocks)} blocks; give one, or one each", manifest)
    return Thresholds(tuple(values), blocks, every=blocks == every)


def _probability(text: str | int, argument: str, manifest: Manifest) -> float:
    try:
        threshold = float(argument)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise _refusal(text, f"has the threshold {argument!r}, expected 0 to 1", manifest)
    return threshold


def _blocks(text: str | int, argument: str, manifest: Manifest) -> tuple[int, ...]:
    numbers = argument.split(",")
    last = manifest.model.decoder_blocks - 1
    if not all(number.isascii() and number.isdigit() and 1 <= int(number) <= last for number in numbers):
        raise _refusal(text, f"has the blocks {argument!r}, expected numbers from 1 to {last} with commas", manifest)
    blocks = tuple(map(int, numbers))
    if list(blocks) != sorted(set(blocks)):
        raise _refusal(text, f"has the blocks {argument!r}, expected each once and in order", manifest)
    return blocks


def _refusal(text: object, reason: str, manifest: Manifest) -> PolicyError:
    names = "; ".join(available_policies(manifest))
    return PolicyError(f"depth policy {text!r} {reason}. This bundle has: {names}")
