"""Run the ``edgeseq`` command inside the test's process, as a shell would see it."""

import contextlib
import io
import logging
import sys
from collections.abc import Generator
from dataclasses import dataclass

from edgeseq.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, the bytes on stdout, the text on stderr."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def lines(self) -> list[str]:
        r"""Lines on stdout; each must end in ``\n``."""
        text = self.stdout.decode()
        assert not text or text.endswith("\n"), f"no line end after {text[-40:]!r}"
        return text.split("\n")[:-1]


def run_edgeseq(*arguments: object, stdin: bytes = b"") -> Outcome:
    """Run ``edgeseq ARGUMENTS``; errors that `main` does not handle are raised."""
    code: object = None
    with _standard_streams(stdin) as (stdout, stderr):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as status:
            code = status.code
    assert isinstance(code, int)
    return Outcome(code, stdout.getvalue(), stderr.getvalue().decode())


@contextlib.contextmanager
def _standard_streams(stdin: bytes) -> Generator[tuple[io.BytesIO, io.BytesIO]]:
    stdout, stderr = io.BytesIO(), io.BytesIO()
    saved = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(stdout, encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(stderr, encoding="utf-8", write_through=True)
    try:
        yield stdout, stderr
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # A wrapper closes its buffer when it is collected; the caller still reads these.
        sys.stdout.detach()
        sys.stderr.detach()
        sys.stdin, sys.stdout, sys.stderr = saved
        for name in ("edgeseq", "edgeseq_export"):  # what a command logs to its stderr ends with its process
            logging.getLogger(name).handlers.clear()
