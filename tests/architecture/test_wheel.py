"""What a wheel holds: three import packages, their type markers, and nothing else."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeseq import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"edgeseq": ".", "edgeseq_export": "export", "edgeseq_runtime": "runtime"}
"""Each import package with the folder that holds it."""
INCLUDE = 'include = ["edgeseq*"]\n'


def build_wheel(folder: Path, *, without_include: bool = False) -> list[str]:
    """Build from a copy of what a package may hold (a build writes beside its sources).

    Args:
        folder: Where the copy and the wheel go.
        without_include: Leave out the line of pyproject.toml that names the packages.

    Returns:
        The names of the files in the wheel.
    """
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("edgeseq", "export", "runtime", "tests", "examples"):
        for file in (ROOT / name).rglob("*"):
            if file.suffix in {".py", ".typed", ".toml", ".md", ".css", ".js", ".txt", ".onnx"}:
                copy = source / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
    if without_include:
        settings = (source / "pyproject.toml").read_text(encoding="utf-8")
        assert INCLUDE in settings
        (source / "pyproject.toml").write_text(settings.replace(INCLUDE, ""), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"edgeseq-{__version__}-py3-none-any.whl"
    return zipfile.ZipFile(wheel).namelist()


def top_level_names(files: list[str]) -> set[str]:
    return {name.partition("/")[0] for name in files if not re.match(r"[^/]*\.dist-info/", name)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_exactly_three_packages(files: list[str]) -> None:
    assert top_level_names(files) == set(PACKAGES)


def test_wheel_holds_what_is_no_module(files: list[str]) -> None:
    metadata = f"edgeseq-{__version__}.dist-info"
    expected = {f"{package}/py.typed" for package in PACKAGES}
    expected |= {f"{metadata}/licenses/LICENSE", f"{metadata}/entry_points.txt"}
    expected |= {f"edgeseq/evaluation/report/page.{suffix}" for suffix in ("css", "js")}
    expected |= {"edgeseq/bench/depth_trace.txt", "edgeseq_runtime/ranking.onnx"}
    assert expected <= set(files)


def test_wheel_holds_every_module(files: list[str]) -> None:
    modules = {
        file.relative_to(ROOT / folder).as_posix()
        for package, folder in PACKAGES.items()
        for file in (ROOT / folder / package).rglob("*.py")
    }
    assert {name for name in files if name.endswith(".py")} == modules


def test_control_without_the_include_tests_would_be_shipped(tmp_path: Path) -> None:
    assert "tests" in top_level_names(build_wheel(tmp_path, without_include=True))
