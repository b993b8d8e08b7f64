"""A tiny bundle, made once: real graphs and a real tokenizer with random weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgeseq_runtime.translator import Translator
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The torch model that the engine is compared with is tiny, and faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of four blocks with predictors of every kind. Not to be changed: copy it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny.bundle")


@pytest.fixture(scope="session")
def translator(tiny_bundle: Path) -> Translator:
    """The tiny bundle, loaded."""
    return Translator(tiny_bundle, device="cpu")
