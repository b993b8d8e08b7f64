"""The wheel with the `cpu` extra, alone in a fresh environment, translates; torch is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and its `cpu` extra."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = str(REPOSITORY / "constraints.txt")
    subprocess.run([str(python), *install, "-c", constraints, f"{wheel}[cpu]"], check=True, capture_output=True)
    return python


def test_it_translates_without_torch(python: Path, bundle: Path) -> None:
    assert subprocess.run([str(python), "-c", "import torch"], check=False, capture_output=True).returncode == 1
    command = [str(python.with_name("edgeseq")), "translate", "--model", str(bundle)]
    outcome = subprocess.run(command, input="Hello.\n\nGood morning!\n", capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    lines = outcome.stdout.split("\n")
    assert len(lines) == 4
    assert lines[1] == ""


@pytest.mark.parametrize(
    ("command", "extra"), [("train", "train"), ("distill", "train"), ("export", "train"), ("evaluate", "eval")]
)
def test_what_needs_more_says_which_extra(python: Path, bundle: Path, command: str, extra: str) -> None:
    arguments = {
        "train": ["config.toml"],
        "distill": ["config.toml", "--teacher", str(bundle), "--out", "run"],
        "export": ["run", "--out", "b"],
        "evaluate": ["--model", str(bundle), "--src", str(__file__), "--ref", str(__file__)],
    }[command]
    outcome = subprocess.run(
        [str(python.with_name("edgeseq")), command, *arguments], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 1
    assert f"pip install '.[{extra}]'" in outcome.stderr
