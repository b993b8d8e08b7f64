"""Depth policies: what users may write, and the arithmetic of stopping."""

import math
from pathlib import Path

import numpy as np
import pytest

from edgeseq_runtime.bundle import load_bundle
from edgeseq_runtime.errors import PolicyError
from edgeseq_runtime.manifest import Manifest
from edgeseq_runtime.policy import (
    FixedDepth,
    Halting,
    HaltingUnits,
    available_policies,
    halting_units_asked,
    parse_policy,
)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    """Four blocks, and two operating points."""
    loaded = load_bundle(tiny_bundle).manifest
    (point,) = loaded.operating_points
    points = [
        point.model_copy(update={"name": name, "policy": policy})
        for name, policy in (("default", "halting:0.45"), ("fast", "2"))
    ]
    return loaded.model_copy(update={"operating_points": points})


@pytest.fixture(scope="module")
def units() -> HaltingUnits:
    generator = np.random.default_rng(0)
    return HaltingUnits(
        generator.standard_normal((3, 16)).astype(np.float32),
        generator.standard_normal(3).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("text", "name", "depth"),
    [("full", "full", 4), ("1", "1", 1), (3, "3", 3), (" 4 ", "4", 4), ("adaptive:fast", "2", 2)],
)
def test_fixed_depths(manifest: Manifest, units: HaltingUnits, text: str | int, name: str, depth: int) -> None:
    assert parse_policy(text, manifest, units) == FixedDepth(depth, name)


@pytest.mark.parametrize(
    ("text", "threshold"),
    [("halting:0.4", 0.4), ("halting:1", 1.0), ("adaptive", 0.45), ("adaptive:default", 0.45)],
)
def test_halting(manifest: Manifest, units: HaltingUnits, text: str, threshold: float) -> None:
    policy = parse_policy(text, manifest, units)
    assert isinstance(policy, Halting)
    assert policy.threshold == threshold
    assert policy.name == f"halting:{threshold:g}"


LISTED = (
    "This bundle has: full; 1 to 4; halting:TAU with TAU from 0 to 1, or halting:TAU@EXITS such as halting:0.9@1,2; "
    "adaptive (= halting:0.45); adaptive:fast (= 2)"
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("deep", "depth policy 'deep' is not known. "),
        ("", "depth policy '' is not known. "),
        ("0", "depth policy '0' is not a depth of this model. "),
        (5, "depth policy 5 is not a depth of this model. "),
        ("-1", "is not known. "),
        ("²", "is not known. "),
        (True, "depth policy True is not a str or int. "),
        ("halting", "is not known. "),
        ("halting:", "is not known. "),
        ("halting:high", "has the threshold 'high', expected 0 to 1. "),
        ("halting:nan", "has the threshold 'nan', expected 0 to 1. "),
        ("halting:1.5", "has the threshold '1.5', expected 0 to 1. "),
        ("adaptive:", "is not known. "),
        ("adaptive:best", "needs the operating point 'best', which this bundle lacks. "),
        ("confidence:0.7", "depth policy 'confidence:0.7' is not known. "),
    ],
)
def test_refusals_list_what_the_bundle_has(
    manifest: Manifest, units: HaltingUnits, text: str | int, reason: str
) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(text, manifest, units)
    assert reason + LISTED in str(error.value)


def test_bundle_without_halting_units_says_so(manifest: Manifest) -> None:
    model = manifest.model.model_copy(update={"halting": "none"})
    bare = manifest.model_copy(update={"model": model, "operating_points": []})
    assert available_policies(bare) == ["full", "1 to 4"]
    with pytest.raises(PolicyError, match="needs halting units, which this bundle lacks"):
        parse_policy("halting:0.5", bare, None)
    with pytest.raises(PolicyError, match="needs the operating point 'default'"):
        parse_policy("adaptive", bare, None)


