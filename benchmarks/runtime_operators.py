"""What the operators of a decoder step cost in onnxruntime, on one thread.

Products, by how many weights there are in all (they lie in a cache, or in memory); and two spellings of the same thing
where one was chosen.

python benchmarks/runtime_operators.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

DIM = 256
HEADS = 4
TAPS = 15
ROWS = (1, 8, 16, 31)
ROUNDS = 60

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Constants = dict[str, NDArray[np.generic]]
Shapes = dict[str, tuple[int, list[str | int]]]


def session(
    nodes: list[NodeProto], inputs: Shapes, outputs: Shapes, constants: Constants
) -> onnxruntime.InferenceSession:
    """A session of a small graph."""
    graph = helper.make_graph(
        nodes,
        "operators",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def microseconds(graph: onnxruntime.InferenceSession, inputs: Constants) -> float:
    """Median time of a run."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        graph.run(None, inputs)
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def products(number: int) -> list[float]:
    """Microseconds per product of (rows, 256) with one of so many 256 by 256 matrices in turn, for each of ROWS."""
    generator = np.random.default_rng(0)
    nodes, constants = [], {}
    for index in range(number):
        constants[f"w{index}"] = (generator.standard_normal((DIM, DIM)) / 16).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"]))
    shape: list[str | int] = ["rows", DIM]
    chain = session(nodes, {"x0": (FLOAT, shape)}, {f"x{number}": (FLOAT, shape)}, dict(constants))
    times = []
    for rows in ROWS:
        x = generator.standard_normal((rows, DIM)).astype(np.float32)
        times.append(microseconds(chain, {"x0": x}) / number)
    return times


def spellings() -> dict[str, list[float]]:
    """Microseconds of each spelling for each of ROWS, one call of the session included."""
    ones, zeros = np.ones(DIM, dtype=np.float32), np.zeros(DIM, dtype=np.float32)
    norm: Constants = {"scale": ones, "bias": zeros}
    pair: Shapes = {"x": (FLOAT, ["rows", DIM]), "y": (FLOAT, ["rows", DIM])}
    both: Shapes = {"sum": (FLOAT, ["rows", DIM]), "normed": (FLOAT, ["rows", DIM])}
    add = helper.make_node("Add", ["x", "y"], ["sum"])
    plain = helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["normed"], axis=-1)
    fused = helper.make_node(
        "SkipLayerNormalization", ["x", "y", "scale", "bias"], ["normed", "", "", "sum"], domain="com.microsoft"
    )
    flat = helper.make_node("Reshape", ["taps", "minus_one"], ["flat"])
    gather = helper.make_node("Gather", ["flat", "places"], ["ordered"])
    elements = helper.make_node("GatherElements", ["taps", "places"], ["ordered"], axis=2)
    taps: Shapes = {"taps": (FLOAT, ["rows", HEADS, TAPS]), "places": (INT64, ["rows", HEADS, TAPS])}
    ordered: Shapes = {"ordered": (FLOAT, ["rows", HEADS, TAPS])}
    graphs = {
        "sum and layer norm: Add, LayerNormalization": session([add, plain], pair, both, norm),
        "sum and layer norm: SkipLayerNormalization": session([fused], pair, both, norm),
        "order of taps: Reshape, Gather": session([flat, gather], taps, ordered, {"minus_one": np.array([-1])}),
        "order of taps: GatherElements": session([elements], taps, ordered, {}),
    }
    return {name: [microseconds(graph, feed(name, rows)) for rows in ROWS] for name, graph in graphs.items()}


def feed(name: str, rows: int) -> Constants:
    """Inputs of a spelling."""
    generator = np.random.default_rng(0)
    if name.startswith("sum"):
        return {key: generator.standard_normal((rows, DIM)).astype(np.float32) for key in ("x", "y")}
    places = np.tile(np.roll(np.arange(TAPS), 4), (rows, HEADS, 1))
    if "Reshape" in name:
        places += np.arange(0, rows * HEADS * TAPS, TAPS).reshape(rows, HEADS, 1)
    return {"taps": generator.standard_normal((rows, HEADS, TAPS)).astype(np.float32), "places": places}


def main() -> None:
    """Prints both tables."""
    print("| 256 x 256 products in turn | " + " | ".join(f"{rows} rows, µs" for rows in ROWS) + " |")
    print("|---" * (1 + len(ROWS)) + "|")
    for megabytes in (1, 6, 11, 15, 22, 40):
        times = products(4 * megabytes)
        print(f"| {megabytes} MB of weights | " + " | ".join(f"{value:.1f}" for value in times) + " |")
    print("\n| spelling | " + " | ".join(f"{rows} rows, µs" for rows in ROWS) + " |")
    print("|---" * (1 + len(ROWS)) + "|")
    for name, times in spellings().items():
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in times) + " |")


if __name__ == "__main__":
    main()
