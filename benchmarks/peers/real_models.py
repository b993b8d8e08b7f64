r"""Real models on a test set: bundles of edgeseq, and CTranslate2's int8 Transformers of training runs of edgeseq.

Each contestant translates the same text, in turn, one thread each: quality and speed per batch size and beam; then in a
fresh process each (on Linux), time to load, the time that half of the sentences and 19 in 20 stay below when they
come alone, and peak memory. CTranslate2 uses oneDNN: MKL is far slower on AMD, and would be the better choice on Intel.

    pip install -r benchmarks/peers/requirements.txt
    python benchmarks/peers/real_models.py --bundle int8.bundle --depth full --depth adaptive \
        --transformer runs/6-6 --transformer runs/6-2 --src test.en --ref test.de
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CT2_USE_MKL", "0")  # read when the library is loaded

import click
import numpy as np

Translate = Callable[[list[str], int, int], list[str]]
"""Lines, batch size and beam size to translations."""

LATENCY_SENTENCES = 300


@dataclass(frozen=True)
class Contestant:
    """Something that translates. Is sent to other processes."""

    name: str
    model: Path
    """A bundle, or CTranslate2's folder with tokenizer.model beside it."""
    depth: str | None
    """Of a bundle; None for CTranslate2."""

    def load(self) -> Translate:
        """Makes it ready."""
        return _load_bundle(self.model, self.depth) if self.depth else _load_transformer(self.model)


def _load_bundle(model: Path, depth: str) -> Translate:
    from edgeseq_runtime import Translator

    translator = Translator(model, depth=depth, device="cpu")

    def translate(lines: list[str], batch_size: int, beam_size: int) -> list[str]:
        return [found.text for found in translator.translate(lines, batch_size=batch_size, beam=beam_size)]

    return translate


def _load_transformer(model: Path) -> Translate:
    import ctranslate2

    from edgeseq_runtime.tokenizer import Tokenizer

    translator = ctranslate2.Translator(str(model), device="cpu", compute_type="int8", inter_threads=1, intra_threads=1)
    tokenizer = Tokenizer(model / "tokenizer.model")
    ids = {piece: number for number, piece in enumerate(tokenizer.pieces(list(range(tokenizer.vocab_size))))}

    def translate(lines: list[str], batch_size: int, beam_size: int) -> list[str]:
        sources = [[*tokenizer.pieces(tokenizer.encode(line)), "</s>"] for line in lines]
        found = translator.translate_batch(
            sources, beam_size=beam_size, max_batch_size=batch_size, max_decoding_length=128
        )
        return [tokenizer.decode([ids[piece] for piece in result.hypotheses[0]]) for result in found]

    return translate


def time_in_turn(
    loaded: dict[str, Translate], lines: list[str], batch_size: int, beam_size: int, rounds: int
) -> dict[str, float]:
    """Median seconds of each over the lines, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    for number in range(rounds + 1):
        for name, translate in loaded.items():
            started = time.perf_counter()
            if batch_size == 1:
                for line in lines:
                    translate([line], 1, beam_size)
            else:
                translate(lines, batch_size, beam_size)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def alone(contestant: Contestant, lines: list[str]) -> tuple[float, list[float], float]:
    """Seconds to load, seconds of each sentence, and peak memory in MiB; to be called in a process of its own."""
    started = time.perf_counter()
    translate = contestant.load()
    loading = time.perf_counter() - started
    seconds = []
    for line in lines:
        started = time.perf_counter()
        translate([line], 1, 1)
        seconds.append(time.perf_counter() - started)
    return loading, seconds, peak_memory()


def peak_memory() -> float:
    """Of this process, in MiB; not that of the process that has started it, which getrusage tells of."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def size_on_disk(folder: Path) -> float:
    """In MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


@click.command(help=__doc__)
@click.option("--bundle", "bundles", type=click.Path(exists=True, path_type=Path), multiple=True, required=True)
@click.option("--depth", "depths", multiple=True, default=("full", "adaptive"), show_default=True)
@click.option("--transformer", "runs", type=click.Path(exists=True, path_type=Path), multiple=True, required=True)
@click.option("--src", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--ref", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--batch-size", "batch_sizes", type=int, multiple=True, default=(1, 32), show_default=True)
@click.option("--beam-size", "beam_sizes", type=int, multiple=True, default=(1, 4), show_default=True)
@click.option("--sentences", type=int, default=300, show_default=True, help="Sentences of a timed round.")
@click.option("--rounds", type=int, default=5, show_default=True)
def main(
    bundles: tuple[Path, ...],
    depths: tuple[str, ...],
    runs: tuple[Path, ...],
    src: Path,
    ref: Path,
    batch_sizes: tuple[int, ...],
    beam_sizes: tuple[int, ...],
    sentences: int,
    rounds: int,
) -> None:
    """Measures and prints tables in Markdown; the module's description is the command's help."""
    from ctranslate2_models import convert_run
    from edgeseq.data.text import read_parallel
    from edgeseq.evaluation.scores import score_corpus

    sources, references = map(list, zip(*read_parallel(src, ref), strict=True))
    with tempfile.TemporaryDirectory() as name:
        contestants = []
        for run in runs:
            folder = Path(name) / run.name
            convert_run(run, folder)
            (folder / "tokenizer.model").write_bytes((run / "tokenizer.model").read_bytes())
            contestants.append(Contestant(f"CTranslate2 int8 {run.name}", folder, None))
        contestants += [
            Contestant(f"edgeseq {bundle.stem} {depth}", bundle, depth) for bundle in bundles for depth in depths
        ]
        loaded = {contestant.name: contestant.load() for contestant in contestants}
        gc.freeze()  # the collector would walk over all that torch has loaded in the middle of a decode
        click.echo(
            "| system | beam | BLEU | chrF | " + " | ".join(f"batch {n}, sentences/s" for n in batch_sizes) + " |"
        )
        click.echo("|---" * (4 + len(batch_sizes)) + "|")
        for beam_size in beam_sizes:
            seconds = {n: time_in_turn(loaded, sources[:sentences], n, beam_size, rounds) for n in batch_sizes}
            for system, translate in loaded.items():
                scores = score_corpus(translate(sources, 32, beam_size), references)
                speeds = " | ".join(f"{sentences / seconds[n][system]:,.0f}" for n in batch_sizes)
                click.echo(f"| {system} | {beam_size} | {scores.bleu:.2f} | {scores.chrf:.2f} | {speeds} |")
        click.echo(
            "\n| system | load, ms | p50, ms | p95, ms | peak memory, MiB | on disk, MiB |\n|---|---|---|---|---|---|"
        )
        context = multiprocessing.get_context("spawn")
        for contestant in contestants:
            with context.Pool(1) as pool:
                loading, times, memory = pool.apply(alone, (contestant, sources[:LATENCY_SENTENCES]))
            middle, late = np.percentile(times, [50, 95])
            click.echo(
                f"| {contestant.name} | {1000 * loading:.0f} | {1000 * middle:.2f} | {1000 * late:.2f} "
                f"| {memory:.0f} | {size_on_disk(contestant.model):.1f} |"
            )


if __name__ == "__main__":
    main()
