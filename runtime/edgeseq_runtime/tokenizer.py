"""Text to subword ids and back: one SentencePiece model, used by training and runtime alike.

Knows nothing of batches, padding or neural networks. The special ids are fixed for all of edgeseq;
a model file that disagrees is refused, because every exported graph was built on them.
"""

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from edgeseq_runtime.errors import InputError

PAD_ID = 0
UNK_ID = 1
BOS_ID = 2
EOS_ID = 3


class Tokenizer:
    """A SentencePiece model with the ids of edgeseq: pad 0, unk 1, bos 2, eos 3.

    Safe to share between threads: nothing changes after construction.

    Attributes:
        model_bytes: The model file's content, as it goes into runs and bundles.
    """

    def __init__(self, model: bytes | str | Path) -> None:
        """Load a model from its bytes, or from the file that a ``str`` or ``Path`` names.

        Raises:
            InputError: The file cannot be read, is no SentencePiece model, or has other ids.
        """
        if isinstance(model, bytes):
            name = "the tokenizer model"
            self.model_bytes = model
        else:
            name = f"tokenizer model {str(model)!r}"
            try:
                self.model_bytes = Path(model).read_bytes()
            except OSError as error:
                raise InputError(f"{name} cannot be read: {error.strerror}") from error
        self._processor = _load_processor(self.model_bytes, name)
        self._check_special_ids(name)

    @property
    def vocab_size(self) -> int:
        """Number of ids, the four special ones included."""
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Ids of the text's pieces, without bos or eos. Blank text gives an empty list.

        Raises:
            InputError: ``text`` is not a ``str``, or holds lone surrogates.
        """
        if not isinstance(text, str):
            raise InputError(f"expected text as str, got {type(text).__name__}: {text!r:.80}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text holds the lone surrogate {text[error.start]!r} at character {error.start}, "
                "which is not a character: decode the input as UTF-8 with errors='replace'"
            ) from error
        return [int(token) for token in self._processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special ids other than unk are left out.

        Raises:
            InputError: An id lies outside the vocabulary.
        """
        self._check_ids(ids)
        kept = [int(token) for token in ids if token not in (PAD_ID, BOS_ID, EOS_ID)]
        return str(self._processor.decode(kept)) if kept else ""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id, special ones included: same length as ``ids``.

        Raises:
            InputError: An id lies outside the vocabulary.
        """
        self._check_ids(ids)
        return [str(self._processor.id_to_piece(int(token))) for token in ids]

    def _check_ids(self, ids: Sequence[int]) -> None:
        highest = self.vocab_size - 1
        for token in ids:
            if not 0 <= token <= highest:
                raise InputError(f"id {token} lies outside the vocabulary: expected 0 to {highest}")

    def _check_special_ids(self, name: str) -> None:
        processor = self._processor
        found = {
            "pad": int(processor.pad_id()),
            "unk": int(processor.unk_id()),
            "bos": int(processor.bos_id()),
            "eos": int(processor.eos_id()),
        }
        expected = {"pad": PAD_ID, "unk": UNK_ID, "bos": BOS_ID, "eos": EOS_ID}
        if found != expected:
            raise InputError(
                f"{name} has the special ids {found}, expected {expected}: train it with "
                "pad_id=0, unk_id=1, bos_id=2, eos_id=3, or let `edgeseq train` make one"
            )


def _load_processor(model: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        # An empty model is accepted silently and fails at its first use.
        loaded = bool(model) and processor.load_from_serialized_proto(model)
    except (RuntimeError, OSError):
        loaded = False
    if not loaded:
        raise InputError(f"{name} ({len(model)} bytes) is not a SentencePiece model")
    return processor
