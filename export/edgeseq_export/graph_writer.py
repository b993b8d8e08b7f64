"""Writes one ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeseq_runtime.manifest import TensorSpec
from edgeseq_runtime.signatures import GraphSignature

OPSET = 20
IR_VERSION = 10

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


class GraphWriter:
    """A graph in the making. Values are named by strings: inputs by their names, others by whoever made them."""

    def __init__(self, signature: GraphSignature) -> None:
        """Starts an empty graph.

        Args:
            signature: what the graph takes and gives, and the file it is for.
        """
        self._signature = signature
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output.

        Args:
            operator: its ONNX name.
            inputs: values it reads; an empty string leaves an optional input out.
            output: the name of what it gives, for outputs of the graph; made up where None.
            attributes: of the node.

        Returns:
            The name of what it gives.
        """
        name = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def add_pair(self, operator: str, *inputs: str, **attributes: Any) -> tuple[str, str]:
        """Adds a node with two outputs and returns their names."""
        name = f"{operator}_{len(self._nodes)}"
        names = (f"{name}_a", f"{name}_b")
        self._nodes.append(helper.make_node(operator, list(inputs), list(names), name=name, **attributes))
        return names

    def constant(self, array: NDArray[np.generic] | Tensor) -> str:
        """Adds a tensor; equal tensors are stored once.

        Returns:
            Its name.
        """
        if isinstance(array, Tensor):
            array = array.detach().numpy()
        array = np.asarray(array, order="C")
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"constant_{len(self._constants)}")
        return self._constants[key].name

    def integers(self, *values: int) -> str:
        """Adds a vector of int64, for shapes and bounds."""
        return self.constant(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """Adds a float32 number."""
        return self.constant(np.array(value, dtype=np.float32))

    def reshape(self, x: str, *shape: int) -> str:
        """Adds a reshape; 0 keeps an axis, -1 stands for what is left."""
        return self.add("Reshape", x, self.integers(*shape))

    def linear(self, x: str, layer: nn.Linear, scale: float = 1.0) -> str:
        """Adds a linear layer, its result scaled.

        Args:
            x: (rows, in). Two axes, so that product and bias are one node.
            layer: with or without bias.
            scale: multiplied into weight and bias.
        """
        weight = self.constant((layer.weight * scale).T.contiguous())
        if layer.bias is None:
            return self.add("MatMul", x, weight)
        return self.add("Gemm", x, weight, self.constant(layer.bias * scale))

    def layer_norm(self, x: str, norm: nn.Module) -> str:
        """Adds a layer norm over the last axis, or nothing for the identity."""
        if isinstance(norm, nn.Identity):
            return x
        assert isinstance(norm, nn.LayerNorm)
        return self.add(
            "LayerNormalization", x, self.constant(norm.weight), self.constant(norm.bias), axis=-1, epsilon=norm.eps
        )

    def finish(self) -> onnx.ModelProto:
        """Puts the graph together and checks it.

        Raises:
            onnx.checker.ValidationError: the graph is not valid ONNX.
            onnx.shape_inference.InferenceError: its shapes do not fit together.
        """
        graph = helper.make_graph(
            self._nodes,
            self._signature.file.removesuffix(".onnx"),
            _declare(self._signature.inputs),
            _declare(self._signature.outputs),
            list(self._constants.values()),
        )
        model = helper.make_model(
            graph,
            producer_name="edgeseq",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _declare(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape) for spec in specs]
