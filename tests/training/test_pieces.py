"""Pieces as stretches of text."""

from edgeseq.pieces import Stretch, stretches


def test_pieces_are_joined_as_in_the_text() -> None:
    found = stretches(["▁Lei", "ter", "▁hoch", ".", "</s>"])
    assert [stretch.text for stretch in found] == ["Lei", "ter", "hoch", ".", ""]
    assert [stretch.space_before for stretch in found] == [False, False, True, False, True]
    assert [stretch.is_end for stretch in found] == [False] * 4 + [True]


def test_what_has_no_text_can_still_be_shown() -> None:
    assert [stretch.label for stretch in stretches(["▁", "x", "<unk>", "</s>"])] == ["␣", "x", "⁇", "end"]


def test_nothing_gives_nothing() -> None:
    assert stretches([]) == []
    assert stretches(["</s>"]) == [Stretch("", space_before=False, is_end=True)]
