"""Write files and folders so that a reader never meets half of one.

Content goes to a temporary sibling, is flushed to the disk, and takes its final name by a rename.
Symbolic links are followed: what they point to is replaced, the link stays. After a crash (not an
exception: those clean up) a hidden sibling can remain, ``.NAME.`` and twelve hexadecimal digits, then
``.tmp`` or ``.old``; see :func:`recover`.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

_DIGITS: Final = 12
_SIBLING: Final = re.compile(rf"\.(?P<name>.+)\.[0-9a-f]{{{_DIGITS}}}\.(?P<suffix>tmp|old)", re.DOTALL)


def write_file(path: str | Path, data: bytes) -> None:
    """Make ``path`` hold exactly ``data``, or leave it as it was.

    Args:
        path: The file. Its folder must exist; an existing file is replaced.
        data: The whole content.

    Raises:
        OSError: The file cannot be written; a full disk says so. Nothing is left behind. Or ``path`` is
            a device, a pipe or a folder, whose place a file must not take.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, f"{target} is a folder, device or pipe, expected a file: choose another name")
    temporary = _sibling(target, "tmp")
    try:
        with _explain_full_disk(target, f"{len(data)} bytes", temporary), temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


@contextlib.contextmanager
def publish_directory(path: str | Path, *, is_ours: Callable[[Path], bool] | None = None) -> Generator[Path]:
    """Build a folder under a temporary name; it becomes ``path`` when the ``with`` block ends well.

    When the block raises, the temporary folder is removed and ``path`` is as before. A folder that
    exists already is replaced by two renames, old one away and new one in (no portable call
    exchanges two folders): a reader in the instant between them finds no folder, never half a
    folder. When the second rename fails, the old folder is put back.

    Args:
        path: The final folder. Its parent must exist.
        is_ours: Tells folders that may be replaced from others. When given, an existing folder of
            which it says no is not replaced, unless that is empty.

    Yields:
        The temporary folder, next to ``path``.

    Raises:
        FileExistsError: ``path`` is a file, or a folder of others.
        OSError: The folder cannot be written; a full disk says so.
    """
    target = Path(path).resolve()
    _check_replaceable(target, is_ours)
    temporary = _sibling(target, "tmp")
    temporary.mkdir()
    try:
        with _explain_full_disk(target, "more space", temporary):
            yield temporary
            _sync_tree(temporary)
        _check_replaceable(target, is_ours)
        _move_into_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(target.parent)


def recover(folder: Path) -> None:
    """Undo what killed processes had begun to write in a folder, where no other process is writing.

    What had been moved away and was not replaced yet comes back; everything else of theirs is removed.
    Hidden files of other names are somebody else's, and stay. A folder that is not there has none.
    """
    found = [(path, match) for path in folder.glob(".*") if (match := _SIBLING.fullmatch(path.name))]
    for path, match in found:
        target = path.with_name(match["name"])
        if match["suffix"] == "old" and not target.exists():
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sibling(target: Path, suffix: str) -> Path:
    """Return a fresh hidden name in the same folder, hence on the same file system."""
    return target.with_name(f".{target.name}.{secrets.token_hex(_DIGITS // 2)}.{suffix}")


def _check_replaceable(target: Path, is_ours: Callable[[Path], bool] | None) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(errno.EEXIST, f"{target} is a file, expected a folder or nothing: choose another name")
    if is_ours is not None and any(target.iterdir()) and not is_ours(target):
        raise FileExistsError(
            errno.EEXIST,
            f"{target} exists and holds something else, so it is not replaced: choose another name, or empty it",
        )


def _move_into_place(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = _sibling(target, "old")
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


class _FullDiskError(OSError):
    """Says which disk; ``target`` is what could not be written."""

    def __init__(self, number: int, target: Path, needed: str) -> None:
        super().__init__(
            number,
            f"cannot write {target}: the disk or quota is full; free {needed} in {target.parent} "
            "and run again (nothing was left behind)",
        )
        self.target = target


@contextlib.contextmanager
def _explain_full_disk(target: Path, needed: str, temporary: Path) -> Generator[None]:
    """Name what the user named, where the disk was full under its temporary name."""
    try:
        yield
    except OSError as error:
        elsewhere = isinstance(error, _FullDiskError) and not error.target.is_relative_to(temporary)
        if elsewhere or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _FullDiskError(error.errno, target, needed) from error


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk; folders cannot be opened for that on Windows."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
