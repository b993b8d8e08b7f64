"""Sessions: the right provider or an error, and only graphs that are what they claim."""

import builtins
import gc
import subprocess
import sys
import weakref
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeseq_export.graph_writer import GraphWriter
from edgeseq_runtime import sessions
from edgeseq_runtime.arrays import AnyArray, FloatArray
from edgeseq_runtime.errors import BundleError, DeviceError, InputError
from edgeseq_runtime.manifest import TensorSpec
from edgeseq_runtime.places import Layout, StepPlaces
from edgeseq_runtime.sessions import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    Graph,
    onnxruntime_version,
    select_provider,
)
from edgeseq_runtime.signatures import GraphSignature, expected_signatures
from edgeseq_runtime.translator import Translator
from tiny_bundle import tiny_facts


def pretend_providers(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers))


def pretend_wheels(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    def distribution(name: str) -> object:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return object()

    monkeypatch.setattr(metadata, "distribution", distribution)


def test_cpu_is_always_there() -> None:
    assert select_provider("cpu") == CPU_PROVIDER
    assert onnxruntime_version() == onnxruntime.__version__


def test_auto_takes_cuda_where_it_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_providers(monkeypatch, CPU_PROVIDER)
    assert select_provider("auto") == CPU_PROVIDER
    pretend_providers(monkeypatch, CUDA_PROVIDER, CPU_PROVIDER)
    assert select_provider("auto") == CUDA_PROVIDER
    assert select_provider("cpu") == CPU_PROVIDER


def test_cuda_that_is_not_offered_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_providers(monkeypatch, "AzureExecutionProvider", CPU_PROVIDER)
    pretend_wheels(monkeypatch, "onnxruntime")
    with pytest.raises(DeviceError) as error:
        select_provider("cuda")
    assert str(error.value) == (
        "device 'cuda' is asked for, but this onnxruntime offers AzureExecutionProvider, "
        "CPUExecutionProvider: uninstall onnxruntime and install edgeseq[cuda], or ask for device "
        "'cpu'"
    )


def test_both_wheels_together_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_providers(monkeypatch, CUDA_PROVIDER, CPU_PROVIDER)
    pretend_wheels(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(DeviceError, match="onnxruntime and onnxruntime-gpu are both installed"):
        select_provider("cuda")
    pretend_wheels(monkeypatch, "onnxruntime-gpu")
    assert select_provider("cuda") == CUDA_PROVIDER


def test_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="device is 'gpu', expected 'auto', 'cpu' or 'cuda'"):
        select_provider("gpu")


def test_missing_onnxruntime_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *arguments: object, **keywords: object) -> object:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return original(name, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DeviceError, match=r"install edgeseq\[cpu\], or edgeseq\[cuda\] for"):
        select_provider("cpu")


HEAD = next(s for s in expected_signatures(tiny_facts()) if s.role == "head")


