"""The likeliest pieces of each row, with their log-probabilities: one call of onnxruntime in place of passes in numpy.

The graph is no bundle's but the package's own, and serves any logits. ``edgeseq_export.ranking_graph`` writes it.
"""

from functools import cache
from importlib import resources

import numpy as np

from edgeseq_runtime.arrays import FloatArray, IntArray
from edgeseq_runtime.errors import BundleError, DeviceError
from edgeseq_runtime.manifest import TensorSpec
from edgeseq_runtime.sessions import CPU_PROVIDER, Graph
from edgeseq_runtime.signatures import GraphInterface

RANKING = GraphInterface(
    "ranking.onnx",
    (
        TensorSpec(name="logits", dtype="float32", shape=["rows", "columns"]),
        TensorSpec(name="number", dtype="int64", shape=[1]),
    ),
    (
        TensorSpec(name="log_probabilities", dtype="float32", shape=["rows", "number"]),
        TensorSpec(name="best_columns", dtype="int64", shape=["rows", "number"]),
    ),
)


def rank(logits: FloatArray, number: int) -> tuple[FloatArray, IntArray]:
    """Find the best columns of each row.

    A row's result has the same bits whatever the other rows are, and however many columns of -inf follow it, in steps
    of ``shortlist.CANDIDATE_MULTIPLE``.

    Args:
        logits: (rows, columns).
        number: How many to find; all there are if those are fewer.

    Returns:
        Their log-probabilities among all columns, and their columns, both (rows, number): best first, of equals the
        lower column.

    Raises:
        DeviceError: onnxruntime cannot be imported, or fails; or the package's graph is not there, or another.
    """
    number = min(number, logits.shape[1])
    log_probabilities, columns = _graph().run({"logits": logits, "number": np.array([number], dtype=np.int64)})
    return log_probabilities, columns.astype(np.int64, copy=False)


@cache
def _graph() -> Graph:
    file = resources.files(__package__) / RANKING.file
    try:
        return Graph(file.read_bytes(), RANKING, CPU_PROVIDER)
    except FileNotFoundError as error:
        raise DeviceError(
            f"edgeseq_runtime lacks its file {RANKING.file}, which beams need: install edgeseq again; a program that "
            "is packed into one file has to take along the package's data"
        ) from error
    except BundleError as error:
        raise DeviceError(
            f"edgeseq_runtime's file {RANKING.file}, which beams need, is of no use: install edgeseq again. {error}"
        ) from error
