"""The embedding guide says only what works."""

import shutil
from pathlib import Path

import pytest

from markdown_blocks import find_blocks

README = Path(__file__).resolve().parents[2] / "runtime" / "README.md"


def test_python_blocks_run_in_order(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One namespace, with a bundle where the guide has it."""
    shutil.copytree(tiny_bundle, tmp_path / "en-de.bundle")
    monkeypatch.chdir(tmp_path)
    blocks = find_blocks(README, "python")
    assert len(blocks) >= 5
    namespace: dict[str, object] = {}
    for block in blocks:
        code = compile("\n" * block.line + block.text, str(README), "exec")
        exec(code, namespace)  # noqa: S102
