"""Whether rivals run the very same model: how many lines they translate as torch's reference decoder does, greedily.

The reference recomputes everything for every token. In float32 all should agree but for ties of rounding; a rival of
8 bits is another model.

    python benchmarks/peers/agreement.py --rival ctranslate2-float32 runs/6-6 --src test.en --models runs/fight/models
"""

from __future__ import annotations

from pathlib import Path

import click

from contestants import RIVALS, prepare_rival
from edgeseq.models.reference import reference_decode, stop_at
from edgeseq_runtime.search import output_limit
from edgeseq_runtime.tokenizer import EOS_ID
from transformer_modules import load_transformer
from workers import Worker

EXISTING = click.Path(exists=True, path_type=Path)
BATCH_SIZE = 32


def reference_translations(run: Path, lines: list[str]) -> list[str]:
    """One line at a time."""
    tokenizer, model = load_transformer(run)
    sources = [[*tokenizer.encode(line), EOS_ID] for line in lines]
    rule = stop_at(len(model.decoder.blocks))
    found = [reference_decode(model, [source], rule, [output_limit(len(source))])[0][0] for source in sources]
    return [tokenizer.decode(tokens) for tokens in found]


@click.command(help=__doc__)
@click.option("--rival", "rivals", type=(click.Choice(list(RIVALS)), EXISTING), multiple=True, required=True)
@click.option("--src", type=EXISTING, required=True)
@click.option("--models", type=click.Path(path_type=Path), required=True, help="Where rivals' forms of runs are kept.")
@click.option("--sentences", type=int, default=50, show_default=True)
def main(rivals: tuple[tuple[str, Path], ...], src: Path, models: Path, sentences: int) -> None:
    """Compares; the module's description is the command's help."""
    lines = src.read_text(encoding="utf-8").splitlines()[:sentences]
    expected = {run: reference_translations(run, lines) for run in {run for _, run in rivals}}
    click.echo("| system | model | alone, the same | in batches, the same | lines |\n|---|---|---|---|---|")
    for system, run in rivals:
        contestant = prepare_rival(system, run, models)
        with Worker(contestant, 1, lines[0]) as worker:
            same = [
                sum(
                    one.text == text
                    for one, text in zip(worker.translate(lines, size, 1).translations, expected[run], strict=True)
                )
                for size in (1, BATCH_SIZE)
            ]
        click.echo(f"| {system} | {run.name} | {same[0]} | {same[1]} | {len(lines)} |")


if __name__ == "__main__":
    main()
