"""The ``edgeseq`` command: knows its commands by name, loads the one that is asked for.

Each command lives in a file of its own, ``edgeseq/cli/NAME.py``, under the name ``command``. The
group's help is made from the table below, so that ``edgeseq --help`` imports click and nothing
else. `main` turns errors that a user can act on into one line on stderr.

Exit codes: 0 done; 1 an error, named on stderr; 2 a mistake in the command line, or a command that
finished but had to repair its input (it says so); 130 interrupted; 141 the reader of stdout left.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from edgeseq import __version__

COMMANDS = {
    "train": "Train a model on parallel text, as a configuration file says.",
    "distill": "Train a model on what a larger one makes of the text.",
    "export": "Turn a trained run into a bundle of ONNX graphs.",
    "translate": "Translate text, one line out per line in.",
    "evaluate": "Measure a bundle's quality, depth and speed on a test set.",
    "calibrate": "Find a bundle's fastest depth policies on this machine.",
    "report": "Show quality, depth and time of a bundle on one page.",
    "bench": "Time a bundle, or a model of any size, on this machine.",
    "inspect": "Show what a bundle holds.",
}
"""Each command with the line that describes it in ``edgeseq --help``."""

_EXTRA_OF_MODULE = {
    "torch": "train",
    "onnx": "train",
    "safetensors": "train",
    "rich": "train",
    "tensorboard": "train",
    "onnxruntime": "cpu",
    "sacrebleu": "eval",
}
"""The extra of this distribution that installs each optional top-level module."""

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_READER_LEFT = 141  # 128 + SIGPIPE, as shells report it


class _LazyGroup(click.Group):
    """A group that imports a command's file when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"edgeseq.cli.{cmd_name}").command
        if not isinstance(command, click.Command):
            message = f"edgeseq.cli.{cmd_name}.command is {type(command).__name__}, not a Command"
            raise TypeError(message)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            result: object = super().invoke(ctx)
            _flush_stdout()
        except BrokenPipeError:
            _discard_stdout()
            ctx.exit(_READER_LEFT)
        return result


@click.command(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="'edgeseq COMMAND --help' describes one command. Exit codes: 0 done; 1 an error, named on stderr; 2 a "
    "mistake in the command line, or input that had to be repaired; 130 interrupted; 141 the reader of stdout left.",
)
@click.version_option(__version__, message="edgeseq %(version)s")
def group() -> None:
    """Train, export and run translation models that stop at the depth each token needs."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: What follows ``edgeseq``; None takes it from ``sys.argv``.

    Raises:
        SystemExit: Always, with one of the codes in the module's description.
    """
    try:
        status = group.main(arguments, prog_name="edgeseq", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as abort:
        # click makes one of both: Ctrl-C, and an end of file that nobody expected.
        if isinstance(abort.__cause__, EOFError):
            raise abort.__cause__ from None
        _fail("interrupted", _INTERRUPTED)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_OF_MODULE:
            raise
        _fail(
            f"this needs the Python package {package}, which is not installed: install edgeseq with its extra "
            f"'{_EXTRA_OF_MODULE[package]}', as by pip install '.[{_EXTRA_OF_MODULE[package]}]' in its checkout"
        )
    except OSError as error:
        _fail(_describe_os_error(error))
    except _known_errors() as error:
        _fail(str(error))
    sys.exit(status if isinstance(status, int) else 0)


def _known_errors() -> tuple[type[Exception], ...]:
    """The roots of our own errors.

    They are looked up, not imported: a module that nothing has loaded cannot have raised.
    """
    roots = (("edgeseq.errors", "EdgeseqError"), ("edgeseq_runtime.errors", "EdgeseqRuntimeError"))
    return tuple(getattr(sys.modules[module], name) for module, name in roots if module in sys.modules)


def _describe_os_error(error: OSError) -> str:
    text = error.strerror or str(error)
    return text if error.filename is None else f"{error.filename}: {text}"


def _flush_stdout() -> None:
    if sys.stdout is not None:  # as where the caller has closed it
        sys.stdout.flush()


def _discard_stdout() -> None:
    """Point stdout nowhere, so that the interpreter's last flush does not complain once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _fail(message: str, code: int = 1) -> NoReturn:
    click.echo(f"edgeseq: error: {message}", err=True)
    try:
        _flush_stdout()
    except OSError:
        _discard_stdout()
    sys.exit(code)
