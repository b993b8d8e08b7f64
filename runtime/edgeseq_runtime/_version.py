"""The version of edgeseq: one number for training, export and runtime."""

__version__ = "0.1.0"
