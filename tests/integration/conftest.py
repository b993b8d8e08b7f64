"""Small real runs and their bundles, one per kind of block, shared by all integration tests."""

from __future__ import annotations

import fcntl
import itertools
import lzma
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from command_line import run_edgeseq

REPOSITORY = Path(__file__).resolve().parents[2]
TATOEBA = REPOSITORY / "examples" / "tatoeba_en_de"

_TRAINING_PAIRS = 6000

SHORTLIST = ("--shortlist", "--shortlist-best", 20)
"""Options of export: small enough that candidates are far from all of 400 pieces."""

# Small, but with everything that changes a graph: one tap without history, widths beyond most sentences, both
# stacks of unequal blocks. Predictors of every kind; the first is trained with the trunk, the others afterwards.
CONFIG = """
[data]
src = "train.en"
tgt = "train.de"
valid_src = "valid.en"
valid_tgt = "valid.de"
vocab_size = 400
max_pieces = 48
licence = "CC BY 2.0 FR"
description = "a sample of Tatoeba"

[model]
dim = 32
{model}

[training]
epochs = 4
batch_tokens = 2048
learning_rate = 8e-3
warmup_steps = 20
valid_interval = 100
valid_sentences = 20
threads = 1
average_checkpoints = 2

[joint]
epochs = 1
warmup_steps = 5
learning_rate = 8e-3

[frozen]
tokens = 20000
learning_rate = 2e-2

[[predictors]]
kind = "halting"
target = "gain"

[[predictors]]
name = "common"
kind = "halting"
units = "shared"
oracle = "likelihood"

[[predictors]]
kind = "multinomial"
oracle = "likelihood"

[[predictors]]
name = "by-sentence"
kind = "sequence"
oracle = "likelihood"

[[predictors]]
kind = "certainty"
target = "gain"
"""

MODELS = {
    "dynamic": """
encoder = { kernel_sizes = [3, 5], feed_forward_dim = 48 }
decoder = { kernel_sizes = [3, 1, 9, 5], feed_forward_dim = 48 }
""",
    "attention": """
encoder = { mixer = "attention", windows = [0, 5], feed_forward_dim = 48 }
decoder = { mixer = "attention", windows = [0, 3, 0, 5], feed_forward_dim = 48 }
""",
}
"""Kind of block to the stacks of its `[model]`."""


@dataclass(frozen=True)
class Corpus:
    """Text files of the shared run."""

    folder: Path

    def config(self, kind: str = "dynamic") -> Path:
        """The configuration that trains a kind of block on them."""
        return self.folder / f"{kind}.toml"


Trained = tuple[Path, Path]
"""A finished run, and its bundle with an operating point."""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A piece of the repository's sample, and a few validation pairs."""
    folder = tmp_path_factory.mktemp("corpus")
    for language in ("en", "de"):
        with lzma.open(TATOEBA / f"sample.{language}.xz", "rt", encoding="utf-8", newline="\n") as sample:
            lines = itertools.islice(sample, _TRAINING_PAIRS)
            (folder / f"train.{language}").write_text("".join(lines), encoding="utf-8")
        valid = (TATOEBA / f"valid.{language}").read_text(encoding="utf-8").split("\n")[:60]
        (folder / f"valid.{language}").write_text("\n".join(valid) + "\n", encoding="utf-8")
    corpus = Corpus(folder)
    for kind, model in MODELS.items():
        corpus.config(kind).write_text(CONFIG.replace("{model}", model.strip()), encoding="utf-8")
    return corpus


@pytest.fixture(scope="session")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Trains and exports a model of a kind of block, all phases and predictors; each once."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    @cache
    def train(kind: str) -> Trained:
        run, bundle = shared / kind / "run", shared / kind / "en-de.bundle"
        with (shared / f"{kind}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one worker trains, the others take what it made
            if bundle.exists():
                return run, bundle
            outcome = run_edgeseq("train", corpus.config(kind), "--out", run)
            assert outcome.code == 0, outcome.stderr
            files = ("--valid-src", corpus.folder / "valid.en", "--valid-ref", corpus.folder / "valid.de")
            outcome = run_edgeseq("export", run, "--out", bundle, *files, *SHORTLIST)
            assert outcome.code == 0, outcome.stderr
        return run, bundle

    return train


@pytest.fixture(scope="session")
def run(trained: Callable[[str], Trained]) -> Path:
    """The run that most tests share."""
    return trained("dynamic")[0]


@pytest.fixture(scope="session")
def bundle(trained: Callable[[str], Trained]) -> Path:
    """Its bundle."""
    return trained("dynamic")[1]


@pytest.fixture(scope="session", params=MODELS)
def every_kind(request: pytest.FixtureRequest, trained: Callable[[str], Trained]) -> Trained:
    """The run and bundle of each kind of block, for what has to hold for all of them."""
    return trained(request.param)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """2,000 sentences of mixed length that no run has seen, blank and very long ones among them."""
    lines = (TATOEBA / "test.en").read_text(encoding="utf-8").split("\n")[:1980]
    return [*lines, *[""] * 10, *[" ".join(lines[start : start + 12]) for start in range(0, 120, 12)]]


@pytest.fixture(scope="session")
def corpus_valid(corpus: Corpus) -> tuple[Path, Path]:
    """The validation files of the shared run: source and reference."""
    return corpus.folder / "valid.en", corpus.folder / "valid.de"


@pytest.fixture(scope="session")
def corpus_config(corpus: Corpus) -> Path:
    """The configuration of the shared run."""
    return corpus.config()
