"""Bound graphs: arrays stay bound from run to run, and state is updated in place."""

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeseq_export.graph_writer import GraphWriter
from edgeseq_runtime.arrays import AnyArray, FloatArray
from edgeseq_runtime.errors import DeviceError
from edgeseq_runtime.manifest import TensorSpec
from edgeseq_runtime.places import Layout, StepPlaces
from edgeseq_runtime.sessions import CPU_PROVIDER, Graph, OutputMemory
from edgeseq_runtime.signatures import GraphInterface, expected_signatures
from tiny_bundle import tiny_facts

EMBED = GraphInterface(
    "embed.onnx",
    (
        TensorSpec(name="tokens", dtype="int64", shape=["rows"]),
        TensorSpec(name="position_vectors", dtype="float32", shape=["rows", 16]),
        TensorSpec(name="states", dtype="float32", shape=["cells", 16]),
        TensorSpec(name="own_cells", dtype="int64", shape=["rows", 1]),
    ),
    (TensorSpec(name="next_states", dtype="float32", shape=["cells", 16]),),
)
"""The least graph that updates state: what block 1 begins with."""


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("embed")
    writer = GraphWriter(EMBED)
    table = np.random.default_rng(1).standard_normal((60, 16)).astype(np.float32)
    x = writer.add("Add", writer.add("Gather", writer.constant(table), "tokens"), "position_vectors")
    writer.add("ScatterND", "states", "own_cells", x, output="next_states")
    onnx.save(writer.finish(), folder / EMBED.file)
    return Graph(folder / EMBED.file, EMBED, CPU_PROVIDER)


def embed_feed(*tokens: int) -> dict[str, AnyArray]:
    """Puts the tokens into cells 1, 3, 5 and so on."""
    rows = len(tokens)
    vectors = np.random.default_rng(rows).standard_normal((rows, 16)).astype(np.float32)
    return {
        "tokens": np.array(tokens, dtype=np.int64),
        "position_vectors": vectors,
        "own_cells": np.arange(1, 2 * rows, 2)[:, None],
    }


def cells(rows: int = 3) -> FloatArray:
    return np.full((2 * rows, 16), 7, dtype=np.float32)


def test_bound_state_is_updated_in_place(embed: Graph) -> None:
    """Where the indices say, and nowhere else; the result is that of an ordinary run."""
    states, feed = cells(), embed_feed(4, 5, 6)
    (expected,) = embed.run({**feed, "states": states})
    assert (states == 7).all()
    embed.bind().run({"states": states}, feed)
    np.testing.assert_array_equal(states, expected)
    assert (states[::2] == 7).all()
    assert (states[1::2] != 7).any(axis=1).all()


def test_bound_state_is_what_later_runs_read(tiny_bundle: Path) -> None:
    """A block on its own state, run after run: the same bits as when everything is handed over anew."""
    facts = tiny_facts()
    signature = next(s for s in expected_signatures(facts) if s.file == "block_2.onnx")
    graph = Graph(tiny_bundle / signature.file, signature, CPU_PROVIDER)
    bound, layout = graph.bind(), Layout(facts)
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> FloatArray:
        return generator.standard_normal(shape).astype(np.float32)

    state = {"states": normal(3 * 7, 16), "exit_states": normal(3, 16), "columns": normal(3 * 4 * 5, 4)}
    sources = {"cross_key": normal(3, 2, 8, 4), "cross_value": normal(3, 2, 4, 8), "source_bias": normal(3, 1, 1, 4)}
    copied = {name: array.copy() for name, array in state.items()}
    weight, scores = normal(1, 16), np.zeros(3, dtype=np.float32)
    for position in range(12):
        places = StepPlaces(layout, np.array([position] * 3))
        feed: dict[str, AnyArray] = {
            **sources,
            **places.block_indices(5, np.array([max(0, position - 2), position, position])),
            "stop_weight": weight,
        }
        bound.run(state, feed, {"stop_scores": scores})
        *replaced, expected = graph.run({**copied, **feed})
        np.testing.assert_array_equal(scores, expected)
        copied = dict(zip(copied, replaced, strict=True))
        for name, array in copied.items():
            np.testing.assert_array_equal(state[name], array)


def test_another_state_is_bound_anew(embed: Graph) -> None:
    """As after rows were dropped: other arrays, of another size; those before are left alone."""
    bound = embed.bind()
    first, second = cells(3), cells(2)
    bound.run({"states": first}, embed_feed(4, 5, 6))
    before = first.copy()
    bound.run({"states": second}, embed_feed(8, 9))
    np.testing.assert_array_equal(first, before)
    (expected,) = embed.run({**embed_feed(8, 9), "states": cells(2)})
    np.testing.assert_array_equal(second, expected)
    bound.run({"states": first}, embed_feed(9, 8, 7))
    (expected,) = embed.run({**embed_feed(9, 8, 7), "states": cells(3)})
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, embed.run({**embed_feed(8, 9), "states": cells(2)})[0])


def test_control_a_state_that_is_taken_for_bound_stays_as_it_was(embed: Graph) -> None:
    """What goes wrong where arrays are told apart by less than their identity."""
    bound, first, second = embed.bind(), cells(), cells()
    bound.run({"states": first}, embed_feed(4, 5, 6))
    before = first.copy()
    bound._bound["states"] = second
    bound.run({"states": second}, embed_feed(7, 8, 9))
    assert (second == 7).all()
    assert not np.array_equal(first, before)


