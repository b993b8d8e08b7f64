"""A machine whose 8-bit products are wrong is told from one whose products are right."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseq_runtime.arrays import FloatArray
from edgeseq_runtime.bundle import load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.errors import BundleError, DeviceError
from edgeseq_runtime.known_answers import TOLERANCE, answer, asked_graphs, check_answers, tensor_names
from edgeseq_runtime.manifest import ModelFacts
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module", params=["tied", "untied"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, ModelFacts]:
    folder = tmp_path_factory.mktemp("answers") / "tiny.bundle"
    write_tiny_bundle(folder, head=request.param)
    facts = load_bundle(folder).manifest.model
    return Engine(folder, facts, device="cpu"), facts


def right_answers(engine: Engine, facts: ModelFacts) -> dict[str, FloatArray]:
    generator = np.random.default_rng(3)
    inputs = {
        key: generator.standard_normal(shape).astype(np.float32) for key, (_, _, shape) in asked_graphs(facts).items()
    }
    tensors: dict[str, FloatArray] = {}
    for key, found in answer(engine, facts, inputs).items():
        given_name, found_name = tensor_names(facts, key)
        tensors |= {given_name: inputs[key], found_name: found.copy()}
    return tensors


def test_right_answers_pass(opened: tuple[Engine, ModelFacts]) -> None:
    engine, facts = opened
    tensors = right_answers(engine, facts)
    head = "head" if facts.head == "tied" else "head_1"
    assert set(tensors) == {"cross_1.memory", "cross_1.cross_key", f"{head}.exit_states", f"{head}.logits"}
    check_answers(engine, facts, tensors)


@pytest.mark.parametrize("name", ["cross_1.cross_key", "head"])
def test_an_output_that_saturates_is_refused(opened: tuple[Engine, ModelFacts], name: str) -> None:
    """What a saturating machine makes, seen from the side of the answer: the largest value is cut by 2 %."""
    engine, facts = opened
    tensors = right_answers(engine, facts)
    (name,) = (key for key in tensors if key.startswith(name) and not key.endswith("exit_states"))
    largest = np.abs(tensors[name]).max()
    tensors[name] = np.clip(tensors[name], -0.98 * largest, 0.98 * largest)
    with pytest.raises(
        DeviceError,
        match=rf"wrong on this machine: {name} differs by 2\.0% .*export the model again; ",
    ):
        check_answers(engine, facts, tensors)


def test_last_bits_may_differ(opened: tuple[Engine, ModelFacts]) -> None:
    engine, facts = opened
    tensors = right_answers(engine, facts)
    changed = {key: value * np.float32(1 + TOLERANCE / 3) for key, value in tensors.items()}
    check_answers(engine, facts, tensors | {key: value for key, value in changed.items() if "cross_key" in key})


def test_no_number_is_no_answer(opened: tuple[Engine, ModelFacts], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, facts = opened
    tensors = right_answers(engine, facts)
    monkeypatch.setattr(Engine, "run_graph", lambda *_: [np.full_like(tensors["cross_1.cross_key"], np.nan)])
    with pytest.raises(DeviceError, match="differs by nan%"):
        check_answers(engine, facts, tensors)


def test_missing_and_misshapen_answers_are_refused(opened: tuple[Engine, ModelFacts]) -> None:
    engine, facts = opened
    tensors = right_answers(engine, facts)
    for missing in ("cross_1.memory", "cross_1.cross_key"):
        rest = {name: tensor for name, tensor in tensors.items() if name != missing}
        with pytest.raises(BundleError, match=r"known answers lack cross_1\.memory of shape \(1, 4, 16\)"):
            check_answers(engine, facts, rest)
    with pytest.raises(BundleError, match=r"known answers lack cross_1\.memory"):
        check_answers(engine, facts, tensors | {"cross_1.memory": tensors["cross_1.memory"][:, :2]})
    with pytest.raises(BundleError, match=r"known answer cross_1\.cross_key is \(1, .*\), expected \(1, "):
        check_answers(engine, facts, tensors | {"cross_1.cross_key": tensors["cross_1.cross_key"][..., :2]})
