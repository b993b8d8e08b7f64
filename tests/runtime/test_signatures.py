"""Which graphs a model has, and what each takes and gives."""

import pytest

from edgeseq_runtime.signatures import GraphSignature, expected_signatures
from tiny_bundle import tiny_facts


def by_file(**changes: object) -> dict[str, GraphSignature]:
    return {signature.file: signature for signature in expected_signatures(tiny_facts(**changes))}


def test_graphs_of_a_tied_model() -> None:
    """Two of each block, whatever its kernel size (3, 5, 1, 7): backfill has no graphs of its own."""
    assert list(by_file()) == [
        "encoder.onnx", "embed.onnx",
        "cross_1.onnx", "block_1.onnx", "cross_2.onnx", "block_2.onnx",
        "cross_3.onnx", "block_3.onnx", "cross_4.onnx", "block_4.onnx",
        "head.onnx",
    ]  # fmt: skip


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
        "tap_places": ["active", 4, 7],
    }
    assert [tensor.name for tensor in block.outputs] == ["next_states", "next_exit_states", "next_columns"]


def test_embedding_takes_the_vectors_of_positions() -> None:
    """And none of the positions themselves: the runtime keeps the vectors."""
    embed = by_file()["embed.onnx"]
    assert {tensor.name: tensor.shape for tensor in embed.inputs} == {
        "tokens": ["rows"],
        "position_vectors": ["rows", 16],
        "states": ["cells", 16],
        "own_cells": ["rows", 1],
    }


def test_blocks_differ_in_their_taps_alone() -> None:
    """One tap is nothing special."""
    graphs = by_file()
    assert [graphs[f"block_{n}.onnx"].inputs[-1].shape for n in (1, 2, 3, 4)] == [
        ["active", 4, 3], ["active", 4, 5], ["active", 4, 1], ["active", 4, 7],
    ]  # fmt: skip
    first = graphs["block_1.onnx"]
    for n in (2, 3, 4):
        assert graphs[f"block_{n}.onnx"].inputs[:-1] == first.inputs[:-1]
        assert graphs[f"block_{n}.onnx"].outputs == first.outputs


@pytest.mark.parametrize("changes", [{}, {"head": "untied", "decoder_reaches": [1, 9]}])
def test_state_comes_out_as_it_went_in(changes: dict[str, object]) -> None:
    """The engine binds an input X and an output next_X to the same memory."""
    found = 0
    for signature in expected_signatures(tiny_facts(**changes)):
        inputs = {tensor.name: tensor for tensor in signature.inputs}
        for tensor in signature.outputs:
            if tensor.name.startswith("next_"):
                found += 1
                state = inputs[tensor.name.removeprefix("next_")]
                assert (tensor.shape, tensor.dtype) == (state.shape, state.dtype)
    assert found == 1 + 3 * len(tiny_facts(**changes).decoder_reaches)


@pytest.mark.parametrize("role", ["encoder", "embed", "cross", "block", "head"])
def test_only_listed_types_occur(role: str) -> None:
    integers = {
        "source", "tokens", "active_rows", "own_cells", "read_cells", "written_columns", "tap_places",
    }  # fmt: skip
    signatures = [signature for signature in expected_signatures(tiny_facts()) if signature.role == role]
    assert signatures
    for signature in signatures:
        for tensor in (*signature.inputs, *signature.outputs):
            expected = "int64" if tensor.name in integers else "float32"
            assert tensor.dtype == ("bool" if tensor.name == "padding_mask" else expected)
