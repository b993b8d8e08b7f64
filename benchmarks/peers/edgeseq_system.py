"""edgeseq itself: a bundle at one depth."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from translations import Translate, Translated

if TYPE_CHECKING:
    from edgeseq_runtime import Translation, TranslatorPool


def load(bundle: Path, depth: str, threads: int) -> Translate:
    """Makes a bundle ready; several threads are processes that share the lines, of which one line needs only one."""
    from edgeseq_runtime import Translator, TranslatorPool

    alone = Translator(bundle, depth=depth, device="cpu")
    pool: TranslatorPool | None = None

    def translate(lines: list[str], batch_size: int, beam_size: int) -> list[Translated]:
        nonlocal pool
        found: Iterable[Translation]
        if threads == 1 or len(lines) == 1:
            found = alone.translate(lines, batch_size=batch_size, beam=beam_size)
        else:
            pool = pool or TranslatorPool(bundle, processes=threads, depth=depth, device="cpu")
            found = pool.translate_iter(lines, batch_size=batch_size, beam=beam_size)
        return [Translated(one.text, sum(piece != "</s>" for piece in one.tokens)) for one in found]

    return translate
