"""A bundle made ready to translate, as the options of a command ask for."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeseq_runtime import Translator, TranslatorPool


def open_translator(
    stack: ExitStack,
    model: str | Path,
    depth: str | None,
    device: str,
    threads: int,
    *,
    shortlist: bool = False,
) -> "Translator | TranslatorPool":
    """Load a bundle, into this process or, with several threads, into as many others.

    Args:
        stack: Ends those processes when it closes.
        model: The bundle's folder.
        depth: Depth policy of all translations; None for the bundle's own.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: Processor cores to use.
        shortlist: Whether tokens are chosen from each sentence's shortlist.

    Raises:
        EdgeseqRuntimeError: The bundle, the policy or the device cannot be used.
    """
    from edgeseq_runtime import Translator, TranslatorPool

    if threads == 1:
        return Translator(model, depth=depth, device=device, shortlist=shortlist)
    return stack.enter_context(
        TranslatorPool(model, processes=threads, depth=depth, device=device, shortlist=shortlist)
    )
