"""Which graphs a model has, and what each takes and gives."""

import pytest

from edgeseq_runtime.signatures import GraphSignature, expected_signatures, mixer_state
from tiny_bundle import tiny_facts


def by_file(**changes: object) -> dict[str, GraphSignature]:
    return {signature.file: signature for signature in expected_signatures(tiny_facts(**changes))}


def test_graphs_of_a_tied_model() -> None:
    """Two of each block, whatever its kernel size (3, 5, 1, 7): backfill has no graphs of its own."""
    assert list(by_file()) == [
        "encoder.onnx",
        "cross_1.onnx", "block_1.onnx", "cross_2.onnx", "block_2.onnx",
        "cross_3.onnx", "block_3.onnx", "cross_4.onnx", "block_4.onnx",
        "head.onnx", "step.onnx",
    ]  # fmt: skip


def test_the_step_of_a_row_alone_takes_all_state_and_says_where_it_stops() -> None:
    """Kernel sizes are 3, 5, 1, 7: the copied states that any block can still reach are as many as the largest."""
    step = by_file()["step.onnx"]
    numbers = (1, 2, 3, 4)
    state = {
        "states": [7, 16],
        "filled": [3],
        **{f"columns_{n}": [4 * reach, 4] for n, reach in zip(numbers, (3, 5, 1, 7), strict=True)},
    }
    assert {tensor.name: tensor.shape for tensor in step.inputs} == {
        "tokens": [1],
        "position_vectors": [1, 16],
        "position": [1],
        "stop_weights": [3, 16],
        "stop_limits": [3],
        **state,
        **{f"cross_key_{n}": [1, 2, 8, "source"] for n in numbers},
        **{f"cross_value_{n}": [1, 2, "source", 8] for n in numbers},
        "source_bias": [1, 1, 1, "source"],
    }
    assert {tensor.name: tensor.shape for tensor in step.outputs} == {
        "logits": [1, 60],
        "depth": [1],
        **{f"next_{name}": shape for name, shape in state.items()},
    }


def test_a_single_block_stops_without_being_asked() -> None:
    names = {tensor.name for tensor in by_file(decoder_reaches=[3])["step.onnx"].inputs}
    assert not names & {"stop_weights", "stop_limits", "filled"}


def test_attention_has_no_whole_step() -> None:
    assert "step.onnx" not in by_file(mixer="attention", glu=False)


