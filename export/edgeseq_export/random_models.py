"""Models of any size with random weights, to be timed: time depends on sizes, not on what weights say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeseq.config import ModelConfig, PredictorConfig, StackConfig
from edgeseq.models.builder import build_model
from edgeseq_export.activation_ranges import measure_ranges
from edgeseq_export.compute_types import choose_arithmetic
from edgeseq_export.errors import ExportError
from edgeseq_export.facts import model_facts
from edgeseq_export.graphs import split_model
from edgeseq_export.onnx_graphs import write_graph
from edgeseq_export.shortlists import ShortlistTables
from edgeseq_export.weights_file import gather_weights
from edgeseq_runtime.atomic import write_file
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.policy import DepthPolicy, Halting, Thresholds
from edgeseq_runtime.predictors import HaltingUnits
from edgeseq_runtime.records import ComputeTypeName
from edgeseq_runtime.shortlist import Shortlist
from edgeseq_runtime.tokenizer import EOS_ID

_KERNEL_SIZES = (3, 7, 15, 31)
_HEAD_DIM = 64
_RANGE_PAIRS = 4
_RANGE_LENGTH = 20
_SEED = 1

RANDOM_CANDIDATES = 600
"""About as many as a shortlist of 100 target pieces a source piece has of a sentence of 20 pieces."""


@dataclass(frozen=True)
class RandomSizes:
    """Sizes of a model with dynamic convolutions in both stacks."""

    dim: int
    feed_forward_dim: int
    vocab_size: int
    encoder_blocks: int
    decoder_blocks: int


@dataclass(frozen=True)
class RandomModel:
    """What a runtime needs of one."""

    facts: ModelFacts
    halting: HaltingUnits
    shortlist: Shortlist | None

    def halting_policy(self) -> DepthPolicy:
        """A depth policy that asks a unit after each block."""
        blocks = tuple(range(1, self.facts.decoder_blocks))
        thresholds = Thresholds(values=(0.5,) * len(blocks), blocks=blocks, every=True)
        return Halting("halting", self.facts, self.halting, thresholds)


def write_random_model(
    folder: Path, sizes: RandomSizes, compute_type: ComputeTypeName, *, shortlist: bool = False
) -> RandomModel:
    """Writes the graphs of a model with random weights; there is nothing else in the folder.

    Args:
        folder: an empty folder.
        sizes: of the model. Kernel sizes are 3, 7, 15, 31, 31 and so on, and a head has 64 channels.
        compute_type: of the graphs.
        shortlist: whether there is one: about RANDOM_CANDIDATES pieces a sentence, or half of a smaller vocabulary.

    Returns:
        Facts of the model, its halting units and its shortlist.

    Raises:
        ExportError: no model has this width.
    """
    heads = max(1, sizes.dim // _HEAD_DIM)
    if sizes.dim % 2 or sizes.dim % heads:
        raise ExportError(
            f"a width of {sizes.dim} is odd, or cannot be cut into {heads} heads: give an even one, and from "
            f"{2 * _HEAD_DIM} on a multiple of {_HEAD_DIM}"
        )
    encoder, decoder = (
        StackConfig(
            kernel_sizes=[_KERNEL_SIZES[min(block, len(_KERNEL_SIZES) - 1)] for block in range(blocks)],
            convolution_heads=heads,
            feed_forward_dim=sizes.feed_forward_dim,
        )
        for blocks in (sizes.encoder_blocks, sizes.decoder_blocks)
    )
    config = ModelConfig(dim=sizes.dim, attention_heads=heads, encoder=encoder, decoder=decoder)
    torch.manual_seed(_SEED)
    predictor = PredictorConfig(kind="halting")
    model = build_model(config, sizes.vocab_size, [predictor]).eval()
    facts = model_facts(config, model, sizes.vocab_size)
    ranges = None
    if compute_type != "float32":
        pieces = torch.randint(EOS_ID + 1, sizes.vocab_size, (2, _RANGE_PAIRS, _RANGE_LENGTH)).tolist()
        ranges = measure_ranges(model, list(zip(*pieces, strict=True)), _SEED)
    arithmetic = choose_arithmetic(compute_type, ranges)
    chosen = None
    if shortlist:
        ids = np.arange(sizes.vocab_size, dtype=np.uint16)
        step = max(2, sizes.vocab_size // RANDOM_CANDIDATES)
        chosen = ShortlistTables(ids[:, None], ids[::step], pairs=0).open("float32" if ranges is None else "int8")
    for part in split_model(model, facts, None if chosen is None else chosen.facts.weights):
        graph = write_graph(part, arithmetic)
        write_file(folder / part.signature.file, graph.SerializeToString())
    gather_weights(folder)
    weights = dict(model.predictor(predictor.name).named_parameters())
    halting = HaltingUnits(*(weights[name].detach().numpy() for name in ("weight", "bias")))
    return RandomModel(facts, halting, chosen)
