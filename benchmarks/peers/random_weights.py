"""Speed of random weights: `edgeseq bench --random` and CTranslate2's int8 Transformer of the same sizes, in turn.

Both decode greedily, whole batches of one source and target length, and no sentence ends by itself. CTranslate2 runs a
Transformer with self-attention in both stacks, edgeseq one with dynamic convolutions, at full depth and at average
depths to which those of a real model's tokens are scaled. On AMD CTranslate2 uses oneDNN.

    pip install -r benchmarks/peers/requirements.txt
    python benchmarks/peers/random_weights.py --dim 256 --ffn 1024 --vocab 8000
    python benchmarks/peers/random_weights.py --dim 512 --ffn 2048 --vocab 32000
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import ctranslate2

from ctranslate2_models import SPECIAL_PIECES, write_random_transformer
from edgeseq.bench.depths import Replayed, scale_trace
from edgeseq.bench.timing import Shape, decode_once, draw_sources
from edgeseq_export.random_models import RandomSizes, write_random_model
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.policy import DepthPolicy, FixedDepth

SOURCE_LENGTH = 20
TARGET_LENGTH = 25
TURN_SENTENCES = 16


def time_in_turn(contestants: dict[str, Callable[[], float]], batch_size: int, rounds: int) -> dict[str, float]:
    """Runs all of them in each round, after one that does not count, and gives the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, decode in contestants.items():
            for _ in range(max(1, TURN_SENTENCES // batch_size)):
                elapsed = decode()
                if number:
                    seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peer(translator: ctranslate2.Translator, sources: Sequence[Sequence[int]], shape: Shape) -> Callable[[], float]:
    """CTranslate2 as a contestant."""
    batch = [[*(f"piece{piece}" for piece in source[:-1]), SPECIAL_PIECES[3]] for source in sources]

    def decode() -> float:
        started = time.perf_counter()
        results = translator.translate_batch(
            batch,
            beam_size=1,
            max_decoding_length=shape.target_length,
            min_decoding_length=shape.target_length,
            max_batch_size=shape.batch_size,
        )
        elapsed = time.perf_counter() - started
        assert all(len(result.hypotheses[0]) == shape.target_length for result in results)
        return elapsed

    return decode


@click.command(help=__doc__)
@click.option("--dim", type=int, default=256, show_default=True)
@click.option("--ffn", type=int, default=1024, show_default=True)
@click.option("--vocab", type=int, default=8000, show_default=True)
@click.option("--blocks", type=int, default=6, show_default=True, help="Of each stack.")
@click.option("--compute-type", "compute_types", multiple=True, default=("int8", "int8-weights"), show_default=True)
@click.option("--batch-size", "batch_sizes", type=int, multiple=True, default=(1, 32), show_default=True)
@click.option("--average", "averages", type=float, multiple=True, default=(2.4,), show_default=True)
@click.option("--rounds", type=int, default=7, show_default=True)
def main(
    dim: int,
    ffn: int,
    vocab: int,
    blocks: int,
    compute_types: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    averages: tuple[float, ...],
    rounds: int,
) -> None:
    """Measures and prints a table in Markdown; the module's description is the command's help."""
    sizes = RandomSizes(dim, ffn, vocab, blocks, blocks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_transformer(folder / "ctranslate2", sizes)
        translator = ctranslate2.Translator(
            str(folder / "ctranslate2"), device="cpu", compute_type="int8", inter_threads=1, intra_threads=1
        )
        models, engines = {}, {}
        for compute_type in compute_types:
            (folder / compute_type).mkdir()
            models[compute_type] = write_random_model(folder / compute_type, sizes, compute_type)  # type: ignore[arg-type]
            engines[compute_type] = Engine(folder / compute_type, models[compute_type].facts, "cpu")
        gc.freeze()  # the collector would walk over all that torch has loaded in the middle of a decode
        click.echo(f"width {dim}, feed-forward {ffn}, vocabulary {vocab}, {blocks}-{blocks} blocks, one thread\n")
        click.echo(
            "| batch | system | depth | ms per sentence | tokens/s | times CTranslate2 |\n|---|---|---|---|---|---|"
        )
        for batch_size in batch_sizes:
            shape = Shape(batch_size, SOURCE_LENGTH, TARGET_LENGTH)
            sources = draw_sources(shape, vocab, seed=1)
            contestants = {("CTranslate2 int8", "full"): peer(translator, sources, shape)}
            for compute_type, engine in engines.items():
                model = models[compute_type]
                policies: list[DepthPolicy] = [FixedDepth("full", model.facts, blocks)]
                for average in averages:
                    scaled = scale_trace(average, blocks, batch_size, TARGET_LENGTH)
                    policies.append(Replayed(f"{average:g}", scaled, model.halting_policy()))
                for policy in policies:
                    contestants[f"edgeseq {compute_type}", policy.name] = decode_once(engine, sources, policy, shape)
            seconds = time_in_turn({" / ".join(key): decode for key, decode in contestants.items()}, batch_size, rounds)
            baseline = next(iter(seconds.values()))
            for (system, depth), median in zip(contestants, seconds.values(), strict=True):
                click.echo(
                    f"| {batch_size} | {system} | {depth} | {1000 * median / batch_size:.2f} "
                    f"| {batch_size * TARGET_LENGTH / median:,.0f} | {baseline / median:.2f} |"
                )


if __name__ == "__main__":
    main()
