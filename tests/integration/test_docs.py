"""The blocks of the documents run as they stand; those that call make are excepted, training is cut short."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from markdown_blocks import find_blocks

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "export" / "README.md", REPOSITORY / "runtime" / "README.md"]

# A shell function in place of the command: the same program, and training of some seconds on what a teacher makes of
# some lines; few of them calibrate, fewer validate an export.
SHELL = """
set -euo pipefail
edgeseq() {{
    local few=""
    if [ "$1" = distill ]; then few="--src few.en --tgt few.de"; fi
    if [[ "$*" = export*--valid-src* ]]; then few="--valid-src fewer.en --valid-ref fewer.de"; fi
    if [ "$1" = calibrate ]; then few="--src few.en --ref few.de --proposals 2 --rounds 1"; fi
    if [ "$1" = evaluate ] || [ "$1" = report ]; then few="--src fewer.en --ref fewer.de"; fi
    if [ "$1" = train ] || [ "$1" = distill ]; then
        command "{program}" "$@" $few --set training.epochs=0.2 --set frozen.tokens=2000 \\
            --set training.valid_sentences=10 --set model.dim=32 --set "model.decoder.kernel_sizes=[3,5]" \\
            --set "model.encoder.kernel_sizes=[3]" --set data.vocab_size=500
    else
        command "{program}" "$@" $few
    fi
}}
{commands}
"""


@pytest.fixture(scope="module")
def folder(bundle: Path, run: Path, corpus_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pages' file names exist."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    (folder / "en-de.bundle").symlink_to(bundle)
    (folder / "runs").mkdir()
    for language in ("en", "de"):
        lines = corpus_config.with_name(f"train.{language}").read_text(encoding="utf-8").split("\n")[:220]
        (folder / f"few.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / f"fewer.{language}").write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    return folder


def test_readme_commands_run(folder: Path) -> None:
    blocks = [block for block in find_blocks(PAGES[0], "bash") if not block.calls_make]
    assert blocks, "the README shows no commands"
    program = Path(sysconfig.get_path("scripts")) / "edgeseq"
    for block in blocks:
        script = SHELL.format(program=program, commands=block.text)
        outcome = subprocess.run(
            ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False, env={**os.environ}
        )
        assert outcome.returncode == 0, f"{block}:\n{outcome.stdout}\n{outcome.stderr}"


@pytest.mark.parametrize("page", [PAGES[0], PAGES[2]], ids=["README.md", "runtime/README.md"])
def test_python_blocks_run_in_order(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run_python_blocks(page)


def test_the_export_example_runs(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    first = folder / "runs" / "first"
    if not first.exists():
        first.symlink_to(run)
    run_python_blocks(PAGES[1])


def run_python_blocks(page: Path) -> None:
    """Runs all Python blocks of a page in one namespace."""
    blocks = find_blocks(page, "python")
    assert blocks, f"{page} shows no Python"
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.text, str(block), "exec"), namespace)  # noqa: S102  (our own page)
