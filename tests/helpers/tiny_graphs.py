"""Graphs of a small random model, written with onnx.helper: what a bundle holds, without torch.

Each graph is the real thing in small: a dynamic convolution over history and new column,
encoder-decoder attention with a padding bias, a feed-forward layer, layer norms. Decoder graphs
take one position a call (p = 1), which is all that decoding uses.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.signatures import GraphSignature
from edgeseq_runtime.tokenizer import EOS_ID

Array = npt.NDArray[np.float32] | npt.NDArray[np.int64]

MAX_POSITIONS = 4096
_ELEMENT = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


class Weights:
    """Random weights by name: the same name and shape give the same array."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def array(self, name: str, *shape: int, scale: float | None = None) -> npt.NDArray[np.float32]:
        generator = np.random.default_rng([self._seed, *name.encode()])
        width = scale if scale is not None else shape[0] ** -0.5
        return (generator.standard_normal(shape) * width).astype(np.float32)


class GraphWriter:
    """Collects nodes and constants of one graph."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"value_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        self._constants[name] = numpy_helper.from_array(value, name)
        return name

    def integers(self, values: Sequence[int]) -> str:
        name = "shape_" + "_".join(str(value) for value in values).replace("-", "m")
        return self.constant(name, np.array(values, dtype=np.int64))

    def linear(self, x: str, name: str, inner: int, outer: int, output: str | None = None) -> str:
        weight = self.constant(name, self.weights.array(name, inner, outer))
        return self.add("MatMul", x, weight, output=output)

    def norm(self, x: str, name: str, dim: int, output: str | None = None) -> str:
        scale = self.constant(name, 1 + self.weights.array(name, dim, scale=0.1))
        return self.add("LayerNormalization", x, scale, axis=-1, output=output)

    def model(self, signature: GraphSignature) -> onnx.ModelProto:
        inputs, outputs = (
            [helper.make_tensor_value_info(spec.name, _ELEMENT[spec.dtype], spec.shape) for spec in specs]
            for specs in (signature.inputs, signature.outputs)
        )
        graph = helper.make_graph(self._nodes, signature.role, inputs, outputs, list(self._constants.values()))
        opset = helper.make_opsetid("", 20)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def write_graph(model: ModelFacts, signature: GraphSignature, weights: Weights) -> bytes:
    """Serialise the graph that ``signature`` describes."""
    writer = GraphWriter(weights)
    block = signature.block or 0
    match signature.role:
        case "encoder":
            _encoder(writer, model)
        case "embed":
            _embed(writer, model)
        case "cross":
            _cross(writer, model, block)
        case "block":
            _block(writer, model, block)
        case "backfill":
            _in_projection(writer, model, block, "states", output="columns")
        case "head":
            _head(writer, model, block)
    data: bytes = writer.model(signature).SerializeToString(deterministic=True)
    return data


def _encoder(writer: GraphWriter, model: ModelFacts) -> None:
    table = writer.constant("embedding", writer.weights.array("embedding", model.vocab_size, model.dim, scale=1.0))
    x = writer.add("Gather", table, "source")
    inner = writer.add("Relu", writer.linear(x, "encoder_in", model.dim, 2 * model.dim))
    outer = writer.linear(inner, "encoder_out", 2 * model.dim, model.dim)
    normed = writer.norm(writer.add("Add", x, outer), "encoder_norm", model.dim)
    kept = writer.add("Cast", writer.add("Not", "padding_mask"), to=TensorProto.FLOAT)
    kept = writer.add("Unsqueeze", kept, writer.integers([2]))
    writer.add("Mul", normed, kept, output="memory")


def _embed(writer: GraphWriter, model: ModelFacts) -> None:
    weights = writer.weights
    table = writer.constant("embedding", weights.array("embedding", model.vocab_size, model.dim, scale=1.0))
    places = writer.constant("positions", weights.array("positions", MAX_POSITIONS, model.dim, scale=0.5))
    x = writer.add("Gather", table, "tokens")
    writer.add("Add", x, writer.add("Gather", places, "position"), output="x")


def _cross(writer: GraphWriter, model: ModelFacts, block: int) -> None:
    head_dim = model.dim // model.heads
    split = writer.integers([0, 0, model.heads, head_dim])
    for name, order in (("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        projected = writer.linear("memory", f"cross_{name}_{block}", model.dim, model.dim)
        heads = writer.add("Reshape", projected, split)
        writer.add("Transpose", heads, perm=order, output=f"cross_{name}")


def _in_projection(writer: GraphWriter, model: ModelFacts, block: int, x: str, output: str | None = None) -> str:
    """The block's own norm (pre-norm models) and input projection, gated if the model is."""
    if model.norm == "pre":
        x = writer.norm(x, f"in_norm_{block}", model.dim)
    if not model.glu:
        return writer.linear(x, f"in_{block}", model.dim, model.dim, output=output)
    value = writer.linear(x, f"in_{block}", model.dim, model.dim)
    gate = writer.add("Sigmoid", writer.linear(x, f"gate_{block}", model.dim, model.dim))
    return writer.add("Mul", value, gate, output=output)


