"""Beam search of a real bundle against itself in other batches; `test_every_combination` holds it against torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import run_edgeseq
from deciding import DECIDING, FIXED, PER_TOKEN, deciding_policies
from edgeseq_runtime import BeamOptions, Translator

MAX_LENGTH = 14
NAMES = [*FIXED, "halting", "common", "confidence", "certainty", "multinomial", "by-sentence"]
"""See `deciding`."""
BEAM = BeamOptions(size=4, n_best=4)
SENTENCES = 24


@pytest.fixture(scope="module")
def translator(bundle: Path) -> Translator:
    return Translator(bundle, device="cpu")


@pytest.fixture(scope="module")
def text(sentences: list[str]) -> list[str]:
    return [line for line in sentences if line][:SENTENCES]


@pytest.mark.parametrize("name", NAMES)
def test_batched_equals_single_in_bits(
    name: str, translator: Translator, sentences: list[str], text: list[str]
) -> None:
    policy = deciding_policies(translator, text)[name]
    lines = sentences[:90] + sentences[-12:]
    single = [translator.translate(line, depth=policy, max_length=MAX_LENGTH, beam=BEAM) for line in lines]
    for batch_size in (7, 32):
        batched = translator.translate(lines, depth=policy, max_length=MAX_LENGTH, beam=BEAM, batch_size=batch_size)
        assert batched == single
    if name in DECIDING:
        depths = {depth for translation in single for depth in translation.depths}
        assert len(depths) > 1, "the policy never decides"
        pairs = [zip(t.depths, a.depths, strict=False) for t in single for a in t.alternatives]
        differ = any(one != other for pair in pairs for one, other in pair)
        assert differ == (name in PER_TOKEN), "hypotheses of a sentence go to the same depths"


def test_a_beam_of_one_is_greedy_search(translator: Translator, text: list[str]) -> None:
    expected = translator.translate(text, max_length=MAX_LENGTH, scores=True)
    found = translator.translate(text, max_length=MAX_LENGTH, beam=BeamOptions(size=1, length_penalty=1.01))
    assert [(t.tokens, t.depths) for t in found] == [(t.tokens, t.depths) for t in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.token_scores == pytest.approx(other.token_scores, abs=1e-5)


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
