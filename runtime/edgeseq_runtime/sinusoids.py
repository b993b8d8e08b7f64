"""Sinusoidal position vectors (Vaswani et al., 2017, section 3.5), kept once computed.

A graph would compute the same sines anew at every step, and not fast.
"""

import math
import threading

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray

_FIRST_LENGTH = 128


class Sinusoids:
    """Vectors of all positions so far asked for. May be shared by threads."""

    def __init__(self, dim: int) -> None:
        """Start with a short table.

        Args:
            dim: d, even: the first half are sines, the second cosines.
        """
        self.dim = dim
        half = dim // 2
        exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0) / max(half - 1, 1))
        self._frequencies = np.exp(exponents)
        self._table = self._compute(_FIRST_LENGTH)
        self._growing = threading.Lock()

    def take(self, positions: IntArray) -> FloatArray:
        """Copy the vectors of positions (m,), each at least 0: (m, d)."""
        self._reach(int(positions.max(initial=0)))
        return self._table.take(positions, axis=0)

    def at(self, position: int) -> FloatArray:
        """The vector of one position, (d,), not to be written to."""
        self._reach(position)
        vector: FloatArray = self._table[position]
        return vector

    def _reach(self, position: int) -> None:
        """Make the table long enough."""
        if position >= len(self._table):
            with self._growing:
                if position >= len(self._table):  # another thread may have been here
                    self._table = self._compute(2 * position)

    def _compute(self, length: int) -> FloatArray:
        angles = np.arange(length, dtype=np.float32)[:, None] * self._frequencies
        return np.concatenate((np.sin(angles), np.cos(angles)), axis=1)
