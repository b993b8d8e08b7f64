"""Makes training text and a tokenizer of the CMU Pronouncing Dictionary: letters on one side, phones on the other.

Held-out words are those of valid.tsv and test.tsv beside this file, with the pronunciations given there; all other
entries of the dictionary are for training, a word with several pronunciations once with each.

    python examples/g2p_cmudict/prepare.py cmudict.dict examples/g2p_cmudict/data
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from edgeseq.data.text import read_lines
from edgeseq.errors import DataError, EdgeseqError
from edgeseq_runtime.atomic import write_file
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

HERE = Path(__file__).resolve().parent
_VARIANT = re.compile(r"\(\d+\)$")


def prepare(dictionary: Path, folder: Path) -> None:
    """Writes train, valid and test text, and tokenizer.model.

    Args:
        dictionary: cmudict.dict, a line a pronunciation: the word, further ones marked as in `word(2)`, and its phones.
        folder: where the files go; made if missing.

    Raises:
        DataError: a file cannot be read, or a line of it has no phones.
    """
    held_out = {name: list(read_held_out(HERE / f"{name}.tsv")) for name in ("valid", "test")}
    out = {word for entries in held_out.values() for word, _ in entries}
    entries = [(word, phones) for word, phones in read_dictionary(dictionary) if word not in out]
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "train.src", (" ".join(word) for word, _ in entries))
    write_lines(folder / "train.tgt", (phones for _, phones in entries))
    for name, words in held_out.items():
        write_lines(folder / f"{name}.src", (" ".join(word) for word, _ in words))
        write_lines(folder / f"{name}.tgt", (accepted[0] for _, accepted in words))
        write_lines(folder / f"{name}.refs.tsv", ("\t".join(accepted) for _, accepted in words))
    symbols = [side for word, phones in entries for side in (" ".join(word), phones)]
    write_file(folder / "tokenizer.model", train_word_tokenizer(symbols))


def read_dictionary(path: Path) -> Iterator[tuple[str, str]]:
    """Yields words and pronunciations; what follows a # is a comment."""
    for number, line in enumerate(read_lines(path), start=1):
        word, _, phones = line.partition("#")[0].strip().partition(" ")
        if not phones:
            raise DataError(f"{path}, line {number}: {line!r} has no phones; expected a word, a blank and its phones")
        yield _VARIANT.sub("", word), " ".join(phones.split())


def read_held_out(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields words and all their pronunciations."""
    for line in read_lines(path):
        word, *accepted = line.split("\t")
        yield word, accepted


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes text as it is read again, a line a sentence."""
    write_file(path, "".join(f"{line}\n" for line in lines).encode())


def train_word_tokenizer(lines: Sequence[str]) -> bytes:
    """Makes a SentencePiece model with one piece per letter and per phone.

    The tokenizer that `edgeseq train` makes by itself would cut AH0 into AH and 0: SentencePiece keeps letters and
    digits apart.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=len({symbol for line in lines for symbol in line.split()}) + 4,
        model_type="word",
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,
        pad_id=PAD_ID,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        minloglevel=2,
    )
    return model.getvalue()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        prepare(Path(sys.argv[1]), Path(sys.argv[2]))
    except EdgeseqError as error:
        sys.exit(f"prepare.py: error: {error}")
