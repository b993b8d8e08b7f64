"""onnxruntime sessions: the only module that imports onnxruntime.

Chooses the execution provider, never silently another than the one asked for, and compares each
graph's real inputs and outputs with what the engine will feed it.
"""

import threading
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from edgeseq_runtime.arrays import AnyArray, FloatArray
from edgeseq_runtime.errors import EXPORT_AGAIN, BundleError, DeviceError, InputError
from edgeseq_runtime.file_identities import FileIdentities, identify_files
from edgeseq_runtime.manifest import GraphRole, TensorSpec
from edgeseq_runtime.signatures import GraphInterface, GraphSignature

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

Device = Literal["auto", "cpu", "cuda"]

BoundMemory = Any
"""An OrtValue: onnxruntime has no type hints."""

_ORT_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int8": "tensor(int8)", "bool": "tensor(bool)"}
_ERRORS_ONLY = 3


def select_provider(device: str) -> str:
    """Choose the execution provider for a device.

    Args:
        device: ``cpu``, ``cuda``, or ``auto``: CUDA where this onnxruntime has it, else the CPU.

    Raises:
        DeviceError: onnxruntime is not installed, or CUDA is asked for and cannot be had.
        InputError: ``device`` is something else.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}, expected 'auto', 'cpu' or 'cuda'")
    available = _import_onnxruntime().get_available_providers()
    if device == "cpu" or (device == "auto" and CUDA_PROVIDER not in available):
        return CPU_PROVIDER
    if device == "cuda" and _both_wheels_installed():
        raise DeviceError(
            "device 'cuda' is asked for, but onnxruntime and onnxruntime-gpu are both installed "
            "and overwrite each other: uninstall both, then install edgeseq[cuda]"
        )
    if CUDA_PROVIDER not in available:
        raise DeviceError(
            f"device 'cuda' is asked for, but this onnxruntime offers {', '.join(available)}: "
            "uninstall onnxruntime and install edgeseq[cuda], or ask for device 'cpu'"
        )
    return CUDA_PROVIDER


def onnxruntime_version() -> str:
    """Version of the installed onnxruntime.

    Raises:
        DeviceError: onnxruntime is not installed.
    """
    return str(_import_onnxruntime().__version__)


class Graphs:
    """The graphs of a bundle, each made ready when it is first wanted. May be used by several threads at once.

    Sentences decoded alone and in batches need different ones, and most programs do only one of the two.

    Attributes:
        provider: The execution provider they run on.
    """

    def __init__(
        self, folder: Path, signatures: Iterable[GraphSignature], provider: str, files: FileIdentities
    ) -> None:
        """Make nothing ready yet.

        Args:
            folder: The bundle.
            signatures: Of all its graphs.
            provider: An execution provider of :func:`select_provider`.
            files: What its files were when they were checked.
        """
        self.provider = provider
        # Graphs are read later too: then the program may work elsewhere, and a link may lead to another bundle.
        self._folder = folder.resolve()
        self._signatures = {(signature.role, signature.block): signature for signature in signatures}
        self._ready: dict[tuple[GraphRole, int | None], Graph] = {}
        self._making = threading.Lock()
        self._files = files

    def __contains__(self, key: tuple[GraphRole, int | None]) -> bool:
        """Whether there is a graph of this role and block."""
        return key in self._signatures

    def __getitem__(self, key: tuple[GraphRole, int | None]) -> "Graph":
        """Give the graph of a role and block.

        Raises:
            BundleError: onnxruntime refuses the file, it is not the graph expected, or the bundle is no longer the
                one that was opened.
            DeviceError: The provider could not be started.
        """
        found = self._ready.get(key)
        if found is None:
            with self._making:
                found = self._ready.get(key)  # another thread may have been here
                if found is None:
                    self._check_unchanged()
                    signature = self._signatures[key]
                    found = self._ready[key] = Graph(self._folder / signature.file, signature, self.provider)
        return found

    def _check_unchanged(self) -> None:
        """Refuse to go on with graphs of another export in the same place."""
        if identify_files(self._folder) != self._files:
            raise BundleError(f"{self._folder} has changed since it was opened: open it again")


class Graph:
    """One graph, ready to run. May be run by several threads at once.

    Attributes:
        provider: The execution provider it runs on.
    """

    def __init__(self, model: Path | bytes, interface: GraphInterface, provider: str) -> None:
        """Create the session and compare its inputs and outputs with ``interface``.

        Args:
            model: Its file, or what such a file holds.
            interface: What the graph is expected to take and give.
            provider: An execution provider of :func:`select_provider`.

        Raises:
            BundleError: onnxruntime refuses it, or it is not the graph expected.
            DeviceError: The provider could not be started.
        """
        self._file = interface.file
        self.provider = provider
        self._outputs = [tensor.name for tensor in interface.outputs]
        self._session = _create_session(model, interface.file, provider)
        if provider not in self._session.get_providers():
            raise DeviceError(
                f"{provider} could not be started, and falling back to another device is not done "
                "silently: check the driver and the CUDA libraries, or ask for device 'cpu'"
            )
        _check_tensors(self._file, "inputs", self._session.get_inputs(), interface.inputs)
        _check_tensors(self._file, "outputs", self._session.get_outputs(), interface.outputs)

    def run(self, feed: Mapping[str, AnyArray]) -> list[FloatArray]:
        """Run the graph.

        Args:
            feed: An array per input.

        Returns:
            The outputs in order.

        Raises:
            DeviceError: onnxruntime fails, for want of memory most likely.
        """
        try:
            outputs: list[FloatArray] = self._session.run(self._outputs, feed)
        except Exception as error:  # onnxruntime's exceptions have no common root but Exception
            raise self._failure(feed, error) from error
        return outputs

    def bind(self) -> "BoundGraph":
        """Prepare to run the graph many times on the same large arrays."""
        return BoundGraph(self)

    def run_bound(self, binding: Any, feed: Mapping[str, AnyArray]) -> None:
        """Run the graph on what is bound; ``feed`` is named in the message if that fails."""
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions have no common root but Exception
            raise self._failure(feed, error) from error

    def new_binding(self) -> Any:
        """An empty binding of onnxruntime."""
        return self._session.io_binding()

    def _failure(self, feed: Mapping[str, AnyArray], error: Exception) -> DeviceError:
        shapes = {name: array.shape for name, array in feed.items()}
        return DeviceError(f"{self._file} failed on {self.provider} with inputs {shapes}: {error}")


class BoundGraph:
    """A graph with inputs that stay bound from run to run, and state that it updates in place.

    Belongs to one decode: not to be shared by threads.
    """

    def __init__(self, graph: Graph) -> None:
        """Bind nothing yet."""
        self._graph = graph
        self._binding = graph.new_binding()
        self._bound: dict[str, AnyArray] = {}
        self._outputs: dict[str, AnyArray | BoundMemory] = {}
        # Elsewhere binding an input copies it to the device, so what is bound grows stale.
        self._stays_bound = graph.provider == CPU_PROVIDER

    def run(
        self,
        state: Mapping[str, AnyArray],
        feed: Mapping[str, AnyArray],
        outputs: Mapping[str, AnyArray | BoundMemory] | None = None,
    ) -> None:
        """Run the graph once. On the CPU, arrays that are the same objects as last time stay bound.

        Args:
            state: Contiguous arrays that are input ``X`` and output ``next_X`` at once: the graph
                reads and replaces parts of them. The graph must not read ``X`` after it has made
                ``next_X``, which holds where all such reads are needed to make it.
            feed: The other inputs, contiguous.
            outputs: Contiguous arrays for the other outputs, of the right shapes, or what :class:`OutputMemory` gives.

        Raises:
            DeviceError: onnxruntime fails, for want of memory most likely.
        """
        bound = self._bound
        if not self._stays_bound:
            bound.clear()
        for name, array in state.items():
            if bound.get(name) is not array:
                self._bind_output(f"next_{name}", array)
        for name, target in (outputs or {}).items():
            if self._outputs.get(name) is not target:
                if isinstance(target, np.ndarray):
                    self._bind_output(name, target)
                else:
                    self._binding.bind_ortvalue_output(name, target)
                self._outputs[name] = target
        for name, given in (*state.items(), *feed.items()):
            if bound.get(name) is not given:
                self._binding.bind_cpu_input(name, given)
                bound[name] = given  # keeps its memory, too
        self._graph.run_bound(self._binding, bound)

    def run_again(self) -> None:
        """Run the graph on what is bound. On the CPU only, where that is the arrays themselves.

        Raises:
            DeviceError: onnxruntime fails, for want of memory most likely.
        """
        self._graph.run_bound(self._binding, self._bound)

    def _bind_output(self, name: str, array: AnyArray) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


class OutputMemory:
    """Memory for an output of a number a row, where a graph is given now more rows and now fewer.

    Attributes:
        array: (R,), float32. A graph of n rows fills the first n.
    """

    def __init__(self, rows: int) -> None:
        """Make room for ``rows`` numbers."""
        self.array: FloatArray = np.empty(rows, dtype=np.float32)
        self._bindable: dict[int, BoundMemory] = {}

    def first(self, rows: int) -> BoundMemory:
        """The first ``rows`` numbers, to be bound: each length is made ready once, which takes longer than binding."""
        found = self._bindable.get(rows)
        if found is None:
            make = _import_onnxruntime().OrtValue.ortvalue_from_numpy
            found = self._bindable[rows] = make(self.array[:rows])
        return found


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime  # noqa: PLC0415  (0.3 s and 40 MB: only when a session is wanted)
    except ImportError as error:
        raise DeviceError(
            f"onnxruntime cannot be imported ({error}): install edgeseq[cpu], or edgeseq[cuda] for an NVIDIA GPU"
        ) from error
    module: ModuleType = onnxruntime
    return module


def _both_wheels_installed() -> bool:
    found = 0
    for wheel in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.distribution(wheel)
        except metadata.PackageNotFoundError:
            continue
        found += 1
    return found > 1


@cache
def _share_arena() -> None:
    """Register one arena of the process for all sessions that ask for it."""
    onnxruntime = _import_onnxruntime()
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    as_requested = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(memory, as_requested)


# onnxruntime's objects are Any from here on.
def _create_session(model: Path | bytes, file: str, provider: str) -> Any:
    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    # Each session would have threads of its own, and they wait by spinning: two on two cores are 8 times as
    # slow as one. Processor cores are for sentences; see ``translator_pool``.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # A session's own arena never shrinks, and N blocks would hold the largest batch N times. With no
    # arena at all, large arrays come as fresh pages at every call, which costs a tenth of the time.
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False
    if provider == CUDA_PROVIDER:
        onnxruntime.preload_dlls()
    try:
        # Its own fallback prints to stdout, and goes on with the CPU when a call fails: not silently, here.
        given = model if isinstance(model, bytes) else str(model)
        return onnxruntime.InferenceSession(given, options, providers=[provider], enable_fallback=False)
    except Exception as error:  # onnxruntime's exceptions have no common root but Exception
        path = file if isinstance(model, bytes) else model
        if provider == CUDA_PROVIDER:
            raise DeviceError(
                f"{path} cannot be loaded for {provider}: {error}: check the driver and the CUDA libraries, or ask for "
                "device 'cpu'"
            ) from error
        raise BundleError(
            f"{path} cannot be loaded by onnxruntime {onnxruntime.__version__}: install a newer one, or "
            f"{EXPORT_AGAIN}. {error}"
        ) from error


def _check_tensors(
    file: str,
    what: str,
    found: list[Any],
    expected: tuple[TensorSpec, ...],
) -> None:
    """Compare names, types and sizes; axes whose size varies may have any name in the graph."""
    problems = [
        f"{tensor.name} {tensor.type}{tensor.shape}"
        for tensor, spec in zip(found, expected, strict=False)
        if tensor.name != spec.name
        or tensor.type != _ORT_TYPES[spec.dtype]
        or not _shapes_agree(tensor.shape, spec.shape)
    ]
    if len(found) != len(expected) or problems:
        all_found = ", ".join(f"{tensor.name} {tensor.type}{tensor.shape}" for tensor in found)
        all_expected = ", ".join(f"{spec.name} {spec.dtype}{spec.shape}" for spec in expected)
        raise BundleError(
            f"{file} is not the graph the manifest declares: its {what} are {all_found}; expected {all_expected}; "
            f"{EXPORT_AGAIN}"
        )


def _shapes_agree(found: list[int | str | None], expected: list[int | str]) -> bool:
    return len(found) == len(expected) and all(
        (size == wanted) if isinstance(wanted, int) else not isinstance(size, int)
        for size, wanted in zip(found, expected, strict=True)
    )
