"""Losses of sentences against full depth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.chrf import CHRF

from edgeseq.evaluation.sentence_losses import chrf_drops, disagreements

REFERENCE = "der alte Mann sieht den kleinen Hund"
pieces = st.lists(st.sampled_from("abc"), max_size=6).map(lambda letters: [*letters, "</s>"])


def test_a_chrf_drop_is_the_difference_to_full_depth() -> None:
    full, output = "der alte Mann sieht den Hund", "der Mann sieht"
    chrf = [CHRF().sentence_score(text, [REFERENCE]).score / 100 for text in (full, output)]
    assert chrf_drops([output], [full], [REFERENCE])[0] == pytest.approx(chrf[0] - chrf[1])
    assert chrf[0] - chrf[1] > 0.1


def test_gains_do_not_make_up_for_drops() -> None:
    """Control: the same two outputs the other way round would lose."""
    better, worse = REFERENCE, "ein Haus"
    assert chrf_drops([better, worse], [worse, better], [REFERENCE] * 2).tolist() == [0, pytest.approx(1, abs=0.1)]


def test_equal_outputs_lose_nothing_and_empty_ones_are_losses() -> None:
    assert chrf_drops(["", REFERENCE], ["", REFERENCE], [REFERENCE] * 2).tolist() == [0, 0]
    assert chrf_drops([""], [REFERENCE], [REFERENCE])[0] == pytest.approx(1)
    assert disagreements([["</s>"], []], [["a", "b", "</s>"], []]).tolist() == [pytest.approx(2 / 3), 0]


@pytest.mark.parametrize(
    ("output", "full", "edits"),
    [("abc", "abc", 0), ("abc", "adc", 1), ("abc", "ac", 1), ("ac", "abc", 1), ("abcd", "bcde", 2), ("ab", "cd", 2)],
)
def test_disagreement_counts_edits_of_pieces(output: str, full: str, edits: int) -> None:
    assert disagreements([list(output)], [list(full)])[0] == pytest.approx(edits / max(len(output), len(full)))


@given(pieces, pieces, pieces)
def test_disagreement_is_a_distance_between_0_and_1(one: list[str], other: list[str], third: list[str]) -> None:
    there, back, direct, via = disagreements([one, other, one, other], [other, one, third, third])
    assert there == back
    assert 0 <= there <= 1
    assert (there == 0) == (one == other)
    longest = np.array([max(len(one), len(third)), max(len(one), len(other)), max(len(other), len(third))])
    assert direct * longest[0] <= there * longest[1] + via * longest[2] + 1e-9