def write_head(
    folder: Path,
    *,
    inputs: Sequence[tuple[str, int, list[int | str | None]]] = (("exit_states", TensorProto.FLOAT, ["any", 16]),),
    outputs: Sequence[tuple[str, int, list[int | str | None]]] = (("logits", TensorProto.FLOAT, ["name", 60]),),
) -> Path:
    """A head graph (dim 16, vocabulary 60) whose declarations can be changed."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [16, 60], np.ones(960).tolist())
    first, second = inputs[0][0], outputs[0][0]
    nodes = [helper.make_node("MatMul", [first, "w"], [second])]
    nodes += [helper.make_node("Identity", [second], [name]) for name, *_ in outputs[1:]]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / HEAD.file)
    return folder


def test_graph_runs(tmp_path: Path) -> None:
    """Control of the refusals; axes whose size varies may be called anything."""
    graph = Graph(write_head(tmp_path), HEAD, CPU_PROVIDER)
    (logits,) = graph.run({"exit_states": np.ones((3, 16), dtype=np.float32)})
    np.testing.assert_array_equal(logits, np.full((3, 60), 16, dtype=np.float32))


F = TensorProto.FLOAT
WIDE = {"expand": [16, 1024], "contract": [1024, 60]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [("x", F, ["r", 16])]}, "its inputs are x tensor(float)['r', 16]; expected exit_"),
        ({"inputs": [("exit_states", F, [1, 16])]}, "its inputs are exit_states tensor(float)[1, 16]"),
        ({"inputs": [("exit_states", F, ["r", "d"])]}, "its inputs are exit_states"),
        ({"inputs": [("exit_states", F, ["r", "p", 16])]}, "its inputs are exit_states"),
        ({"outputs": [("y", F, ["r", 60])]}, "its outputs are y tensor(float)['r', 60]; expected log"),
        (
            {"outputs": [("logits", F, ["r", 60]), ("more", F, ["r", 60])]},
            "its outputs are logits tensor(float)['r', 60], more tensor(float)['r', 60]; expected",
        ),
    ],
)
def test_graph_that_lies_about_its_signature_is_refused(
    tmp_path: Path, changes: dict[str, list[tuple[str, int, list[int | str | None]]]], message: str
) -> None:
    with pytest.raises(BundleError) as error:
        Graph(write_head(tmp_path, **changes), HEAD, CPU_PROVIDER)
    assert str(error.value).startswith("head.onnx is not the graph the manifest declares: ")
    assert message in str(error.value)


def test_wrong_type_is_refused(tiny_bundle: Path) -> None:
    block = next(s for s in expected_signatures(tiny_facts()) if s.block == 1 and s.role == "block")
    floats = tuple(spec.model_copy(update={"dtype": "float32"}) for spec in block.inputs)
    wrong = GraphSignature(block.file, block.role, block.block, floats, block.outputs)
    with pytest.raises(BundleError, match=r"its inputs are tokens tensor\(int64\)"):
        Graph(tiny_bundle, wrong, CPU_PROVIDER)


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / HEAD.file).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"head\.onnx cannot be loaded by onnxruntime \d"):
        Graph(tmp_path, HEAD, CPU_PROVIDER)


def test_provider_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself would go on with the CPU."""
    session = onnxruntime.InferenceSession

    def fall_back(path: str, options: object, providers: list[str]) -> object:
        assert providers == [CUDA_PROVIDER]
        return session(path, options, providers=[CPU_PROVIDER])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.raises(DeviceError, match="CUDAExecutionProvider could not be started, and falling"):
        Graph(write_head(tmp_path), HEAD, CUDA_PROVIDER)


