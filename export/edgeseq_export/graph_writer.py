"""Writes one ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edgeseq_runtime.manifest import TensorSpec
from edgeseq_runtime.signatures import GraphInterface

OPSET = 20
IR_VERSION = 10
ONNXRUNTIME_DOMAIN = "com.microsoft"
"""Operators that onnxruntime has and ONNX has not."""

_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int8": TensorProto.INT8,
    "bool": TensorProto.BOOL,
}


class GraphWriter:
    """A graph in the making. Values are named by strings: inputs by their names, others by whoever made them."""

    def __init__(self, interface: GraphInterface) -> None:
        """Starts an empty graph.

        Args:
            interface: what the graph takes and gives, and the file it is for.
        """
        self._interface = interface
        self._number = 0
        self._contributed = False
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
        return self._add_node(operator, inputs, [output or self._name(operator)], attributes)[0]

    def add_once(self, operator: str, *inputs: str) -> str:
        """Adds a node without attributes, or names the result of the one that does the same."""
        key = (operator, *inputs)
        if key not in self._added:
            self._added[key] = self.add(operator, *inputs)
        return self._added[key]

    def split(self, x: str, number: int, axis: int, *, last: str | None = None) -> list[str]:
        """Adds the cut of a tensor into parts of equal size and returns their names; that of the last may be given."""
        names = [self._name("Split") for _ in range(number)]
        names[-1] = last or names[-1]
        return self._add_node("Split", [x], names, {"axis": axis, "num_outputs": number})

    def best(self, x: str, number: str, *, values: str, indices: str) -> None:
        """Adds the choice of the highest ``number`` of the last axis, best first, of equals the lower index.

        Args:
            x: what is chosen from.
            number: a vector of one int64.
            values: name for the values chosen.
            indices: name for where they are.
        """
        self._add_node("TopK", [x, number], [values, indices], {"axis": -1})

    def add_choice(
        self,
        condition: str,
        chosen: tuple[Callable[[], Sequence[str]], Callable[[], Sequence[str]]],
        outputs: Sequence[str | None],
    ) -> list[str]:
        """Adds an `If`: one of two graphs within this one is run.

        What they add has the same operators and constants, and may read what was added before. Constants belong to
        the graph that uses them: onnxruntime prepares the weights of a product only in the graph that holds them.

        Args:
            condition: a bool, of one element.
            chosen: add what is run where the condition holds, and where not, and name what they give, made by a
                node of their own.
            outputs: names for what it gives, None for any name.

        Returns:
            The names.
        """
        branches = {name: self._branch(add) for name, add in zip(("then_branch", "else_branch"), chosen, strict=True)}
        return self._add_node("If", [condition], [name or self._name("If") for name in outputs], branches)

    def gives(self, output: str) -> bool:
        """Whether the interface has an output of this name."""
        return any(spec.name == output for spec in self._interface.outputs)

    def constant(self, array: NDArray[np.generic] | Tensor) -> str:
        """Adds a tensor; equal tensors of a graph are stored once.

        Returns:
            Its name.
        """
        if isinstance(array, Tensor):
            array = array.detach().numpy()
        array = np.asarray(array, order="C")
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, self._name("constant"))
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
            self._interface.file.removesuffix(".onnx"),
            _declare(self._interface.inputs),
            _declare(self._interface.outputs),
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
        return [("", OPSET), *([(ONNXRUNTIME_DOMAIN, 1)] if self._contributed else [])]

    def _name(self, what: str) -> str:
        self._number += 1
        return f"{what}_{self._number}"

    def _add_node(
        self, operator: str, inputs: Sequence[str], outputs: list[str], attributes: dict[str, Any]
    ) -> list[str]:
        self._contributed |= attributes.get("domain") == ONNXRUNTIME_DOMAIN
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs

    def _branch(self, add: Callable[[], Sequence[str]]) -> onnx.GraphProto:
        outside = self._nodes, self._added, self._constants
        self._nodes, self._added, self._constants = [], dict(self._added), {}
        results = [helper.make_empty_tensor_value_info(name) for name in add()]
        branch = helper.make_graph(self._nodes, self._name("branch"), [], results, list(self._constants.values()))
        self._nodes, self._added, self._constants = outside
        return branch


def _declare(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape) for spec in specs]
