"""Beam search of a real bundle against the naive one in torch, and against itself in other batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import run_edgeseq
from edgeseq.models import Seq2Seq
from edgeseq.models.reference import StopRule, reference_beam_search, stop_at, stop_by_halting
from edgeseq.training.run import load_run
from edgeseq_runtime import BeamOptions, Translation, Translator
from edgeseq_runtime.state import BlockState
from edgeseq_runtime.tokenizer import EOS_ID

MAX_LENGTH = 14
POLICIES = ["full", "2", "halting:0.5"]
OPTIONS = [BeamOptions(size=4, n_best=4), BeamOptions(size=3, length_penalty=0.6, min_length=5, no_repeat_ngram=2)]
# A sentence with two continuations that tie in float32 may part from torch: one of them, at most.
SENTENCES = 24
MAX_PARTED = 1


@pytest.fixture(scope="module")
def model(run: Path) -> Seq2Seq:
    return load_run(run)[2].eval()


@pytest.fixture(scope="module")
def translator(bundle: Path) -> Translator:
    return Translator(bundle, device="cpu")


@pytest.fixture(scope="module")
def text(sentences: list[str]) -> list[str]:
    return [line for line in sentences if line][:SENTENCES]


def stop_rule(model: Seq2Seq, policy: str) -> StopRule:
    if policy.startswith("halting"):
        return stop_by_halting(model, float(policy.removeprefix("halting:")))
    return stop_at(len(model.decoder.blocks) if policy == "full" else int(policy))


def hypotheses(translation: Translation) -> list[tuple[list[str], list[int]]]:
    return [(best.tokens, best.depths) for best in (translation, *translation.alternatives)]


def number_parted(model: Seq2Seq, translator: Translator, policy: str, options: BeamOptions, text: list[str]) -> int:
    """Counts the sentences on which runtime and torch differ in any hypothesis or depth."""
    tokenizer = translator.bundle.tokenizer
    rule = stop_rule(model, policy)
    parted = 0
    found = translator.translate(text, depth=policy, max_length=MAX_LENGTH, beam=options)
    for line, translation in zip(text, found, strict=True):
        source = [*tokenizer.encode(line), EOS_ID]
        expected = reference_beam_search(model, source, rule, MAX_LENGTH, options)
        same = hypotheses(translation) == [(tokenizer.pieces(best.tokens), best.depths) for best in expected]
        parted += not same
        if same:
            assert translation.score == pytest.approx(expected[0].score, abs=1e-5)
    return parted


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_naive_search_in_torch(
    policy: str, options: BeamOptions, model: Seq2Seq, translator: Translator, text: list[str]
) -> None:
    assert number_parted(model, translator, policy, options, text) <= MAX_PARTED


@pytest.mark.parametrize("policy", POLICIES)
def test_batched_equals_single_in_bits(policy: str, translator: Translator, sentences: list[str]) -> None:
    lines = sentences[:90] + sentences[-12:]
    single = [translator.translate(line, depth=policy, max_length=MAX_LENGTH, beam=OPTIONS[0]) for line in lines]
    for batch_size in (7, 32):
        batched = translator.translate(
            lines, depth=policy, max_length=MAX_LENGTH, beam=OPTIONS[0], batch_size=batch_size
        )
        assert batched == single
    if policy.startswith("halting"):
        depths = {depth for translation in single for depth in translation.depths}
        assert len(depths) > 1, "the policy never decides"
        first, second = single[0].depths, single[0].alternatives[0].depths
        assert any(t.depths != a.depths[: len(t.depths)] for t in single for a in t.alternatives), (first, second)


def test_a_beam_of_one_is_greedy_search(translator: Translator, text: list[str]) -> None:
    expected = translator.translate(text, max_length=MAX_LENGTH, scores=True)
    found = translator.translate(text, max_length=MAX_LENGTH, beam=BeamOptions(size=1, length_penalty=1.01))
    assert [(t.tokens, t.depths, t.token_scores) for t in found] == [
        (t.tokens, t.depths, t.token_scores) for t in expected
    ]


def test_a_state_that_stays_behind_is_seen(
    model: Seq2Seq, translator: Translator, text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: hypotheses change places, and their columns do not come along."""

    def select(self: BlockState, rows: object) -> None:
        if len(self.filled) != len(rows):  # type: ignore[arg-type]
            original(self, rows)  # type: ignore[arg-type]

    original = BlockState.select
    monkeypatch.setattr(BlockState, "select", select)
    assert number_parted(model, translator, "full", OPTIONS[0], text[:20]) > MAX_PARTED


def test_n_best_on_the_command_line(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.en"
    source.write_text("Tom is here.\n\nI know it.\n", encoding="utf-8")
    outcome = run_edgeseq("translate", "--model", bundle, "-i", source, "--beam-size", 4, "--n-best", 2)
    assert outcome.code == 0, outcome.stderr
    fields = [line.split(" ||| ") for line in outcome.stdout.decode().splitlines()]
    assert [line[0] for line in fields] == ["1", "1", "2", "3", "3"]
    assert fields[2] == ["2", "", "0.0000"]
    assert float(fields[0][2]) >= float(fields[1][2])
    outcome = run_edgeseq("translate", "--model", bundle, "-i", source, "--beam-size", 2, "--n-best", 3)
    assert outcome.code != 0
    assert "beam setting n_best is 3, expected 1 to the beam size, 2" in outcome.stderr
