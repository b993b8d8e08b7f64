"""Operating points and guarantees: from proposals and measurements to calibration.json and `adaptive:fast`."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import run_edgeseq
from edgeseq.errors import CalibrationError
from edgeseq.evaluation.calibration import CalibrationResult, CalibrationSettings, calibrate
from edgeseq.evaluation.guarantees import GuaranteeTerms, guarantee_point, order_for_tests, part_text
from edgeseq.evaluation.measuring import Decoded, Text, decode_policies
from edgeseq.evaluation.operating_points import Price, choose_points, propose_policies, worth_timing
from edgeseq.evaluation.sentence_losses import disagreements
from edgeseq_runtime import Translation, Translator
from edgeseq_runtime.calibration import CALIBRATION_FILE, MeasuredPolicy
from small_corpora import write_lines
from tiny_bundle import tiny_sentences, write_tiny_bundle

SETTINGS = CalibrationSettings(
    batch_size=16,
    price="flops",
    max_bleu_loss={"best": 1.0, "balanced": 40.0, "fast": 60.0},
    proposals=4,
    rounds=1,
    timing_sentences=4,
    seed=0,
)
TERMS = GuaranteeTerms("disagreement", delta=0.6, epsilon=0.2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with predictors of all kinds; not to be changed."""
    return write_tiny_bundle(tmp_path_factory.mktemp("calibration") / "tiny.bundle")


@pytest.fixture(scope="module")
def translator(bundle: Path) -> Translator:
    return Translator(bundle, device="cpu")


@pytest.fixture(scope="module")
def text(translator: Translator) -> Text:
    """Sentences whose references are the model's own at full depth, so that losses are those against full depth."""
    sources = tiny_sentences(80, seed=9)
    return Text(sources, [result.text for result in translator.translate(sources, depth="full")])


@pytest.fixture(scope="module")
def result(translator: Translator, text: Text) -> CalibrationResult:
    return calibrate(translator, text, SETTINGS, TERMS)


def measured(policy: str, bleu: float, flops: float, ms: float, depth: float = 2.0) -> MeasuredPolicy:
    return MeasuredPolicy(
        policy=policy, bleu=bleu, chrf=50.0, average_depth=depth, flops_per_token=flops, ms_per_sentence=ms
    )


CANDIDATES = [
    measured("full", 30.0, 100, 10.0, 6.0),
    measured("5", 29.95, 90, 9.5, 5.0),
    measured("halting:0.9", 29.92, 70, 9.6, 4.0),
    measured("halting:0.8", 29.6, 60, 8.0, 3.5),
    measured("confidence:0.8", 29.6, 95, 7.0, 2.5),
    measured("2", 28.0, 20, 2.0, 2.0),
]


# --- Which policies


def test_each_point_is_the_cheapest_within_its_loss() -> None:
    limits = {"best": 0.1, "balanced": 0.5, "fast": 1.5}
    expected: dict[Price, list[str]] = {
        "ms": ["5", "confidence:0.8", "confidence:0.8"],
        "flops": ["halting:0.9", "halting:0.8", "halting:0.8"],
        "blocks": ["halting:0.9", "confidence:0.8", "confidence:0.8"],
    }
    for price, policies in expected.items():
        points = choose_points(CANDIDATES, limits, price)
        assert [point.policy for point in points] == policies
        assert [point.name for point in points] == list(limits)
    # Control: were quality no matter, the cheapest of all would be taken.
    assert choose_points(CANDIDATES, {"any": 100.0}, "ms")[0].policy == "2"


def test_where_nothing_else_will_do_it_is_full_depth() -> None:
    (point,) = choose_points(CANDIDATES, {"best": 0.0}, "ms")
    assert (point.name, point.policy, point.bleu, point.guarantee) == ("best", "full", 30.0, None)


def test_what_its_own_predictor_outdoes_is_not_timed() -> None:
    worse = [measured("halting:0.5", 29.5, 75, 1.0), measured("4", 29.0, 99, 1.0), measured("6", 30.0, 100, 10.0)]
    kept = worth_timing([*CANDIDATES, *worse])
    assert [entry.policy for entry in kept] == [entry.policy for entry in CANDIDATES]


def test_proposals_are_policies_of_all_predictors(translator: Translator, text: Text) -> None:
    policies = propose_policies(translator, text.sources, kept=4, batch_size=16, seed=0, draws=200)
    assert policies[:4] == ["full", "1", "2", "3"]
    names = [policy.partition(":")[0] for policy in policies[4:]]
    assert set(names) == {"halting", "shared", "certainty", "multinomial", "by-sentence", "confidence"}
    assert {"multinomial", "by-sentence"} <= set(policies)
    assert all(names.count(name) <= 5 for name in names)
    for policy in policies:
        assert translator.bundle.policy(policy).name == policy


def test_blank_text_is_refused(translator: Translator) -> None:
    with pytest.raises(CalibrationError, match="all 2 sentences are blank; give text to calibrate on"):
        propose_policies(translator, ["", " "], kept=4, batch_size=16, seed=0)


