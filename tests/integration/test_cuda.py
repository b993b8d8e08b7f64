"""What needs an NVIDIA GPU: deselected by default; `pytest -m cuda` runs it where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import run_edgeseq
from edgeseq_runtime import Translator

pytestmark = pytest.mark.cuda


def test_training_runs_and_resumes_on_cuda(corpus_config: Path, tmp_path: Path) -> None:
    settings = ("--set", "training.device='cuda'", "--set", "training.epochs=1", "--set", "joint.epochs=0.2")
    outcome = run_edgeseq("train", corpus_config, "--out", tmp_path / "run", *settings)
    assert outcome.code == 0, outcome.stderr
    assert "training on cuda" in outcome.stderr
    longer = ("--set", "training.device='cuda'", "--set", "training.epochs=1", "--set", "joint.epochs=0.4")
    assert run_edgeseq("train", corpus_config, "--out", tmp_path / "run", "--resume", *longer).code == 0


@pytest.mark.parametrize("policy", ["full", "2", "halting:0.5", "confidence:0.4", "multinomial", "by-sentence"])
def test_cuda_translates_as_the_cpu_does(policy: str, bundle: Path, sentences: list[str]) -> None:
    """No bits are promised across devices: all but a few sentences agree."""
    text = sentences[:200]
    cuda, cpu = (Translator(bundle, depth=policy, device=device) for device in ("cuda", "cpu"))
    assert "CUDAExecutionProvider" in cuda.signature()
    found, expected = (translator.translate(text, max_length=20) for translator in (cuda, cpu))
    same = sum(one.tokens == other.tokens for one, other in zip(found, expected, strict=True))
    assert same >= 0.97 * len(text)
