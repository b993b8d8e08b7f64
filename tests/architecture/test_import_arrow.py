"""The import arrow: edgeseq_export -> edgeseq -> edgeseq_runtime, never back.

Read from the syntax tree, so that imports inside functions and under TYPE_CHECKING count too.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"edgeseq_runtime": "runtime", "edgeseq": ".", "edgeseq_export": "export"}
MAY_IMPORT = {
    "edgeseq_runtime": {"edgeseq_runtime"},
    "edgeseq": {"edgeseq", "edgeseq_runtime"},
    "edgeseq_export": {"edgeseq_export", "edgeseq", "edgeseq_runtime"},
}
RUNTIME_THIRD_PARTY = {"numpy", "onnxruntime", "pydantic", "sentencepiece"}
ONNXRUNTIME_HOME = PurePosixPath("edgeseq_runtime/sessions.py")
FOLDER_NAMES = {"runtime", "export", "tests", "examples", "benchmarks"}


@dataclass(frozen=True)
class Import:
    """One import: the absolute dotted name, its line, and whether a function has to run first."""

    module: str
    line: int
    in_function: bool

    @property
    def top_level(self) -> str:
        return self.module.partition(".")[0]


def find_imports(source: str, package: str) -> Iterator[Import]:
    """All imports of a file of ``package``: statements and calls with a name written out."""
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(source), False)]
    while pending:
        node, in_function = pending.pop()
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, line, in_function)
        elif isinstance(node, ast.ImportFrom):
            # A relative import cannot leave its own top-level package.
            name = package if node.level else str(node.module)
            yield Import(name, line, in_function)
        elif isinstance(node, ast.Call) and (called := _imported_by_call(node)):
            yield Import(package if called.startswith(".") else called, line, in_function)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending += [(child, inside) for child in ast.iter_child_nodes(node)]


def _imported_by_call(call: ast.Call) -> str | None:
    """The name, or its literal start, in ``import_module("a.b")``, ``__import__(f"a.{b}")``."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    if name not in {"import_module", "__import__"} or not call.args:
        return None
    argument = call.args[0]
    if isinstance(argument, ast.JoinedStr):
        argument = argument.values[0]
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    return None


def find_violations(source: str, path: PurePosixPath) -> list[str]:
    """What a file does against the arrow; ``path`` starts with the import package's name."""
    package = path.parts[0]
    violations = []
    for found in find_imports(source, package):
        problem = _problem(found, package, path)
        if problem:
            violations.append(f"{path}:{found.line} imports {found.module}: {problem}")
    return violations


def _problem(found: Import, package: str, path: PurePosixPath) -> str | None:
    name = found.top_level
    if name in FOLDER_NAMES:
        return f"{name}/ is a folder, not a package"
    if name in FOLDERS:
        return _problem_inside(found, package, path)
    if package == "edgeseq_runtime" and name not in sys.stdlib_module_names:
        return _problem_in_runtime(name, path)
    return None


def _problem_inside(found: Import, package: str, path: PurePosixPath) -> str | None:
    """An import of one of the three packages by one of them."""
    if found.top_level in MAY_IMPORT[package]:
        return None
    if path.parts[:2] == ("edgeseq", "cli") and found.top_level == "edgeseq_export":
        return None if found.in_function else "a command imports edgeseq_export when it runs"
    return f"{package} may import only {', '.join(sorted(MAY_IMPORT[package]))}"


def _problem_in_runtime(name: str, path: PurePosixPath) -> str | None:
    """An import of a third party's module by the runtime."""
    if name not in RUNTIME_THIRD_PARTY:
        return f"the runtime needs only {', '.join(sorted(RUNTIME_THIRD_PARTY))}"
    if name == "onnxruntime" and path != ONNXRUNTIME_HOME:
        return f"onnxruntime is imported in {ONNXRUNTIME_HOME.name} alone"
    return None


@pytest.mark.parametrize("package", FOLDERS)
def test_package_keeps_to_the_arrow(package: str) -> None:
    base = ROOT / FOLDERS[package]
    files = sorted((base / package).rglob("*.py"))
    assert files, f"no Python files under {base / package}"
    violations = [
        violation
        for file in files
        for violation in find_violations(
            file.read_text(encoding="utf-8"), PurePosixPath(file.relative_to(base).as_posix())
        )
    ]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("edgeseq_runtime/engine.py", "import torch", "the runtime needs only"),
        ("edgeseq_runtime/engine.py", "def f():\n    import torch.nn", "the runtime needs only"),
        ("edgeseq_runtime/engine.py", "import click", "the runtime needs only"),
        ("edgeseq_runtime/engine.py", "from edgeseq import config", "may import only"),
        ("edgeseq_runtime/a/b.py", "import edgeseq_export.graphs", "may import only"),
        ("edgeseq_runtime/engine.py", "import onnxruntime as ort", "in sessions.py alone"),
        (
            "edgeseq_runtime/engine.py",
            "if TYPE_CHECKING:\n    from onnxruntime import InferenceSession",
            "in sessions.py alone",
        ),
        ("edgeseq_runtime/engine.py", "import_module('torch')", "the runtime needs only"),
        ("edgeseq_runtime/engine.py", "importlib.import_module(f'edgeseq.{x}')", "may import only"),
        ("edgeseq_runtime/engine.py", "x = lambda: __import__('onnx')", "the runtime needs only"),
        ("edgeseq/training/loop.py", "def f():\n    import edgeseq_export", "may import only"),
        ("edgeseq/cli/export.py", "import edgeseq_export", "when it runs"),
        ("edgeseq/cli/export.py", "class A:\n    import edgeseq_export", "when it runs"),
        ("edgeseq/config.py", "import runtime.edgeseq_runtime", "is a folder"),
        ("edgeseq_export/graphs.py", "from export import graphs", "is a folder"),
        ("edgeseq_export/graphs.py", "import tests", "is a folder"),
    ],
)
def test_control_violation_is_caught(path: str, source: str, message: str) -> None:
    violations = find_violations(source, PurePosixPath(path))
    assert len(violations) == 1
    assert message in violations[0]
    assert violations[0].startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("edgeseq_runtime/sessions.py", "import onnxruntime\nimport numpy\nimport json"),
        ("edgeseq_runtime/engine.py", "from . import errors\nfrom .sessions import open_session"),
        ("edgeseq_runtime/__init__.py", "importlib.import_module(f'{__name__}.{home}')"),
        ("edgeseq/training/loop.py", "import torch\nfrom edgeseq_runtime.errors import InputError"),
        ("edgeseq/cli/export.py", "def f():\n    from edgeseq_export import export_run"),
        ("edgeseq_export/graphs.py", "import onnx, edgeseq.models, edgeseq_runtime"),
    ],
)
def test_control_allowed_import_passes(path: str, source: str) -> None:
    assert find_violations(source, PurePosixPath(path)) == []
