"""constraints.txt pins everything that pyproject.toml asks for, to a version it accepts."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
# Installed by users in place of onnxruntime, never by `make setup`.
NOT_INSTALLED_HERE = {"edgeseq", "onnxruntime-gpu"}


def read_pins() -> dict[str, Version]:
    pins: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line)
            assert match, f"constraints.txt: expected NAME==VERSION, got {line!r}"
            pins[canonicalize_name(match[1])] = Version(match[2])
    return pins


def read_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    return [Requirement(text) for text in texts]


def test_every_dependency_is_pinned_to_a_version_it_accepts() -> None:
    pins = read_pins()
    requirements = [r for r in read_requirements() if r.name not in NOT_INSTALLED_HERE]
    assert len(requirements) > 10
    for requirement in requirements:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned in constraints.txt"
        assert pin in requirement.specifier, f"{requirement} does not accept the pin {pin}"


def test_every_dependency_states_the_oldest_version_that_will_do() -> None:
    for requirement in read_requirements():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == (set() if requirement.name == "edgeseq" else {">="}), requirement


def test_pins_name_no_build_of_one_index() -> None:
    """``2.13.0+cpu`` exists on torch's own index only; ``2.13.0`` is found everywhere."""
    assert [f"{name}=={pin}" for name, pin in read_pins().items() if pin.local] == []
