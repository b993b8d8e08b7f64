"""Memory over a long run: peak and present size of a process that translates lines of shuffled lengths.

Lines are words of TEXT, 1 to 200 of them. The first lines, which are not counted, have 200 words each: the largest
shape. On Linux.

    python benchmarks/memory.py int8.bundle examples/tatoeba_en_de/test.en --lines 100000
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import click

from edgeseq_runtime import Translator

LONGEST = 200
WARM_UP_LINES = 1024
SEED = 1


def draw_lines(words: list[str], count: int) -> Iterator[str]:
    """Gives the long lines, then lines of any length."""
    generator = random.Random(SEED)
    lengths = itertools.chain(
        itertools.repeat(LONGEST, WARM_UP_LINES), (generator.randint(1, LONGEST) for _ in range(count))
    )
    for length in lengths:
        yield " ".join(generator.choices(words, k=length))


def memory() -> tuple[float, float]:
    """Peak and present size of this process, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak, present = (int(status.partition(name)[2].split()[0]) / 1024 for name in ("VmHWM:", "VmRSS:"))
    return peak, present


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("text", type=click.Path(exists=True, path_type=Path))
@click.option("--lines", type=int, default=100_000, show_default=True)
@click.option("--depth", default="adaptive", show_default=True)
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--max-length", type=int, default=60, show_default=True, help="Most tokens of a translation: for time.")
def main(bundle: Path, text: Path, lines: int, depth: str, batch_size: int, max_length: int) -> None:
    """Measures and prints a table; the module's description is the command's help."""
    words = text.read_text(encoding="utf-8").split()
    translator = Translator(bundle, depth=depth, device="cpu")
    results = translator.translate_iter(draw_lines(words, lines), batch_size=batch_size, max_length=max_length)
    click.echo("| sentences | peak, MiB | present, MiB | minutes |\n|---|---|---|---|")
    started = time.monotonic()
    shown = {0, 1000, 2000, 5000, *range(10_000, lines, 10_000), lines}
    for number, _ in enumerate(results, start=1 - WARM_UP_LINES):
        if number in shown:
            peak, present = memory()
            click.echo(f"| {number:,} | {peak:.1f} | {present:.1f} | {(time.monotonic() - started) / 60:.1f} |")


if __name__ == "__main__":
    main()
