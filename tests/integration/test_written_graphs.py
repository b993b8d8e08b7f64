"""Graphs are written by hand, so each kind of model that can be configured is written here, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgeseq import modules
from edgeseq.config import ModelConfig, StackConfig
from edgeseq.models import Seq2Seq
from edgeseq.modules import DynamicConv, LightweightConv
from edgeseq_export.decoding_parity import compare_decoding
from edgeseq_export.facts import model_facts
from edgeseq_export.graphs import BlockGraph, split_model
from edgeseq_export.onnx_graphs import write_graph
from edgeseq_export.parity import compare_graph, failed_rows
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.predictors import DepthClassifier, HaltingUnits, Predictor
from edgeseq_runtime.tokenizer import EOS_ID
from graph_checks import all_graphs, late_reads
from small_models import PREDICTORS, VOCAB_SIZE, balance_predictors, small_config, small_model


def stacks(encoder: list[int], decoder: list[int], heads: int = 2, **changes: Any) -> dict[str, StackConfig]:
    """Both stacks of a model, alike but for their kernel sizes."""
    settings: dict[str, Any] = {"convolution_heads": heads, "feed_forward_dim": 12, **changes}
    return {
        "encoder": StackConfig(kernel_sizes=encoder, **settings),
        "decoder": StackConfig(kernel_sizes=decoder, **settings),
    }


def attention(*windows: int, **changes: Any) -> StackConfig:
    """A stack of self-attention blocks."""
    return StackConfig(mixer="attention", windows=list(windows), feed_forward_dim=12, **changes)


def convolution(*kernel_sizes: int) -> StackConfig:
    """A stack of dynamic convolutions."""
    return StackConfig(kernel_sizes=list(kernel_sizes), convolution_heads=4, feed_forward_dim=12)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "post-norm": {"norm": "post"},
    "lightweight": stacks([3, 5], [3, 1, 5, 4], mixer="lightweight"),
    "gated": stacks([3, 5], [3, 2, 5, 4], glu=True),
    "lightweight, gated, post-norm": {
        **stacks([1, 3], [2, 4, 1], mixer="lightweight", glu=True),
        "norm": "post",
    },
    "untied": {**stacks([3, 5], [3, 2, 5, 4]), "head": "untied", "tied_embeddings": False},
    "one tap everywhere": stacks([1], [1, 1, 1]),
    "wider than any sentence": stacks([71, 3], [2, 71, 3]),
    "one head of each kind": {**stacks([3, 5], [3, 1, 5], heads=1), "attention_heads": 1},
    "a head per channel": {**stacks([3], [4, 3], heads=8), "attention_heads": 8},
    "one block": stacks([3], [3]),
    "attention": {"encoder": attention(0, 0), "decoder": attention(0, 0, 0, 0)},
    "attention in windows": {"encoder": attention(3, 5), "decoder": attention(3, 1, 5, 16)},
    "attention in windows and without, post-norm": {
        "encoder": attention(0, 7),
        "decoder": attention(4, 0, 40, 0),
        "norm": "post",
        "tied_embeddings": False,  # or its sentences would end at once
    },
    "attention encoder, convolution decoder": {"encoder": attention(0, 3), "decoder": convolution(3, 2, 4)},
    "convolution encoder, attention decoder, untied": {
        "encoder": convolution(3, 5),
        "decoder": attention(0, 2, 0),
        "head": "untied",
        "tied_embeddings": False,
    },
    "attention of one head": {"encoder": attention(0), "decoder": attention(0, 3), "attention_heads": 1},
}


def build(name: str) -> tuple[Seq2Seq, ModelFacts]:
    """A variant in float32 and its facts; predictors of every kind are balanced, so that they do decide."""
    config: ModelConfig = small_config(**VARIANTS[name])
    predictors = PREDICTORS if len(config.decoder.reaches) > 1 else ()
    model = balance_predictors(small_model(predictors=predictors, **VARIANTS[name]))
    return model.float(), model_facts(config, model, VOCAB_SIZE)


@pytest.mark.parametrize("name", VARIANTS)
def test_graphs_of_every_kind_of_model_equal_their_modules(name: str) -> None:
    model, facts = build(name)
    parts = list(split_model(model, facts, "float32" if facts.head == "tied" else None))
    rows = [compare_graph(part, facts, write_graph(part), seed=1) for part in parts]
    assert failed_rows(rows) == []
    assert {"candidates", "shortlist_head"} <= {part.signature.role for part in parts} or facts.head == "untied"


@pytest.mark.parametrize("name", ["plain", "lightweight"])
def test_taps_of_unit_length_are_written_too(name: str) -> None:
    """No configuration asks for them; the modules can."""
    model, facts = build(name)
    softmax = [write_graph(part) for part in split_model(model, facts) if part.signature.role == "block"]
    for module in model.modules():
        if isinstance(module, DynamicConv | LightweightConv):
            assert module.normalization == "softmax"
            module.normalization = "l2"
    parts = [part for part in split_model(model, facts) if part.signature.role in ("encoder", "block")]
    assert failed_rows([compare_graph(part, facts, write_graph(part), seed=1) for part in parts]) == []
    # Control: the graphs of softmax taps are refused, but that of the block with one tap, whose softmax is 1.
    refused = failed_rows(
        [compare_graph(part, facts, graph, seed=1) for part, graph in zip(parts[1:], softmax, strict=True)]
    )
    assert {"block_1.onnx", "block_3.onnx", "block_4.onnx"} <= {row.graph for row in refused}


@pytest.mark.parametrize("name", VARIANTS)
def test_decodes_of_every_kind_of_model_agree_with_the_reference_decoder(name: str, tmp_path: Path) -> None:
    model, facts = build(name)
    for part in split_model(model, facts):
        onnx.save(write_graph(part), tmp_path / part.signature.file)
    predictors: dict[str, Predictor] = {}
    for each in model.predictors:
        predictor = model.predictor(each)
        kind = HaltingUnits if isinstance(predictor, modules.HaltingUnits) else DepthClassifier
        predictors[each] = kind(
            predictor.get_parameter("weight").detach().numpy(), predictor.get_parameter("bias").detach().numpy()
        )
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 20, (12,), generator=generator).tolist()
    sources = [
        [*torch.randint(EOS_ID + 1, VOCAB_SIZE, (length,), generator=generator).tolist(), EOS_ID] for length in lengths
    ]
    engine = Engine(tmp_path, facts, device="cpu")
    parity = compare_decoding(model, engine, predictors, sources, max_length=36, seed=3)
    print(parity)
    assert parity.disagreements == 0
    assert parity.ties <= 0.001 * parity.decisions
    assert parity.tokens > 10 * len(sources)


BLOCKS_OF_ATTENTION = ["attention", "attention in windows", "attention in windows and without, post-norm"]


@pytest.mark.parametrize("name", BLOCKS_OF_ATTENTION)
def test_no_graph_of_attention_reads_state_that_it_has_replaced(name: str) -> None:
    model, facts = build(name)
    graphs = [write_graph(part).graph for part in split_model(model, facts)]
    assert [late_reads(graph) for graph in graphs] == [[]] * len(graphs)
    updated = {output.name for graph in graphs for output in graph.output if output.name.startswith("next_")}
    assert updated == {"next_states", "next_exit_states", "next_keys", "next_values"}


@pytest.mark.parametrize("name", BLOCKS_OF_ATTENTION)
def test_keys_and_values_of_pending_positions_are_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the module's columns of copied states, and those alone, are zeros, or each other's."""
    model, facts = build(name)
    (part,) = [part for part in split_model(model, facts) if part.signature.file == "block_3.onnx"]
    assert isinstance(part.module, BlockGraph)
    block, graph = part.module.block, write_graph(part)
    right = block.backfill
    for wrong in (lambda states: tuple(map(torch.zeros_like, right(states))), lambda states: right(states)[::-1]):
        monkeypatch.setattr(block, "backfill", wrong)
        assert [row.graph for row in failed_rows([compare_graph(part, facts, graph, seed=1)])] == ["block_3.onnx"]


