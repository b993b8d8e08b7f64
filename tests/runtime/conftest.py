"""A tiny bundle, made once: real graphs and a real tokenizer with random weights."""

from pathlib import Path

import pytest

from edgeseq_runtime.translator import Translator
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of four blocks with per-block halting units. Not to be changed: copy it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny.bundle")


@pytest.fixture(scope="session")
def translator(tiny_bundle: Path) -> Translator:
    """The tiny bundle, loaded."""
    return Translator(tiny_bundle, device="cpu")
