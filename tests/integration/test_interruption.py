"""A run survives what happens to runs: Ctrl-C and kill -9; nothing is lost and nothing half-written is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

from safetensors.numpy import load_file

PROGRAM = Path(sysconfig.get_path("scripts")) / "edgeseq"
_DEADLINE_S = 120


def start(config: Path, run: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts training in a process of its own."""
    command = [str(PROGRAM), "train", str(config), "--out", str(run), *arguments]
    for setting in (
        "training.valid_sentences=2",
        "training.valid_interval=10",
        "training.epochs=1",
        "joint.epochs=0.2",
        "frozen.tokens=2000",
    ):
        command += ["--set", setting]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    """Waits until the first checkpoint is there."""
    deadline = time.monotonic() + _DEADLINE_S
    while not list(run.glob("checkpoints/exits-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)


def test_a_run_that_was_interrupted_and_killed_ends_like_one_that_was_not(corpus_config: Path, tmp_path: Path) -> None:
    untouched, battered = tmp_path / "untouched", tmp_path / "battered"
    process = start(corpus_config, untouched)
    assert process.wait(_DEADLINE_S) == 0, process.communicate()[1]
    process.communicate()

    process = start(corpus_config, battered)
    wait_for_checkpoint(battered, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=_DEADLINE_S)
    assert process.returncode == 130
    assert "a checkpoint is written, --resume continues" in said

    process = start(corpus_config, battered, "--resume")
    before = set(battered.glob("checkpoints/*"))
    deadline = time.monotonic() + _DEADLINE_S
    while set(battered.glob("checkpoints/*")) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()

    process = start(corpus_config, battered, "--resume")
    _, said = process.communicate(timeout=_DEADLINE_S)
    assert process.returncode == 0, said
    expected, found = load_file(untouched / "model.safetensors"), load_file(battered / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert (tensor == found[name]).all(), f"{name} differs after an interruption"


def test_a_run_is_not_overwritten_without_resume(corpus_config: Path, run: Path) -> None:
    process = start(corpus_config, run)
    _, said = process.communicate(timeout=_DEADLINE_S)
    assert process.returncode == 1
    assert "holds a run already; give --resume to continue it, or another --out" in said