def test_auto_goes_on_with_the_cpu_where_cuda_does_not_start(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU wheel on a machine without a GPU: `auto` may choose, `cuda` may not."""
    session = onnxruntime.InferenceSession

    def fall_back(path: str, options: object, providers: list[str]) -> object:
        return session(path, options, providers=[CPU_PROVIDER])

    pretend_providers(monkeypatch, CUDA_PROVIDER, CPU_PROVIDER)
    pretend_wheels(monkeypatch, "onnxruntime-gpu")
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    assert Translator(tiny_bundle, device="auto").signature().split("|")[1] == f"provider:{CPU_PROVIDER}"
    with pytest.raises(DeviceError, match="CUDAExecutionProvider could not be started"):
        Translator(tiny_bundle, device="cuda")


# Bound graphs


EMBED = GraphSignature(
    "embed.onnx",
    "block",
    1,
    (
        TensorSpec(name="tokens", dtype="int64", shape=["rows"]),
        TensorSpec(name="position_vectors", dtype="float32", shape=["rows", 16]),
        TensorSpec(name="states", dtype="float32", shape=["cells", 16]),
        TensorSpec(name="own_cells", dtype="int64", shape=["rows", 1]),
    ),
    (TensorSpec(name="next_states", dtype="float32", shape=["cells", 16]),),
)
"""The least graph that updates state: what block 1 begins with."""


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("embed")
    writer = GraphWriter(EMBED)
    table = np.random.default_rng(1).standard_normal((60, 16)).astype(np.float32)
    x = writer.add("Add", writer.add("Gather", writer.constant(table), "tokens"), "position_vectors")
    writer.add("ScatterND", "states", "own_cells", x, output="next_states")
    onnx.save(writer.finish(), folder / EMBED.file)
    return Graph(folder, EMBED, CPU_PROVIDER)


def embed_feed(*tokens: int) -> dict[str, AnyArray]:
    """Puts the tokens into cells 1, 3, 5 and so on."""
    rows = len(tokens)
    vectors = np.random.default_rng(rows).standard_normal((rows, 16)).astype(np.float32)
    return {
        "tokens": np.array(tokens, dtype=np.int64),
        "position_vectors": vectors,
        "own_cells": np.arange(1, 2 * rows, 2)[:, None],
    }


def cells(rows: int = 3) -> FloatArray:
    return np.full((2 * rows, 16), 7, dtype=np.float32)


def test_bound_state_is_updated_in_place(embed: Graph) -> None:
    """Where the indices say, and nowhere else; the result is that of an ordinary run."""
    states, feed = cells(), embed_feed(4, 5, 6)
    (expected,) = embed.run({**feed, "states": states})
    assert (states == 7).all()
    embed.bind().run({"states": states}, feed)
    np.testing.assert_array_equal(states, expected)
    assert (states[::2] == 7).all()
    assert (states[1::2] != 7).any(axis=1).all()


def test_bound_state_is_what_later_runs_read(tiny_bundle: Path) -> None:
    """A block on its own state, run after run: the same bits as when everything is handed over anew."""
    facts = tiny_facts()
    signature = next(s for s in expected_signatures(facts) if s.file == "block_2.onnx")
    graph = Graph(tiny_bundle, signature, CPU_PROVIDER)
    bound, layout = graph.bind(), Layout(facts)
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> FloatArray:
        return generator.standard_normal(shape).astype(np.float32)

    state = {"states": normal(3 * 7, 16), "exit_states": normal(3, 16), "columns": normal(3 * 4 * 5, 4)}
    sources = {"cross_key": normal(3, 2, 8, 4), "cross_value": normal(3, 2, 4, 8), "source_bias": normal(3, 1, 1, 4)}
    copied = {name: array.copy() for name, array in state.items()}
    weight, scores = normal(1, 16), np.zeros(3, dtype=np.float32)
    for position in range(12):
        places = StepPlaces(layout, np.array([position] * 3))
        feed: dict[str, AnyArray] = {
            **sources,
            **places.block_indices(5, np.array([max(0, position - 2), position, position])),
            "stop_weight": weight,
        }
        bound.run(state, feed, {"stop_scores": scores})
        *replaced, expected = graph.run({**copied, **feed})
        np.testing.assert_array_equal(scores, expected)
        copied = dict(zip(copied, replaced, strict=True))
        for name, array in copied.items():
            np.testing.assert_array_equal(state[name], array)


def test_another_state_is_bound_anew(embed: Graph) -> None:
    """As after rows were dropped: other arrays, of another size; those before are left alone."""
    bound = embed.bind()
    first, second = cells(3), cells(2)
    bound.run({"states": first}, embed_feed(4, 5, 6))
    before = first.copy()
    bound.run({"states": second}, embed_feed(8, 9))
    np.testing.assert_array_equal(first, before)
    (expected,) = embed.run({**embed_feed(8, 9), "states": cells(2)})
    np.testing.assert_array_equal(second, expected)
    bound.run({"states": first}, embed_feed(9, 8, 7))
    (expected,) = embed.run({**embed_feed(9, 8, 7), "states": cells(3)})
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, embed.run({**embed_feed(8, 9), "states": cells(2)})[0])


def test_control_a_state_that_is_taken_for_bound_stays_as_it_was(embed: Graph) -> None:
    """What goes wrong where arrays are told apart by less than their identity."""
    bound, first, second = embed.bind(), cells(), cells()
    bound.run({"states": first}, embed_feed(4, 5, 6))
    before = first.copy()
    bound._bound["states"] = second
    bound.run({"states": second}, embed_feed(7, 8, 9))
    assert (second == 7).all()
    assert not np.array_equal(first, before)


def test_an_array_whose_content_changed_is_read_again(embed: Graph) -> None:
    """It is the same object, so it is not bound again, and need not be."""
    bound, states, feed = embed.bind(), cells(), embed_feed(4, 5, 6)
    bound.run({"states": states}, feed)
    feed["tokens"][:] = [7, 8, 9]
    bound.run({"states": states}, feed)
    (expected,) = embed.run({**embed_feed(7, 8, 9), "states": cells()})
    np.testing.assert_array_equal(states, expected)


def test_only_other_arrays_are_bound_again(embed: Graph) -> None:
    calls: list[str] = []

    class Recorded:
        """A binding of onnxruntime that notes what is bound."""

        def __init__(self) -> None:
            self.real = original()

        def bind_cpu_input(self, name: str, array: AnyArray) -> None:
            calls.append(name)
            self.real.bind_cpu_input(name, array)

        def bind_output(self, name: str, *arguments: object) -> None:
            calls.append(name)
            self.real.bind_output(name, *arguments)

    original, run_bound = embed.new_binding, embed.run_bound
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "new_binding", Recorded)
        patch.setattr(embed, "run_bound", lambda binding, feed: run_bound(binding.real, feed))
        bound, states, feed = embed.bind(), cells(), embed_feed(4, 5, 6)
        everything = ["next_states", "states", "tokens", "position_vectors", "own_cells"]
        for expected in (everything, []):
            calls.clear()
            bound.run({"states": states}, feed)
            assert calls == expected
        for _ in range(2):
            calls.clear()
            bound.run({"states": states}, feed | {"tokens": np.array([7, 8, 9])})
            assert calls == ["tokens"]
        bound.run({"states": states}, feed)
        calls.clear()
        bound.run({"states": states.copy()}, feed)
        assert calls == ["next_states", "states"]


def test_arrays_stay_alive_while_they_are_bound(embed: Graph) -> None:
    """Their memory would be given to others, and the graph would write there."""
    bound, states = embed.bind(), cells()
    bound.run({"states": states}, embed_feed(4, 5, 6))
    held = weakref.ref(states)
    del states
    gc.collect()
    assert held() is not None
    bound.run({"states": cells()}, embed_feed(4, 5, 6))
    gc.collect()
    assert held() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.array([4, 5])}, "'tokens': (2,), 'position_vectors': (3, 16), 'own_cells': (3, 1)}"),
        ({"tokens": np.array([[4, 5, 6]])}, "Invalid rank for input: tokens Got: 2 Expected: 1"),
        ({"tokens": np.array([4, 5, 60])}, "indices element out of data bounds, idx=60"),
        ({"tokens": np.array([4, 5, 6], dtype=np.int32)}, "Unexpected input data type"),
        ({"own_cells": np.array([[1], [2], [6]])}, "ScatterND"),
    ],
)
def test_failing_bound_run_names_graph_and_shapes(
    embed: Graph, change: dict[str, AnyArray], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Afterwards the binding can go on."""
    bound, states = embed.bind(), cells()
    with pytest.raises(DeviceError) as error:
        bound.run({"states": states}, {**embed_feed(4, 5, 6), **change})
    assert str(error.value).startswith(
        "embed.onnx failed on CPUExecutionProvider with inputs {'states': (6, 16), 'tokens': ("
    )
    assert message in str(error.value)
    bound.run({"states": states}, embed_feed(4, 5, 6))
    (expected,) = embed.run({**embed_feed(4, 5, 6), "states": cells()})
    np.testing.assert_array_equal(states, expected)


def test_state_of_a_wrong_shape_is_refused(embed: Graph) -> None:
    with pytest.raises(
        DeviceError, match=r"(?s)embed\.onnx failed on .* \{'states': \(6, 15\), .*Got: 15 Expected: 16"
    ):
        embed.bind().run({"states": np.zeros((6, 15), dtype=np.float32)}, embed_feed(4, 5, 6))


# The arena


def test_sessions_ask_for_the_shared_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered once for the process, however many sessions there are."""
    session = onnxruntime.InferenceSession
    asked: list[str] = []
    registered: list[object] = []

    def record(path: str, options: Any, providers: list[str]) -> object:
        asked.append(options.get_session_config_entry("session.use_env_allocators"))
        return session(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    monkeypatch.setattr(onnxruntime, "create_and_register_allocator", lambda *arguments: registered.append(arguments))
    sessions._share_arena.cache_clear()
    write_head(tmp_path)
    for _ in range(3):
        Graph(tmp_path, HEAD, CPU_PROVIDER)
    assert asked == ["1"] * 3
    assert len(registered) == 1


def test_the_arena_may_be_asked_for_twice(tmp_path: Path) -> None:
    """As two threads do that load their first bundles at once, or an application that has one of its own."""
    write_head(tmp_path)
    for _ in range(2):
        sessions._share_arena.cache_clear()
        graph = Graph(tmp_path, HEAD, CPU_PROVIDER)
        assert graph.run({"exit_states": np.ones((3, 16), dtype=np.float32)})[0].shape == (3, 60)


GROWTH = """
import re, sys
from pathlib import Path
import numpy as np
import onnxruntime
from edgeseq_runtime.sessions import CPU_PROVIDER, Graph
from edgeseq_runtime.manifest import TensorSpec
from edgeseq_runtime.signatures import GraphSignature

class Private(onnxruntime.SessionOptions):
    def add_session_config_entry(self, name, value):
        assert name == "session.use_env_allocators"

if sys.argv[2] == "private":
    onnxruntime.SessionOptions = Private
inputs = TensorSpec(name="exit_states", dtype="float32", shape=["rows", 16])
outputs = TensorSpec(name="logits", dtype="float32", shape=["rows", 60])
signature = GraphSignature("head.onnx", "head", None, (inputs,), (outputs,))
graphs = [Graph(Path(sys.argv[1]), signature, CPU_PROVIDER) for _ in range(6)]
x = np.ones((4096, 16), dtype=np.float32)
peaks = []
for graph in graphs:
    graph.run({"exit_states": x})
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
print((peaks[-1] - peaks[0]) // 1024)
"""


def memory_growth(folder: Path, arena: str) -> int:
    """MiB that five more sessions take for a large batch, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(folder), arena], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_sessions_share_the_memory_of_a_large_batch(tmp_path: Path) -> None:
    """Each block's graph needs it, one after another; an arena never shrinks."""
    weights = [helper.make_tensor(name, F, shape, np.ones(shape).ravel().tolist()) for name, shape in WIDE.items()]
    nodes = [
        helper.make_node("MatMul", ["exit_states", "expand"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["positive"]),
        helper.make_node("MatMul", ["positive", "contract"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("exit_states", F, ["rows", 16])]
    outputs = [helper.make_tensor_value_info("logits", F, ["rows", 60])]
    graph = helper.make_graph(nodes, "head", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / HEAD.file)
    one = 4096 * WIDE["expand"][1] * 4 >> 20  # MiB of what lies between the two products
    assert memory_growth(tmp_path, "shared") < 2 * one
    assert memory_growth(tmp_path, "private") >= 5 * one


def test_failing_run_names_graph_and_shapes(tmp_path: Path) -> None:
    graph = Graph(write_head(tmp_path), HEAD, CPU_PROVIDER)
    with pytest.raises(DeviceError, match=r"head\.onnx failed on .* \{'exit_states': \(3, 5\)\}"):
        graph.run({"exit_states": np.ones((3, 5), dtype=np.float32)})
