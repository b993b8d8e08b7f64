"""Which of a teacher's translations become pairs: every filter, the choice by similarity, what stays fixed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgeseq.distillation.selection import Counts, Selection, select_targets, write_pairs
from edgeseq.distillation.translations import TeacherHypothesis, TeacherLine, TranslationSettings
from edgeseq.errors import CheckpointError, DataError
from small_corpora import write_lines

SOURCE, REFERENCE = "a small house", "ein kleines Haus"


def hypothesis(text: str, *, pieces: int = 5, ended: bool = True, log_probability: float = -0.5) -> TeacherHypothesis:
    return TeacherHypothesis(text, pieces, ended, log_probability)


def choose(
    *hypotheses: TeacherHypothesis,
    source: str = SOURCE,
    reference: str = REFERENCE,
    pieces: int = 5,
    **settings: Any,
) -> tuple[list[str], dict[str, int]]:
    """Targets of one line, and the counts that are not zero."""
    counts = Counts()
    line = TeacherLine(pieces, list(hypotheses))
    targets = list(select_targets(source, reference, line, Selection(**settings), counts))
    assert counts.hypotheses == len(hypotheses)
    accounted = sum(asdict(counts).values()) - sum(
        (counts.lines, counts.blank, counts.overlong, counts.blank_references, counts.hypotheses)
    )
    assert accounted - counts.reference_pairs == counts.hypotheses, "a hypothesis is counted twice, or not at all"
    return targets, {name: count for name, count in asdict(counts).items() if count and name != "lines"}


def test_the_reference_stays_and_the_translation_comes_beside_it() -> None:
    targets, counts = choose(hypothesis("ein Häuschen"))
    assert targets == [REFERENCE, "ein Häuschen"]
    assert counts == {"hypotheses": 1, "teacher_pairs": 1, "reference_pairs": 1}


def test_without_originals_only_the_translation_is_left() -> None:
    assert choose(hypothesis("ein Häuschen"), original=False)[0] == ["ein Häuschen"]


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("empty", hypothesis(" ")),
        ("unfinished", hypothesis("ein ein ein", ended=False)),
        ("length_ratio", hypothesis("ein", pieces=2)),
        ("length_ratio", hypothesis("ein sehr " * 8, pieces=11)),
        ("low_score", hypothesis("eine Kuh", log_probability=-2.1)),
    ],
    ids=["empty", "unfinished", "too short", "too long", "improbable"],
)
def test_a_bad_translation_is_left_out_and_counted(fault: str, wrong: TeacherHypothesis) -> None:
    settings: dict[str, Any] = {"original": False, "shortest": 0.5, "longest": 2.0, "min_score": -2.0}
    targets, counts = choose(wrong, hypothesis("ein Häuschen"), **settings)
    assert targets == ["ein Häuschen"]
    assert counts == {"hypotheses": 2, fault: 1, "teacher_pairs": 1}


def test_control_the_edges_of_the_filters_pass() -> None:
    edges = [
        hypothesis("short", pieces=5),
        hypothesis("long", pieces=20),
        hypothesis("improbable", pieces=10, log_probability=-2.0),
    ]
    targets, _ = choose(*edges, pieces=10, original=False, shortest=0.5, longest=2.0, min_score=-2.0)
    assert targets == ["short", "long", "improbable"]


def test_no_score_is_too_low_unless_asked_for() -> None:
    assert choose(hypothesis("eine Kuh", log_probability=-99.0), original=False)[0] == ["eine Kuh"]


def test_a_translation_like_the_reference_is_not_a_second_pair() -> None:
    targets, counts = choose(hypothesis(" ein  kleines Haus"), hypothesis("ein Häuschen"))
    assert targets == [REFERENCE, "ein Häuschen"]
    assert counts["same_as_reference"] == 1


def test_control_without_originals_a_translation_like_the_reference_is_a_pair() -> None:
    assert choose(hypothesis(REFERENCE), original=False)[0] == [REFERENCE]


def test_two_segmentations_of_one_text_are_one_pair() -> None:
    targets, counts = choose(hypothesis("ein Häuschen"), hypothesis("ein Häuschen", pieces=6))
    assert targets == [REFERENCE, "ein Häuschen"]
    assert counts["repeated"] == 1


def test_closest_takes_the_one_most_like_the_reference() -> None:
    candidates = [hypothesis("Gebäude"), hypothesis("ein kleines Häuschen"), hypothesis("klein")]
    targets, counts = choose(*candidates, select="closest")
    assert targets == [REFERENCE, "ein kleines Häuschen"]
    assert counts["not_closest"] == 2


def test_closest_chooses_among_what_the_filters_leave() -> None:
    targets, counts = choose(hypothesis(REFERENCE, ended=False), hypothesis("klein"), select="closest", original=False)
    assert targets == ["klein"]
    assert counts == {"hypotheses": 2, "unfinished": 1, "teacher_pairs": 1}


def test_of_equally_close_ones_the_better_is_taken() -> None:
    assert choose(hypothesis("xyz"), hypothesis("vwq"), select="closest", original=False)[0] == ["xyz"]


def test_a_blank_source_gives_nothing() -> None:
    assert choose(source="  ", pieces=1) == ([], {"blank": 1})


def test_an_overlong_source_keeps_its_reference() -> None:
    assert choose(pieces=500) == ([REFERENCE], {"overlong": 1, "reference_pairs": 1})


def test_a_blank_reference_is_no_pair_but_its_source_is_translated() -> None:
    targets, counts = choose(hypothesis("ein Häuschen"), reference=" ")
    assert targets == ["ein Häuschen"]
    assert counts == {"blank_references": 1, "hypotheses": 1, "teacher_pairs": 1}


def test_counts_are_said_aloud() -> None:
    counts = Counts(lines=1234, blank=2, hypotheses=1000, empty=3, same_as_reference=4, teacher_pairs=993)
    assert counts.describe() == (
        "993 pairs of the teacher and 0 of the original text; of 1,234 lines 2 are blank and 0 overlong; "
        "of 1,000 translations are left out: 3 empty, 4 the same as the reference"
    )
    assert Counts().describe().endswith("of 0 translations are left out: none")


# --- Files

SOURCES = ["a house", "", "a tree"]
TARGETS = ["ein Haus", "", "ein Baum"]
LINES = [
    TeacherLine(4, [hypothesis("das Haus"), hypothesis("Haus")]),
    TeacherLine(1, []),
    TeacherLine(4, [hypothesis("ein Baum"), hypothesis("der\u2028Baum")]),
]
SETTINGS = TranslationSettings(
    teacher="t", source_text="s", source_lines=3, depth="4", beam_size=2, n_best=2, length_penalty=1.0, max_pieces=40,
    part_lines=2,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small text and its translations in two parts."""
    write_lines(tmp_path / "src", SOURCES)
    write_lines(tmp_path / "tgt", TARGETS)
    (tmp_path / "translations").mkdir()
    records = [json.dumps(asdict(line), ensure_ascii=False) for line in LINES]
    write_lines(tmp_path / "translations" / "part-00000.jsonl", records[:2])
    write_lines(tmp_path / "translations" / "part-00001.jsonl", records[2:])
    return tmp_path


