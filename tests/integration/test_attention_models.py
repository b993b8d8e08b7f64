"""Models whose blocks attend to their own past, end to end: trained, exported, run; with the promises of all others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from command_line import run_edgeseq
from edgeseq.models.reference import reference_beam_search, stop_at
from edgeseq_runtime import BeamOptions, Translation, Translator
from edgeseq_runtime.places import _PlaceBias
from edgeseq_runtime.state import BlockState
from edgeseq_runtime.tokenizer import EOS_ID
from tiny_bundle import tiny_model, tiny_sentences, write_tiny_bundle

SMALL: dict[str, object] = {"mixer": "attention", "glu": False, "decoder_reaches": [0, 3, 0, 7]}
# The width at which numbers are promised to be bits: kernels choose their way by the sizes of matrices.
REAL_WIDTH = {**SMALL, "dim": 256, "heads": 4, "feed_forward_dim": 512, "encoder_blocks": 2}
LINES = tiny_sentences(100, longest=40, seed=3)


@pytest.fixture(scope="module")
def real_width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("attention") / "real-width.bundle", **REAL_WIDTH)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    folder = tmp_path_factory.mktemp("attention") / "small.bundle"
    return Translator(write_tiny_bundle(folder, **SMALL), device="cpu")  # type: ignore[arg-type]


def bits(translations: Sequence[Translation]) -> list[tuple[object, ...]]:
    return [(t.text, tuple(t.tokens), tuple(t.depths), t.score) for t in translations]


def differing(bundle: Path, policy: str) -> int:
    """Translates one by one, in batches of 7 and of 32; counts the sentences of which any bit differs."""
    translator = Translator(bundle, depth=policy, device="cpu")
    single = bits(list(translator.translate_iter(LINES, batch_size=1, scores=True)))
    lengths = {len(t[1]) for t in single}  # type: ignore[arg-type]
    assert min(lengths) < 16, "every ring grows"
    assert max(lengths) > 32, "no ring is of a third size"
    if policy.startswith("halting"):
        assert {depth for _, _, depths, _ in single for depth in depths} == {1, 2, 3, 4}  # type: ignore[attr-defined]
    return sum(
        one != other
        for batch_size in (7, 32)
        for one, other in zip(
            single, bits(translator.translate(LINES, batch_size=batch_size, scores=True)), strict=True
        )
    )


@pytest.mark.parametrize("policy", ["full", "2", "halting:0.5"])
def test_batched_equals_single_in_bits(policy: str, real_width: Path) -> None:
    """Sentences end at different times, others take their rows, and rings grow and shrink meanwhile."""
    assert differing(real_width, policy) == 0


def test_control_attention_to_places_of_other_sentences_is_seen(
    real_width: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places without a position are read, and what lies there depends on the batch."""
    original = _PlaceBias.__call__

    def everything(self: _PlaceBias, size: int, positions: np.ndarray) -> np.ndarray:
        bias = original(self, size, positions)
        return np.where(np.isneginf(bias), np.float32(-3), bias)

    monkeypatch.setattr(_PlaceBias, "__call__", everything)
    assert differing(real_width, "2") > 10


OPTIONS = BeamOptions(size=4, n_best=4)


def parted_from_torch(translator: Translator) -> int:
    """Counts the sentences on which beam search and the naive one in torch differ in any hypothesis."""
    model = tiny_model(**SMALL)  # type: ignore[arg-type]
    tokenizer = translator.bundle.tokenizer
    lines = LINES[:16]
    parted = 0
    for line, found in zip(lines, translator.translate(lines, depth=3, max_length=20, beam=OPTIONS), strict=True):
        source = [*tokenizer.encode(line), EOS_ID]
        expected = reference_beam_search(model, source, stop_at(3), 20, OPTIONS)
        parted += [t.tokens for t in (found, *found.alternatives)] != [tokenizer.pieces(e.tokens) for e in expected]
    return parted


def test_beam_search_equals_the_naive_one_in_torch(small: Translator) -> None:
    """Two continuations may tie in float32, once at most."""
    assert parted_from_torch(small) <= 1


@pytest.mark.parametrize("name", ["keys", "values"])
def test_control_keys_or_values_that_stay_behind_are_seen(
    name: str, small: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BlockState.overwrite

    def overwrite(self: BlockState, rows: np.ndarray, sources: np.ndarray) -> None:
        before = self.tensors[name].copy()
        original(self, rows, sources)
        self.tensors[name][:] = before

    monkeypatch.setattr(BlockState, "overwrite", overwrite)
    assert parted_from_torch(small) > 1


def test_beams_in_batches_equal_beams_alone_in_bits(small: Translator) -> None:
    single = [small.translate(line, depth="halting:0.5", beam=OPTIONS) for line in LINES[:30]]
    assert small.translate(LINES[:30], depth="halting:0.5", beam=OPTIONS, batch_size=7) == single


def test_a_model_is_trained_exported_and_run(corpus_config: Path, tmp_path: Path) -> None:
    """From the command line, both stacks attending: export itself compares every graph and whole decodes."""
    changes = (
        'model.encoder={mixer="attention",windows=[0,3],feed_forward_dim=48}',
        'model.decoder={mixer="attention",windows=[0,1,9,0],feed_forward_dim=48}',
        "training.epochs=0.5",
        "frozen.tokens=2000",
    )
    options = [option for change in changes for option in ("--set", change)]
    outcome = run_edgeseq("train", corpus_config, "--out", tmp_path / "run", *options)
    assert outcome.code == 0, outcome.stderr
    bundle = tmp_path / "attention.bundle"
    outcome = run_edgeseq("export", tmp_path / "run", "--out", bundle)
    assert outcome.code == 0, outcome.stderr
    model = json.loads((bundle / "manifest.json").read_text())["model"]
    assert (model["mixer"], model["decoder_reaches"]) == ("attention", [0, 1, 9, 0])
    assert "self-attention, 4 heads, windows all 1 9 all" in run_edgeseq("inspect", bundle).stdout.decode()
    source = tmp_path / "in.en"
    source.write_text("Tom is here.\n\nI know it.\n", encoding="utf-8")
    outcome = run_edgeseq("translate", "--model", bundle, "-i", source, "--depth", "halting:0.5")
    assert outcome.code == 0, outcome.stderr
    first, blank, last, end = outcome.stdout.decode().split("\n")
    assert first
    assert last
    assert (blank, end) == ("", "")