# --- Guarantees


def test_halves_share_no_sentence(text: Text) -> None:
    numbered = Text([str(line) for line in range(81)], [str(-line) for line in range(81)])
    proposing, testing = part_text(numbered, TERMS, seed=3)
    assert sorted([*proposing.sources, *testing.sources], key=int) == numbered.sources
    assert (len(proposing.sources), len(testing.sources)) == (40, 41)
    assert all(int(source) == -int(reference) for source, reference in zip(*dataclasses.astuple(testing), strict=True))
    assert proposing.sources != numbered.sources[:40], "files are often in order of length, topic or origin"


def test_too_few_sentences_are_refused_before_anything_is_decoded() -> None:
    terms = GuaranteeTerms("chrf-drop", 0.05, 0.05)
    expected = (
        "117 sentences are too few for a guarantee: half of them propose, and to test delta 0.05 with epsilon 0.05 "
        "even a policy without any loss needs 59; give 118 or more"
    )
    with pytest.raises(CalibrationError, match=expected):
        part_text(Text(["a"] * 117, ["a"] * 117), terms, 0)
    part_text(Text(["a"] * 118, ["a"] * 118), terms, 0)


def fake_decode(policy: MeasuredPolicy, outputs: list[str]) -> Decoded:
    translations = [Translation(output, output.split(), [1] * len(output.split()), None, 2) for output in outputs]
    return Decoded(translations, policy)


def test_policies_are_tested_from_the_safest_to_the_cheapest() -> None:
    text = Text(["s", "t"], ["a b c d", "e f g h"])
    full, five, nine, eight, sure, two = CANDIDATES
    outputs = {
        full: ["a b c d", "e f g h"],
        five: ["a b c d", "e f g x"],
        nine: ["a b c d", "e f g h"],
        eight: ["a b c x", "e f g x"],
        sure: ["a b x x", "e f x x"],  # dearer than the one before in FLOPs, and worse
        two: ["x x x x", "x x x x"],
    }
    decoded = [fake_decode(policy, texts) for policy, texts in outputs.items()]
    ordered = order_for_tests(decoded, CANDIDATES, text, "disagreement", "flops")
    assert [entry.policy for entry in ordered] == ["halting:0.9", "halting:0.8", "2"]
    ordered = order_for_tests(decoded, CANDIDATES, text, "disagreement", "ms")
    assert [entry.policy for entry in ordered] == ["halting:0.9", "5", "halting:0.8", "confidence:0.8", "2"]


def test_what_costs_more_than_full_depth_is_not_tested() -> None:
    dear = measured("confidence:0.99", 30.0, 200, 20.0)
    decoded = [fake_decode(policy, ["a b"]) for policy in (CANDIDATES[0], dear)]
    assert order_for_tests(decoded, [CANDIDATES[0], dear], Text(["s"], ["a b"]), "chrf-drop", "ms") == []


def test_a_guarantee_is_tested_on_the_other_half(translator: Translator, text: Text, result: CalibrationResult) -> None:
    point = result.calibration.points[-1]
    guarantee = point.guarantee
    assert guarantee is not None
    assert (point.name, guarantee.sentences, guarantee.delta, guarantee.epsilon) == ("guaranteed", 40, 0.6, 0.2)
    assert point.policy != "full"
    means = []
    for half in part_text(text, TERMS, SETTINGS.seed):
        outputs, full = (
            [translation.tokens for translation in translator.translate(half.sources, depth=depth)]
            for depth in (point.policy, "full")
        )
        means.append(float(disagreements(outputs, full).mean()))
    assert guarantee.mean_loss == pytest.approx(means[1])
    assert means[0] != pytest.approx(means[1])  # control: the half that proposed says something else
    assert guarantee.p_value <= 0.2


def test_where_no_policy_passes_full_depth_is_guaranteed(translator: Translator, text: Text) -> None:
    policies = decode_policies(translator, text, ["full", "1"], 16)
    terms = GuaranteeTerms("disagreement", 0.05, 0.05)
    ordered = [policies[1].measured]
    point = guarantee_point(translator, ordered, policies[0].measured, text, 16, terms)
    assert (point.policy, point.guarantee and point.guarantee.mean_loss) == ("full", 0)
    lax = GuaranteeTerms("disagreement", 0.99, 0.05)
    assert guarantee_point(translator, ordered, policies[0].measured, text, 16, lax).policy == "1"


# --- Altogether


def test_points_hold_what_their_policies_give(translator: Translator, text: Text, result: CalibrationResult) -> None:
    calibration = result.calibration
    proposing, _ = part_text(text, TERMS, SETTINGS.seed)
    assert calibration.sentences == len(proposing.sources)
    assert [point.name for point in calibration.points] == ["best", "balanced", "fast", "guaranteed"]
    assert calibration.full_depth.bleu == pytest.approx(100)
    for point in calibration.points:
        again = decode_policies(translator, proposing, [point.policy], 7)[0].measured
        assert again.model_dump(exclude={"ms_per_sentence"}) == point.model_dump(
            exclude={"ms_per_sentence", "name", "guarantee"}
        )
        assert point.ms_per_sentence > 0
    flops = [point.flops_per_token for point in calibration.points[:3]]
    assert flops == sorted(flops, reverse=True)
    assert flops[2] < calibration.full_depth.flops_per_token


