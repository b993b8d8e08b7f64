"""Which sources are translated together, and how much of each."""

import pytest

from edgeseq_runtime import Translator, sources
from edgeseq_runtime.sources import batch_sources, group_sources, read_source
from edgeseq_runtime.tokenizer import EOS_ID

LENGTHS = [9, 0, 2, 30, 3, 0, 8]


def test_groups_share_a_batch_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longest first; blank lines nowhere; long sentences in groups of fewer rows."""
    assert list(group_sources(LENGTHS, 2)) == [([3, 0, 6, 4, 2], 2)]
    monkeypatch.setattr(sources, "MAX_BATCH_POSITIONS", 24)
    assert list(group_sources(LENGTHS, 3)) == [([3], 1), ([0], 2), ([6, 4, 2], 3)]
    assert list(group_sources(LENGTHS, 1)) == [([index], 1) for index in (3, 0, 6, 4, 2)]
    # A beam of two takes two rows a sentence.
    assert list(group_sources(LENGTHS, 3, hypotheses=2)) == [([3], 1), ([0], 1), ([6], 1), ([4, 2], 3)]


def test_batches_are_of_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(batch_sources(LENGTHS, 2)) == [[3, 0], [6, 4], [2]]
    monkeypatch.setattr(sources, "MAX_BATCH_POSITIONS", 24)
    assert list(batch_sources(LENGTHS, 3)) == [[3], [0], [6, 4, 2]]
    assert list(batch_sources([], 3)) == list(batch_sources([0, 0], 3)) == []


def test_what_is_read_ends_with_eos_and_is_cut(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = translator.bundle.tokenizer
    ids = tokenizer.encode("the dog runs home")
    assert read_source(tokenizer, "the dog runs home") == ([*ids, EOS_ID], 0)
    assert read_source(tokenizer, " ") == ([], 0)
    monkeypatch.setattr(sources, "MAX_SOURCE_PIECES", 3)
    assert read_source(tokenizer, "the dog runs home") == ([*ids[:3], EOS_ID], len(ids) - 3)
