"""Sums over the pieces of an exit's logits, the same bits however many columns of padding there are.

numpy cuts a long sum into parts by its length, so zeros behind the numbers change its last bits; and in a batch the
columns behind a sentence's candidates depend on its batch mates.
"""

from edgeseq_runtime.arrays import FloatArray

_RUN = 64


def row_sums(numbers: FloatArray) -> FloatArray:
    """Sum each row of (rows, columns), run by run: (rows,)."""
    rows, columns = numbers.shape
    whole = columns // _RUN * _RUN
    runs: FloatArray = numbers[:, :whole].reshape(rows, -1, _RUN).sum(axis=1)
    runs[:, : columns - whole] += numbers[:, whole:]
    sums: FloatArray = runs.sum(axis=1)
    return sums
