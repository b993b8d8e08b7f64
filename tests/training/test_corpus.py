"""Encoded corpora: what is kept, what is counted, and when files are read again."""

import re
from pathlib import Path

import pytest

from edgeseq.data.corpus import CorpusCounts, build_corpus
from edgeseq.errors import DataError
from edgeseq_runtime.tokenizer import EOS_ID, Tokenizer
from small_corpora import SENTENCES, write_lines


class CountingTokenizer(Tokenizer):
    """Counts the texts that it encodes."""

    calls = 0

    def encode(self, text: str) -> list[int]:
        self.calls += 1
        return super().encode(text)


@pytest.fixture
def counting(tokenizer: Tokenizer) -> CountingTokenizer:
    return CountingTokenizer(tokenizer.model_bytes)


def write_pair(folder: Path, source: list[str], target: list[str]) -> tuple[Path, Path]:
    return write_lines(folder / "a.src", source), write_lines(folder / "a.tgt", target)


def test_pairs_come_back_with_eos_at_the_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    src, tgt = write_pair(tmp_path, SENTENCES[:20], SENTENCES[20:40])
    corpus = build_corpus(src, tgt, tokenizer, 99, tmp_path / "corpus")
    assert len(corpus) == 20
    for index in range(20):
        assert corpus.source[index].tolist() == [*tokenizer.encode(SENTENCES[index]), EOS_ID]
        assert corpus.target[index].tolist() == [*tokenizer.encode(SENTENCES[20 + index]), EOS_ID]
    assert corpus.target_tokens == sum(corpus.target.lengths) == sum(len(corpus.target[i]) for i in range(20))


def test_empty_and_overlong_pairs_are_left_out_and_counted_aloud(tmp_path: Path, tokenizer: Tokenizer) -> None:
    short, long = "der hund", " ".join(["der hund"] * 8)
    limit = len(tokenizer.encode(short)) + 1  # with EOS: just short enough
    src, tgt = write_pair(
        tmp_path,
        [short, "", "  ", short, long, short, long, ""],
        [short, short, short, "", short, long, long, ""],
    )
    corpus = build_corpus(src, tgt, tokenizer, limit, tmp_path / "corpus")
    assert corpus.counts == CorpusCounts(kept=1, empty=4, overlong=3)
    assert len(corpus) == 1
    assert corpus.counts.describe() == "1 pairs kept, 4 empty and 3 overlong ones left out"
    with pytest.raises(DataError) as caught:  # control: one piece less, and nothing is left
        build_corpus(src, tgt, tokenizer, limit - 1, tmp_path / "corpus")
    assert str(caught.value) == (
        f"no pair of {src} and {tgt} is left: 4 are empty on a side, 4 have more than "
        f"data.max_pieces = {limit - 1} pieces"
    )


def test_the_same_files_are_not_encoded_again(tmp_path: Path, counting: CountingTokenizer) -> None:
    src, tgt = write_pair(tmp_path, SENTENCES[:3], SENTENCES[3:6])
    first = build_corpus(src, tgt, counting, 50, tmp_path / "corpus")
    assert counting.calls == 6
    second = build_corpus(src, tgt, counting, 50, tmp_path / "corpus")
    assert counting.calls == 6
    assert second.source.tokens.tolist() == first.source.tokens.tolist()
    assert second.counts == first.counts


@pytest.mark.parametrize("change", ["source", "target", "max_pieces", "tokenizer"])
def test_files_are_encoded_again_when_anything_changed(
    tmp_path: Path, counting: CountingTokenizer, change: str
) -> None:
    src, tgt = write_pair(tmp_path, SENTENCES[:3], SENTENCES[3:6])
    build_corpus(src, tgt, counting, 50, tmp_path / "corpus")
    counting.calls = 0
    if change == "source":
        write_lines(src, SENTENCES[10:13])
    elif change == "target":
        write_lines(tgt, SENTENCES[10:13])
    elif change == "tokenizer":
        counting.model_bytes += b"\x00"  # another file; what it encodes to does not matter here
    corpus = build_corpus(src, tgt, counting, 49 if change == "max_pieces" else 50, tmp_path / "corpus")
    assert counting.calls == 6
    expected = SENTENCES[10] if change == "source" else SENTENCES[0]
    assert counting.decode(corpus.source[0].tolist()) == expected


def test_a_failed_build_leaves_the_corpus_before_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    src, tgt = write_pair(tmp_path, SENTENCES[:3], SENTENCES[3:6])
    build_corpus(src, tgt, tokenizer, 50, tmp_path / "corpus")
    before = (tmp_path / "corpus" / "src_tokens.npy").read_bytes()
    write_lines(src, SENTENCES[:2])
    with pytest.raises(DataError, match=re.escape(f"{src} has 2 lines, {tgt} has 3: line 3 has no counterpart")):
        build_corpus(src, tgt, tokenizer, 50, tmp_path / "corpus")
    assert (tmp_path / "corpus" / "src_tokens.npy").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.src", "a.tgt", "corpus"]


def test_a_missing_file_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    src, tgt = write_pair(tmp_path, SENTENCES[:3], SENTENCES[3:6])
    tgt.unlink()
    with pytest.raises(DataError, match=re.escape(f"cannot read {tgt}: No such file or directory")):
        build_corpus(src, tgt, tokenizer, 50, tmp_path / "corpus")


def test_a_vocabulary_beyond_16_bits_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, tgt = write_pair(tmp_path, SENTENCES[:3], SENTENCES[3:6])
    monkeypatch.setattr(Tokenizer, "vocab_size", 2**16)
    build_corpus(src, tgt, tokenizer, 50, tmp_path / "corpus")
    monkeypatch.setattr(Tokenizer, "vocab_size", 2**16 + 1)
    with pytest.raises(DataError, match="the tokenizer has 65537 pieces; token ids are stored in 16 bits, so at most"):
        build_corpus(src, tgt, tokenizer, 50, tmp_path / "corpus")
