"""What can go wrong in the runtime, as exceptions a host program can tell apart.

Every message names the value at fault, what was expected, and what to do about it.
"""

import inspect
import warnings
from typing import Final

EXPORT_AGAIN: Final = "export or copy the bundle again"
"""What to do about a bundle whose content is not right."""


class EdgeseqRuntimeError(Exception):
    """Root of all errors that edgeseq_runtime raises on purpose."""


class BundleError(EdgeseqRuntimeError):
    """A bundle is missing, incomplete, changed, or of a format this version does not read."""


class PolicyError(EdgeseqRuntimeError):
    """A depth policy is misspelt, or names something that the bundle does not have."""


class InputError(EdgeseqRuntimeError):
    """The caller gave something that cannot be translated, or a setting out of range."""


class DeviceError(EdgeseqRuntimeError):
    """onnxruntime is not installed, or the device asked for cannot be used."""


class WorkerError(EdgeseqRuntimeError):
    """A process of a TranslatorPool has died."""


class TruncationWarning(UserWarning):
    """An input was longer than the runtime translates, and its end was left out."""


def warn_caller(warning: Warning) -> None:
    """Give a warning that points at the line outside this package from which it was called."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("edgeseq_runtime."):
        level, frame = level + 1, frame.f_back
    warnings.warn(warning, stacklevel=level)