@pytest.mark.parametrize("name", BLOCKS_OF_ATTENTION)
def test_a_graph_that_reads_places_without_a_position_is_refused(name: str) -> None:
    """Control: the bias of places is left out."""
    model, facts = build(name)
    (part,) = [part for part in split_model(model, facts) if part.signature.file == "block_3.onnx"]
    graph = write_graph(part)
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros((), dtype=np.float32), "nothing"))
    (node,) = [node for node in graph.graph.node if "place_bias" in node.input]
    node.input[1] = "nothing"
    assert [row.graph for row in failed_rows([compare_graph(part, facts, graph, seed=1)])] == ["block_3.onnx"]


SMALLEST_STEP = "attention encoder, convolution decoder"


@pytest.mark.parametrize(
    "name",
    ["gated", "lightweight, gated, post-norm", "untied", "attention in windows and without, post-norm", SMALLEST_STEP],
)
def test_every_weight_of_a_graph_is_compared(name: str) -> None:
    """Control: each weight in turn is off by a hundredth of its size, and its graph is refused.

    Not where a dynamic convolution has one tap: the softmax of one number is 1, whatever predicts it.
    """
    model, facts = build(name)
    generator = np.random.default_rng(1)
    # One block stands for all, and one model's whole step for those of others: the same code writes them.
    parts = [part for part in split_model(model, facts) if part.signature.block in (None, 2)]
    for part in [part for part in parts if part.signature.role != "step" or name == SMALLEST_STEP]:
        graph = write_graph(part)
        held = [tensor for inner in all_graphs(graph.graph) for tensor in inner.initializer]
        weights = [tensor for tensor in held if tensor.data_type == onnx.TensorProto.FLOAT]
        weights = [tensor for tensor in weights if tensor.dims]
        assert weights, part.signature.file
        for weight in weights:
            right = onnx.TensorProto()
            right.CopyFrom(weight)
            values = numpy_helper.to_array(right)
            noise = generator.standard_normal(values.shape) * 0.01 * np.abs(values).max()
            weight.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), right.name))
            failed = failed_rows([compare_graph(part, facts, graph, seed=1)])
            assert [row.graph for row in failed] == [part.signature.file], f"{right.name} {list(right.dims)}"
            weight.CopyFrom(right)
