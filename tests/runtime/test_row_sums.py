"""Sums of rows are the same bits whatever stands behind the numbers, as long as it is zeros."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.arrays import FloatArray
from edgeseq_runtime.row_sums import row_sums


def numbers(rows: int, columns: int, seed: int) -> FloatArray:
    return np.exp(np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32))


def padded(given_numbers: FloatArray, columns: int) -> FloatArray:
    return np.pad(given_numbers, ((0, 0), (0, columns)))


@given(st.integers(1, 9), st.integers(1, 700), st.integers(0, 700), st.integers(0, 9))
def test_zeros_behind_and_rows_beside_change_nothing(rows: int, columns: int, zeros: int, seed: int) -> None:
    own = numbers(rows, columns, seed)
    sums = row_sums(own)
    np.testing.assert_allclose(sums, own.sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(row_sums(padded(own, zeros)), sums)
    np.testing.assert_array_equal(row_sums(own[:1].copy()), sums[:1])


def test_control_numpys_own_sums_depend_on_zeros() -> None:
    own = numbers(5, 352, 1)
    assert not np.array_equal(padded(own, 192).sum(axis=1), own.sum(axis=1))
