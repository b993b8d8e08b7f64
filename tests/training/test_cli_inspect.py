"""``edgeseq inspect``: what it says of a bundle, for people and for programs."""

import json
from pathlib import Path

import pytest

import edgeseq_runtime.bundle
from command_line import Outcome, run_edgeseq
from edgeseq_runtime.bundle import Bundle
from edgeseq_runtime.manifest import Manifest

HASH = "0123456789abcdef" * 4

MANIFEST: dict[str, object] = {
    "format": "edgeseq-bundle",
    "format_version": 7,
    "edgeseq_version": "0.1.0",
    "created": "2026-01-31",
    "compute_type": "float32",
    "quantisation": None,
    "shortlist": None,
    "model": {
        "dim": 64,
        "heads": 4,
        "vocab_size": 4000,
        "encoder_blocks": 4,
        "decoder_reaches": [3, 7, 15],
        "head": "tied",
        "norm": "pre",
        "parameters": 1234567,
        "feed_forward_dim": 128,
        "mixer": "dynamic",
        "glu": True,
        "convolution_heads": 8,
    },
    "graphs": [
        {
            "file": file,
            "role": role,
            "block": block,
            "size": size,
            "sha256": HASH,
            "inputs": [],
            "outputs": [],
        }
        for file, role, block, size in (
            ("encoder.onnx", "encoder", None, 15_000),
            ("block_1.onnx", "block", 1, 5_000),
        )
    ],
    "files": [
        {"file": "weights.bin", "role": "weights", "size": 1_730_000, "sha256": HASH},
        {"file": "tokenizer.model", "role": "tokenizer", "size": 240_000, "sha256": HASH},
        {"file": "predictors.safetensors", "role": "predictors", "size": 10_000, "sha256": HASH},
    ],
    "tokenizer": {"pieces": 4000},
    "predictors": [
        {"name": "halting", "kind": "halting", "rows": 2, "training": "agreement, sigma 0, lambda 0.05, joint trunk"},
        {"name": "common", "kind": "halting", "rows": 1, "training": "likelihood, sigma 2, lambda 0.1, frozen trunk"},
        {"name": "sequence", "kind": "sequence", "rows": 3, "training": "correctness, frozen trunk"},
    ],
    "operating_points": [
        {
            "name": "default",
            "policy": "halting:0.45",
            "bleu": 31.04,
            "chrf": 52.5,
            "average_depth": 2.125,
            "sentences": 2000,
            "full_depth_bleu": 31.4,
        }
    ],
    "quality": [
        {"depth": "1", "bleu": 25.0, "chrf": 47.0, "average_depth": 1.0, "sentences": 2000},
        {"depth": "3", "bleu": 31.4, "chrf": 53.0, "average_depth": 3.0, "sentences": 2000},
    ],
    "parity": {
        "tie_margin": 1e-4,
        "rows": [
            {"graph": "encoder.onnx", "shapes": 5, "max_abs_diff": 2.1e-6, "tolerance": 1e-4},
        ],
        "decoding": {
            "sentences": 200,
            "tokens": 2345,
            "decisions": 5000,
            "disagreements": 0,
            "ties": 3,
        },
    },
    "provenance": {"licence": "CC BY 2.0 FR", "data": "Tatoeba English-German"},
}


