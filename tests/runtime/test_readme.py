"""The embedding guide says only what works."""

import re
from pathlib import Path

import pytest

from markdown_blocks import find_blocks
from tiny_bundle import write_tiny_bundle

README = Path(__file__).resolve().parents[2] / "runtime" / "README.md"


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One namespace, with a bundle where the guide has it."""
    write_tiny_bundle(tmp_path / "en-de.bundle", shortlist=True)
    monkeypatch.chdir(tmp_path)
    blocks = find_blocks(README, "python")
    assert len(blocks) >= 5
    namespace: dict[str, object] = {}
    for block in blocks:
        code = compile("\n" * block.line + block.text, str(README), "exec")
        exec(code, namespace)  # noqa: S102


def test_every_module_is_in_the_table() -> None:
    modules = {path.name for path in (README.parent / "edgeseq_runtime").glob("[!_]*.py")}
    assert len(modules) > 30
    named = set(re.findall(r"`(\w+\.py)`", README.read_text(encoding="utf-8")))
    assert modules == named
