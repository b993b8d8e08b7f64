"""Phone and word error rates, worked by hand, and what a bad file of references is called."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq.errors import DataError
from edgeseq.evaluation.error_rates import ErrorRates, edit_distance, read_references, read_words, score_error_rates

phones = st.lists(st.sampled_from(["K", "AO1", "NG", "ER0"]), max_size=6)


@pytest.mark.parametrize(
    ("output", "reference", "edits"),
    [
        ("K AO1 NG ER0", "K AO1 NG ER0", 0),
        ("K AA1 NG ER0", "K AO1 NG ER0", 1),  # a substitution
        ("K AO1 NG G ER0", "K AO1 NG ER0", 1),  # an insertion
        ("K NG ER0", "K AO1 NG ER0", 1),  # a deletion
        ("AO1 NG ER0 K", "K AO1 NG ER0", 2),  # a deletion and an insertion, where four substitutions would do as well
        ("", "K AO1", 2),
        ("K AO1", "", 2),
        ("ER0 ER0", "K AO1 NG", 3),
        ("AO", "AO1", 1),  # tokens, not characters
    ],
)
def test_edit_distance_by_hand(output: str, reference: str, edits: int) -> None:
    assert edit_distance(output.split(), reference.split()) == edits


@given(phones, phones)
def test_edit_distance_is_the_recursive_definition(first: list[str], second: list[str]) -> None:
    assert edit_distance(first, second) == recursive_distance(first, second)


@given(phones, phones, phones)
def test_edit_distance_is_a_metric(first: list[str], second: list[str], third: list[str]) -> None:
    assert (edit_distance(first, second) == 0) == (first == second)
    assert edit_distance(first, second) == edit_distance(second, first)
    assert edit_distance(first, third) <= edit_distance(first, second) + edit_distance(second, third)


def recursive_distance(first: list[str], second: list[str]) -> int:
    if not first or not second:
        return len(first) + len(second)
    if first[0] == second[0]:
        return recursive_distance(first[1:], second[1:])
    return 1 + min(
        recursive_distance(first[1:], second),
        recursive_distance(first, second[1:]),
        recursive_distance(first[1:], second[1:]),
    )


def test_rates_are_over_the_whole_set() -> None:
    """One edit in two phones and none in six: 1 of 8, where the mean of the words' rates would be 25 %."""
    rates = score_error_rates(["A B", "A B C D E F"], [["A X"], ["A B C D E F"]])
    assert rates == ErrorRates(phone_error_rate=12.5, word_error_rate=50.0)


def test_the_closest_reference_counts() -> None:
    references = [["A B C D", "A B X"]]
    assert score_error_rates(["A B Y"], references).phone_error_rate == pytest.approx(100 / 3)
    # Control: the first reference alone, or the last, asks for two edits of the same output.
    assert score_error_rates(["A B C D X"], [["A B X"]]).phone_error_rate == pytest.approx(200 / 3)
    assert score_error_rates(["A B C D X"], references).phone_error_rate == 25


def test_among_references_equally_close_the_longest_counts() -> None:
    for references in (["A B C", "A B C D E"], ["A B C D E", "A B C"]):
        assert score_error_rates(["A B C D"], [references]) == ErrorRates(20.0, 100.0)


def test_any_reference_makes_a_word_right() -> None:
    outputs = ["A B", "A  B ", "A C", ""]
    rates = score_error_rates(outputs, [["X", "A B"], ["A B"], ["A B"], ["A"]])
    assert rates.word_error_rate == 50
    assert rates.phone_error_rate == pytest.approx(100 * 2 / 7)


def test_a_rate_may_exceed_100() -> None:
    assert score_error_rates(["A A A"], [["B"]]).phone_error_rate == 300


# --- Files


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message(read: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        read()
    return str(caught.value)


def test_references_are_separated_by_tabs(tmp_path: Path) -> None:
    path = write(tmp_path, "refs.tsv", "IH0 K\tIH0 G \nB\n")
    assert read_references(path) == [("IH0 K", "IH0 G"), ("B",)]


@pytest.mark.parametrize(
    ("line", "fault"),
    [("", "'' has no reference"), ("  ", "'  ' has no reference"), ("A\t", "'A\\t' has a blank reference")],
)
def test_a_line_without_reference_is_named(tmp_path: Path, line: str, fault: str) -> None:
    path = write(tmp_path, "refs.tsv", f"A\n{line}\nB\n")
    assert message(lambda: read_references(path)) == (
        f"{path}, line 2: {fault}; expected one or more, tokens separated by blanks and references by tabs"
    )


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "refs.tsv", "")
    assert f"{path} is empty" in message(lambda: read_references(path))


def test_words_and_references_correspond(tmp_path: Path) -> None:
    words = write(tmp_path, "src", "a b\nc\n")
    assert read_words(words, write(tmp_path, "refs.tsv", "A B\tA P\nK\n")) == (["a b", "c"], [("A B", "A P"), ("K",)])
    short = write(tmp_path, "short.tsv", "A B\n")
    assert message(lambda: read_words(words, short)) == (
        f"{words} has 2 lines, {short} has 1: line 2 has no counterpart; give a line of references for each word"
    )
