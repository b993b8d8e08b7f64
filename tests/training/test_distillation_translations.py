"""A teacher's translations in parts: what is done stays done, and nothing else is mixed in."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgeseq.distillation import translations
from edgeseq.distillation.translations import (
    TeacherLine,
    TranslationSettings,
    has_translations,
    read_translations,
    translate_text,
)
from edgeseq.errors import CheckpointError
from edgeseq_runtime import BeamOptions, Translation, Translator, TranslatorPool
from small_corpora import write_lines
from tiny_bundle import tiny_sentences, write_tiny_bundle

TEXT = [*tiny_sentences(9), "", *tiny_sentences(9, seed=1), "the dog " * 30]
SETTINGS = TranslationSettings(
    teacher="t", source_text="s", source_lines=len(TEXT), depth="4", beam_size=3, n_best=2, length_penalty=0.8,
    max_pieces=40, part_lines=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    return Translator(
        write_tiny_bundle(tmp_path_factory.mktemp("teacher") / "bundle", seed=2), depth="full", device="cpu"
    )


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "src", TEXT)


def translate(
    teacher: Translator | TranslatorPool, src: Path, settings: TranslationSettings = SETTINGS
) -> dict[str, bytes]:
    """The parts by name, after translating into the folder beside the text."""
    folder = src.parent / "translations"
    translate_text(teacher, src, folder, settings, batch_size=4)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


def test_each_line_has_a_record_with_what_the_translator_gives(teacher: Translator, src: Path) -> None:
    parts = translate(teacher, src)
    assert [data.count(b"\n") for data in parts.values()] == [6, 6, 6, 2]
    found = list(read_translations(src.parent / "translations", SETTINGS))
    assert len(found) == len(TEXT)
    beam = BeamOptions(size=3, length_penalty=0.8, n_best=2)
    for text, line, expected in zip(TEXT, found, teacher.translate(TEXT, beam=beam), strict=True):
        if text in {"", TEXT[-1]}:
            assert line.hypotheses == []
            continue
        assert line.pieces == expected.source_pieces
        _compare(line, [expected, *expected.alternatives])
    assert found[9].pieces == 1
    assert found[-1].pieces > SETTINGS.max_pieces


def _compare(line: TeacherLine, expected: list[Translation]) -> None:
    assert [each.text for each in line.hypotheses] == [each.text for each in expected]
    for found, wanted in zip(line.hypotheses, expected, strict=True):
        assert wanted.token_scores is not None
        assert found.pieces == len(wanted.tokens)
        assert found.ended == ("</s>" in wanted.tokens)
        assert found.log_probability == pytest.approx(sum(wanted.token_scores) / len(wanted.token_scores))


def test_processes_write_what_one_does(
    teacher: Translator, src: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = write_lines(tmp_path_factory.mktemp("other") / "src", TEXT)
    with TranslatorPool(teacher.bundle.path, processes=2, depth="full", device="cpu") as pool:
        assert translate(pool, other) == translate(teacher, src)


def test_hypotheses_that_ended_and_that_did_not_occur(teacher: Translator, src: Path) -> None:
    """Control of the comparison above."""
    translate(teacher, src)
    lines = read_translations(src.parent / "translations", SETTINGS)
    assert {each.ended for line in lines for each in line.hypotheses} == {True, False}


def test_greedy_search_has_scores_too(teacher: Translator, src: Path) -> None:
    greedy = replace(SETTINGS, beam_size=1, n_best=1, length_penalty=1.0)
    translate(teacher, src, greedy)
    first = next(read_translations(src.parent / "translations", greedy))
    _compare(first, [teacher.translate(TEXT[0], scores=True)])


def interrupt_after(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presses Ctrl-C when so many lines of this session are translated."""
    whole = translations._translate
    done = 0

    def interrupted(*arguments: object) -> Iterator[TeacherLine]:
        nonlocal done
        for line in whole(*arguments):  # type: ignore[arg-type]
            if done == lines:
                raise KeyboardInterrupt
            done += 1
            yield line

    monkeypatch.setattr(translations, "_translate", interrupted)


def test_what_an_interruption_left_is_not_translated_again(
    teacher: Translator, src: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(15, patch)
        with pytest.raises(KeyboardInterrupt):
            translate(teacher, src)
    assert "stopped at line 15; finished parts of 6 lines stay, --resume continues" in capsys.readouterr().err
    folder = src.parent / "translations"
    assert sorted(path.name for path in folder.iterdir()) == ["part-00000.jsonl", "part-00001.jsonl", "settings.json"]
    with monkeypatch.context() as patch:
        interrupt_after(len(TEXT) - 12, patch)  # control: one line more would raise
        battered = translate(teacher, src)
    for path in folder.iterdir():
        path.unlink()
    assert translate(teacher, src) == battered


def test_a_part_that_was_removed_is_translated_again(teacher: Translator, src: Path) -> None:
    before = translate(teacher, src)
    (src.parent / "translations" / "part-00001.jsonl").unlink()
    assert translate(teacher, src) == before


def test_what_a_killed_process_had_begun_to_write_is_removed(teacher: Translator, src: Path) -> None:
    folder = src.parent / "translations"
    folder.mkdir()
    (folder / ".part-00000.jsonl.0123456789ab.tmp").write_text('{"pieces": 4, "hyp')
    translate(teacher, src)
    assert not list(folder.glob(".*"))


def test_other_settings_are_refused_by_name(teacher: Translator, src: Path) -> None:
    before = translate(teacher, src)
    other = replace(SETTINGS, teacher="u", source_text="v", beam_size=5)
    with pytest.raises(CheckpointError) as caught:
        translate(teacher, src, other)
    folder = src.parent / "translations"
    assert str(caught.value) == (
        f"{folder} was begun with other settings: teacher was t and is u; source_text was s and is v; beam_size was 3 "
        "and is 5. Continue with the old ones, or start a new run with another --out"
    )
    assert translate(teacher, src) == before


def test_settings_without_any_part_bind_nobody(teacher: Translator, src: Path) -> None:
    folder = src.parent / "translations"
    folder.mkdir()
    (folder / "settings.json").write_text("{}")
    translate(teacher, src)
    assert json.loads((folder / "settings.json").read_text())["beam_size"] == 3


@pytest.mark.parametrize("content", ["", "{", "[1]", None])
def test_unreadable_settings_are_an_error(teacher: Translator, src: Path, content: str | None) -> None:
    translate(teacher, src)
    path = src.parent / "translations" / "settings.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        translate(teacher, src)
    assert str(caught.value).startswith(f"cannot read {path} (")
    assert "nothing says what the translations beside it depend on" in str(caught.value)


def test_a_folder_says_whether_it_holds_translations(tmp_path: Path) -> None:
    assert not has_translations(tmp_path / "none")
    (tmp_path / "settings.json").touch()
    assert not has_translations(tmp_path)
    (tmp_path / "part-00003.jsonl").touch()
    assert has_translations(tmp_path)
