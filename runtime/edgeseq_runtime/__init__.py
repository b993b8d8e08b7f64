"""Translate with an edgeseq bundle: numpy and onnxruntime, no torch.

    from edgeseq_runtime import Translator

    translator = Translator("en-de.bundle", depth="adaptive")
    print(translator.translate("Two dogs play in the snow.").text)

Names are imported when they are first used, so that ``import edgeseq_runtime`` costs
milliseconds and training code can import one module (the tokenizer, say) without onnxruntime.
"""

import importlib
from typing import TYPE_CHECKING

from edgeseq_runtime._version import __version__

if TYPE_CHECKING:
    from edgeseq_runtime.beam import BeamOptions
    from edgeseq_runtime.errors import (
        BundleError,
        DeviceError,
        EdgeseqRuntimeError,
        InputError,
        PolicyError,
        TruncationWarning,
        WorkerError,
    )
    from edgeseq_runtime.translator import Translation, Translator
    from edgeseq_runtime.translator_pool import TranslatorPool

__all__ = [
    "BeamOptions",
    "BundleError",
    "DeviceError",
    "EdgeseqRuntimeError",
    "InputError",
    "PolicyError",
    "Translation",
    "Translator",
    "TranslatorPool",
    "TruncationWarning",
    "WorkerError",
    "__version__",
]

_HOMES = {
    "BeamOptions": "beam",
    "BundleError": "errors",
    "DeviceError": "errors",
    "EdgeseqRuntimeError": "errors",
    "InputError": "errors",
    "PolicyError": "errors",
    "TruncationWarning": "errors",
    "WorkerError": "errors",
    "Translation": "translator",
    "Translator": "translator",
    "TranslatorPool": "translator_pool",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
