"""Training of the SentencePiece vocabulary that both sides share."""

from __future__ import annotations

import io
from collections.abc import Iterator

import sentencepiece

from edgeseq.errors import DataError
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

# SentencePiece gives the same model twice only for the same number of threads.
_THREADS = 2
# A vocabulary of a few thousand pieces is settled long before; more only costs memory and time.
_MAX_SENTENCES = 1_000_000
# SentencePiece leaves out what has more bytes than this, in silence.
_MAX_BYTES = 4192


def train_tokenizer(sentences: Iterator[str], vocab_size: int) -> bytes:
    """Trains a unigram model that covers every character of the text.

    Args:
        sentences: text of both languages.
        vocab_size: pieces, the four special ones included.

    Returns:
        The serialised model. It names no path, since it is trained from an iterator to a buffer.

    Raises:
        DataError: the text is too small for so many pieces, or blank, or `sentences` raised one.
    """
    model = io.BytesIO()
    text = _Text(sentences)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=1.0,
            input_sentence_size=_MAX_SENTENCES,
            shuffle_input_sentence=True,
            max_sentence_length=_MAX_BYTES,
            num_threads=_THREADS,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            minloglevel=2,
        )
    except RuntimeError as error:
        if text.error is not None:
            raise text.error from None
        if not text.sentences:
            raise DataError("cannot train a tokenizer: every line of the text is blank") from error
        reason = str(error).strip().rpartition("] ")[2].rstrip(".")  # without file and line of their source
        raise DataError(
            f"cannot train a tokenizer of {vocab_size} pieces: {reason}. Set data.vocab_size to fit the text"
        ) from error
    return model.getvalue()


class _Text:
    """Sentences that are not blank, overlong ones in parts.

    Remembers an error, since SentencePiece turns any into its own, without cause.
    """

    def __init__(self, sentences: Iterator[str]) -> None:
        self._source = sentences
        self.sentences = 0
        self.error: DataError | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for sentence in self._source:
                if sentence.strip():
                    self.sentences += 1
                    yield from _parts(sentence)
        except DataError as error:
            self.error = error
            raise


def _parts(sentence: str) -> Iterator[str]:
    """Divides a sentence between words into parts that SentencePiece takes, and a word where it is longer than that."""
    most = _MAX_BYTES // 4  # characters: no more bytes than allowed, whatever they are
    while len(sentence) > most:
        end = sentence.rfind(" ", 1, most) + 1 or most
        yield sentence[:end]
        sentence = sentence[end:]
    yield sentence
