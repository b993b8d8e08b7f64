"""The model that comes with the repository: it exports, is as good as it should be, and keeps the numeric promise.

Thin stand-ins can hide what happens at real widths, so the promise is held here too, on the whole test set.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import run_edgeseq
from edgeseq.evaluation.scores import score_corpus
from edgeseq_runtime import Translation, Translator

REPOSITORY = Path(__file__).resolve().parents[2]
TATOEBA = REPOSITORY / "examples" / "tatoeba_en_de"


def read_lines(name: str) -> list[str]:
    return (TATOEBA / name).read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def real_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed checkpoint, exported, its operating point chosen on a few validation pairs."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("valid.en", "valid.de"):
        (folder / name).write_text("".join(f"{line}\n" for line in read_lines(name)[:100]), encoding="utf-8")
    files = ("--valid-src", folder / "valid.en", "--valid-ref", folder / "valid.de")
    outcome = run_edgeseq("export", TATOEBA / "model", "--out", folder / "en-de.bundle", *files)
    assert outcome.code == 0, outcome.stderr
    return folder / "en-de.bundle"


def bits(translations: list[Translation]) -> list[tuple[tuple[str, ...], tuple[int, ...], float | None]]:
    return [(tuple(t.tokens), tuple(t.depths), t.score) for t in translations]


@pytest.mark.parametrize(("policy", "lines"), [("full", 200), ("adaptive", 400)])
def test_batched_equals_single_in_bits_at_real_size(policy: str, lines: int, real_bundle: Path) -> None:
    sources = read_lines("test.en")[:lines]
    assert len(sources) == lines
    translator = Translator(real_bundle, depth=policy, device="cpu")
    single = bits(translator.translate(sources, batch_size=1, scores=True))
    for batch_size in (7, 32):
        assert bits(translator.translate(sources, batch_size=batch_size, scores=True)) == single


def test_it_translates_well(real_bundle: Path) -> None:
    translations = Translator(real_bundle, depth="full", device="cpu").translate(read_lines("test.en"))
    assert score_corpus([t.text for t in translations], read_lines("test.de")).bleu >= 38
