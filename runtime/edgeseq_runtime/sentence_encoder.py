"""Runs the encoder: sentences of one padded length at a time, in calls that stay small."""

from collections.abc import Sequence

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.sessions import Graph
from edgeseq_runtime.state import padded_length
from edgeseq_runtime.tokenizer import PAD_ID

ENCODER_TOKENS = 1024
"""Source positions of one encoder call, at most: bounds its memory, and keeps it in the cache."""


class SentenceEncoder:
    """The encoder's graph. May be used by several threads at once."""

    def __init__(self, graph: Graph, dim: int) -> None:
        """Take the graph of a model of width ``dim``."""
        self._graph = graph
        self._dim = dim

    def run(self, sources: Sequence[Sequence[int]], lengths: IntArray) -> FloatArray:
        """Encode sentences.

        No work is wasted on padding, and no sentence meets a padding that depends on its mates.

        Args:
            sources: Ids of each sentence, eos included.
            lengths: (R,), how many they are.

        Returns:
            (R, S, d), padded to the longest as the graphs see it.

        Raises:
            DeviceError: onnxruntime fails.
        """
        padded = np.array([padded_length(len(source)) for source in sources], dtype=np.int64)
        longest = int(padded.max())
        if longest == padded.min() and longest * len(sources) <= ENCODER_TOKENS:
            return self._run(sources, lengths, longest)
        memory = np.zeros((len(sources), longest, self._dim), dtype=np.float32)
        for length in np.unique(padded).tolist():
            group = np.flatnonzero(padded == length)
            size = max(1, ENCODER_TOKENS // length)
            for start in range(0, len(group), size):
                rows = group[start : start + size]
                chunk = [sources[row] for row in rows]
                memory[rows, :length] = self._run(chunk, lengths[rows], length)
        return memory

    def _run(self, sources: Sequence[Sequence[int]], lengths: IntArray, padded: int) -> FloatArray:
        source = np.full((len(sources), padded), PAD_ID, dtype=np.int64)
        for row, ids in enumerate(sources):
            source[row, : len(ids)] = ids
        mask = np.arange(padded) >= lengths[:, None]
        return self._graph.run({"source": source, "padding_mask": mask})[0]