DEPTHS = (
    "full; 1 to 3; speculative or speculative:D with D from 1 to 2; "
    "halting:T with T from 0 to 1; common:T with T from 0 to 1; "
    "sequence or sequence:T with T from 0 to 1; "
    "confidence:T with T from 0 to 1, and like all thresholds also T,T,... by block or T@1,2"
)


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The manifest that the next command finds; a test may change it first."""
    content = dict(MANIFEST)

    def load_bundle(path: str) -> Bundle:
        manifest = Manifest.from_bytes(json.dumps(content).encode())
        return Bundle(Path(path), manifest, HASH, files={}, tokenizer=None, predictors={}, calibration=None)  # type: ignore[arg-type]

    monkeypatch.setattr(edgeseq_runtime.bundle, "load_bundle", load_bundle)
    return content


def inspect(*arguments: str) -> Outcome:
    outcome = run_edgeseq("inspect", "en-de.bundle", *arguments)
    assert (outcome.code, outcome.stderr) == (0, "")
    return outcome


@pytest.mark.usefixtures("inspected")
def test_summary_names_what_a_user_asks_about() -> None:
    assert inspect().lines == [
        "Bundle     en-de.bundle",
        "Format     7, written by edgeseq 0.1.0 on 2026-01-31",
        "Size       2.00 MB in 6 files, float32",
        f"SHA-256    {HASH}",
        "Licence    CC BY 2.0 FR",
        "Data       Tatoeba English-German",
        "Model      1,234,567 parameters, width 64, pre-norm, 4 attention heads",
        "Encoder    4 blocks",
        (
            "Decoder    3 blocks, dynamic convolution, gated (GLU), 8 heads, "
            "kernel sizes 3 7 15, feed-forward 128, exit heads tied"
        ),
        "Tokenizer  4,000 pieces",
        "Predictor  halting: halting, 2 units; learnt agreement, sigma 0, lambda 0.05, joint trunk",
        "Predictor  common: halting, one unit for all blocks; learnt likelihood, sigma 2, lambda 0.1, frozen trunk",
        "Predictor  sequence: sequence, 3 units; learnt correctness, frozen trunk",
        f"Depths     {DEPTHS}; adaptive (= halting:0.45)",
        "",
        "Quality on the validation set",
        "  depth                   BLEU  chrF  average depth  sentences  BLEU at full depth",
        "  default = halting:0.45  31.0  52.5           2.12      2,000                31.4",
        "  1                       25.0  47.0           1.00      2,000",
        "  3                       31.4  53.0           3.00      2,000",
        "",
        "Graphs, and their largest difference from the torch modules they come from",
        "  file            difference  tolerance  shapes",
        "  encoder.onnx       2.1e-06      1e-04       5",
        "  block_1.onnx  not compared",
        ("  Whole decodes: 200 sentences, 2,345 tokens, 5,000 decisions; 0 differ, 3 ties (margin below 0.0001)"),
    ]


def test_windows_of_self_attention_are_named(inspected: dict[str, object]) -> None:
    changes = {"mixer": "attention", "decoder_reaches": [0, 16, 0], "glu": False}
    inspected["model"] = {**MANIFEST["model"], **changes}  # type: ignore[dict-item]
    assert (
        "Decoder    3 blocks, self-attention, 4 heads, windows all 16 all, feed-forward 128, exit heads tied"
        in inspect().lines
    )


def test_unmeasured_bundle_says_so(inspected: dict[str, object]) -> None:
    inspected |= {"operating_points": [], "quality": []}
    lines = inspect().lines
    assert "Quality: not measured; export with validation text to have it here." in lines
    assert f"Depths     {DEPTHS}" in lines


@pytest.mark.usefixtures("inspected")
def test_json_holds_the_whole_manifest() -> None:
    document = json.loads(inspect("--json").stdout)
    assert document["bundle"] == "en-de.bundle"
    assert document["sha256"] == HASH
    assert document["size_bytes"] == 2_000_000
    assert Manifest.model_validate(document["manifest"]) == Manifest.model_validate(MANIFEST)


def test_missing_bundle_is_named(tmp_path: Path) -> None:
    outcome = run_edgeseq("inspect", tmp_path / "none")
    assert outcome.code == 1
    assert outcome.stderr == (
        f"edgeseq: error: bundle '{tmp_path / 'none'}' is not a folder: expected what `edgeseq export` wrote\n"
    )


def test_what_fewer_bits_changed_is_told(inspected: dict[str, object]) -> None:
    inspected["compute_type"] = "int8"
    inspected["quantisation"] = {
        "compute_type": "int8",
        "policy": "halting:0.45",
        "sentences": 2000,
        "tokens": 18000,
        "token_agreement": 0.994,
        "depth_changes": 0.0061,
        "float32_bleu": 31.42,
        "float32_chrf": 53.01,
        "bleu": 31.4,
        "chrf": 53.0,
    }
    files = inspected["files"]
    assert isinstance(files, list)
    inspected["files"] = [
        *files,
        {"file": "known_answers.safetensors", "role": "known_answers", "size": 10_000, "sha256": HASH},
    ]
    lines = inspect().lines
    assert "Size       2.01 MB in 7 files, int8" in lines
    assert (
        "int8 against float32 on 2,000 sentences: BLEU 31.40 (31.42), chrF 53.00 (53.01) and "
        "99.40% of tokens the same at full depth; 0.61% stop elsewhere at halting:0.45"
    ) in lines
    assert "Graphs, and their largest difference from the torch modules they come from, in float32" in lines
