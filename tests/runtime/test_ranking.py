"""The graph that ranks pieces, against numpy; and what keeps a beam's bits: rows and padding do not matter."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_export.ranking_graph import write_ranking_graph
from edgeseq_runtime import ranking
from edgeseq_runtime.arrays import FloatArray
from edgeseq_runtime.errors import DeviceError
from edgeseq_runtime.ranking import RANKING, rank
from edgeseq_runtime.shortlist import CANDIDATE_MULTIPLE


def random_logits(rows: int, columns: int, seed: int) -> FloatArray:
    return (4 * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)


def test_the_file_is_what_export_writes() -> None:
    """`python -m edgeseq_export.ranking_graph` writes it anew."""
    file = Path(ranking.__file__).with_name(RANKING.file)
    assert file.read_bytes() == write_ranking_graph().SerializeToString(deterministic=True)


def test_a_package_without_its_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(DeviceError, match=r"edgeseq_runtime lacks its file ranking\.onnx, .*: install edgeseq again"):
        ranking._graph.__wrapped__()


@given(
    number=st.integers(1, 12) | st.integers(1, 300),
    columns=st.integers(1, 300),
    values=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_equals_a_whole_sort(number: int, columns: int, values: int, seed: int) -> None:
    """With many equal logits, and with some that are -inf."""
    logits = np.random.default_rng(seed).integers(0, values, (3, columns)).astype(np.float32)
    logits[logits == values // 2] = -np.inf
    logits[:, 0] = 1
    scores, best = rank(logits, number)
    order = np.argsort(-logits, kind="stable")[:, :number]
    assert (best == order).all()
    doubles = logits.astype(np.float64)
    expected = doubles - np.log(np.exp(doubles).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, axis=1), atol=1e-5)


@pytest.mark.parametrize("columns", [7, 64, 1000, 4001])
def test_a_row_has_the_same_bits_by_itself(columns: int) -> None:
    logits = random_logits(9, columns, columns)
    scores, best = rank(logits, 7)
    for row in range(len(logits)):
        alone, found = rank(logits[row : row + 1], 7)
        assert (alone[0] == scores[row]).all()
        assert (found[0] == best[row]).all()


def padded(logits: FloatArray, columns: int) -> FloatArray:
    wide = np.full((len(logits), columns), -np.inf, dtype=np.float32)
    wide[:, : logits.shape[1]] = logits
    return wide


@pytest.mark.parametrize("candidates", range(1, 700, 37))
def test_padding_changes_no_bits(candidates: int) -> None:
    """A sentence's own width and that of a batch are both multiples."""
    own = -(-candidates // CANDIDATE_MULTIPLE) * CANDIDATE_MULTIPLE
    logits = padded(random_logits(8, candidates, candidates), own)
    scores, best = rank(logits, 9)
    for more in range(1, 9):
        wide, found = rank(padded(logits, own + more * CANDIDATE_MULTIPLE), 9)
        assert (wide == scores).all()
        real = np.isfinite(scores)
        assert (found[real] == best[real]).all()


def test_control_sums_of_numpy_do_see_padding() -> None:
    """What is compared are numbers whose bits depend on the order of sums."""

    def scores(logits: FloatArray) -> FloatArray:
        highest: FloatArray = logits.max(axis=1)
        result: FloatArray = highest - np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        return result

    logits = np.float32(0.1) * random_logits(64, 333, 1)
    assert (scores(padded(logits, 640)) != scores(logits)).any()
    assert (rank(padded(logits, 640), 1)[0] == rank(logits, 1)[0]).all()
