"""Writes the graph by which a runtime ranks pieces; see `edgeseq_runtime.ranking`.

It belongs to no bundle. `python -m edgeseq_export.ranking_graph` writes it where the runtime reads it.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeseq_export.graph_writer import GraphWriter
from edgeseq_runtime import ranking


def write_ranking_graph() -> onnx.ModelProto:
    """Builds the graph: log-softmax, and of that the best."""
    logits, number = ranking.RANKING.inputs
    log_probabilities, columns = ranking.RANKING.outputs
    writer = GraphWriter(ranking.RANKING)
    scores = writer.add("LogSoftmax", logits.name, axis=-1)
    writer.best(scores, number.name, values=log_probabilities.name, indices=columns.name)
    return writer.finish()


if __name__ == "__main__":
    file = Path(ranking.__file__).with_name(ranking.RANKING.file)
    file.write_bytes(write_ranking_graph().SerializeToString(deterministic=True))
