"""One small real run and one bundle of it, shared by all integration tests."""

from __future__ import annotations

import itertools
import lzma
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import run_edgeseq

REPOSITORY = Path(__file__).resolve().parents[2]
TATOEBA = REPOSITORY / "examples" / "tatoeba_en_de"

_TRAINING_PAIRS = 6000

# Small, but with everything that changes a graph: one tap without history, widths beyond most sentences, both
# stacks of unequal blocks.
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
encoder = { kernel_sizes = [3, 5], feed_forward_dim = 48 }
decoder = { kernel_sizes = [3, 1, 9, 5], feed_forward_dim = 48 }

[training]
epochs = 4
batch_tokens = 2048
learning_rate = 8e-3
warmup_steps = 20
valid_interval = 100
valid_sentences = 20
threads = 1
average_checkpoints = 2

[halting]
epochs = 0.5
warmup_steps = 5
learning_rate = 3e-2
"""


@dataclass(frozen=True)
class Corpus:
    """Text files of the shared run."""

    folder: Path

    @property
    def config(self) -> Path:
        """The configuration that trains on them."""
        return self.folder / "config.toml"


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
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    return Corpus(folder)


@pytest.fixture(scope="session")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run, both phases."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    outcome = run_edgeseq("train", corpus.config, "--out", folder)
    assert outcome.code == 0, outcome.stderr
    return folder


@pytest.fixture(scope="session")
def bundle(run: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, exported, with an operating point."""
    folder = tmp_path_factory.mktemp("bundles") / "en-de.bundle"
    files = ("--valid-src", corpus.folder / "valid.en", "--valid-ref", corpus.folder / "valid.de")
    outcome = run_edgeseq("export", run, "--out", folder, *files)
    assert outcome.code == 0, outcome.stderr
    return folder


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
    return corpus.config