def write(folder: Path, *, references: str = "r", fixed: bool = False, **settings: Any) -> Counts:
    selection, out = Selection(**settings), folder / "distilled"
    texts = folder / "src", folder / "tgt", folder / "translations"
    return write_pairs(*texts, SETTINGS, selection, references, out, fixed=fixed)


def read_pairs(folder: Path) -> list[tuple[str, str]]:
    source, target = ((folder / "distilled" / f"train.{side}").read_text().split("\n")[:-1] for side in ("src", "tgt"))
    return list(zip(source, target, strict=True))


def test_pairs_are_aligned_files_and_counts_lie_beside_them(folder: Path) -> None:
    counts = write(folder)
    assert read_pairs(folder) == [
        ("a house", "ein Haus"),
        ("a house", "das Haus"),
        ("a house", "Haus"),
        ("a tree", "ein Baum"),
        ("a tree", "der\u2028Baum"),
    ]
    stored = json.loads((folder / "distilled" / "counts.json").read_text())
    assert stored["counts"] == asdict(counts)
    assert stored["counts"]["same_as_reference"] == 1
    assert stored["settings"]["references"] == "r"
    assert sorted(path.name for path in folder.iterdir()) == ["distilled", "src", "tgt", "translations"]


def test_the_same_settings_find_the_result_and_do_not_make_it_again(folder: Path) -> None:
    counts = write(folder)
    (folder / "translations" / "part-00000.jsonl").unlink()
    assert write(folder, fixed=True) == counts
    with pytest.raises(CheckpointError):  # control: other settings need the translations
        write(folder, original=False)


def test_before_training_other_settings_select_anew(folder: Path) -> None:
    write(folder)
    write(folder, original=False, select="closest")
    assert read_pairs(folder) == [("a house", "Haus"), ("a tree", "ein Baum")]


def test_once_a_student_trains_other_settings_are_refused(folder: Path) -> None:
    write(folder)
    before = read_pairs(folder)
    with pytest.raises(CheckpointError) as caught:
        write(folder, references="other", fixed=True, original=False, min_score=-1.5)
    assert str(caught.value) == (
        f"the student trains on {folder / 'distilled'} already, which was selected with other settings: references "
        "was r and is other; original was True and is False; min_score was None and is -1.5. Continue with the old "
        "ones, or start a new run with another --out"
    )
    assert read_pairs(folder) == before


def test_a_teacher_that_gives_nothing_is_an_error_and_leaves_nothing(folder: Path) -> None:
    with pytest.raises(DataError, match=r"the teacher gives no pair to learn from: 0 pairs .* left out: 4 improbable"):
        write(folder, min_score=-0.1)
    assert not (folder / "distilled").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "after line 0 (1 lines were expected)"),
        ('{"pieces": 4, "hyp', "after line 0 (Unterminated string"),
        ('{"pieces": 4, "hypotheses": [{}]}\n', "after line 0 (TeacherHypothesis"),
        (
            json.dumps(asdict(LINES[0])) + "\n" + json.dumps(asdict(LINES[0])) + "\n",
            "after line 1 (no further one was expected)",
        ),
    ],
    ids=["empty", "cut", "other fields", "too long"],
)
def test_a_damaged_part_is_named(folder: Path, content: str, reason: str) -> None:
    path = folder / "translations" / "part-00001.jsonl"
    path.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        write(folder)
    assert str(caught.value).startswith(f"{path} is damaged {reason}")
    assert str(caught.value).endswith("remove it, and --resume translates its lines again")
    assert not (folder / "distilled").exists()


def test_unreadable_counts_are_named(folder: Path) -> None:
    write(folder)
    path = folder / "distilled" / "counts.json"
    path.write_text('{"settings": {}, "counts": {"lines": 3}}')
    with pytest.raises(CheckpointError, match=r"counts\.json \(its counts are not .*remove .*distilled, and --resume"):
        write(folder)
