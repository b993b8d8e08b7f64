"""Writes one ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edgeseq_runtime.manifest import TensorSpec
from edgeseq_runtime.signatures import GraphSignature

OPSET = 20
IR_VERSION = 10
ONNXRUNTIME_DOMAIN = "com.microsoft"
"""Operators that onnxruntime has and ONNX has not."""

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
        self._added: dict[tuple[str, ...], str] = {}
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

    def add_once(self, operator: str, *inputs: str) -> str:
        """Adds a node without attributes, or names the result of the one that does the same."""
        key = (operator, *inputs)
        if key not in self._added:
            self._added[key] = self.add(operator, *inputs)
        return self._added[key]

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
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self._domains()],
            ir_version=IR_VERSION,
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _domains(self) -> list[tuple[str, int]]:
        """Operator sets that the nodes belong to, with their versions."""
        contributed = any(node.domain == ONNXRUNTIME_DOMAIN for node in self._nodes)
        return [("", OPSET), *([(ONNXRUNTIME_DOMAIN, 1)] if contributed else [])]


def _declare(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape) for spec in specs]