def test_untied_heads_belong_to_blocks() -> None:
    graphs = by_file(head="untied")
    assert "head.onnx" not in graphs
    assert [graphs[f"head_{n}.onnx"].block for n in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_block_takes_state_and_places() -> None:
    block = by_file()["block_4.onnx"]
    assert {tensor.name: tensor.shape for tensor in block.inputs} == {
        "states": ["cells", 16],
        "exit_states": ["rows", 16],
        "columns": ["column_cells", 4],
        "cross_key": ["rows", 2, 8, "source"],
        "cross_value": ["rows", 2, "source", 8],
        "source_bias": ["rows", 1, 1, "source"],
        "active_rows": ["active", 1],
        "own_cells": ["active", 1],
        "read_cells": ["read"],
        "written_columns": ["written", 1],
        "tap_places": ["active", 1, 4, 1, 7],
    }
    assert [tensor.name for tensor in block.outputs] == ["next_states", "next_exit_states", "next_columns"]


def test_blocks_below_the_last_say_how_their_exit_states_score() -> None:
    for n, rows in ((1, "rows"), (2, "active"), (3, "active")):
        block = by_file()[f"block_{n}.onnx"]
        assert (block.inputs[-1].name, block.inputs[-1].shape) == ("stop_weight", [1, 16])
        assert (block.outputs[-1].name, block.outputs[-1].shape) == ("stop_scores", [rows])


def test_a_block_of_attention_takes_keys_values_and_a_bias() -> None:
    """The ring of a window has its size, that of all positions one that grows."""
    graphs = by_file(mixer="attention", glu=False, decoder_reaches=[3, 7, 0])
    for file, size in (("block_2.onnx", 7), ("block_3.onnx", "places")):
        assert {tensor.name: tensor.shape for tensor in graphs[file].inputs} == {
            "states": ["cells", 16],
            "exit_states": ["rows", 16],
            "keys": ["column_cells", 8],
            "values": ["column_cells", 8],
            "cross_key": ["rows", 2, 8, "source"],
            "cross_value": ["rows", 2, "source", 8],
            "source_bias": ["rows", 1, 1, "source"],
            "active_rows": ["active", 1],
            "own_cells": ["active", 1],
            "read_cells": ["read"],
            "written_columns": ["written", 1],
            "place_bias": ["active", 1, 1, 1, size],
            **({"stop_weight": [1, 16]} if file == "block_2.onnx" else {}),
        }
        outputs = [tensor.name for tensor in graphs[file].outputs]
        assert outputs[:4] == ["next_states", "next_exit_states", "next_keys", "next_values"]


def test_block_1_takes_tokens_of_all_rows() -> None:
    """And the vectors of positions, none of the positions themselves: the runtime keeps the vectors."""
    for changes, kept, places in (
        ({}, {"columns": ["column_cells", 4]}, {"tap_places": ["rows", 1, 4, 1, 3]}),
        (
            {"mixer": "attention", "glu": False, "decoder_reaches": [0, 3]},
            {"keys": ["column_cells", 8], "values": ["column_cells", 8]},
            {"place_bias": ["rows", 1, 1, 1, "places"]},
        ),
    ):
        block = by_file(**changes)["block_1.onnx"]
        assert {tensor.name: tensor.shape for tensor in block.inputs} == {
            "tokens": ["rows"],
            "position_vectors": ["rows", 16],
            "states": ["cells", 16],
            **kept,
            "cross_key": ["rows", 2, 8, "source"],
            "cross_value": ["rows", 2, "source", 8],
            "source_bias": ["rows", 1, 1, "source"],
            "own_cells": ["rows", 1],
            "written_columns": ["written", 1],
            **places,
            "stop_weight": [1, 16],
        }
        assert [tensor.name for tensor in block.outputs] == [
            "next_states", "exit_states", *(f"next_{name}" for name in kept), "stop_scores",
        ]  # fmt: skip


def test_blocks_differ_in_their_taps_alone() -> None:
    """One tap is nothing special."""
    graphs = by_file()
    second, third = ([tensor.name for tensor in graphs[f"block_{n}.onnx"].inputs] for n in (2, 3))
    assert second == third
    shapes = [{tensor.name: tensor.shape for tensor in graphs[f"block_{n}.onnx"].inputs} for n in (1, 2, 3, 4)]
    assert [shape["tap_places"] for shape in shapes] == [
        ["rows", 1, 4, 1, 3], ["active", 1, 4, 1, 5], ["active", 1, 4, 1, 1], ["active", 1, 4, 1, 7],
    ]  # fmt: skip
    for shape in shapes[2:]:
        assert all(shape[name] == shapes[1][name] for name in shape if name != "tap_places")
    assert graphs["block_3.onnx"].outputs == graphs["block_2.onnx"].outputs


ATTENTION = {"mixer": "attention", "glu": False, "decoder_reaches": [0, 3, 0]}


@pytest.mark.parametrize("changes", [{}, {"head": "untied", "decoder_reaches": [1, 9]}, ATTENTION])
def test_state_comes_out_as_it_went_in(changes: dict[str, object]) -> None:
    """The engine binds an input X and an output next_X to the same memory."""
    found = 0
    for signature in expected_signatures(tiny_facts(**changes)):
        if signature.role == "step":
            continue
        inputs = {tensor.name: tensor for tensor in signature.inputs}
        for tensor in signature.outputs:
            if tensor.name.startswith("next_"):
                found += 1
                state = inputs[tensor.name.removeprefix("next_")]
                assert (tensor.shape, tensor.dtype) == (state.shape, state.dtype)
    facts = tiny_facts(**changes)
    assert found == (2 + len(mixer_state(facts).tensors)) * facts.decoder_blocks - 1  # block 1 makes exit states anew


@pytest.mark.parametrize("changes", [{}, ATTENTION], ids=["convolution", "attention"])
@pytest.mark.parametrize("role", ["encoder", "cross", "block", "head", "step"])
def test_only_listed_types_occur(role: str, changes: dict[str, object]) -> None:
    integers = {
        "source", "tokens", "active_rows", "own_cells", "read_cells", "written_columns", "tap_places",
        "position", "filled", "next_filled", "depth",
    }  # fmt: skip
    signatures = [signature for signature in expected_signatures(tiny_facts(**changes)) if signature.role == role]
    assert signatures or (role, changes) == ("step", ATTENTION)
    for signature in signatures:
        for tensor in (*signature.inputs, *signature.outputs):
            expected = "int64" if tensor.name in integers else "float32"
            assert tensor.dtype == ("bool" if tensor.name == "padding_mask" else expected)
