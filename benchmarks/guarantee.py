"""Whether guarantees hold: Learn then Test on a thousand random splits of real sentences, and what it costs in depth.

Every policy decodes all sentences once. Each split parts them at random: a quarter orders the policies, a quarter tests
them, the rest is unseen. A violation is a chosen policy whose mean loss exceeds delta: over all sentences, of which the
split is a sample (the expected loss that the guarantee speaks of), and, with the noise of a sample of its own, over the
unseen ones. The control leaves the test out: it takes the cheapest policy whose mean loss on the same quarter is within
delta. With each delta comes a hard one, just below the expected loss of a policy: where all policies lie far from
delta, anyone keeps the guarantee. Prints a table in Markdown.

    python benchmarks/guarantee.py en-de.bundle --propose examples/tatoeba_en_de/sample.en.xz \
        --pairs examples/tatoeba_en_de/valid.en examples/tatoeba_en_de/valid.de \
        --pairs examples/tatoeba_en_de/test.en examples/tatoeba_en_de/test.de
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from edgeseq.cli.streams import log_to_stderr
from edgeseq.data.text import read_lines, read_parallel
from edgeseq.evaluation.guarantees import sentence_losses
from edgeseq.evaluation.learn_then_test import Floats, binomial_cdf, choose_guaranteed, safest_first
from edgeseq.evaluation.measuring import Text, decode_policies
from edgeseq.evaluation.operating_points import FULL, propose_policies
from edgeseq_runtime import Translator
from edgeseq_runtime.atomic import write_file

_PATH = click.Path(path_type=Path)
_LOSSES = ("chrf-drop", "disagreement")
_CONFIDENCE = 0.99  # of the bound on the violations of that many splits

COLUMNS = (
    "loss",
    "delta",
    "epsilon",
    "average depth",
    "violations, expected",
    "unseen",
    "allowed",
    "without test: average depth",
    "violations, expected",
    "unseen",
)


@dataclass(frozen=True)
class Decodes:
    """What each of P policies did on each of S sentences; full depth comes first."""

    losses: dict[str, Floats]
    """Loss to (S, P)."""
    depth_sums: Floats
    """(S, P): blocks used."""
    token_counts: Floats
    """(S, P)."""

    def average_depth(self, sentences: NDArray[np.int64]) -> Floats:
        """Blocks per token over some sentences: (P,)."""
        depth: Floats = self.depth_sums[sentences].sum(axis=0) / self.token_counts[sentences].sum(axis=0)
        return depth


@dataclass
class Tally:
    """Of one way to choose, over all splits."""

    depth: float = 0.0
    expected: int = 0
    unseen: int = 0


@click.command(help=__doc__)
@click.argument("bundle", type=_PATH)
@click.option("--propose", type=_PATH, required=True, help="Source text to propose policies on; none of the pairs.")
@click.option(
    "--pairs", type=(_PATH, _PATH), multiple=True, required=True, metavar="SRC REF", help="Sentences to part."
)
@click.option("--delta", "deltas", type=float, multiple=True, default=(0.01, 0.02, 0.05, 0.1), show_default=True)
@click.option("--epsilon", "epsilons", type=float, multiple=True, default=(0.05, 0.2), show_default=True)
@click.option("--proposals", default=12, show_default=True, help="Most policies of each predictor.")
@click.option("--splits", default=1000, show_default=True)
@click.option("--cache", type=_PATH, help="File (.npz) that keeps the decodes; read where it exists.")
@click.option("--seed", default=0, show_default=True)
def main(
    bundle: Path,
    propose: Path,
    pairs: tuple[tuple[Path, Path], ...],
    deltas: tuple[float, ...],
    epsilons: tuple[float, ...],
    proposals: int,
    splits: int,
    cache: Path | None,
    seed: int,
) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    log_to_stderr()
    if cache is not None and cache.exists():
        decodes = load(cache)
    else:
        decodes = decode(bundle, propose, pairs, proposals, seed)
        if cache is not None:
            save(cache, decodes)
    click.echo("| " + " | ".join(COLUMNS) + " |")
    click.echo("|---" * len(COLUMNS) + "|")
    rows = [(loss, delta) for loss in _LOSSES for delta in (*deltas, *hard_deltas(decodes, loss, deltas))]
    for (loss, delta), epsilon in itertools.product(rows, epsilons):
        tested, untested = run_splits(decodes, loss, delta, epsilon, splits, seed)
        cells = [loss, f"{delta:.4g}", f"{epsilon:g}"]
        cells += [f"{tested.depth / splits:.2f}", f"{tested.expected / splits:.1%}", f"{tested.unseen / splits:.1%}"]
        cells.append(f"{allowed(splits, epsilon) / splits:.1%}")
        cells += [f"{untested.depth / splits:.2f}", f"{untested.expected / splits:.1%}"]
        cells.append(f"{untested.unseen / splits:.1%}")
        click.echo("| " + " | ".join(cells) + " |")


def decode(bundle: Path, propose: Path, pairs: tuple[tuple[Path, Path], ...], proposals: int, seed: int) -> Decodes:
    """Decodes all sentences with each proposed policy."""
    translator = Translator(bundle, device="cpu")
    proposing = list(itertools.islice(read_lines(propose), 2000))
    policies = propose_policies(translator, proposing, kept=proposals, batch_size=32, seed=seed)
    lines = [line for source, reference in pairs for line in read_parallel(source, reference)]
    text = Text([source for source, _ in lines], [reference for _, reference in lines])
    decoded = decode_policies(translator, text, policies, 32)
    assert decoded[0].policy == FULL
    return Decodes(
        {
            loss: np.stack([sentence_losses(entry, decoded[0], text, loss) for entry in decoded], axis=1)
            for loss in ("chrf-drop", "disagreement")
        },
        np.array([[sum(one.depths) for one in entry.translations] for entry in decoded], dtype=np.float64).T,
        np.array([[len(one.depths) for one in entry.translations] for entry in decoded], dtype=np.float64).T,
    )


def save(path: Path, decodes: Decodes) -> None:
    """Keeps decodes."""
    arrays = {"depth_sums": decodes.depth_sums, "token_counts": decodes.token_counts, **decodes.losses}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_file(path, buffer.getvalue())


def load(path: Path) -> Decodes:
    """Reads what `save` wrote."""
    arrays = np.load(path)
    return Decodes({loss: arrays[loss] for loss in _LOSSES}, arrays["depth_sums"], arrays["token_counts"])


def hard_deltas(decodes: Decodes, loss: str, deltas: Sequence[float]) -> list[float]:
    """Finds for each delta one nearby that is a hundredth below the expected loss of a policy worth taking."""
    expected = decodes.losses[loss].mean(axis=0)
    front = expected[safest_first(expected, decodes.average_depth(np.arange(len(decodes.depth_sums))))]
    above = (front[front > delta] for delta in deltas)
    return sorted({float(0.99 * losses.min()) for losses in above if len(losses)})


def run_splits(
    decodes: Decodes, loss: str, delta: float, epsilon: float, splits: int, seed: int
) -> tuple[Tally, Tally]:
    """Chooses on each split with the test and without."""
    losses = decodes.losses[loss]
    number = len(losses)
    expected = losses.mean(axis=0)
    depth = decodes.average_depth(np.arange(number))
    generator = np.random.default_rng(seed)
    tested, untested = Tally(), Tally()
    for _ in range(splits):
        order, test, unseen = np.split(generator.permutation(number), [number // 4, number // 2])
        ladder = safest_first(losses[order].mean(axis=0), decodes.average_depth(order))
        ladder = ladder[ladder != 0]
        on_test = losses[np.ix_(test, ladder)]
        chosen = choose_guaranteed(on_test, delta, epsilon)
        good = np.flatnonzero(on_test.mean(axis=0) <= delta)
        for tally, policy in (
            (tested, 0 if chosen is None else int(ladder[chosen.policy])),
            (untested, int(ladder[good[-1]]) if len(good) else 0),
        ):
            tally.depth += float(depth[policy])
            tally.expected += bool(expected[policy] > delta)
            tally.unseen += bool(losses[unseen, policy].mean() > delta)
    return tested, untested


def allowed(splits: int, epsilon: float) -> int:
    """Computes the most violations that chance makes of a rate of epsilon, but for one time in a hundred."""
    return int(np.searchsorted(binomial_cdf(splits, epsilon), _CONFIDENCE))


if __name__ == "__main__":
    main()
