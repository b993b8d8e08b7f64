"""How depth policies are spelled: what users may write, what is refused, and what a policy calls itself."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.errors import PolicyError
from edgeseq_runtime.manifest import Manifest
from edgeseq_runtime.policy import Confidence, DepthPolicy, FixedDepth, Halting, Multinomial, SequenceDepth, Speculative
from edgeseq_runtime.policy_names import available_policies, parse_policy
from edgeseq_runtime.predictors import Predictor
from linear import linear
from tiny_bundle import POLICIES


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    """Four blocks, and two operating points."""
    loaded = load_bundle(tiny_bundle)
    (point,) = loaded.manifest.operating_points
    points = [
        point.model_copy(update={"name": name, "policy": policy})
        for name, policy in (("default", "halting:0.45"), ("fast", "by-sentence:0.2"))
    ]
    manifest = loaded.manifest.model_copy(update={"operating_points": points})
    return Bundle(loaded.path, manifest, loaded.sha256, {}, loaded.tokenizer, loaded.predictors, None)


@pytest.fixture(scope="module")
def manifest(bundle: Bundle) -> Manifest:
    return bundle.manifest


@pytest.fixture(scope="module")
def predictors(bundle: Bundle) -> dict[str, Predictor]:
    return bundle.predictors


KINDS: list[tuple[str | int, str, type[DepthPolicy]]] = [
    ("full", "full", FixedDepth),
    ("1", "1", FixedDepth),
    (3, "3", FixedDepth),
    (" 4 ", "4", FixedDepth),
    ("speculative", "speculative:1", Speculative),
    ("speculative:3", "speculative:3", Speculative),
    ("halting:0.4", "halting:0.4", Halting),
    ("halting:1", "halting:1", Halting),
    ("halting:.50", "halting:0.5", Halting),
    ("halting:0.00001", "halting:0.00001", Halting),
    ("halting:0.4,0.5,0.6", "halting:0.4,0.5,0.6", Halting),
    ("halting:0.4,0.4,0.4", "halting:0.4", Halting),
    ("halting:0.4@1,3", "halting:0.4@1,3", Halting),
    ("halting:0.4,0.4@1,3", "halting:0.4@1,3", Halting),
    ("halting:0.4,0.5@1,3", "halting:0.4,0.5@1,3", Halting),
    ("halting:0.4@1,2,3", "halting:0.4", Halting),
    ("shared:0.4", "shared:0.4", Halting),
    ("confidence:0.7", "confidence:0.7", Confidence),
    ("confidence:0.7,0.5@2,3", "confidence:0.7,0.5@2,3", Confidence),
    ("multinomial", "multinomial", Multinomial),
    ("multinomial:0.25", "multinomial:0.25", Multinomial),
    ("by-sentence", "by-sentence", SequenceDepth),
    ("by-sentence:1", "by-sentence:1", SequenceDepth),
    ("adaptive", "halting:0.45", Halting),
    ("adaptive:default", "halting:0.45", Halting),
    ("adaptive:fast", "by-sentence:0.2", SequenceDepth),
]


@pytest.mark.parametrize(("text", "name", "kind"), KINDS)
def test_spellings(bundle: Bundle, text: str | int, name: str, kind: type[DepthPolicy]) -> None:
    policy = bundle.policy(text)
    assert type(policy) is kind
    assert policy.name == name


@pytest.mark.parametrize("text", [*POLICIES, *(name for _, name, _ in KINDS)])
def test_a_name_stands_for_its_policy(bundle: Bundle, text: str) -> None:
    assert bundle.policy(bundle.policy(text).name).name == bundle.policy(text).name


@given(
    thresholds=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    blocks=st.sets(st.integers(1, 3), min_size=1),
)
def test_every_set_of_thresholds_and_blocks_has_a_name(
    tiny_bundle: Path, thresholds: list[float], blocks: set[int]
) -> None:
    loaded = load_bundle(tiny_bundle)
    values = ",".join(map(str, thresholds[: len(blocks)]))
    asked = ",".join(map(str, sorted(blocks)))
    policy = loaded.policy(f"confidence:{values}@{asked}")
    assert [block for block in (1, 2, 3) if policy.decides(block)] == sorted(blocks)
    again = loaded.policy(policy.name)
    assert again.name == policy.name
    assert isinstance(policy, Confidence)
    assert isinstance(again, Confidence)
    assert again._thresholds == policy._thresholds


def test_other_policies_have_other_names(bundle: Bundle) -> None:
    """Control of both tests above."""
    names = [bundle.policy(text).name for text in POLICIES]
    assert len(set(names)) == len(POLICIES)


LISTED = (
    "This bundle has: full; 1 to 4; speculative or speculative:D with D from 1 to 3; "
    "halting:T with T from 0 to 1; shared:T with T from 0 to 1; "
    "multinomial or multinomial:T with T from 0 to 1; by-sentence or by-sentence:T with T from 0 to 1; "
    "certainty:T with T from 0 to 1; "
    "confidence:T with T from 0 to 1, and like all thresholds also T,T,... by block or T@1,2; "
    "adaptive (= halting:0.45); adaptive:fast (= by-sentence:0.2)"
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("deep", "depth policy 'deep' is not known. "),
        ("", "depth policy '' is not known. "),
        ("0", "depth policy '0' is not a depth of this model. "),
        (5, "depth policy 5 is not a depth of this model. "),
        ("-1", "is not known. "),
        ("9" * 5000, "is not known. "),  # more digits than Python reads
        (f"confidence:0.5@{'1' * 5000}", "expected numbers from 1 to 3 with commas. "),
        ("²", "is not known. "),
        (True, "depth policy True is not a str or int. "),
        (0.5, "depth policy 0.5 is not a str or int. "),
        ("full:1", "is not known. "),
        ("sequence:0.5", "depth policy 'sequence:0.5' is not known. "),  # a kind, but no predictor's name
        ("halting", "lacks a threshold, as in 'halting:0.9'. "),
        ("confidence", "lacks a threshold, as in 'confidence:0.9'. "),
        ("halting:", "has nothing after 'halting:'. "),
        ("multinomial:", "has nothing after 'multinomial:'. "),
        ("adaptive:", "has nothing after 'adaptive:'. "),
        ("halting:high", "has the threshold 'high', expected 0 to 1. "),
        ("halting:nan", "has the threshold 'nan', expected 0 to 1. "),
        ("halting:1.5", "has the threshold '1.5', expected 0 to 1. "),
        ("confidence:-0.1", "has the threshold '-0.1', expected 0 to 1. "),
        ("halting:@1", "has the threshold '', expected 0 to 1. "),
        ("halting:0.5,", "has the threshold '', expected 0 to 1. "),
        ("multinomial:2", "has the threshold '2', expected 0 to 1. "),
        ("multinomial:0.5,0.5,0.5", "has the threshold '0.5,0.5,0.5', expected 0 to 1. "),
        ("by-sentence:0.5@1", "has the threshold '0.5@1', expected 0 to 1. "),
        ("halting:0.4,0.5", "has 2 thresholds for 3 blocks; give one, or one each. "),
        ("halting:0.4,0.5,0.6@1,2", "has 3 thresholds for 2 blocks; give one, or one each. "),
        ("halting:0.4@3,1", "has the blocks '3,1', expected each once and in order. "),
        ("halting:0.4@1,1", "has the blocks '1,1', expected each once and in order. "),
        ("speculative:", "has nothing after 'speculative:'. "),
        *(
            (f"speculative:{depth}", f"drafts after block '{depth}', expected a number from 1 to 3. ")
            for depth in ("0", "4", "-1", "one", "²", "1,2")
        ),
        (
            "adaptive:best",
            (
                "needs the operating point 'best', which this bundle lacks: "
                "edgeseq calibrate finds best, balanced and fast, and with --guarantee guaranteed. "
            ),
        ),
        *(
            (f"halting:0.4@{blocks}", f"has the blocks {blocks!r}, expected numbers from 1 to 3 with commas. ")
            for blocks in ("", "0", "4", "1,", "1;2", "-1", "two", "1,4", "²")
        ),
    ],
)
def test_refusals_list_what_the_bundle_has(bundle: Bundle, text: str | int, reason: str) -> None:
    with pytest.raises(PolicyError) as error:
        bundle.policy(text)
    assert reason + LISTED in str(error.value)


def test_a_bundle_without_predictors_says_so(manifest: Manifest) -> None:
    bare = manifest.model_copy(update={"predictors": [], "operating_points": []})
    listed = "confidence:T with T from 0 to 1, and like all thresholds also T,T,... by block or T@1,2"
    assert available_policies(bare) == ["full", "1 to 4", "speculative or speculative:D with D from 1 to 3", listed]
    with pytest.raises(PolicyError, match=r"'halting:0\.5' is not known"):
        parse_policy("halting:0.5", bare, {})
    with pytest.raises(
        PolicyError, match=r"needs the operating point 'default'.*edgeseq export chooses it by --valid-src"
    ):
        parse_policy("adaptive", bare, {})
    assert parse_policy("confidence:0.5", bare, {}).name == "confidence:0.5"


def test_a_decoder_of_attention_drafts_nothing(manifest: Manifest) -> None:
    """It has no graph of whole steps."""
    model = manifest.model.model_copy(update={"mixer": "attention"})
    attention = manifest.model_copy(update={"model": model})
    assert not any("speculative" in name for name in available_policies(attention))
    with pytest.raises(PolicyError, match=r"'speculative' needs a decoder of convolutions, of two blocks at least\."):
        parse_policy("speculative", attention, {})


def test_with_two_blocks_there_is_one_threshold(manifest: Manifest) -> None:
    model = manifest.model.model_copy(update={"decoder_reaches": [3, 5]})
    double = manifest.model_copy(update={"model": model, "predictors": [], "operating_points": []})
    assert available_policies(double)[-1] == "confidence:T with T from 0 to 1"
    with pytest.raises(PolicyError, match=r"has 2 thresholds for 1 blocks; give one, or one each\."):
        parse_policy("confidence:0.5,0.5", double, {})


def test_a_single_block_leaves_nothing_to_choose(manifest: Manifest) -> None:
    model = manifest.model.model_copy(update={"decoder_reaches": [3]})
    single = manifest.model_copy(update={"model": model, "predictors": [], "operating_points": []})
    assert available_policies(single) == ["full", "1"]
    with pytest.raises(PolicyError, match=r"'confidence:0\.5' is not known\. This bundle has: full; 1$"):
        parse_policy("confidence:0.5", single, {})


def test_a_policy_is_made_of_the_predictor_it_names(bundle: Bundle) -> None:
    """Two of a kind are not mistaken for each other: the shared unit has other weights."""
    halting, shared = bundle.policy("halting:0.4"), bundle.policy("shared:0.4")
    assert isinstance(halting, Halting)
    assert isinstance(shared, Halting)
    for block in (1, 2, 3):
        weight, common = (policy.linear_stop.weights[block - 1] for policy in (halting, shared))
        assert (weight == linear(bundle.predictors["halting"]).weight[block - 1]).all()
        assert (common == linear(bundle.predictors["shared"]).weight[0]).all()
        assert (weight != common).any()
