"""Training a tokenizer: reproducible, nameless, and clear about text that does not suffice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeseq.data import vocabulary
from edgeseq.data.text import read_parallel
from edgeseq.data.vocabulary import train_tokenizer
from edgeseq.errors import DataError
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer
from small_corpora import SENTENCES, VOCAB_SIZE


def test_the_tokenizer_has_the_pieces_asked_for_and_the_special_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert tokenizer.pieces([PAD_ID, UNK_ID, BOS_ID, EOS_ID]) == ["<pad>", "<unk>", "<s>", "</s>"]


def test_every_sentence_comes_back_without_unknown_pieces(tokenizer: Tokenizer) -> None:
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence)
        assert UNK_ID not in ids
        assert tokenizer.decode(ids) == sentence


def test_the_same_text_gives_the_same_model(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(iter(SENTENCES), VOCAB_SIZE) == tokenizer.model_bytes
    assert train_tokenizer(iter(SENTENCES[:40]), VOCAB_SIZE) != tokenizer.model_bytes


def test_blank_lines_do_not_matter(tokenizer: Tokenizer) -> None:
    spread = [line for sentence in SENTENCES for line in (sentence, "", "  ")]
    assert train_tokenizer(iter(spread), VOCAB_SIZE) == tokenizer.model_bytes


def test_long_lines_count_as_well() -> None:
    """SentencePiece leaves them out, in silence."""
    long = " ".join([*SENTENCES * 4, "straße"])
    assert len(long.encode()) > 4192
    tokenizer = Tokenizer(train_tokenizer(iter([*SENTENCES, long]), VOCAB_SIZE))
    assert UNK_ID not in tokenizer.encode("straße")
    assert UNK_ID in Tokenizer(train_tokenizer(iter(SENTENCES), VOCAB_SIZE)).encode("straße")  # control


@pytest.mark.parametrize("text", [" ".join(SENTENCES * 4), "ß" * 9000, "犬" * 1047 + " " + "犬" * 3000, "a" * 1048])
def test_parts_of_a_long_line_are_the_line_and_short(text: str) -> None:
    parts = list(vocabulary._parts(text))
    assert "".join(parts) == text
    assert max(len(part.encode()) for part in parts) <= 4192
    assert all(part[-1] == " " for part in parts[:-1] if " " in part)


def test_a_vocabulary_too_large_for_the_text_names_the_size_that_fits() -> None:
    with pytest.raises(DataError) as caught:
        train_tokenizer(iter(SENTENCES), 5000)
    text = str(caught.value)
    assert text.startswith("cannot train a tokenizer of 5000 pieces: Vocabulary size too high (5000). Please set it to")
    assert text.endswith(". Set data.vocab_size to fit the text")
    assert ".cc" not in text
    assert ".." not in text


def test_a_vocabulary_smaller_than_the_alphabet_is_named() -> None:
    with pytest.raises(DataError, match=r"cannot train a tokenizer of 16 pieces: .*required_chars. 16 vs"):
        train_tokenizer(iter(SENTENCES), 16)


def test_blank_text_is_named() -> None:
    with pytest.raises(DataError, match="cannot train a tokenizer: every line of the text is blank"):
        train_tokenizer(iter(["", "  ", "\t"]), VOCAB_SIZE)


def test_an_error_in_the_text_arrives_as_it_was_raised(tmp_path: Path) -> None:
    """SentencePiece would turn it into a RuntimeError about the line of code that raised it."""
    src, tgt = tmp_path / "a", tmp_path / "b"
    src.write_bytes("".join(f"{sentence}\n" for sentence in SENTENCES).encode() + b"\xff\n")
    tgt.write_bytes(b"x\n" * (len(SENTENCES) + 1))

    def sentences() -> Iterator[str]:
        for pair in read_parallel(src, tgt):
            yield from pair

    with pytest.raises(DataError) as caught:
        train_tokenizer(sentences(), VOCAB_SIZE)
    assert str(caught.value).startswith(f"{src}, line {len(SENTENCES) + 1}: not valid UTF-8")
