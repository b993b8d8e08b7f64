"""What shortlists save of whole decodes: with one of about 600 pieces a sentence, and without.

Random weights, greedy, one thread; both in turn in one process, encoder and the choice of candidates included.

    python benchmarks/shortlist_decodes.py --dim 512 --ffn 2048 --vocab 32000
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import click

from edgeseq.bench.timing import Shape, decode_once, draw_sources
from edgeseq_export.random_models import RandomSizes, write_random_model
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.policy import FixedDepth
from edgeseq_runtime.records import ComputeTypeName
from in_turn import median_milliseconds, size_options

SENTENCES_A_TURN = 8


@click.command(help=__doc__)
@size_options
@click.option("--compute-type", "compute_types", multiple=True, default=("int8", "int8-weights"), show_default=True)
@click.option("--batch-size", "batch_sizes", type=int, multiple=True, default=(1, 32), show_default=True)
@click.option("--depth", "depths", type=int, multiple=True, default=(6, 2, 1), show_default=True)
@click.option("--rounds", type=int, default=9, show_default=True)
def main(
    dim: int,
    ffn: int,
    vocab: int,
    blocks: int,
    compute_types: tuple[ComputeTypeName, ...],
    batch_sizes: tuple[int, ...],
    depths: tuple[int, ...],
    rounds: int,
) -> None:
    """Measures and prints a table in Markdown; the module's description is the command's help."""
    click.echo(
        "| compute type | batch | depth | whole vocabulary, ms a sentence | shortlist, ms | times as fast |\n"
        "|---|---|---|---|---|---|"
    )
    for compute_type in compute_types:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = write_random_model(
                folder, RandomSizes(dim, ffn, vocab, blocks, blocks), compute_type, shortlist=True
            )
            engines = [Engine(folder, model.facts, "cpu", shortlist) for shortlist in (None, model.shortlist)]
            for batch_size in batch_sizes:
                shape = Shape(batch_size, source_length=20, target_length=25)
                sources = draw_sources(shape, vocab, seed=1)
                for depth in depths:
                    policy = FixedDepth(str(depth), model.facts, depth)
                    ways = [decode_once(engine, sources, policy, shape) for engine in engines]
                    calls = max(1, SENTENCES_A_TURN // batch_size)
                    whole, listed = (time / batch_size for time in median_milliseconds(ways, rounds, calls))
                    numbers = f"{whole:.2f} | {listed:.2f} | {whole / listed:.2f}"
                    click.echo(f"| {compute_type} | {batch_size} | {depth} | {numbers} |")


if __name__ == "__main__":
    main()
