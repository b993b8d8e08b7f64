"""CTranslate2 with a model that `ctranslate2_models` has converted.

Its products are MKL's on Intel's processors and oneDNN's on others, by its own choice; the environment can name others
(`CT2_USE_MKL`, `CT2_FORCE_CPU_ISA`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgeseq_runtime.tokenizer import Tokenizer
from translations import Translate, Translated

MOST_PIECES = 128


def write(run: Path, folder: Path, compute_type: Literal["int8", "float32"]) -> None:
    """Converts a training run."""
    from ctranslate2_models import convert_run

    convert_run(run, folder, compute_type)
    (folder / "tokenizer.model").write_bytes((run / "tokenizer.model").read_bytes())


def load(folder: Path, threads: int, compute_type: Literal["int8", "float32"]) -> Translate:
    """Makes a model ready: for one sentence all threads work together, for a batch each has one of its own."""
    import ctranslate2

    tokenizer = Tokenizer(folder / "tokenizer.model")
    ids = {piece: number for number, piece in enumerate(tokenizer.pieces(list(range(tokenizer.vocab_size))))}
    alone = ctranslate2.Translator(str(folder), "cpu", compute_type=compute_type, intra_threads=threads)
    batches: ctranslate2.Translator | None = alone if threads == 1 else None

    def translate(lines: list[str], batch_size: int, beam_size: int) -> list[Translated]:
        nonlocal batches
        translator = alone
        if len(lines) > 1:
            translator = batches = batches or ctranslate2.Translator(
                str(folder), "cpu", compute_type=compute_type, inter_threads=threads, intra_threads=1
            )
        sources = [[*tokenizer.pieces(tokenizer.encode(line)), "</s>"] for line in lines]
        found = translator.translate_batch(
            sources, beam_size=beam_size, max_batch_size=batch_size, max_decoding_length=MOST_PIECES
        )
        best = [[ids[piece] for piece in result.hypotheses[0]] for result in found]
        return [Translated(tokenizer.decode(pieces), len(pieces)) for pieces in best]

    return translate
