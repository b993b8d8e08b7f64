"""Export: a trained model becomes a bundle of ONNX graphs, each compared with its torch module."""

from edgeseq_export.bundle_writer import ValidationText, export_run
from edgeseq_export.errors import ExportError

__all__ = ["ExportError", "ValidationText", "export_run"]
