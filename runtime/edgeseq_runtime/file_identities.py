"""Which files a bundle's graphs and weights were when it was opened: their content is read later, by onnxruntime."""

import os
from pathlib import Path

FileIdentities = dict[str, tuple[int, int, int]]
"""Inode, size in bytes, and time of the last change in nanoseconds, by name."""


def identify_files(folder: Path) -> FileIdentities:
    """Tell a bundle's graphs and weights from others of the same names."""
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry.stat() for entry in entries if entry.name.endswith((".onnx", ".bin"))}
    except OSError:
        return {}  # that they are missing is said by who reads them
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}
