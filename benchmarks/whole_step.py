"""What the graph of a whole step saves a sentence that is decoded alone, against a call for each block.

Random weights, greedy, one thread; both ways in turn in one process, encoder included.

    python benchmarks/whole_step.py --dim 256 --ffn 1024 --vocab 8000
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import click

from edgeseq.bench.depths import Replayed, scale_trace
from edgeseq.bench.timing import Shape, decode_once, draw_sources
from edgeseq_export.random_models import RandomSizes, write_random_model
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.manifest import ModelFacts
from edgeseq_runtime.policy import DepthPolicy, FixedDepth
from edgeseq_runtime.state import DecoderState
from in_turn import size_options

SHAPE = Shape(batch_size=1, source_length=20, target_length=25)
SENTENCES_A_TURN = 8


class BlockByBlock(Engine):
    """An engine that decodes a sentence alone as it decodes a batch."""

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool = True) -> DecoderState:
        """Gives a state that takes no whole steps."""
        del alone
        return super().encode(sources, policy, alone=False)


def policies_of(facts: ModelFacts, halting: DepthPolicy) -> list[DepthPolicy]:
    """Full depth, an average of 2.4, and depth 1."""
    blocks = facts.decoder_blocks
    depths = scale_trace(2.4, blocks, 1, SHAPE.target_length)
    return [FixedDepth("full", facts, blocks), Replayed("2.4", depths, halting), FixedDepth("1", facts, 1)]


@click.command(help=__doc__)
@size_options
@click.option("--compute-type", "compute_types", multiple=True, default=("int8", "int8-weights", "int4"))
@click.option("--rounds", type=int, default=15, show_default=True)
def main(dim: int, ffn: int, vocab: int, blocks: int, compute_types: tuple[str, ...], rounds: int) -> None:
    """Measures and prints a table in Markdown; the module's description is the command's help."""
    click.echo("| compute type | depth | block by block, ms | whole steps, ms | times as fast |\n|---|---|---|---|---|")
    for compute_type in compute_types:
        with tempfile.TemporaryDirectory() as name:
            model = write_random_model(Path(name), RandomSizes(dim, ffn, vocab, blocks, blocks), compute_type)  # type: ignore[arg-type]
            gc.freeze()  # the collector would walk over all that torch has loaded in the middle of a decode
            sources = draw_sources(SHAPE, vocab, seed=1)
            engines = [kind(Path(name), model.facts, "cpu") for kind in (BlockByBlock, Engine)]
            for policy in policies_of(model.facts, model.halting_policy()):
                decodes = [decode_once(engine, sources, policy, SHAPE) for engine in engines]
                seconds: list[list[float]] = [[], []]
                for number in range(rounds + 1):
                    for decode, kept in zip(decodes, seconds, strict=True):
                        measured = [decode() for _ in range(SENTENCES_A_TURN)]
                        kept.extend(measured if number else [])
                slow, fast = map(statistics.median, seconds)
                click.echo(
                    f"| {compute_type} | {policy.name} | {1000 * slow:.2f} | {1000 * fast:.2f} | {slow / fast:.2f} |"
                )


if __name__ == "__main__":
    main()
