"""Marian through pymarian, with a student that `marian_student` has trained: its own model, not edgeseq's weights.

Eight bits are FBGEMM's, to which pymarian brings a float32 model when it loads; there is no lexical shortlist.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeseq_runtime.tokenizer import Tokenizer
from translations import Translate, Translated

if TYPE_CHECKING:
    from pymarian import Translator

MODEL = "model.npz"
VOCABULARY = "vocabulary.yml"
TOKENIZER = "tokenizer.model"
FILES = (MODEL, VOCABULARY, TOKENIZER)
OPTIONS = {
    "int8": "--gemm-type packed8 --optimize",
    "float32": "",
}
WORKSPACE_MIB = 128
BATCH_SIZE = 32
"""Lines that are given one by one are batches of one whatever this is."""


def write(student: Path, folder: Path) -> None:
    """Takes what is needed of a student.

    Raises:
        click.ClickException: it is none.
    """
    missing = [name for name in FILES if not (student / name).exists()]
    if missing:
        raise click.ClickException(
            f"{student} has no {missing[0]}: marian takes what benchmarks/peers/marian_student.py has trained"
        )
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(student / name, folder / name)


def load(folder: Path, threads: int, compute_type: Literal["int8", "float32"]) -> Translate:
    """Makes a student ready; a batch is one thread's work."""
    import pymarian

    tokenizer = Tokenizer(folder / TOKENIZER)
    ids = {piece: number for number, piece in enumerate(tokenizer.pieces(list(range(tokenizer.vocab_size))))}
    translators: dict[int, Translator] = {}

    def translate(lines: list[str], batch_size: int, beam_size: int) -> list[Translated]:
        if batch_size not in (1, BATCH_SIZE):
            raise click.ClickException(f"marian's batch size is fixed when it loads: 1 or {BATCH_SIZE}")
        if beam_size not in translators:
            # The search compares means of log-probabilities, as edgeseq's does; greedy needs no probabilities at all.
            search = "--skip-cost" if beam_size == 1 else "--normalize 1"
            translators[beam_size] = pymarian.Translator(
                f"--models {folder / MODEL} --vocabs {folder / VOCABULARY} {folder / VOCABULARY} --quiet "
                f"--cpu-threads {threads} --workspace {WORKSPACE_MIB} --beam-size {beam_size} {search} "
                f"--mini-batch {BATCH_SIZE} --maxi-batch 100 --maxi-batch-sort src {OPTIONS[compute_type]}"
            )
        sources = [" ".join(tokenizer.pieces(tokenizer.encode(line))) for line in lines]
        found = [line.split() for line in translators[beam_size].translate("\n".join(sources)).split("\n")]
        return [Translated(tokenizer.decode([ids[piece] for piece in pieces]), len(pieces)) for pieces in found]

    return translate
