"""Sessions: the right provider or an error, and only graphs that are what they claim."""

import builtins
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeseq_runtime.errors import BundleError, DeviceError, InputError
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
    inputs: Sequence[tuple[str, int, list[int | str | None]]] = (("exit_state", TensorProto.FLOAT, ["any", 16]),),
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
    graph = Graph(write_head(tmp_path), HEAD, CPU_PROVIDER, 1)
    (logits,) = graph.run({"exit_state": np.ones((3, 16), dtype=np.float32)})
    np.testing.assert_array_equal(logits, np.full((3, 60), 16, dtype=np.float32))


F = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [("x", F, ["r", 16])]}, "its inputs are x tensor(float)['r', 16]; expected exit_"),
        ({"inputs": [("exit_state", F, [1, 16])]}, "its inputs are exit_state tensor(float)[1, 16]"),
        ({"inputs": [("exit_state", F, ["r", "d"])]}, "its inputs are exit_state"),
        ({"inputs": [("exit_state", F, ["r", "p", 16])]}, "its inputs are exit_state"),
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
        Graph(write_head(tmp_path, **changes), HEAD, CPU_PROVIDER, 1)
    assert str(error.value).startswith("head.onnx is not the graph the manifest declares: ")
    assert message in str(error.value)


def test_wrong_type_is_refused(tiny_bundle: Path) -> None:
    embed = next(s for s in expected_signatures(tiny_facts()) if s.role == "embed")
    floats = tuple(spec.model_copy(update={"dtype": "float32"}) for spec in embed.inputs)
    wrong = GraphSignature(embed.file, embed.role, None, floats, embed.outputs)
    with pytest.raises(BundleError, match=r"its inputs are tokens tensor\(int64\)"):
        Graph(tiny_bundle, wrong, CPU_PROVIDER, 1)


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / HEAD.file).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"head\.onnx cannot be loaded by onnxruntime \d"):
        Graph(tmp_path, HEAD, CPU_PROVIDER, 1)


def test_provider_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself would go on with the CPU."""
    session = onnxruntime.InferenceSession

    def fall_back(path: str, options: object, providers: list[str]) -> object:
        assert providers == [CUDA_PROVIDER]
        return session(path, options, providers=[CPU_PROVIDER])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.raises(DeviceError, match="CUDAExecutionProvider could not be started, and falling"):
        Graph(write_head(tmp_path), HEAD, CUDA_PROVIDER, 1)


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


def test_failing_run_names_graph_and_shapes(tmp_path: Path) -> None:
    graph = Graph(write_head(tmp_path), HEAD, CPU_PROVIDER, 1)
    with pytest.raises(DeviceError, match=r"head\.onnx failed on .* \{'exit_state': \(3, 5\)\}"):
        graph.run({"exit_state": np.ones((3, 5), dtype=np.float32)})
