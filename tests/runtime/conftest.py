"""A tiny bundle, made once: real graphs and a real tokenizer with random weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgeseq_runtime import source_attention
from edgeseq_runtime.bundle import Bundle, load_bundle
from edgeseq_runtime.translator import Translator
from engine_cases import MODELS, Case
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


@pytest.fixture
def half_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are so small here that one row in eight would be any."""
    monkeypatch.setattr(source_attention, "ENTERED_SHARE", 2)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("engine") / "b", MODELS[request.param])


CONVOLVING: dict[str, dict[str, object]] = {
    "pre-norm, tied, gated": {},
    "post-norm, untied, not gated": {"norm": "post", "head": "untied", "glu": False},
    "lightweight": {"mixer": "lightweight"},
    "one wide block above": {"decoder_reaches": [1, 1, 1, 40]},
    "one wide block below": {"decoder_reaches": [40, 3, 1, 7]},
}
"""What the whole steps of a row alone have to cope with."""


@pytest.fixture(scope="module", params=CONVOLVING)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of convolutions, of each kind."""
    return load_bundle(write_tiny_bundle(tmp_path_factory.mktemp("convolving") / "b", **CONVOLVING[request.param]))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["plain", "attention in windows and without"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A case of each mixer, whose depths are 1 to 4."""
    changes = {} if request.param == "plain" else {"mixer": "attention", "glu": False, "decoder_reaches": [3, 0, 5, 7]}
    return Case(tmp_path_factory.mktemp("engine") / "b", changes)


@pytest.fixture(scope="module")
def unbounded(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Attention to all positions in every block."""
    return Case(tmp_path_factory.mktemp("engine") / "b", MODELS["attention"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("engine") / "b", {})
