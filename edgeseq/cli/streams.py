r"""Text in and out of commands: files, compressed files, and ``-`` for stdin and stdout.

A line ends at ``\n`` and nowhere else: U+2028, ``\x0b`` or ``\x85`` are text, as they are to
``wc -l`` and to whoever pairs the output with the input line by line. One ``\r`` before the
``\n`` is dropped, and so is a byte order mark before the first line.
"""

import codecs
import contextlib
import errno
import logging
import lzma
import os
import secrets
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Literal, Self, TextIO

import click

from edgeseq.errors import DataError

STANDARD = "-"
"""The file name that means stdin or stdout."""


class LenientLines:
    """The lines of a text file or of stdin, read as they are asked for.

    A line that is not valid UTF-8 is replaced by its best decoding (U+FFFD for what cannot be
    read), and named in a warning on stderr.

    Attributes:
        name: What messages call the input.
        invalid: Number of lines so far that were not valid UTF-8.
    """

    def __init__(self, path: str) -> None:
        """Open the input.

        Args:
            path: A file, read through gzip or xz when it ends in ``.gz`` or ``.xz``; or ``-``.

        Raises:
            DataError: The file cannot be opened, or stdin is closed.
        """
        # Here and not above: what reads compressed text belongs to training, but is light.
        from edgeseq.data.text import open_binary

        self.name = "stdin" if path == STANDARD else path
        self.invalid = 0
        self._file = _standard(sys.stdin, "stdin", "--input FILE") if path == STANDARD else open_binary(Path(path))
        self._owned = path != STANDARD

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned:
            self._file.close()

    def __iter__(self) -> Iterator[str]:
        """Yield the lines without their ends, once.

        Raises:
            DataError: The input cannot be read to its end.
        """
        number = 0
        try:
            for raw in self._file:
                number += 1
                yield self._decode(raw, number)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            message = f"cannot read {self.name} after line {number}: {error}; is the file complete?"
            raise DataError(message) from error

    def _decode(self, raw: bytes, number: int) -> str:
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.invalid += 1
            warn(
                f"{self.name}, line {number}: not valid UTF-8 (byte 0x{raw[error.start]:02x} at "
                f"offset {error.start}); its best decoding is used"
            )
            return raw.decode("utf-8", errors="replace")


class LineWriter:
    """Writes text in UTF-8, one line at a time."""

    def __init__(self, file: IO[bytes], name: str, *, flush: bool) -> None:
        """Write to an open file.

        Args:
            file: Where the bytes go.
            name: What messages call it.
            flush: Pass each line on at once, for a reader who waits for it.
        """
        self._file = file
        self._name = name
        self._flush = flush

    def write(self, text: str) -> None:
        r"""Write ``text`` and a line end.

        Args:
            text: One line. A ``\n`` or ``\r`` in it becomes a space: there is one line out for
                each line in, whatever a model produces.

        Raises:
            OSError: The file cannot be written; names it.
        """
        line = text.replace("\n", " ").replace("\r", " ").encode() + b"\n"
        with _explain(self._name):
            self._file.write(line)
            if self._flush:
                self._file.flush()


@contextlib.contextmanager
def open_output(path: str) -> Generator[LineWriter]:
    """Open a file or stdout for writing lines.

    A file appears under its name when the ``with`` block ends well; when the block raises,
    nothing is left behind and a file that was there before is as it was. A pipe or device cannot
    be replaced and is written directly, as stdout is.

    Args:
        path: The file, or ``-``.

    Raises:
        OSError: The file cannot be written; names it.
        DataError: stdout is closed.
    """
    if path == STANDARD:
        yield LineWriter(_standard(sys.stdout, "stdout", "--output FILE"), "stdout", flush=True)
    elif Path(path).exists() and not Path(path).is_file():
        with _opened(Path(path), "wb", path) as file:
            yield LineWriter(file, path, flush=True)
    else:
        with _replacement(path) as file:
            yield LineWriter(file, path, flush=False)


def _standard(stream: TextIO | None, name: str, instead: str) -> IO[bytes]:
    """The bytes of a standard stream, which Python leaves out where the caller has closed it."""
    if stream is None:
        raise DataError(f"{name} is closed; open it, or give {instead}")
    return stream.buffer


@contextlib.contextmanager
def _replacement(path: str) -> Generator[IO[bytes]]:
    """Open a hidden sibling that takes the file's place at the end; links are followed."""
    target = Path(path).resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with _opened(temporary, "xb", path) as file:
            yield file
            with _explain(path):
                file.flush()
                os.fsync(file.fileno())
        with _explain(path):
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _opened(path: Path, mode: Literal["wb", "xb"], name: str) -> Generator[IO[bytes]]:
    with _explain(name):
        file = path.open(mode)
    try:
        yield file
    except BaseException:
        # Closing writes what is still buffered: if that fails too, the first failure counts.
        with contextlib.suppress(OSError):
            file.close()
        raise
    with _explain(name):
        file.close()


@contextlib.contextmanager
def _explain(name: str) -> Generator[None]:
    """Name the file that the user named, not its temporary sibling."""
    try:
        yield
    except OSError as error:
        reason = "its folder does not exist" if error.errno == errno.ENOENT else error.strerror
        # The constructor picks the subclass by the number, so a broken pipe stays one.
        raise OSError(error.errno, f"cannot write {name}: {reason}") from error


def warn(message: str) -> None:
    """Put one line on stderr."""
    click.echo(f"edgeseq: warning: {message}", err=True)


def log_to_stderr() -> None:
    """Show what our own packages log, and nothing that libraries do."""
    handler = logging.StreamHandler()
    for name in ("edgeseq", "edgeseq_export"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]  # not one more for each command of a process
        logger.setLevel(logging.INFO)
