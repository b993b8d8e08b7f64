"""Train sequence-to-sequence models whose decoders stop at the depth each token needs.

This package holds training and the command line. ``edgeseq_export`` turns a trained run into a
bundle of ONNX graphs; ``edgeseq_runtime`` runs a bundle without torch. Importing ``edgeseq``
itself loads neither torch nor numpy.
"""

from edgeseq_runtime import __version__

__all__ = ["__version__"]