def _block(writer: GraphWriter, model: ModelFacts, block: int) -> None:
    dim = model.dim
    columns = _in_projection(writer, model, block, "x", output="columns")
    mixed = _convolution(writer, model, block, columns)
    x = _residual(writer, model, "x", mixed, f"convolution_norm_{block}")
    mixed = _attention(writer, model, block, x)
    x = _residual(writer, model, x, mixed, f"attention_norm_{block}")
    inner = writer.linear(x, f"inner_{block}", dim, model.feed_forward_dim)
    outer = writer.linear(writer.add("Relu", inner), f"outer_{block}", model.feed_forward_dim, dim)
    x = _residual(writer, model, x, outer, f"feed_forward_norm_{block}")
    writer.add("Identity", x, output="next_x")
    # Never the same as next_x: copying the wrong one upward must show.
    writer.norm(x, f"exit_norm_{block}", dim, output="exit_state")


def _residual(writer: GraphWriter, model: ModelFacts, x: str, update: str, norm: str) -> str:
    total = writer.add("Add", x, update)
    return writer.norm(total, norm, model.dim) if model.norm == "post" else total


def _convolution(writer: GraphWriter, model: ModelFacts, block: int, columns: str) -> str:
    """Head-major product of softmax-normalised taps with the window: (rows, 1, dim)."""
    taps, heads = model.decoder_kernel_sizes[block - 1], model.convolution_heads
    window = columns if taps == 1 else writer.add("Concat", "history", columns, axis=1)
    split = writer.integers([0, taps, heads, model.dim // heads])
    window = writer.add("Transpose", writer.add("Reshape", window, split), perm=[0, 2, 1, 3])
    logits = writer.linear(columns, f"taps_{block}", model.dim, heads * taps)
    logits = writer.add("Reshape", logits, writer.integers([0, heads, 1, taps]))
    mixed = writer.add("MatMul", writer.add("Softmax", logits, axis=-1), window)
    joined = writer.add("Reshape", mixed, writer.integers([0, 1, model.dim]))
    return writer.linear(joined, f"out_{block}", model.dim, model.dim)


def _attention(writer: GraphWriter, model: ModelFacts, block: int, x: str) -> str:
    query = writer.linear(x, f"query_{block}", model.dim, model.dim)
    head_dim = model.dim // model.heads
    split = writer.integers([0, model.heads, 1, head_dim])
    scores = writer.add("MatMul", writer.add("Reshape", query, split), "cross_key")
    shares = writer.add("Softmax", writer.add("Add", scores, "source_bias"), axis=-1)
    mixed = writer.add("MatMul", shares, "cross_value")
    joined = writer.add("Reshape", mixed, writer.integers([0, 1, model.dim]))
    return writer.linear(joined, f"attend_{block}", model.dim, model.dim)


def _head(writer: GraphWriter, model: ModelFacts, block: int) -> None:
    weight = writer.weights.array(f"head_{block}", model.dim, model.vocab_size)
    weight[:, EOS_ID] *= 2  # or few sentences would end before their maximum length
    writer.add("MatMul", "exit_state", writer.constant("head", weight), output="logits")