def test_fixed_depth_stops_at_its_block() -> None:
    states = np.zeros((3, 16), dtype=np.float32)
    policy = FixedDepth(2, "2")
    assert policy.stops(1, states).tolist() == [False] * 3
    assert policy.stops(2, states).tolist() == [True] * 3


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_halting_is_the_sigmoid_rule(units: HaltingUnits, threshold: float, rows: int) -> None:
    """Per-block weights for three units, the same weights for every block with one."""
    units = HaltingUnits(units.weight[:rows], units.bias[:rows])
    states = np.random.default_rng(1).standard_normal((200, 16)).astype(np.float32)
    for block in (1, 2, 3):
        unit = block - 1 if rows == 3 else 0
        chi = [
            1 / (1 + math.exp(-(float(np.dot(state, units.weight[unit])) + units.bias[unit])))
            for state in states.astype(np.float64)
        ]
        stops = Halting(units, threshold).stops(block, states)
        assert stops.tolist() == [value > threshold for value in chi]
        assert 0 < stops.sum() < 200


def test_extreme_thresholds_always_and_never_stop(units: HaltingUnits) -> None:
    states = np.random.default_rng(2).standard_normal((50, 16)).astype(np.float32) * 100
    assert Halting(units, 0.0).stops(1, states).all()
    assert not Halting(units, 1.0).stops(1, states).any()


def logits_of_subsets(units: HaltingUnits, states: np.ndarray) -> bool:
    """Whether each row's logit is the same bits alone, in any subset and in any memory layout."""
    whole = units.logits(2, states)
    generator = np.random.default_rng(3)
    for size in (1, 2, 3, 7, 16, 31, 64):
        rows = generator.permutation(len(states))[:size]
        if not np.array_equal(units.logits(2, states[rows]), whole[rows]):
            return False
        if not np.array_equal(units.logits(2, np.asfortranarray(states[rows])), whole[rows]):
            return False
    return True


def test_logits_do_not_depend_on_batch_mates() -> None:
    generator = np.random.default_rng(4)
    units = HaltingUnits(generator.standard_normal((3, 200)).astype(np.float32), np.zeros(3, dtype=np.float32))
    states = generator.standard_normal((128, 200)).astype(np.float32)
    assert logits_of_subsets(units, states)


def test_control_a_sum_over_the_batch_is_seen() -> None:
    """The check above fails for arithmetic that lets rows touch each other."""

    class Mixing(HaltingUnits):
        def logits(self, block: int, exit_states: np.ndarray) -> np.ndarray:
            scale = np.abs(exit_states).max()
            return super().logits(block, exit_states / scale) * scale

    generator = np.random.default_rng(4)
    units = Mixing(generator.standard_normal((3, 200)).astype(np.float32), np.zeros(3, dtype=np.float32))
    assert not logits_of_subsets(units, generator.standard_normal((128, 200)).astype(np.float32))


def test_halting_at_a_few_exits(manifest: Manifest, units: HaltingUnits) -> None:
    """The named blocks decide as they would anyway, the others not at all."""
    policy = parse_policy("halting:0.4@3,1,3", manifest, units)
    everywhere = parse_policy("halting:0.4", manifest, units)
    assert policy.name == "halting:0.4@1,3"
    assert [policy.decides(block) for block in (1, 2, 3)] == [True, False, True]
    assert [everywhere.decides(block) for block in (1, 2, 3)] == [True, True, True]
    assert halting_units_asked(policy, 4) == [1, 3]
    states = np.random.default_rng(0).standard_normal((50, units.weight.shape[1])).astype(np.float32)
    for block in (1, 3):
        assert policy.stops(block, states).tolist() == everywhere.stops(block, states).tolist()


def test_fixed_depths_ask_no_unit(manifest: Manifest) -> None:
    policy = parse_policy("2", manifest, None)
    assert [policy.decides(block) for block in (1, 2, 3)] == [False, True, False]
    assert halting_units_asked(policy, 4) == []


@pytest.mark.parametrize("exits", ["", "0", "4", "1,", "1;2", "-1", "two", "1,4"])
def test_exits_that_a_model_lacks(exits: str, manifest: Manifest, units: HaltingUnits) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(f"halting:0.4@{exits}", manifest, units)
    message = f"has the exits {exits!r}, expected numbers from 1 to 3 with commas. This bundle has: full;"
    assert message in str(caught.value)
