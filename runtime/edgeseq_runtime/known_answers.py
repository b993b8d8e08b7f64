"""Whether this machine's 8-bit products are right: graphs run on inputs whose outputs are known.

Some processors add pairs of 8-bit products in 16 bits, which saturates unless weights are small enough, as an
exporter of today keeps them; and nothing reports it, nor a kernel that is wrong in another way. So a bundle of fewer
bits than float32 brings inputs at the ends of the 8-bit range, where that shows, with what the graphs made of them on
the machine that exported it, and a Translator has them done again.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgeseq_runtime.arrays import FloatArray
from edgeseq_runtime.errors import EXPORT_AGAIN, BundleError, DeviceError
from edgeseq_runtime.manifest import GraphRole, ModelFacts

if TYPE_CHECKING:
    from edgeseq_runtime.engine import Engine

TOLERANCE = 1e-3
"""Of the largest output. Sums of integers are exact; what is float32 about them may differ in the last bits."""

SOURCE_LENGTH = 4

Key = tuple[GraphRole, int | None]


def asked_graphs(model: ModelFacts) -> dict[Key, tuple[str, str, tuple[int, ...]]]:
    """Graphs that are asked, by role and block: name of the input, name of an output, shape of the input.

    One multiplies by weights as the encoder does, one as the decoder does.
    """
    head = None if model.head == "tied" else 1
    return {
        ("cross", 1): ("memory", "cross_key", (1, SOURCE_LENGTH, model.dim)),
        ("head", head): ("exit_states", "logits", (1, model.dim)),
    }


def answer(engine: "Engine", model: ModelFacts, inputs: Mapping[Key, FloatArray]) -> dict[Key, FloatArray]:
    """Run the graphs that are asked on their inputs."""
    return {key: engine.run_graph(*key, {asked_graphs(model)[key][0]: array})[0] for key, array in inputs.items()}


def check_answers(engine: "Engine", model: ModelFacts, tensors: Mapping[str, FloatArray]) -> None:
    """Run the graphs and compare.

    Args:
        engine: Of the bundle.
        model: Facts of its model.
        tensors: Inputs and right outputs, named as :func:`tensor_names` says.

    Raises:
        BundleError: A tensor is missing, or of another shape.
        DeviceError: An output is wrong.
    """
    for key, (_, _, shape) in asked_graphs(model).items():
        input_name, output_name = tensor_names(model, key)
        given, right = tensors.get(input_name), tensors.get(output_name)
        if given is None or right is None or given.shape != shape:
            raise BundleError(
                f"the bundle's known answers lack {input_name} of shape {shape} with {output_name}: {EXPORT_AGAIN}"
            )
        (found,) = answer(engine, model, {key: given}).values()
        if found.shape != right.shape:
            raise BundleError(
                f"the bundle's known answer {output_name} is {right.shape}, expected {found.shape}: {EXPORT_AGAIN}"
            )
        difference = float(np.abs(found - right).max() / np.abs(right).max())
        if not difference <= TOLERANCE:
            raise DeviceError(
                f"8-bit products come out wrong on this machine: {output_name} differs by {difference:.1%} of its "
                f"largest value from what it was where the bundle was made (expected at most {TOLERANCE:.1%}). Older "
                "bundles had weights that x86 processors without VNNI cannot multiply: export the model again; if that "
                "does not help, with --compute-type float32"
            )


def tensor_names(model: ModelFacts, key: Key) -> tuple[str, str]:
    """Names of a graph's input and output among the known answers: ``cross_1.memory``, ``cross_1.cross_key``."""
    role, block = key
    graph = role if block is None else f"{role}_{block}"
    input_name, output_name, _ = asked_graphs(model)[key]
    return f"{graph}.{input_name}", f"{graph}.{output_name}"
