"""The grapheme-to-phoneme example, and how its benchmark decodes, on a small made-up dictionary."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from command_line import run_edgeseq
from edgeseq_runtime.bundle import load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.tokenizer import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "g2p_cmudict"
PHONES = {"a": "AH0", "b": "B", "c": "K", "o": "OW1", "n": "N", "g": "G", "e": "EH1", "r": "ER0"}
SMALL = {
    "training.epochs": 25,
    "training.warmup_steps": 20,
    "training.batch_tokens": 512,
    "training.valid_interval": 1000,
    "training.valid_sentences": 5,
    "model.dim": 32,
    "frozen.tokens": 3000,
}


def entries() -> list[str]:
    """Lines of a dictionary: every letter a phone, now and then a second pronunciation, and comments."""
    lines = []
    for letters in itertools.islice(itertools.product(PHONES, repeat=4), 0, None, 7):
        word, phones = "".join(letters), " ".join(PHONES[letter] for letter in letters)
        lines.append(f"{word} {phones}")
        if word.startswith("a"):
            lines.append(f"{word}(2) {phones.replace('AH0', 'AE1', 1)} # foreign")
    return lines


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example's folder with words of its own held out, prepared from a dictionary."""
    folder = tmp_path_factory.mktemp("g2p") / "g2p_cmudict"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (folder / "valid.tsv").write_text("aaaa\tAH0 AH0 AH0 AH0\tAE1 AH0 AH0 AH0\n", encoding="utf-8")
    (folder / "test.tsv").write_text("bone\tB OW1 N EH1\nnope\tN OW1 P\tN OW1\n", encoding="utf-8")
    (folder / "cmudict.dict").write_text("".join(f"{line}\n" for line in entries()), encoding="utf-8")
    command: list[str | Path] = [sys.executable, folder / "prepare.py", folder / "cmudict.dict", folder / "data"]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    return folder


@pytest.fixture(scope="module")
def bundle(example: Path) -> Path:
    """Trained to the point where it says something."""
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    run, bundle = example / "run", example / "g2p.bundle"
    outcome = run_edgeseq("train", example / "config.toml", "--out", run, *settings)
    assert outcome.code == 0, outcome.stderr
    outcome = run_edgeseq("export", run, "--out", bundle)
    assert outcome.code == 0, outcome.stderr
    return bundle


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_held_out_words_are_not_trained_on(example: Path) -> None:
    words = lines_of(example / "data" / "train.src")
    assert "a a a a" not in words
    assert "b o n e" not in words
    assert len(words) == len(lines_of(example / "data" / "train.tgt")) == len(entries()) - 2 - 1
    assert max(Counter(words).values()) == 2  # a word stands there once with each pronunciation
    assert lines_of(example / "data" / "test.src") == ["b o n e", "n o p e"]
    assert lines_of(example / "data" / "test.tgt") == ["B OW1 N EH1", "N OW1 P"]
    assert lines_of(example / "data" / "test.refs.tsv") == ["B OW1 N EH1", "N OW1 P\tN OW1"]


def test_a_letter_or_phone_is_a_piece(example: Path) -> None:
    tokenizer = Tokenizer(example / "data" / "tokenizer.model")
    assert tokenizer.vocab_size == 4 + len(PHONES) + len(PHONES) + 1
    text = "AH0 K AE1 ER0"
    assert len(tokenizer.encode(text)) == 4
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_dictionary_line_without_phones_is_named(example: Path, tmp_path: Path) -> None:
    broken = tmp_path / "cmudict.dict"
    broken.write_text("abba AH0 B\nacab\n", encoding="utf-8")
    command: list[str | Path] = [sys.executable, example / "prepare.py", broken, tmp_path / "data"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1
    assert f"prepare.py: error: {broken}, line 2: 'acab' has no phones" in done.stderr
    assert not (tmp_path / "data").exists()


def test_it_learns_and_is_evaluated_against_all_pronunciations(example: Path, bundle: Path, tmp_path: Path) -> None:
    """On words that it has seen; the first of which may be said in two ways."""
    words, references = tmp_path / "words", tmp_path / "refs.tsv"
    seen = [line.split(" ", 1) for line in entries() if "(" not in line and not line.startswith(("aaaa", "bone"))]
    words.write_text("".join(f"{' '.join(word)}\n" for word, _ in seen), encoding="utf-8")
    both = [f"{phones}\t{phones.replace('AH0', 'AE1', 1)}" for _, phones in seen]
    references.write_text("".join(f"{line}\n" for line in both), encoding="utf-8")
    arguments = ("--src", words, "--refs", references, "--depth", "full", "--depth", "halting:0.5")
    outcome = run_edgeseq("evaluate", "--model", bundle, *arguments)
    assert outcome.code == 0, outcome.stderr
    full, _ = json.loads(outcome.lines[-1])["results"]
    assert full["per"] < 50
    references.write_text("".join(f"{line}\n" for _, line in seen), encoding="utf-8")
    outcome = run_edgeseq("evaluate", "--model", bundle, *arguments)
    assert json.loads(outcome.lines[-1])["results"][0]["wer"] > full["wer"]  # control: one pronunciation only


def test_depths_along_the_own_output_are_the_free_running_ones(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the benchmark compares as free-running and teacher-forced depth is one thing where the texts are equal."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks" / "g2p")
    from decoding import decode, forced_depths

    loaded = load_bundle(bundle)
    engine = Engine(loaded.path, loaded.manifest.model, device="cpu")
    words = ["a b b a", "c o n", "g e r", "b o o n e r"]
    policy = loaded.policy("confidence:0.5")
    found = decode(loaded, engine, words, policy)
    outputs = [loaded.tokenizer.decode(hypothesis.tokens) for hypothesis in found]
    free = [depth for hypothesis in found for depth in hypothesis.depths]
    assert len(set(free)) > 1
    assert sorted(forced_depths(loaded, engine, words, outputs, policy)) == sorted(free)
    others = ["K K K", "AH0", "N N", "ER0 ER0 B"]
    assert sorted(forced_depths(loaded, engine, words, others, policy)) != sorted(free)  # control


def test_uniform_depths_occur_equally_often(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks" / "g2p")
    from decoding import UniformDepths, decode

    loaded = load_bundle(bundle)
    random = UniformDepths(loaded, seed=1)
    words = [" ".join(letters) for letters in itertools.islice(itertools.product(PHONES, repeat=4), 200)]
    counts = Counter(depth for found in decode(loaded, random, words, loaded.policy("full")) for depth in found.depths)
    total = sum(counts.values())
    assert set(counts) == set(range(1, 7))
    assert max(counts.values()) < 0.22 * total
    assert min(counts.values()) > 0.12 * total
