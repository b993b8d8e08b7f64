"""The ``edgeseq`` command as a whole: help, unknown commands, errors as one line."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import edgeseq.cli
from command_line import Outcome, run_edgeseq
from edgeseq.errors import CheckpointError, ConfigError, DataError
from edgeseq_runtime.errors import BundleError, PolicyError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BaseException], Outcome]]:
    """Runs a command that raises what it is given."""

    def run(error: BaseException) -> Outcome:
        @click.command
        def command() -> None:
            raise error

        monkeypatch.setattr(edgeseq.cli.group, "get_command", lambda ctx, name: command)
        return run_edgeseq("any")

    yield run
    monkeypatch.undo()


def test_help_lists_every_command_with_its_line() -> None:
    outcome = run_edgeseq("--help")
    assert outcome.code == 0
    for name, line in edgeseq.cli.COMMANDS.items():
        assert f"  {name}" in outcome.stdout.decode()
        assert line in outcome.stdout.decode()


@pytest.mark.parametrize("name", edgeseq.cli.COMMANDS)
def test_every_command_has_a_file_of_its_own(name: str) -> None:
    command = importlib.import_module(f"edgeseq.cli.{name}").command
    assert isinstance(command, click.Command)
    assert command.help
    assert (command.epilog or "").startswith(f"Example: edgeseq {name} ")
    undescribed = [
        parameter.name for parameter in command.params if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert undescribed == []


def test_version_is_printed() -> None:
    assert run_edgeseq("--version").stdout.decode() == f"edgeseq {edgeseq.__version__}\n"


def test_unknown_command_is_named() -> None:
    outcome = run_edgeseq("transmogrify")
    assert outcome.code == 2
    assert "No such command 'transmogrify'" in outcome.stderr


def test_no_command_shows_the_help() -> None:
    outcome = run_edgeseq()
    assert outcome.code == 2
    assert "Usage: edgeseq" in outcome.stderr


@pytest.mark.parametrize("error_class", [BundleError, PolicyError, ConfigError, DataError, CheckpointError])
def test_known_errors_become_one_line(
    failing: Callable[[BaseException], Outcome], error_class: type[Exception]
) -> None:
    outcome = failing(error_class("the reason"))
    assert outcome == Outcome(1, b"", "edgeseq: error: the reason\n")


def test_system_errors_name_the_file(failing: Callable[[BaseException], Outcome]) -> None:
    outcome = failing(PermissionError(13, "Permission denied", "secret.txt"))
    assert outcome == Outcome(1, b"", "edgeseq: error: secret.txt: Permission denied\n")


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torch", "train"),
        ("torch.nn", "train"),
        ("onnx", "train"),
        ("onnxruntime", "cpu"),
        ("sacrebleu", "eval"),
    ],
)
def test_missing_package_names_the_extra(failing: Callable[[BaseException], Outcome], module: str, extra: str) -> None:
    outcome = failing(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert outcome.code == 1
    assert outcome.stderr == (
        f"edgeseq: error: this needs the Python package {module.partition('.')[0]}, which is not installed: "
        f"install edgeseq with its extra '{extra}', as by pip install '.[{extra}]' in its checkout\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        EOFError("a bug"),
        ModuleNotFoundError("No module named 'edgeseq.typo'", name="edgeseq.typo"),
    ],
)
def test_unexpected_errors_keep_their_traceback(failing: Callable[[BaseException], Outcome], error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        failing(error)


def test_interrupt_has_the_exit_code_of_a_signal(
    failing: Callable[[BaseException], Outcome],
) -> None:
    outcome = failing(KeyboardInterrupt())
    assert outcome.code == 130
    assert outcome.stderr.strip() == "edgeseq: error: interrupted"


def test_package_that_is_really_absent_is_named() -> None:
    """The error that Python raises, not one made up by a test."""
    code = (
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "import click\n"
        "from edgeseq.cli import group, main\n"
        "group.get_command = lambda *_: click.command(lambda: __import__('onnxruntime'))\n"
        "main(['any'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("as by pip install '.[cpu]' in its checkout\n")


def test_full_disk_on_stdout_is_an_error() -> None:
    code = (
        "import click\n"
        "from edgeseq.cli import group, main\n"
        "group.get_command = lambda *_: click.command(lambda: print('text'))\n"
        "main(['any'])"
    )
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "edgeseq: error: No space left on device\n")
