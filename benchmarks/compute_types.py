"""What bundles of one model in different compute types cost and give: size, time to load, BLEU, chrF, and time.

Bundles translate in turn, some sentences each, so that a slow phase of the machine meets all of them; medians of the
rounds are printed, as a table in Markdown.

    python benchmarks/compute_types.py float32.bundle int8.bundle --depth full --depth adaptive \
        --src examples/tatoeba_en_de/test.en --ref examples/tatoeba_en_de/test.de
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import click

from edgeseq.data.text import read_parallel
from edgeseq.evaluation.scores import score_corpus
from edgeseq_runtime import Translator

COLUMNS = ("depth", "compute type", "MiB", "load, ms", "BLEU", "chrF", "average depth", "batch 1", "batch 32")
BATCH_SIZES = (1, 32)


def load_in_turn(paths: Sequence[Path], rounds: int) -> list[float]:
    """Gives the median milliseconds until a Translator of each bundle has translated a sentence."""
    measured: list[list[float]] = [[] for _ in paths]
    for number in range(rounds + 1):
        for path, values in zip(paths, measured, strict=True):
            started = time.perf_counter()
            Translator(path, device="cpu").translate("1")
            if number:  # the first round imports onnxruntime
                values.append(1000 * (time.perf_counter() - started))
    return [statistics.median(values) for values in measured]


def time_in_turn(
    translators: list[Translator], sources: list[str], depth: str, batch_size: int, rounds: int
) -> list[float]:
    """Gives the median milliseconds per sentence of each bundle."""
    measured: list[list[float]] = [[] for _ in translators]
    for number in range(rounds + 1):
        for translator, values in zip(translators, measured, strict=True):
            started = time.perf_counter()
            translator.translate(sources, batch_size=batch_size, depth=depth)
            if number:  # the first round warms up
                values.append(1000 * (time.perf_counter() - started) / len(sources))
    return [statistics.median(values) for values in measured]


@click.command(help=__doc__)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--src", type=click.Path(path_type=Path), required=True)
@click.option("--ref", type=click.Path(path_type=Path), required=True)
@click.option("--depth", "depths", multiple=True, default=("full", "adaptive"), show_default=True)
@click.option("--sentences", type=int, default=400, show_default=True, help="Sentences of a timed round.")
@click.option("--rounds", type=int, default=5, show_default=True)
def main(bundles: tuple[Path, ...], src: Path, ref: Path, depths: tuple[str, ...], sentences: int, rounds: int) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    sources, references = map(list, zip(*read_parallel(src, ref), strict=True))
    loading = load_in_turn(bundles, rounds)
    translators = [Translator(path, device="cpu") for path in bundles]
    click.echo("| " + " | ".join(COLUMNS) + " |")
    click.echo("|---" * len(COLUMNS) + "|")
    for depth in depths:
        times = [time_in_turn(translators, sources[:sentences], depth, size, rounds) for size in BATCH_SIZES]
        for translator, load_ms, alone, together in zip(translators, loading, *times, strict=True):
            translations = translator.translate(sources, depth=depth)
            scores = score_corpus([translation.text for translation in translations], references)
            used = [block for translation in translations for block in translation.depths]
            size = sum(entry.size for entry in translator.manifest.entries)
            click.echo(
                f"| {depth} | {translator.manifest.compute_type} | {size / 2**20:.1f} | {load_ms:.0f} "
                f"| {scores.bleu:.2f} | {scores.chrf:.2f} | {sum(used) / len(used):.2f} "
                f"| {alone:.2f} | {together:.2f} |"
            )
    click.echo("\nThe last two columns are milliseconds per sentence.")
    click.echo(f"{scores.bleu_signature}, {scores.chrf_signature}, {translators[0].signature(depths[0])}")


if __name__ == "__main__":
    main()
