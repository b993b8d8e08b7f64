"""How much a system's packages take on disk, with all that they need, as the installer has noted it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path

from packaging.requirements import Requirement


def install_size(packages: Iterable[str]) -> float:
    """Of requirements such as `edgeseq[cpu]` and what they require, in MiB."""
    waiting = [Requirement(package) for package in packages]
    seen: set[tuple[str, frozenset[str]]] = set()
    sizes: dict[str, int] = {}
    while waiting:
        wanted = waiting.pop()
        key = wanted.name.lower(), frozenset(wanted.extras)
        if key in seen:
            continue
        seen.add(key)
        distribution = metadata.distribution(wanted.name)
        sizes[distribution.name.lower()] = _size(distribution)
        for required in map(Requirement, distribution.requires or []):
            marker = required.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(required)
    return sum(sizes.values()) / 2**20


def size_on_disk(folder: Path) -> float:
    """In MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def _size(distribution: metadata.Distribution) -> int:
    files = [Path(str(file.locate())) for file in distribution.files or []]
    if distribution.name == "edgeseq":  # runs from its sources here, which the installer has no note of
        for name in ("edgeseq", "edgeseq_export", "edgeseq_runtime"):
            spec = util.find_spec(name)
            assert spec is not None
            files += [path for folder in spec.submodule_search_locations or [] for path in Path(folder).rglob("*.*")]
    return sum(file.stat().st_size for file in files if file.is_file())