def test_everything_measured_comes_along(result: CalibrationResult) -> None:
    policies = [entry.policy for entry in result.measured]
    assert policies[:4] == ["full", "1", "2", "3"]
    assert len(policies) == len(set(policies)) > 12
    for point in result.calibration.points:
        assert point.policy in policies
    assert np.isfinite([entry.ms_per_sentence for entry in result.measured]).all()


@pytest.fixture
def files(text: Text, tmp_path: Path) -> tuple[Path, Path]:
    """Its first lines."""
    return write_lines(tmp_path / "text.en", text.sources[:24]), write_lines(tmp_path / "text.de", text.references[:24])


def test_the_command_writes_points_that_other_commands_use(
    bundle: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy.bundle")
    options = ["--proposals", 3, "--rounds", 1, "--timing-sentences", 2, "--price", "blocks", "--fast-loss", 60]
    outcome = run_edgeseq("calibrate", "--model", copy, "--src", files[0], "--ref", files[1], *map(str, options))
    assert outcome.code == 0, outcome.stderr
    document = json.loads(outcome.lines[-1])
    assert document["file"] == str(copy / CALIBRATION_FILE)
    assert document["calibration"] == json.loads((copy / CALIBRATION_FILE).read_text(encoding="utf-8"))
    points = {point["name"]: point["policy"] for point in document["calibration"]["points"]}
    assert set(points) == {"best", "balanced", "fast"}
    assert len(document["measured"]) > 8
    timed = [entry["policy"] for entry in document["measured"] if "ms_per_sentence" in entry]
    assert {"full", *points.values()} <= set(timed)
    table = outcome.stderr.splitlines()
    assert "edgeseq: warning: 24 sentences say little: what policies lose on so few is mostly chance" in outcome.stderr
    for name, policy in {"full": "full", **{f"adaptive:{name}": policy for name, policy in points.items()}}.items():
        assert any(line.startswith(f"{name} ") and line.endswith(f" {policy}") for line in table), name
    inspected = "\n".join(run_edgeseq("inspect", copy).lines)
    assert f"adaptive:fast = {points['fast']}" in inspected
    assert "24 sentences; times at batch size 32, CPUExecutionProvider, 1 of " in inspected
    assert json.loads(run_edgeseq("inspect", copy, "--json").stdout)["calibration"] == document["calibration"]
    evaluated = run_edgeseq(
        "evaluate", "--model", copy, "--src", files[0], "--ref", files[1], "--depth", "adaptive:fast"
    )
    (row,) = json.loads(evaluated.lines[-1])["results"]
    assert row["depth"] == points["fast"]
    # Calibrating again replaces the file.
    again = run_edgeseq(
        "calibrate", "--model", copy, "--src", files[0], "--ref", files[1], *map(str, options), "--guarantee",
        "--delta", "0.6", "--loss", "disagreement", "--epsilon", "0.2",
    )  # fmt: skip
    assert again.code == 0, again.stderr
    assert "adaptive:guaranteed: expected disagreement against full depth at most 0.6" in again.stderr
    assert len(json.loads((copy / CALIBRATION_FILE).read_text(encoding="utf-8"))["points"]) == 4


def test_a_failed_calibration_leaves_nothing(bundle: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy.bundle")
    arguments = ["--model", copy, "--src", files[0], "--ref", files[1], "--guarantee", "--delta", "0.01"]
    outcome = run_edgeseq("calibrate", *arguments)
    assert outcome.code == 1
    assert "24 sentences are too few for a guarantee" in outcome.stderr
    short = write_lines(tmp_path / "short.de", ["ein Satz"])
    outcome = run_edgeseq("calibrate", "--model", copy, "--src", files[0], "--ref", short)
    assert outcome.code == 1
    assert f"{files[0]} has 24 lines, {short} has 1" in outcome.stderr
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in bundle.iterdir())


@pytest.mark.parametrize(("option", "value"), [("--delta", "0"), ("--epsilon", "1"), ("--rounds", "0")])
def test_options_out_of_range_are_refused(option: str, value: str) -> None:
    outcome = run_edgeseq("calibrate", "--model", "b", "--src", "s", "--ref", "r", option, value)
    assert outcome.code == 2
    assert f"Invalid value for '{option}'" in outcome.stderr


@pytest.mark.parametrize(("option", "value"), [("--delta", "0.1"), ("--epsilon", "0.1"), ("--loss", "disagreement")])
def test_levels_of_a_guarantee_that_is_not_asked_for_are_refused(option: str, value: str) -> None:
    outcome = run_edgeseq("calibrate", "--model", "b", "--src", "s", "--ref", "r", option, value)
    assert outcome.code == 2
    assert f"{option} belongs to --guarantee; give that too, or leave it out" in outcome.stderr
