"""What an import loads, seen from a fresh interpreter."""

import json
import subprocess
import sys

import pytest

from edgeseq.cli import COMMANDS

TRAINING = {"torch", "onnx", "safetensors", "edgeseq", "edgeseq_export"}
HEAVY = {
    "torch", "onnx", "onnxruntime", "numpy", "sentencepiece", "pydantic", "sacrebleu", "rich",
    "edgeseq_export",
}  # fmt: skip
REPORT = (
    "\nimport json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
)


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after ``code`` ran in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_translator_needs_nothing_of_training() -> None:
    loaded = loaded_by("import edgeseq_runtime\nfrom edgeseq_runtime import Translator")
    assert "edgeseq_runtime" in loaded
    assert "numpy" in loaded
    assert not loaded & TRAINING


def test_translating_and_selecting_for_a_student_needs_no_torch() -> None:
    loaded = loaded_by("import edgeseq.distillation.run")
    assert {"edgeseq", "edgeseq_runtime", "sacrebleu"} <= loaded
    assert not loaded & (TRAINING - {"edgeseq"})


def test_evaluation_and_calibration_need_no_torch() -> None:
    loaded = loaded_by("import edgeseq.evaluation.calibration, edgeseq.evaluation.policies")
    assert {"edgeseq", "sacrebleu"} <= loaded
    assert not loaded & (TRAINING - {"edgeseq"})


def test_runtime_package_itself_loads_no_dependency() -> None:
    loaded = loaded_by("import edgeseq_runtime")
    assert not loaded & (TRAINING | HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """An answer in under 0.3 s hangs on this, and unlike a time it does not vary."""
    code = (
        "from edgeseq.cli import main"
        f"\ntry: main({arguments!r})"
        "\nexcept SystemExit as status: assert status.code == 0, status.code"
    )
    loaded = loaded_by(code)
    assert "click" in loaded
    assert not loaded & HEAVY


def test_control_a_heavy_import_is_seen() -> None:
    assert {"numpy", "sentencepiece"} <= loaded_by("import numpy, sentencepiece") & HEAVY
