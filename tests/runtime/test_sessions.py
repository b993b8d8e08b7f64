"""Sessions: the right provider or an error, and only graphs that are what they claim."""

import builtins
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeseq_runtime import sessions
from edgeseq_runtime.errors import BundleError, DeviceError, InputError
from edgeseq_runtime.sessions import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    Graph,
    onnxruntime_version,
    select_provider,
)
from edgeseq_runtime.signatures import GraphInterface, expected_signatures
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
    graph = Graph(write_head(tmp_path) / HEAD.file, HEAD, CPU_PROVIDER)
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
        Graph(write_head(tmp_path, **changes) / HEAD.file, HEAD, CPU_PROVIDER)
    assert str(error.value).startswith("head.onnx is not the graph the manifest declares: ")
    assert message in str(error.value)


def test_wrong_type_is_refused(tiny_bundle: Path) -> None:
    block = next(s for s in expected_signatures(tiny_facts()) if s.block == 1 and s.role == "block")
    floats = tuple(spec.model_copy(update={"dtype": "float32"}) for spec in block.inputs)
    wrong = GraphInterface(block.file, floats, block.outputs)
    with pytest.raises(BundleError, match=r"its inputs are tokens tensor\(int64\)"):
        Graph(tiny_bundle / wrong.file, wrong, CPU_PROVIDER)


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / HEAD.file).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"head\.onnx cannot be loaded by onnxruntime \d"):
        Graph(tmp_path / HEAD.file, HEAD, CPU_PROVIDER)


def test_provider_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself would go on with the CPU."""
    session = onnxruntime.InferenceSession

    def fall_back(path: str, options: object, providers: list[str], **_: object) -> object:
        assert providers == [CUDA_PROVIDER]
        return session(path, options, providers=[CPU_PROVIDER])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.raises(DeviceError, match="CUDAExecutionProvider could not be started, and falling"):
        Graph(write_head(tmp_path) / HEAD.file, HEAD, CUDA_PROVIDER)


def test_auto_goes_on_with_the_cpu_where_cuda_does_not_start(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU wheel on a machine without a GPU: `auto` may choose, `cuda` may not."""
    session = onnxruntime.InferenceSession

    def fall_back(path: str, options: object, providers: list[str], **_: object) -> object:
        return session(path, options, providers=[CPU_PROVIDER])

    pretend_providers(monkeypatch, CUDA_PROVIDER, CPU_PROVIDER)
    pretend_wheels(monkeypatch, "onnxruntime-gpu")
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    assert Translator(tiny_bundle, device="auto").signature().split("|")[1] == f"provider:{CPU_PROVIDER}"
    with pytest.raises(DeviceError, match="CUDAExecutionProvider could not be started"):
        Translator(tiny_bundle, device="cuda")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_provider_that_fails_is_no_broken_bundle(
    tiny_bundle: Path, device: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Onnxruntime's own fallback would print to stdout, among translations."""
    start = onnxruntime.InferenceSession._create_inference_session

    def fail(self: object, providers: list[str], *arguments: object) -> None:
        if CUDA_PROVIDER in providers:
            raise RuntimeError("CUDA failure 35")
        start(self, providers, *arguments)

    pretend_providers(monkeypatch, CUDA_PROVIDER, CPU_PROVIDER)
    pretend_wheels(monkeypatch, "onnxruntime-gpu")
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    if device == "auto":
        assert CPU_PROVIDER in Translator(tiny_bundle, device="auto").signature()
    else:
        with pytest.raises(DeviceError, match=r"cannot be loaded for CUDAExecutionProvider: CUDA failure 35: check"):
            Translator(tiny_bundle, device="cuda")
    assert capfd.readouterr().out == ""


def test_sessions_ask_for_the_shared_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered once for the process, however many sessions there are."""
    session = onnxruntime.InferenceSession
    asked: list[str] = []
    registered: list[object] = []

    def record(path: str, options: Any, providers: list[str], **settings: Any) -> object:
        asked.append(options.get_session_config_entry("session.use_env_allocators"))
        return session(path, options, providers=providers, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    monkeypatch.setattr(onnxruntime, "create_and_register_allocator", lambda *arguments: registered.append(arguments))
    sessions._share_arena.cache_clear()
    write_head(tmp_path)
    for _ in range(3):
        Graph(tmp_path / HEAD.file, HEAD, CPU_PROVIDER)
    assert asked == ["1"] * 3
    assert len(registered) == 1


def test_the_arena_may_be_asked_for_twice(tmp_path: Path) -> None:
    """As two threads do that load their first bundles at once, or an application that has one of its own."""
    write_head(tmp_path)
    for _ in range(2):
        sessions._share_arena.cache_clear()
        graph = Graph(tmp_path / HEAD.file, HEAD, CPU_PROVIDER)
        assert graph.run({"exit_states": np.ones((3, 16), dtype=np.float32)})[0].shape == (3, 60)


GROWTH = """
import re, sys
from pathlib import Path
import numpy as np
import onnxruntime
from edgeseq_runtime.sessions import CPU_PROVIDER, Graph
from edgeseq_runtime.manifest import TensorSpec
from edgeseq_runtime.signatures import GraphInterface

class Private(onnxruntime.SessionOptions):
    def add_session_config_entry(self, name, value):
        assert name == "session.use_env_allocators"

if sys.argv[2] == "private":
    onnxruntime.SessionOptions = Private
inputs = TensorSpec(name="exit_states", dtype="float32", shape=["rows", 16])
outputs = TensorSpec(name="logits", dtype="float32", shape=["rows", 60])
signature = GraphInterface("head.onnx", (inputs,), (outputs,))
graphs = [Graph(Path(sys.argv[1]) / signature.file, signature, CPU_PROVIDER) for _ in range(6)]
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
    graph = Graph(write_head(tmp_path) / HEAD.file, HEAD, CPU_PROVIDER)
    with pytest.raises(DeviceError, match=r"head\.onnx failed on .* \{'exit_states': \(3, 5\)\}"):
        graph.run({"exit_states": np.ones((3, 5), dtype=np.float32)})
