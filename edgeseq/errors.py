"""What can go wrong in training, as exceptions that the command line turns into one line.

Every message names the value at fault, what was expected, and what to do about it.
"""


class EdgeseqError(Exception):
    """Root of all errors that edgeseq raises on purpose."""


class ConfigError(EdgeseqError):
    """A configuration has unknown keys, values out of range, or contradictions."""


class DataError(EdgeseqError):
    """A text file cannot be read or does not hold what was expected; names file and line."""


class CheckpointError(EdgeseqError):
    """A run folder or checkpoint is missing, incomplete, or does not fit the model."""


class DivergenceError(EdgeseqError):
    """A loss is not finite any more."""


class CalibrationError(EdgeseqError):
    """A calibration cannot be made: too little text, or levels or losses out of range."""
