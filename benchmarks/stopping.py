"""How well tokens stop: BLEU and average depth of training runs at several thresholds, by the reference decoder.

Beside each stands how far it lies above the line between the fixed depths around its average depth. Two rules that no
bundle has give the frame: `confidence`, the paper's threshold on the largest probability, which needs a classifier on
every block that is visited; and `agreement`, which looks ahead and stops where the last block will say the same.

    python benchmarks/stopping.py runs/one runs/other --src valid.en --ref valid.de --threshold 0.9 --threshold 0.95
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

from edgeseq.data.text import read_parallel
from edgeseq.evaluation.scores import score_corpus
from edgeseq.models import Seq2Seq
from edgeseq.models.reference import StopRule, stop_at, stop_by_confidence, stop_by_halting
from edgeseq.training.run import load_run
from edgeseq.training.validation import translate_ids
from edgeseq_runtime.tokenizer import EOS_ID, Tokenizer

_PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.argument("runs", nargs=-1, required=True, type=_PATH)
@click.option("--src", type=_PATH, required=True)
@click.option("--ref", type=_PATH, required=True)
@click.option("--threshold", "thresholds", type=float, multiple=True, required=True)
@click.option("--sentences", default=500, show_default=True, help="Pairs from the start of the files.")
@click.option("--frame", is_flag=True, help="Also confidence and agreement, for the first run.")
def main(
    runs: tuple[Path, ...], src: Path, ref: Path, thresholds: tuple[float, ...], sentences: int, frame: bool
) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    pairs = list(read_parallel(src, ref))[:sentences]
    click.echo("| run | rule | average depth | BLEU | above the line | % at depths 1 to N |")
    click.echo("|---|---|---|---|---|---|")
    for number, run in enumerate(runs):
        _, tokenizer, model = load_run(run)
        table = Table(run.name, model, tokenizer, pairs)
        for depth in range(1, len(model.decoder.blocks) + 1):
            table.add(str(depth), stop_at(depth))
        blocks = len(model.decoder.blocks)
        rules = {
            f"halting:{threshold:g}": stop_by_halting(model, "halting", [threshold] * (blocks - 1))
            for threshold in thresholds
        }
        if frame and number == 0:
            for threshold in (0.5, 0.7, 0.9):
                rules[f"confidence:{threshold:g}"] = stop_by_confidence(model, [threshold] * (blocks - 1))
            rules["agreement"] = StopRule(blocks, agreeing(model))
        for name, rule in rules.items():
            table.add(name, rule)


class Table:
    """Rows of one run; the fixed depths come first."""

    def __init__(self, name: str, model: Seq2Seq, tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.sources = [[*tokenizer.encode(source), EOS_ID] for source, _ in pairs]
        self.references = [reference for _, reference in pairs]
        self.fixed: dict[int, float] = {}

    def add(self, name: str, rule: StopRule) -> None:
        """Decodes with a rule and prints its row."""
        results = list(translate_ids(self.model, self.sources, rule))
        depths = [depth for _, used in results for depth in used]
        bleu = score_corpus([self.tokenizer.decode(tokens) for tokens, _ in results], self.references).bleu
        average = sum(depths) / len(depths)
        if name.isdigit():
            self.fixed[int(name)] = bleu
            gain = "–"
        else:
            below, above = math.floor(average), math.ceil(average)
            gain = f"{bleu - self.fixed[below] - (average - below) * (self.fixed[above] - self.fixed[below]):+.2f}"
        blocks = len(self.model.decoder.blocks)
        shares = " ".join(f"{100 * depths.count(n) / len(depths):.0f}" for n in range(1, blocks + 1))
        click.echo(f"| {self.name} | {name} | {average:.2f} | {bleu:.2f} | {gain} | {shares} |")


def agreeing(model: Seq2Seq) -> Callable[[list[Tensor], Tensor], Tensor]:
    """Stops at the first block whose choice is that of the last."""

    def choose(states: list[Tensor], _: Tensor) -> Tensor:
        choices = [model.decoder.exit_heads(state, block).argmax(-1) for block, state in enumerate(states, start=1)]
        return first(torch.stack([choice == choices[-1] for choice in choices[:-1]], dim=-1))

    return choose


def first(stops: Tensor) -> Tensor:
    """Returns the depth of the first True of each row, one more than there are where there is none."""
    return 1 + torch.cumprod((~stops).long(), dim=-1).sum(-1)


if __name__ == "__main__":
    main()
