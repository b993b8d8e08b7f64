"""calibration.json: what it may hold, and what a bundle makes of it."""

import json
import shutil
from pathlib import Path

import pytest

from edgeseq_runtime import BundleError, PolicyError, Translator
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.calibration import CALIBRATION_FILE, Calibration, parse_calibration
from edgeseq_runtime.manifest import MANIFEST_FILE

MEASURES = {"bleu": 30.0, "chrf": 50.0, "average_depth": 2.0, "flops_per_token": 1e6, "ms_per_sentence": 1.5}
GUARANTEE = {
    "loss": "disagreement",
    "delta": 0.05,
    "epsilon": 0.1,
    "sentences": 1000,
    "mean_loss": 0.031,
    "p_value": 0.02,
}


def document(sha256: str, **changes: object) -> bytes:
    """A calibration with two points, as a file holds it."""
    content: dict[str, object] = {
        "format": "edgeseq-calibration",
        "format_version": 2,
        "edgeseq_version": "0.1.0",
        "created": "2026-01-01",
        "bundle_sha256": sha256,
        "machine": {
            "provider": "CPUExecutionProvider",
            "onnxruntime": "1.0",
            "batch_size": 32,
            "cpu_count": 2,
        },
        "sentences": 100,
        "price": "ms",
        "full_depth": {"policy": "full", **MEASURES},
        "points": [
            {"name": "balanced", "policy": "halting:0.3,0.6@1,2", **MEASURES},
            {"name": "guaranteed", "policy": "2", **MEASURES, "guarantee": GUARANTEE},
        ],
    }
    return json.dumps(content | changes).encode()


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy.bundle")


def calibrated(folder: Path, **changes: object) -> Bundle:
    """The bundle, with a calibration of its own."""
    (folder / CALIBRATION_FILE).write_bytes(document(load_bundle(folder).sha256, **changes))
    return load_bundle(folder)


def test_a_calibration_survives_writing_and_reading() -> None:
    calibration = parse_calibration(document("a" * 64), Path("x"), "a" * 64)
    assert parse_calibration(calibration.to_bytes(), Path("x"), "a" * 64) == calibration
    assert calibration.points[1].guarantee is not None
    assert calibration.points[1].guarantee.describe() == (
        "expected disagreement against full depth at most 0.05, but for a chance of 0.1 "
        "(0.0310 on 1,000 sentences, p = 0.02)"
    )


def test_its_points_are_depth_policies(folder: Path) -> None:
    bundle = calibrated(folder)
    assert bundle.policy("adaptive:balanced").name == "halting:0.3,0.6@1,2"
    assert bundle.policy("adaptive:guaranteed").name == "2"
    assert bundle.policy("adaptive").name == "halting:0.5"  # the manifest's default stays
    with pytest.raises(PolicyError, match=r"adaptive:balanced \(= halting:0\.3,0\.6@1,2\)"):
        bundle.policy("adaptive:none")
    (folder / CALIBRATION_FILE).unlink()
    with pytest.raises(PolicyError, match="needs the operating point 'balanced', which this bundle lacks"):
        load_bundle(folder).policy("adaptive:balanced")


def test_a_point_measured_here_comes_before_the_manifests(folder: Path) -> None:
    bundle = calibrated(folder, points=[{"name": "default", "policy": "3", **MEASURES}])
    assert bundle.policy("adaptive").name == "3"


def test_without_a_default_adaptive_is_balanced(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    manifest["operating_points"] = []
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    assert Translator(folder, device="cpu").policy.name == "full"
    calibrated(folder)
    assert Translator(folder, device="cpu").policy.name == "halting:0.3,0.6@1,2"


def test_it_changes_no_hash(folder: Path) -> None:
    before = load_bundle(folder).sha256
    assert calibrated(folder).sha256 == before


@pytest.mark.parametrize("policy", ["haltin:0.5", "halting:0.5@9", "7"])
def test_a_point_whose_policy_the_bundle_lacks_is_refused(folder: Path, policy: str) -> None:
    points = [{"name": "fast", "policy": policy, **MEASURES}]
    with pytest.raises(BundleError) as caught:
        calibrated(folder, points=points)
    assert str(caught.value).startswith(
        f"{folder / CALIBRATION_FILE}: operating point 'fast': depth policy {policy!r} "
    )
    assert str(caught.value).endswith("; delete it, and run `edgeseq calibrate` to have operating points again")


def test_that_of_another_bundle_is_refused(folder: Path) -> None:
    (folder / CALIBRATION_FILE).write_bytes(document("b" * 64))
    own = load_bundle_hash(folder)
    expected = (
        f"calibration.json belongs to the bundle {'b' * 12}, but this one is {own[:12]}: thresholds of another model "
        "mean nothing here; delete it, and run `edgeseq calibrate`"
    )
    with pytest.raises(BundleError, match=expected):
        load_bundle(folder)


def load_bundle_hash(folder: Path) -> str:
    """The bundle's hash, whatever its calibration."""
    data = (folder / CALIBRATION_FILE).read_bytes()
    (folder / CALIBRATION_FILE).unlink()
    sha256 = load_bundle(folder).sha256
    (folder / CALIBRATION_FILE).write_bytes(data)
    return sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, r"delete it, .* \(1 problems\):\n  format_version: Input should be 2"),
        ({"format": "other"}, "format: Input should be 'edgeseq-calibration'"),
        ({"price": "money"}, "price: Input should be 'ms', 'flops' or 'blocks'"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"sentences": 0, "created": "today"}, r"\(2 problems\)"),
        (
            {"points": [{"name": "fast", "policy": "adaptive:fast", **MEASURES}]},
            r"points\.0\.policy: 'adaptive:fast' names an operating point, expected the policy it stands for",
        ),
        (
            {"points": [{"name": "fast", "policy": "2", **MEASURES}] * 2},
            "operating point 'fast' is listed more than once",
        ),
        (
            {"points": [{"name": "x", "policy": "2", **MEASURES, "guarantee": GUARANTEE | {"delta": 1.0}}]},
            r"points\.0\.guarantee\.delta: Input should be less than 1",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        parse_calibration(document("a" * 64, **changes), Path("calibration.json"), "a" * 64)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_truncated_file_is_refused(folder: Path, length: int) -> None:
    (folder / CALIBRATION_FILE).write_bytes(document("a" * 64)[:length])
    with pytest.raises(BundleError, match=r"calibration\.json is not valid; delete it"):
        load_bundle(folder)


def test_a_link_or_a_huge_file_is_refused(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.json"
    target.write_bytes(document("a" * 64))
    (folder / CALIBRATION_FILE).symlink_to(target)
    with pytest.raises(BundleError, match="is a symbolic link"):
        load_bundle(folder)
    (folder / CALIBRATION_FILE).unlink()
    (folder / CALIBRATION_FILE).write_bytes(b" " * (2 << 20))
    with pytest.raises(BundleError, match="has 2097152 bytes, expected at most 1048576"):
        load_bundle(folder)


def test_every_field_is_needed() -> None:
    content = json.loads(document("a" * 64))
    for name in Calibration.model_fields.keys() - {"format", "format_version"}:
        rest = {field: value for field, value in content.items() if field != name}
        with pytest.raises(BundleError, match=f"{name}: Field required"):
            parse_calibration(json.dumps(rest).encode(), Path("calibration.json"), "a" * 64)
