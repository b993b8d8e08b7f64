"""The manifest is strict, and says everything that is wrong at once."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeseq_runtime.errors import BundleError
from edgeseq_runtime.manifest import MANIFEST_FILE, Manifest, OperatingPoint
from tiny_bundle import tiny_facts, write_tiny_bundle

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("manifest") / "tiny.bundle")
    return (bundle / MANIFEST_FILE).read_bytes()


def changed(data: bytes, change: Change) -> bytes:
    content = json.loads(data)
    change(content)
    return json.dumps(content).encode()


def test_bytes_survive_a_round_trip(data: bytes) -> None:
    manifest = Manifest.from_bytes(data)
    assert manifest.to_bytes() == data
    assert data.endswith(b"}\n")


def test_unchanged_content_is_accepted(data: bytes) -> None:
    """Control of all refusals below."""
    assert Manifest.from_bytes(changed(data, lambda _: None)) == Manifest.from_bytes(data)


def test_facts_follow_from_the_model(data: bytes) -> None:
    assert Manifest.from_bytes(data).model.decoder_blocks == 4


def test_predictors_are_described(data: bytes) -> None:
    described = [(entry.name, entry.kind, entry.rows) for entry in Manifest.from_bytes(data).predictors]
    assert described == [
        ("halting", "halting", 3),
        ("shared", "halting", 1),
        ("multinomial", "multinomial", 4),
        ("by-sentence", "sequence", 4),
        ("certainty", "certainty", 3),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "m.json is not JSON (Expecting value: line 1 column 1 (char 0)): export or copy the bundle again"),
        (b"\xff\xfe", "m.json is not JSON"),
        (b"[" * 100_000, "m.json is not JSON"),
        (b"[]", "m.json is not the manifest of a bundle: format is None, expected 'edgeseq-bundle'"),
        (b'{"format": "onnx"}', "format is 'onnx', expected 'edgeseq-bundle'"),
        (
            b'{"format": "edgeseq-bundle", "format_version": 8}',
            "m.json has format_version 8; this edgeseq reads version 7: export the model again, or",
        ),
        (b'{"format": "edgeseq-bundle", "format_version": 2}', "m.json has format_version 2; this edgeseq reads"),
        (b'{"format": "edgeseq-bundle", "format_version": true}', "has format_version True;"),
    ],
)
def test_what_is_no_manifest_of_this_version_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(BundleError) as error:
        Manifest.from_bytes(content, "m.json")
    assert message in str(error.value)


def test_all_mistakes_are_reported_at_once(data: bytes) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["dim"] = "16"
        content["model"]["mixer"] = "depthwise"
        content["graphs"][0]["size"] = -1
        content["surprise"] = 1
        del content["provenance"]

    with pytest.raises(BundleError) as error:
        Manifest.from_bytes(changed(data, change), "m.json")
    message = str(error.value)
    assert message.startswith("m.json is not valid (5 problems):\n")
    assert message.endswith("\nexport or copy the bundle again")
    assert "  model.dim: Input should be a valid integer" in message
    assert "  model.mixer: Input should be 'dynamic', 'lightweight' or 'attention'" in message
    assert "  graphs.0.size: Input should be greater than 0" in message
    assert "  surprise: Extra inputs are not permitted" in message
    assert "  provenance: Field required" in message


SHORTLIST = {"best": 1, "frequent": 1, "weights": "int8", "report": None}

NAMES = ["../x", "a/b", "a\\b", "/etc/passwd", ".hidden", "", "-r", "x\x00", "n\u00e4me", "a b"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_could_leave_the_folder_are_refused(data: bytes, name: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["graphs"][0]["file"] = name

    with pytest.raises(BundleError, match=r"graphs\.0\.file: .* is not a plain file name"):
        Manifest.from_bytes(changed(data, change))


def set_value(*path: str | int, value: object) -> Change:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("graphs", 1, "file", value="Encoder.onnx"), "file 'encoder.onnx' is listed more"),
        (set_value("files", 0, "file", value="manifest.json"), "'manifest.json' is listed more than"),
        (set_value("model", "vocab_size", value=61), "has 60 pieces, but the model's vocab_size is 61"),
        (set_value("model", "heads", value=3), "dim 16 is not a multiple of heads 3"),
        (set_value("model", "convolution_heads", value=3), "dim 16 is not a multiple of the mixer's heads 3"),
        (set_value("model", "mixer", value="attention"), "glu is true, but self-attention has no gate"),
        (set_value("model", "decoder_reaches", value=[3, 5, 0, 7]), "holds 0, but a convolution has at least one tap"),
        (
            set_value("model", "decoder_reaches", value=[3, 5, -1, 7]),
            "model.decoder_reaches.2: Input should be greater",
        ),
        (set_value("shortlist", value=SHORTLIST), "expected ['predictors', 'shortlist', 'tokenizer',"),
        (set_value("shortlist", value=SHORTLIST | {"weights": "int4"}), "shortlist.weights: Input should be 'float32'"),
        (
            set_value("model", "decoder_reaches", value=[3]),
            "there are predictors, but one decoder block leaves nothing",
        ),
        (
            set_value("predictors", value=[]),
            "files have the roles ['predictors', 'tokenizer', 'weights'], expected ['tokenizer', 'weights']",
        ),
        (set_value("predictors", 1, "name", value="halting"), "predictor 'halting' is listed more than once"),
        (set_value("predictors", 1, "name", value="full"), "'full' is a depth policy of every bundle; give the"),
        (set_value("predictors", 1, "name", value="adaptive"), "'adaptive' is a depth policy of every bundle"),
        (set_value("predictors", 1, "name", value="confidence"), "'confidence' is a depth policy of every bundle"),
        (set_value("predictors", 1, "name", value="2"), "predictors.1.name: String should match pattern"),
        (set_value("predictors", 1, "name", value="a:b"), "predictors.1.name: String should match pattern"),
        (set_value("predictors", 1, "name", value="Shared"), "predictors.1.name: String should match pattern"),
        (set_value("predictors", 1, "kind", value="confidence"), "predictors.1.kind: Input should be 'halting'"),
        (set_value("predictors", 0, "rows", value=2), "predictor 'halting' (halting) has 2 rows, expected 1 or 3"),
        (set_value("predictors", 2, "rows", value=3), "predictor 'multinomial' (multinomial) has 3 rows, expected 4"),
        (set_value("predictors", 3, "rows", value=1), "predictor 'by-sentence' (sequence) has 1 rows, expected 4"),
        (set_value("tokenizer", "pad_id", value=1), "tokenizer.pad_id: Input should be 0"),
        (set_value("operating_points", 0, "policy", value="adaptive"), "0.policy: 'adaptive' is an operating point"),
        (set_value("quality", value=[{"depth": "1"}]), "quality.0.bleu: Field required"),
        (set_value("graphs", 0, "sha256", value="abc"), "graphs.0.sha256"),
    ],
)
def test_fields_that_contradict_are_refused(data: bytes, change: Change, message: str) -> None:
    with pytest.raises(BundleError) as error:
        Manifest.from_bytes(changed(data, change))
    assert message in str(error.value)


def test_a_shortlist_of_untied_heads_is_refused(data: bytes) -> None:
    def change(content: dict[str, Any]) -> None:
        content["shortlist"] = SHORTLIST
        content["files"].append(content["files"][0] | {"role": "shortlist", "file": "shortlist.safetensors"})
        content["model"]["head"] = "untied"

    with pytest.raises(BundleError, match="there is a shortlist, but exit heads are untied: shortlists are for tied"):
        Manifest.from_bytes(changed(data, change))


def test_heads_of_the_mixer_are_those_of_attention_where_it_attends() -> None:
    facts = tiny_facts(mixer="attention", glu=False, decoder_reaches=[0, 5], heads=2, convolution_heads=3)
    assert (facts.mixer_heads, facts.decoder_blocks) == (2, 2)
    assert tiny_facts(heads=2, convolution_heads=4).mixer_heads == 4


def test_operating_points_have_one_name_each(data: bytes) -> None:
    def change(content: dict[str, Any]) -> None:
        content["operating_points"] *= 2

    with pytest.raises(BundleError, match="operating point 'default' is listed more than once"):
        Manifest.from_bytes(changed(data, change))


def test_numbers_are_finite(data: bytes, tmp_path: Path) -> None:
    broken = data.replace(b'"bleu": 1.0', b'"bleu": NaN')
    assert broken != data
    with pytest.raises(BundleError, match=r"bleu"):
        Manifest.from_bytes(broken)


@pytest.mark.parametrize(
    ("policy", "fits"),
    [
        ("full", True),
        ("12", True),
        ("halting:0.94", True),
        ("halting:0.94@1,2,4", True),
        ("halting:0.94,0.9@1,2", True),
        ("halting:0.94,0.9,0.8", True),
        ("by-sentence", True),
        ("by-sentence:0.5", True),
        ("confidence:0.5", True),
        ("halting:0.94@", False),
        ("halting:0.94@1,", False),
        ("halting:0.94,", False),
        ("halting:", False),
        ("Halting:0.5", False),
        ("0", False),
        ("adaptive", False),
        ("adaptive:fast", False),
    ],
)
def test_policies_of_operating_points(policy: str, fits: bool) -> None:
    point = {"name": "p", "policy": policy, "bleu": 1, "chrf": 1, "average_depth": 1, "sentences": 1}
    with (
        contextlib.nullcontext()
        if fits
        else pytest.raises(ValidationError, match=r"should match pattern|not the name of another")
    ):
        OperatingPoint.model_validate(point | {"full_depth_bleu": 1})
