"""What speculative depth saves of whole decodes of sentences alone: drafts by block 1, against full depth.

Random weights, one thread, both in turn in one process, encoder included. Random weights agree on nothing, so whether
the upper blocks agree with a draft is drawn, with a chance that was measured with real models (docs/results.md);
everything is computed all the same. Drafts come from a shortlist where there is one; what is verified never does.

    python benchmarks/speculative_depth.py --dim 512 --ffn 2048 --vocab 32000 --agreement 0.89

Or a bundle's own agreement, on lines of text:

    python benchmarks/speculative_depth.py --bundle int8.bundle --src examples/tatoeba_en_de/test.en
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"

import click

from edgeseq.bench.timing import Shape, decode_once, draw_sources
from edgeseq_export.random_models import RandomSizes, write_random_model
from edgeseq_runtime import Translator
from edgeseq_runtime.bundle import load_bundle
from edgeseq_runtime.engine import Engine
from edgeseq_runtime.policy import FixedDepth, Speculative
from edgeseq_runtime.records import ComputeTypeName
from edgeseq_runtime.speculation import Speculation
from in_turn import median_milliseconds, size_options

SENTENCES_A_TURN = 4


def drawn_agreement(chance: float) -> type[Speculation]:
    """Speculation that verifies drafts and then lets chance decide which of them are right."""

    class Drawn(Speculation):
        chances = random.Random(1)

        def _draft(self, token: int, most: int, never: Sequence[int]) -> list[int]:
            self._newest = super()._draft(token, most, never)
            return self._newest

        def _verify(self, count: int, never: Sequence[int]) -> list[int]:
            super()._verify(count, never)
            # Any other token will do where they do not agree.
            return [draft if self.chances.random() < chance else draft ^ 1 for draft in self._newest]

    return Drawn


def measure_bundle(bundle: Path, lines: list[str], rounds: int) -> None:
    """Translates lines alone at full depth and by drafts of each block, in turn, and prints a table."""
    blocks = load_bundle(bundle).manifest.model.decoder_blocks
    names = ["full", *(f"speculative:{block}" for block in range(1, blocks))]
    translators = [Translator(bundle, depth=name, device="cpu") for name in names]
    found: dict[str, list[float]] = {name: [] for name in names}
    counted: dict[str, list[Speculation]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name, translator in zip(names, translators, strict=True):
            with mock.patch("edgeseq_runtime.engine.Speculation", side_effect=remember(counted[name])):
                started = time.perf_counter()
                for line in lines:
                    translator.translate(line)
                found[name].append(1000 * (time.perf_counter() - started) / len(lines))
    full = statistics.median(found["full"][1:])
    click.echo("| depth | ms a sentence | times as fast | tokens per verification |\n|---|---|---|---|")
    for name in names:
        taken = statistics.median(found[name][1:])
        verifications = sum(each.verifications for each in counted[name])
        accepted = sum(each.accepted for each in counted[name])
        per_verification = f"{accepted / verifications:.2f}" if verifications else "–"
        click.echo(f"| {name} | {taken:.2f} | {full / taken:.2f} | {per_verification} |")


def remember(made: list[Speculation]) -> Callable[..., Speculation]:
    """Makes speculations and keeps them, for their counts."""

    def make(*arguments: Any) -> Speculation:
        made.append(Speculation(*arguments))
        return made[-1]

    return make


@click.command(help=__doc__)
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="In place of random weights.")
@click.option("--src", type=click.Path(exists=True, path_type=Path), help="Lines to translate with it.")
@click.option("--sentences", type=int, default=200, show_default=True, help="How many of them.")
@size_options
@click.option("--compute-type", "compute_types", multiple=True, default=("int8", "int8-weights"), show_default=True)
@click.option("--agreement", type=float, default=0.89, show_default=True, help="Chance that a draft is right.")
@click.option("--rounds", type=int, default=9, show_default=True)
def main(
    bundle: Path | None,
    src: Path | None,
    sentences: int,
    dim: int,
    ffn: int,
    vocab: int,
    blocks: int,
    compute_types: tuple[ComputeTypeName, ...],
    agreement: float,
    rounds: int,
) -> None:
    """Measures and prints a table in Markdown; the module's description is the command's help."""
    if bundle is not None:
        if src is None:
            raise click.UsageError("--bundle needs lines to translate: give --src")
        measure_bundle(bundle, src.read_text(encoding="utf-8").splitlines()[:sentences], rounds)
        return
    click.echo(
        "| compute type | full depth, ms a sentence | speculative, ms | times as fast | "
        "drafts from a shortlist, ms | times as fast |\n|---|---|---|---|---|---|"
    )
    shape = Shape(1, source_length=20, target_length=25)
    sources = draw_sources(shape, vocab, seed=1)
    for compute_type in compute_types:
        with (
            tempfile.TemporaryDirectory() as name,
            mock.patch("edgeseq_runtime.engine.Speculation", drawn_agreement(agreement)),
        ):
            folder = Path(name)
            model = write_random_model(
                folder, RandomSizes(dim, ffn, vocab, blocks, blocks), compute_type, shortlist=True
            )
            plain, listed = (Engine(folder, model.facts, "cpu", None, drafts) for drafts in (None, model.shortlist))
            speculative = Speculative(model.facts, 1)
            ways = [
                decode_once(plain, sources, FixedDepth("full", model.facts, blocks), shape),
                decode_once(plain, sources, speculative, shape),
                decode_once(listed, sources, speculative, shape),
            ]
            full, drafted, shortlisted = median_milliseconds(ways, rounds, SENTENCES_A_TURN)
            click.echo(
                f"| {compute_type} | {full:.2f} | {drafted:.2f} | {full / drafted:.2f} | {shortlisted:.2f} | "
                f"{full / shortlisted:.2f} |"
            )


if __name__ == "__main__":
    main()
