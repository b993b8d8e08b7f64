"""`edgeseq calibrate`: operating points measured on this machine, and on request one with a guarantee."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeseq.cli.options import device_option, refuse_given
from edgeseq.cli.streams import log_to_stderr, warn

if TYPE_CHECKING:
    from edgeseq.evaluation.guarantees import Loss
    from edgeseq.evaluation.operating_points import Price
    from edgeseq_runtime.calibration import Calibration, MeasuredPolicy

_FILE = click.Path(path_type=Path)
_FEW_SENTENCES = 200
_COUNT = click.IntRange(min=1)
_LEVEL = click.FloatRange(min=0, max=1, min_open=True, max_open=True)


def _most_loss(point: str, default: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        f"--{point}-loss",
        type=click.FloatRange(min=0),
        default=default,
        show_default=True,
        help=f"Most BLEU that `{point}` may lose.",
    )


@click.command(name="calibrate", epilog="Example: edgeseq calibrate --model en-de.bundle --src valid.en --ref valid.de")
@click.option(
    "--model", required=True, metavar="BUNDLE", help="The bundle's folder; calibration.json is written there."
)
@click.option(
    "--src", type=_FILE, required=True, help="Sentences like those to come, one a line (.gz and .xz are read directly)."
)
@click.option("--ref", type=_FILE, required=True, help="Reference translations, line by line.")
@click.option(
    "--price",
    type=click.Choice(["ms", "flops", "blocks"]),
    default="ms",
    show_default=True,
    help="What to save: measured milliseconds per sentence, decoder FLOPs, or blocks per token.",
)
@_most_loss("best", 0.1)  # less than two trainings of a model differ by
@_most_loss("balanced", 0.5)  # what papers begin to call a difference
@_most_loss("fast", 1.5)  # what a reader may notice, for where speed matters more
@click.option("--guarantee", is_flag=True, help="Also find `guaranteed`; half of the text then only tests.")
@click.option(
    "--loss",
    type=click.Choice(["chrf-drop", "disagreement"]),
    default="chrf-drop",
    show_default=True,
    help="With --guarantee: a sentence's loss in chrF (0 to 1) against full depth, or the share of pieces that differ.",
)
@click.option("--delta", type=_LEVEL, default=0.05, show_default=True, help="With --guarantee: most expected loss.")
@click.option(
    "--epsilon", type=_LEVEL, default=0.05, show_default=True, help="With --guarantee: chance that delta is exceeded."
)
@click.option("--proposals", type=_COUNT, default=24, show_default=True, help="Most policies to decode per predictor.")
@click.option("--rounds", type=_COUNT, default=5, show_default=True, help="Times that each policy is timed.")
@click.option("--timing-sentences", type=_COUNT, default=256, show_default=True, help="Sentences of a timing round.")
@click.option(
    "--batch-size", type=_COUNT, default=32, show_default=True, help="Sentences decoded together, when timing."
)
@device_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the proposals, and of parting the text.")
def command(
    model: str,
    src: Path,
    ref: Path,
    price: Price,
    best_loss: float,
    balanced_loss: float,
    fast_loss: float,
    guarantee: bool,
    loss: Loss,
    delta: float,
    epsilon: float,
    proposals: int,
    rounds: int,
    timing_sentences: int,
    batch_size: int,
    device: str,
    seed: int,
) -> None:
    """Find the bundle's fastest depth policies on this machine, for `--depth adaptive:fast`, `:balanced` and `:best`.

    Each is the cheapest policy, over all predictors and fixed depths, that loses no more BLEU against full depth than
    its limit. Thousands of thresholds are estimated from one decode; the best are decoded, and timed in turns.

    With --guarantee there is `adaptive:guaranteed` too: the chance that its expected loss exceeds delta is at most
    epsilon, for sentences like the given ones, by tests on sentences that had no part in proposing it.

    A table goes to stderr; the last line of stdout is one JSON document.
    """
    from edgeseq.data.text import read_parallel
    from edgeseq.evaluation.calibration import CalibrationSettings, calibrate
    from edgeseq.evaluation.guarantees import GuaranteeTerms
    from edgeseq.evaluation.measuring import Text
    from edgeseq_runtime import Translator
    from edgeseq_runtime.atomic import write_file
    from edgeseq_runtime.calibration import CALIBRATION_FILE

    if not guarantee:
        refuse_given(("loss", "delta", "epsilon"), "belongs to --guarantee; give that too, or leave it out")
    log_to_stderr()
    sources, references = map(list, zip(*read_parallel(src, ref), strict=True))
    translator = Translator(model, device=device)
    path = translator.bundle.path / CALIBRATION_FILE
    if not os.access(path.parent, os.W_OK):
        raise click.ClickException(f"cannot write {path}: the folder is read-only; copy the bundle to one that is not")
    settings = CalibrationSettings(
        batch_size=batch_size,
        price=price,
        max_bleu_loss={"best": best_loss, "balanced": balanced_loss, "fast": fast_loss},
        proposals=proposals,
        rounds=rounds,
        timing_sentences=timing_sentences,
        seed=seed,
    )
    terms = GuaranteeTerms(loss, delta, epsilon) if guarantee else None
    result = calibrate(translator, Text(sources, references), settings, terms)
    if len(sources) < _FEW_SENTENCES:
        warn(
            f"{len(sources)} sentences say little: what policies lose on so few is mostly chance; give some hundreds, "
            f"like those to come (what was measured on fewer than {_FEW_SENTENCES} is stored all the same)"
        )
    write_file(path, result.calibration.to_bytes())
    for line in _table(result.calibration):
        click.echo(line, err=True)
    document = {
        "src": str(src),
        "ref": str(ref),
        "file": str(path),
        "calibration": result.calibration.model_dump(mode="json"),
        "measured": [
            entry.model_dump(mode="json", exclude=None if entry.policy in result.timed else {"ms_per_sentence"})
            for entry in result.measured
        ],
    }
    click.echo(json.dumps(document))


def _table(calibration: Calibration) -> list[str]:
    rows: list[tuple[str, MeasuredPolicy]] = [("full", calibration.full_depth)]
    rows += [(f"adaptive:{point.name}", point) for point in calibration.points]
    full = calibration.full_depth
    lines = [
        f"{'depth':<20} {'BLEU':>6} {'chrF':>6} {'average':>8} {'MFLOP':>7} {'ms per':>9} {'times':>6}  policy",
        f"{'':<20} {'':>6} {'':>6} {'depth':>8} {'/token':>7} {'sentence':>9} {'faster':>6}",
    ]
    lines += [
        f"{name:<20} {row.bleu:>6.2f} {row.chrf:>6.2f} {row.average_depth:>8.2f} {row.flops_per_token / 1e6:>7.2f} "
        f"{row.ms_per_sentence:>9.3f} {full.ms_per_sentence / row.ms_per_sentence:>6.2f}  {row.policy}"
        for name, row in rows
    ]
    machine = calibration.machine
    lines.append(
        f"{calibration.sentences} sentences; times at batch size {machine.batch_size}, {machine.provider}, "
        f"1 of {machine.cpu_count} processors"
    )
    lines += [
        f"adaptive:{point.name}: {point.guarantee.describe()}"
        for point in calibration.points
        if point.guarantee is not None
    ]
    return lines
