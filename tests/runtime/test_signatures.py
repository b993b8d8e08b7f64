"""Which graphs a model has."""

import pytest

from edgeseq_runtime.signatures import GraphSignature, expected_signatures
from tiny_bundle import tiny_facts


def by_file(**changes: object) -> dict[str, GraphSignature]:
    return {signature.file: signature for signature in expected_signatures(tiny_facts(**changes))}


def test_graphs_of_a_tied_model() -> None:
    """Kernel sizes 3, 5, 1, 7: block 1 never needs backfill, block 3 has no history."""
    assert sorted(by_file()) == [
        "backfill_2.onnx", "backfill_4.onnx",
        "block_1.onnx", "block_2.onnx", "block_3.onnx", "block_4.onnx",
        "cross_1.onnx", "cross_2.onnx", "cross_3.onnx", "cross_4.onnx",
        "embed.onnx", "encoder.onnx", "head.onnx",
    ]  # fmt: skip


def test_untied_heads_belong_to_blocks() -> None:
    graphs = by_file(head="untied")
    assert "head.onnx" not in graphs
    assert [graphs[f"head_{n}.onnx"].block for n in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_block_reads_its_own_reach() -> None:
    block = by_file()["block_4.onnx"]
    assert [tensor.name for tensor in block.inputs] == [
        "x", "history", "cross_key", "cross_value", "source_bias",
    ]  # fmt: skip
    assert block.inputs[1].shape == ["rows", 6, 16]
    assert block.inputs[2].shape == ["rows", 2, 8, "source"]
    assert block.inputs[3].shape == ["rows", 2, "source", 8]
    assert [tensor.name for tensor in block.outputs] == ["next_x", "exit_state", "columns"]


def test_one_tap_means_no_history() -> None:
    assert "history" not in [tensor.name for tensor in by_file()["block_3.onnx"].inputs]


@pytest.mark.parametrize("role", ["encoder", "embed", "cross", "block", "backfill", "head"])
def test_only_listed_types_occur(role: str) -> None:
    integers = {"source", "tokens", "position"}
    for signature in expected_signatures(tiny_facts()):
        if signature.role == role:
            for tensor in (*signature.inputs, *signature.outputs):
                expected = "int64" if tensor.name in integers else "float32"
                assert tensor.dtype == ("bool" if tensor.name == "padding_mask" else expected)
