"""A student learns from a real teacher, as a user types it; killed in the middle, it ends the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import edgeseq.distillation.run
from command_line import run_edgeseq
from edgeseq_runtime import Translator

_LINES = 240
_PART_LINES = 16
_DEADLINE_S = 120

# A student of two blocks and a few steps.
STUDENT = (
    "model.dim=16",
    "model.encoder.kernel_sizes=[3]",
    "model.decoder.kernel_sizes=[3,5]",
    "data.vocab_size=120",
    "training.epochs=1",
    "training.valid_sentences=2",
    "frozen.tokens=2000",
)
STUDENT_ARGUMENTS = [argument for setting in STUDENT for argument in ("--set", setting)]

# The command with parts so small that a text of some hundred lines has several.
PROGRAM = f"""
import edgeseq.distillation.run
edgeseq.distillation.run.PART_LINES = {_PART_LINES}
from edgeseq.cli import main
main()
"""


@pytest.fixture(scope="module")
def texts(corpus_config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options that name a short text, one blank line in it."""
    folder = tmp_path_factory.mktemp("short")
    options: list[object] = []
    for option, language in (("--src", "en"), ("--tgt", "de")):
        lines = corpus_config.with_name(f"train.{language}").read_text(encoding="utf-8").split("\n")[:_LINES]
        lines[7] = ""
        (folder / language).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        options += [option, folder / language]
    return options


def distill_arguments(config: Path, teacher: Path, run: Path, *arguments: object) -> list[str]:
    options = ("distill", config, "--teacher", teacher, "--out", run, *STUDENT_ARGUMENTS, *arguments)
    return [str(option) for option in options]


def distilled(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "distilled").iterdir()}


def test_a_student_of_a_training_run_translates(
    corpus_config: Path, run: Path, texts: list[object], tmp_path: Path
) -> None:
    student = tmp_path / "student"
    options = ("--n-best", 3, "--select", "closest", "--length-ratio", 0, 9)
    arguments = distill_arguments(corpus_config, run, student, *options, *texts)
    outcome = run_edgeseq(*arguments)
    assert outcome.code == 0, outcome.stderr
    (teacher,) = student.glob("teacher-*.bundle")
    stored = json.loads((student / "config.json").read_text())["data"]
    assert stored["licence"] == "CC BY 2.0 FR"
    assert stored["description"] == (
        f"a sample of Tatoeba; distilled from the teacher {Translator(teacher).bundle.sha256}, which was trained on: "
        "a sample of Tatoeba (licence: CC BY 2.0 FR)"
    )
    assert stored["src"] == str(student / "distilled" / "train.src")
    counts = json.loads((student / "distilled" / "counts.json").read_text())["counts"]
    assert (counts["lines"], counts["blank"], counts["reference_pairs"]) == (_LINES, 1, _LINES - 1)
    assert counts["teacher_pairs"] > _LINES / 2
    pairs = counts["teacher_pairs"] + counts["reference_pairs"]
    assert f"distilled: {counts['teacher_pairs']:,} pairs of the teacher and" in outcome.stderr
    for side in ("src", "tgt"):
        assert (student / "distilled" / f"train.{side}").read_text().count("\n") == pairs

    bundle = tmp_path / "student.bundle"
    assert run_edgeseq("export", student, "--out", bundle).code == 0
    assert len(run_edgeseq("translate", "--model", bundle, stdin=b"Hello.\n\nGood morning!\n").lines) == 3

    assert run_edgeseq(*arguments).stderr.endswith("give --resume to continue it, or another --out\n")
    before = (student / "model.safetensors").read_bytes()
    outcome = run_edgeseq(*arguments, "--resume")
    assert outcome.code == 0, outcome.stderr
    assert (student / "model.safetensors").read_bytes() == before
    outcome = run_edgeseq(*arguments, "--resume", "--beam-size", 3)
    assert outcome.code == 1
    assert "was begun with other settings: beam_size was 4 and is 3. Continue with the old ones" in outcome.stderr
    outcome = run_edgeseq(*arguments, "--resume", "--no-original")
    assert outcome.code == 1
    assert "the student trains on" in outcome.stderr
    assert "original was True and is False" in outcome.stderr


def test_a_killed_distillation_ends_like_one_that_was_not(
    corpus_config: Path, bundle: Path, texts: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgeseq.distillation.run, "PART_LINES", _PART_LINES)
    untouched, battered, other = (tmp_path / name for name in ("untouched", "battered", "other"))

    def distill(run: Path, *arguments: object) -> None:
        outcome = run_edgeseq(*distill_arguments(corpus_config, bundle, run, *texts, *arguments))
        assert outcome.code == 0, outcome.stderr

    distill(untouched)
    command = [sys.executable, "-c", PROGRAM, *distill_arguments(corpus_config, bundle, battered, *texts)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + _DEADLINE_S
    while len(list(battered.glob("translations/part-*"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    parts = {path: path.stat().st_mtime_ns for path in battered.glob("translations/part-*")}
    assert 2 <= len(parts) < _LINES / _PART_LINES, "the kill came too late to prove anything"
    assert not (battered / "distilled").exists()

    distill(battered, "--resume", "--batch-size", 7)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts, "finished parts were translated again"
    assert distilled(battered) == distilled(untouched)
    expected, found = (load_file(folder / "model.safetensors") for folder in (untouched, battered))
    assert expected.keys() == found.keys()
    assert all((tensor == found[name]).all() for name, tensor in expected.items())

    # Control: the text hangs on what the teacher says.
    distill(other, "--depth", 1)
    assert distilled(other) != distilled(untouched)
