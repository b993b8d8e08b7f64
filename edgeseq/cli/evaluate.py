"""`edgeseq evaluate`: what each depth policy costs and gives on a test set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeseq.evaluation.policies import PolicyResult

_FILE = click.Path(path_type=Path)


@click.command(name="evaluate")
@click.option("--model", required=True, metavar="BUNDLE", help="The bundle's folder.")
@click.option(
    "--src", type=_FILE, required=True, help="Source text, one sentence a line (.gz and .xz are read directly)."
)
@click.option("--ref", type=_FILE, required=True, help="Reference translations, line by line.")
@click.option(
    "--depth",
    "depths",
    multiple=True,
    metavar="POLICY",
    help="Depth policy, as for translate; repeat it to compare several. Default: full depth, and adaptive where the "
    "bundle has it.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Sentences decoded together."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of each computation."
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes CUDA where the installed onnxruntime has it.",
)
def command(
    model: str, src: Path, ref: Path, depths: tuple[str, ...], batch_size: int, threads: int, device: str
) -> None:
    """Measure quality, depth, FLOPs and speed of depth policies on a test set.

    A table goes to stderr; the last line of stdout is one JSON document. "Above the line" compares an adaptive policy
    with mixing the two fixed depths around its average depth: give those depths too, e.g. --depth 3 --depth 4.
    """
    from edgeseq.data.text import read_parallel
    from edgeseq.evaluation.policies import evaluate_policies
    from edgeseq_runtime import Translator
    from edgeseq_runtime.policy_names import DEFAULT_POINT

    pairs = list(read_parallel(src, ref))
    translator = Translator(model, device=device, threads=threads)
    if not depths:
        depths = ("full", "adaptive") if DEFAULT_POINT in translator.bundle.operating_points else ("full",)
    sources, references = map(list, zip(*pairs, strict=True))
    results = evaluate_policies(translator, sources, references, depths, batch_size)
    for line in _table(results):
        click.echo(line, err=True)
    click.echo(json.dumps({"src": str(src), "ref": str(ref), "results": [_record(result) for result in results]}))


def _table(results: list[PolicyResult]) -> list[str]:
    blocks = len(results[0].depth_shares)
    shares = " ".join(f"{f'at {block}':>5}" for block in range(1, blocks + 1))
    lines = [
        f"{'depth':<13} {'BLEU':>6} {'chrF':>6} {'average':>8} {'MFLOP':>7} {'tokens':>8}  % of tokens that stop",
        f"{'':<13} {'':>6} {'':>6} {'depth':>8} {'/token':>7} {'/s':>8}  {shares}",
    ]
    for result in results:
        percent = " ".join(f"{100 * share:>5.1f}" for share in result.depth_shares)
        lines.append(
            f"{result.depth:<13} {result.scores.bleu:>6.2f} {result.scores.chrf:>6.2f} {result.average_depth:>8.2f} "
            f"{result.flops_per_token / 1e6:>7.2f} {result.tokens_per_second:>8,.0f}  {percent}"
        )
    lines += [
        f"{result.depth}: {result.line.gain:+.2f} BLEU above the line between fixed depths at "
        f"{result.line.average_depth:.2f}, 95 % interval {result.line.low:+.2f} to {result.line.high:+.2f}"
        for result in results
        if result.line is not None
    ]
    lines.append(f"BLEU  {results[0].scores.bleu_signature}")
    lines.append(f"chrF  {results[0].scores.chrf_signature}")
    lines += [f"{result.depth}  {result.signature}" for result in results]
    return lines


def _record(result: PolicyResult) -> dict[str, object]:
    record: dict[str, object] = {
        "depth": result.depth,
        "bleu": result.scores.bleu,
        "chrf": result.scores.chrf,
        "average_depth": result.average_depth,
        "depth_shares": result.depth_shares,
        "flops_per_token": result.flops_per_token,
        "sentences": result.sentences,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "bleu_signature": result.scores.bleu_signature,
        "chrf_signature": result.scores.chrf_signature,
        "signature": result.signature,
    }
    if result.line is not None:
        record["line"] = {"gain": result.line.gain, "low": result.line.low, "high": result.line.high}
    return record