def test_an_array_whose_content_changed_is_read_again(embed: Graph) -> None:
    """It is the same object, so it is not bound again, and need not be."""
    bound, states, feed = embed.bind(), cells(), embed_feed(4, 5, 6)
    bound.run({"states": states}, feed)
    feed["tokens"][:] = [7, 8, 9]
    bound.run({"states": states}, feed)
    (expected,) = embed.run({**embed_feed(7, 8, 9), "states": cells()})
    np.testing.assert_array_equal(states, expected)


def test_only_other_arrays_are_bound_again(embed: Graph) -> None:
    calls: list[str] = []

    class Recorded:
        """A binding of onnxruntime that notes what is bound."""

        def __init__(self) -> None:
            self.real = original()

        def bind_cpu_input(self, name: str, array: AnyArray) -> None:
            calls.append(name)
            self.real.bind_cpu_input(name, array)

        def bind_output(self, name: str, *arguments: object) -> None:
            calls.append(name)
            self.real.bind_output(name, *arguments)

    original, run_bound = embed.new_binding, embed.run_bound
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "new_binding", Recorded)
        patch.setattr(embed, "run_bound", lambda binding, feed: run_bound(binding.real, feed))
        bound, states, feed = embed.bind(), cells(), embed_feed(4, 5, 6)
        everything = ["next_states", "states", "tokens", "position_vectors", "own_cells"]
        for expected in (everything, []):
            calls.clear()
            bound.run({"states": states}, feed)
            assert calls == expected
        for _ in range(2):
            calls.clear()
            bound.run({"states": states}, feed | {"tokens": np.array([7, 8, 9])})
            assert calls == ["tokens"]
        bound.run({"states": states}, feed)
        calls.clear()
        bound.run({"states": states.copy()}, feed)
        assert calls == ["next_states", "states"]


def test_arrays_stay_alive_while_they_are_bound(embed: Graph) -> None:
    """Their memory would be given to others, and the graph would write there."""
    bound, states = embed.bind(), cells()
    bound.run({"states": states}, embed_feed(4, 5, 6))
    held = weakref.ref(states)
    del states
    gc.collect()
    assert held() is not None
    bound.run({"states": cells()}, embed_feed(4, 5, 6))
    gc.collect()
    assert held() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.array([4, 5])}, "'tokens': (2,), 'position_vectors': (3, 16), 'own_cells': (3, 1)}"),
        ({"tokens": np.array([[4, 5, 6]])}, "Invalid rank for input: tokens Got: 2 Expected: 1"),
        ({"tokens": np.array([4, 5, 60])}, "indices element out of data bounds, idx=60"),
        ({"tokens": np.array([4, 5, 6], dtype=np.int32)}, "Unexpected input data type"),
        ({"own_cells": np.array([[1], [2], [6]])}, "ScatterND"),
    ],
)
def test_failing_bound_run_names_graph_and_shapes(
    embed: Graph, change: dict[str, AnyArray], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Afterwards the binding can go on."""
    bound, states = embed.bind(), cells()
    with pytest.raises(DeviceError) as error:
        bound.run({"states": states}, {**embed_feed(4, 5, 6), **change})
    assert str(error.value).startswith(
        "embed.onnx failed on CPUExecutionProvider with inputs {'states': (6, 16), 'tokens': ("
    )
    assert message in str(error.value)
    bound.run({"states": states}, embed_feed(4, 5, 6))
    (expected,) = embed.run({**embed_feed(4, 5, 6), "states": cells()})
    np.testing.assert_array_equal(states, expected)


def test_state_of_a_wrong_shape_is_refused(embed: Graph) -> None:
    with pytest.raises(
        DeviceError, match=r"(?s)embed\.onnx failed on .* \{'states': \(6, 15\), .*Got: 15 Expected: 16"
    ):
        embed.bind().run({"states": np.zeros((6, 15), dtype=np.float32)}, embed_feed(4, 5, 6))


# The arena


def test_an_output_of_fewer_rows_is_filled_from_the_front(tmp_path: Path) -> None:
    """As scores of the rows that are still going up: now more, now fewer, in the same memory."""
    x, y = (TensorSpec(name=name, dtype="float32", shape=["rows"]) for name in ("x", "y"))
    signature = GraphInterface("copy.onnx", (x,), (y,))
    writer = GraphWriter(signature)
    writer.add("Identity", "x", output="y")
    onnx.save(writer.finish(), tmp_path / "copy.onnx")
    bound, memory = Graph(tmp_path / signature.file, signature, CPU_PROVIDER).bind(), OutputMemory(4)
    memory.array[:] = 7
    for given in ([1, 2], [3, 4, 5, 6], [8], [9]):
        before = memory.array.copy()
        bound.run({}, {"x": np.array(given, dtype=np.float32)}, {"y": memory.first(len(given))})
        assert memory.array.tolist() == [*given, *before[len(given) :]]
    assert memory.first(2) is memory.first(2)
    # Control: what is bound for two rows takes no three.
    with pytest.raises(DeviceError, match=r"copy\.onnx failed"):
        bound.run({}, {"x": np.ones(3, dtype=np.float32)}, {"y": memory.first(2)})
