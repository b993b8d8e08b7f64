"""One file for the weights of all graphs of a bundle, each stored once.

The graphs of single blocks and that of a whole step have the same weights, and so have the embedding tables of both
stacks and the exit heads. onnxruntime maps the file into memory, so processes share what it does not rearrange.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from edgeseq_runtime.atomic import write_file

WEIGHTS_FILE = "weights.bin"

_SMALLEST = 1024
"""Bytes of a tensor from which on it is worth an entry of its own."""

_ALIGNMENT = 64
"""Of offsets, in bytes: a line of the cache, and the widest register of any processor."""


def gather_weights(folder: Path) -> None:
    """Moves the large tensors of all graphs in a folder into one file.

    Args:
        folder: holds graphs that bring their own tensors; they are rewritten.
    """
    offsets: dict[bytes, int] = {}
    parts: list[bytes] = []
    end = 0
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        for tensor in _large_tensors(model.graph):
            data = tensor.raw_data
            if data not in offsets:
                offsets[data] = end
                padding = -len(data) % _ALIGNMENT
                parts += [data, bytes(padding)]
                end += len(data) + padding
            _refer(tensor, offsets[data], len(data))
        write_file(path, model.SerializeToString(deterministic=True))
    # A model may be so small that no tensor is large, and a bundle has no empty files.
    write_file(folder / WEIGHTS_FILE, b"".join(parts) or bytes(_ALIGNMENT))


def _large_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yields those of a graph and of the graphs within it."""
    yield from (tensor for tensor in graph.initializer if len(tensor.raw_data) >= _SMALLEST)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _large_tensors(attribute.g)


def _refer(tensor: TensorProto, offset: int, length: int) -> None:
    """Has a tensor name its place in the file instead of bringing its data."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
