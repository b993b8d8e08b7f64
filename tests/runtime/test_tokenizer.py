"""Text to ids and back."""

import io
from pathlib import Path

import pytest
import sentencepiece

from edgeseq_runtime.errors import InputError
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer
from tiny_bundle import VOCAB_SIZE, tiny_sentences, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer())


def test_text_survives_a_round_trip(tokenizer: Tokenizer) -> None:
    for text in tiny_sentences(20):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {PAD_ID, UNK_ID, BOS_ID, EOS_ID} & set(ids)


def test_file_and_bytes_give_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer.model_bytes)
    for model in (path, str(path)):
        assert Tokenizer(model).encode("the dog runs") == tokenizer.encode("the dog runs")


@pytest.mark.parametrize("text", ["", " ", "\t \n", "\u3000"])
def test_blank_text_has_no_ids(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == []


def test_special_ids_are_left_out_of_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the dog")
    assert tokenizer.decode([BOS_ID, *ids, EOS_ID, PAD_ID]) == "the dog"
    assert tokenizer.decode([EOS_ID]) == ""


def test_unknown_characters_become_unk(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the 犬")
    assert UNK_ID in ids
    assert tokenizer.decode(ids).startswith("the")


def test_pieces_keep_their_number(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces([PAD_ID, UNK_ID, BOS_ID, EOS_ID]) == ["<pad>", "<unk>", "<s>", "</s>"]
    ids = tokenizer.encode("the dog")
    assert "".join(tokenizer.pieces(ids)) == "▁the▁dog"


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(InputError, match=rf"id {token} lies outside .* expected 0 to 59"):
        tokenizer.decode([token])
    with pytest.raises(InputError, match=rf"id {token} lies outside"):
        tokenizer.pieces([token])


def test_what_is_not_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"expected text as str, got bytes: b'the dog'"):
        tokenizer.encode(b"the dog")  # type: ignore[arg-type]


def test_lone_surrogate_is_refused_by_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"surrogate '\\ud800' at character 4, .*errors='replace'"):
        tokenizer.encode("the \ud800")


@pytest.mark.parametrize("content", [b"", b"text", b"\x00" * 100])
def test_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"\({len(content)} bytes\) is not a SentencePiece model"):
        Tokenizer(content)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer model '.*tokenizer\.model' \("):
        Tokenizer(path)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.model' cannot be read: No such file"):
        Tokenizer(tmp_path / "absent.model")


def test_model_with_other_special_ids_is_refused() -> None:
    """SentencePiece's own defaults have no pad, and unk at 0."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny_sentences(50)),
        model_writer=model,
        vocab_size=50,
        num_threads=1,
        minloglevel=2,
    )
    with pytest.raises(InputError, match=r"special ids .*'pad': -1.* train it with pad_id=0"):
        Tokenizer(model.getvalue())
