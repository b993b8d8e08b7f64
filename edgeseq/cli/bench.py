"""`edgeseq bench`: how fast a bundle, or a model of any size, decodes on this machine."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeseq.cli.options import device_option, refuse_given, threads_option

if TYPE_CHECKING:
    from edgeseq.bench.timing import Shape, Timing
    from edgeseq_runtime.manifest import ModelFacts
    from edgeseq_runtime.policy import DepthPolicy
    from edgeseq_runtime.records import ComputeTypeName

_COUNT = click.IntRange(min=1)
_SIZES = ("dim", "ffn", "vocab", "blocks", "encoder_blocks", "compute_type")
_AVERAGE = re.compile(r"[0-9]+\.[0-9]+")


@click.command(name="bench", epilog="Example: edgeseq bench en-de.bundle --depth full --depth 1 --batch-size 32")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--random", "is_random", is_flag=True, help="Measure a model with random weights instead of a bundle.")
@click.option(
    "--dim",
    type=click.IntRange(min=2),
    default=256,
    show_default=True,
    help="Its width: even, and from 128 on a multiple of 64.",
)
@click.option("--ffn", type=_COUNT, default=1024, show_default=True, help="Inner width of its feed-forward layers.")
@click.option("--vocab", type=click.IntRange(min=8), default=8000, show_default=True, help="Pieces of its vocabulary.")
@click.option("--blocks", type=_COUNT, default=6, show_default=True, help="Its decoder blocks.")
@click.option("--encoder-blocks", type=_COUNT, help="Its encoder blocks.  [default: as many as --blocks]")
@click.option(
    "--compute-type",
    type=click.Choice(["float32", "int8", "int8-weights", "int4"]),
    default="int8",
    show_default=True,
    help="How its graphs keep their weights and multiply; a bundle has a type of its own.",
)
@click.option("--batch-size", type=_COUNT, default=1, show_default=True, help="Sentences decoded together.")
@click.option(
    "--source-length", type=click.IntRange(min=2), default=20, show_default=True, help="Pieces of each source."
)
@click.option("--target-length", type=_COUNT, default=25, show_default=True, help="Tokens of each translation.")
@click.option(
    "--depth",
    "depths",
    multiple=True,
    default=("full",),
    show_default=True,
    metavar="D",
    help="A depth; or an average with a decimal point such as 2.4: depths of a real model's tokens, scaled to it; or "
    "any depth policy of the bundle. Repeat it to measure several in turn, and what each saves of the first one's "
    "steps.",
)
@click.option(
    "--shortlist",
    "uses_shortlist",
    is_flag=True,
    help="Choose tokens from each sentence's shortlist: the bundle's, or with --random one of 600 pieces.",
)
@click.option("--rounds", type=_COUNT, default=7, show_default=True, help="Turns of each depth; medians count.")
@threads_option
@device_option
def command(
    bundle: Path | None,
    is_random: bool,
    dim: int,
    ffn: int,
    vocab: int,
    blocks: int,
    encoder_blocks: int | None,
    compute_type: ComputeTypeName,
    batch_size: int,
    source_length: int,
    target_length: int,
    depths: tuple[str, ...],
    uses_shortlist: bool,
    rounds: int,
    threads: int,
    device: str,
) -> None:
    """Time whole decodes of random pieces, all of one length, in which no sentence ends by itself.

    A table goes to stderr. Of each depth, stdout has one line of JSON. What a predictor decides on random pieces says
    nothing of text: for that, see evaluate; here an average depth is the thing to give.
    """
    if (bundle is None) != is_random:
        raise click.UsageError("give either a BUNDLE, or --random for a model with random weights")
    from edgeseq.bench.processes import Measurement, time_in_processes
    from edgeseq.bench.timing import Shape

    shape = Shape(batch_size, source_length, target_length)
    if bundle is not None:
        refuse_given(_SIZES, "is a size of a random model, and a bundle has its own; leave it out, or BUNDLE")
        from edgeseq_runtime.bundle import load_bundle
        from edgeseq_runtime.translator import chosen_shortlist

        loaded = load_bundle(bundle)
        facts, what = loaded.manifest.model, loaded.manifest.compute_type
        halting = [f"{entry.name}:0.5" for entry in loaded.manifest.predictors if entry.kind == "halting"]
        deciding = loaded.policy(halting[0] if halting else "full")
        policies = [_replayed(depth, facts, shape, deciding) or loaded.policy(depth) for depth in depths]
        shortlist = chosen_shortlist(loaded) if uses_shortlist else None
        measurement = Measurement(loaded.path, facts, device, policies, shape, rounds, shortlist)
        measured = time_in_processes(measurement, threads)
    else:
        from edgeseq_export.random_models import RandomSizes, write_random_model

        sizes = RandomSizes(dim, ffn, vocab, encoder_blocks or blocks, blocks)
        with tempfile.TemporaryDirectory(prefix="edgeseq-bench-") as name:
            folder = Path(name)
            model = write_random_model(folder, sizes, compute_type, shortlist=uses_shortlist)
            facts, what = model.facts, compute_type
            deciding = model.halting_policy()
            policies = [_replayed(depth, facts, shape, deciding) or _fixed(depth, facts) for depth in depths]
            measurement = Measurement(folder, facts, device, policies, shape, rounds, model.shortlist)
            measured = time_in_processes(measurement, threads)
    for line in _table(measured.timings):
        click.echo(line, err=True)
    setting = {
        "batch_size": batch_size,
        "source_length": source_length,
        "target_length": target_length,
        "compute_type": what,
        "threads": threads,
        "shortlist": uses_shortlist,
        "provider": measured.provider,
        "parameters": facts.parameters,
    }
    for timing in measured.timings:
        click.echo(json.dumps({**timing.record(), **setting}))


def _replayed(depth: str, facts: ModelFacts, shape: Shape, deciding: DepthPolicy) -> DepthPolicy | None:
    """The policy of an average depth; None for any other."""
    from edgeseq.bench.depths import Replayed, scale_trace

    if not _AVERAGE.fullmatch(depth):
        return None
    if not 1 <= float(depth) <= facts.decoder_blocks:
        raise click.BadParameter(f"average {depth}: expected 1 to {facts.decoder_blocks}", param_hint="--depth")
    scaled = scale_trace(float(depth), facts.decoder_blocks, shape.batch_size, shape.target_length)
    return Replayed(depth, scaled, deciding)


def _fixed(depth: str, facts: ModelFacts) -> DepthPolicy:
    """The policy of a fixed depth, for a model that knows no others."""
    from edgeseq_runtime.policy import FixedDepth

    blocks = facts.decoder_blocks
    known = {"full": blocks} | {str(number): number for number in range(1, blocks + 1)}
    if depth not in known:
        raise click.BadParameter(
            f"{depth!r}: a model with random weights has full, 1 to {blocks}, and averages such as 2.4",
            param_hint="--depth",
        )
    return FixedDepth(depth, facts, known[depth])


def _table(timings: Sequence[Timing]) -> list[str]:
    """Lines for people; of several depths also the shares that they save of the first one's steps."""
    header = ["depth", "average", "tokens/s", "ms/step", "ms/sentence", "ms encoder", "MFLOP/token"]
    first, *others = timings
    if others:
        header += ["time saved", "FLOPs saved"]
    lines = [" ".join(f"{name:>12}" for name in header)]
    for timing in timings:
        values = [
            timing.depth,
            f"{timing.average_depth:.2f}",
            f"{timing.tokens_per_second:,.0f}",
            f"{timing.ms_per_step:.3f}",
            f"{timing.ms_per_sentence:.2f}",
            f"{timing.ms_encoder:.2f}",
            f"{timing.mflop_per_token:.2f}",
        ]
        if others:
            values += [
                f"{1 - timing.ms_per_step / first.ms_per_step:.1%}",
                f"{1 - timing.mflop_per_token / first.mflop_per_token:.1%}",
            ]
        lines.append(" ".join(f"{value:>12}" for value in values))
    return lines
