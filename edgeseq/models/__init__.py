"""Models: assemblies of modules, and the builder that reads their configuration."""

from edgeseq.models.builder import build_model
from edgeseq.models.seq2seq import Decoder, Encoder, Seq2Seq

__all__ = ["Decoder", "Encoder", "Seq2Seq", "build_model"]
