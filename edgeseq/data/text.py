r"""Parallel text files: plain, .gz or .xz, one sentence a line, strictly UTF-8.

Lines end at "\n" and nowhere else; a "\r" before it is dropped, and so is a byte order mark before the first line.
Other Unicode line separators are text.
"""

from __future__ import annotations

import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

from edgeseq.errors import DataError

_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file for reading bytes, decompressing by its suffix.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        opener = _OPENERS.get(path.suffix)
        return path.open("rb") if opener is None else opener(path, "rb")  # type: ignore[operator]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file, without their ends.

    Raises:
        DataError: the file cannot be read, is no valid archive, or a line is not UTF-8.
    """
    number = 0
    with open_binary(path) as file:
        try:
            for raw in file:
                number += 1
                line = raw.removesuffix(b"\n").removesuffix(b"\r")
                yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not valid UTF-8 at byte {error.start} ({error.reason}); "
                "convert the file, e.g. with iconv, or remove the line"
            ) from error
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path}, after line {number}: {error}; is the archive complete?") from error


def count_lines(path: Path) -> int:
    """Counts lines as `read_lines` yields them.

    Raises:
        DataError: as `read_lines`.
    """
    return sum(1 for _ in read_lines(path))


def read_parallel(src: Path, tgt: Path) -> Iterator[tuple[str, str]]:
    """Yields the pairs of two files that correspond line by line.

    Raises:
        DataError: as `read_lines`; or a file is empty; or the files differ in length.
    """
    source_lines, target_lines = read_lines(src), read_lines(tgt)
    pairs = 0
    for source in source_lines:
        target = next(target_lines, None)
        if target is None:
            _raise_lengths(src, tgt)
        yield source, target
        pairs += 1
    if next(target_lines, None) is not None:
        _raise_lengths(src, tgt)
    if not pairs:
        raise DataError(f"{src} and {tgt} are empty (0 lines); give files with at least one sentence pair")


def _raise_lengths(src: Path, tgt: Path) -> NoReturn:
    source_count, target_count = count_lines(src), count_lines(tgt)
    for path, count in ((src, source_count), (tgt, target_count)):
        if count == 0:
            raise DataError(f"{path} is empty (0 lines), its counterpart has {max(source_count, target_count)} lines")
    raise DataError(
        f"{src} has {source_count} lines, {tgt} has {target_count}: line {min(source_count, target_count) + 1} has no "
        "counterpart; parallel files need the same number of lines"
    )
