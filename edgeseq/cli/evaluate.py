"""`edgeseq evaluate`: what each depth policy costs and gives on a test set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeseq.cli.options import beam_size_option, device_option, length_penalty_option, shortlist_option

if TYPE_CHECKING:
    from edgeseq.evaluation.policies import PolicyErrorRates, PolicyResult
    from edgeseq_runtime import Translator

_FILE = click.Path(path_type=Path)


@click.command(
    name="evaluate",
    epilog="Example: edgeseq evaluate --model en-de.bundle --src test.en --ref test.de --depth 1 --depth full",
)
@click.option("--model", required=True, metavar="BUNDLE", help="The bundle's folder.")
@click.option(
    "--src", type=_FILE, required=True, help="Source text, one sentence a line (.gz and .xz are read directly)."
)
@click.option("--ref", type=_FILE, help="Reference translations, line by line: BLEU and chrF.")
@click.option(
    "--refs",
    type=_FILE,
    help="Instead of --ref: one or more right outputs a line, separated by tabs, their tokens by blanks, such as the "
    "pronunciations of a word: phone and word error rate.",
)
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
@beam_size_option
@length_penalty_option
@shortlist_option
@device_option
def command(
    model: str,
    src: Path,
    ref: Path | None,
    refs: Path | None,
    depths: tuple[str, ...],
    batch_size: int,
    beam_size: int,
    length_penalty: float,
    shortlist: bool,
    device: str,
) -> None:
    """Measure quality, depth, FLOPs and speed of depth policies on a test set.

    A table goes to stderr; the last line of stdout is one JSON document. "Above the line" compares an adaptive policy
    with mixing the two fixed depths around its average depth: give those depths too, e.g. --depth 3 --depth 4. With a
    beam, depths are those of the best hypotheses, FLOPs those of all; to count them, all is decoded once more.
    """
    if (ref is None) == (refs is None):
        raise click.UsageError("give either --ref, for BLEU and chrF, or --refs, for phone and word error rate")
    from edgeseq.data.text import read_parallel
    from edgeseq.evaluation.error_rates import read_words
    from edgeseq.evaluation.policies import evaluate_error_rates, evaluate_policies
    from edgeseq_runtime import Translator
    from edgeseq_runtime.beam import BeamOptions

    beam = BeamOptions(beam_size, length_penalty)
    results: Sequence[PolicyResult | PolicyErrorRates]
    if ref is not None:
        sources, translations = map(list, zip(*read_parallel(src, ref), strict=True))
        translator = Translator(model, device=device, shortlist=shortlist)
        results = evaluate_policies(translator, sources, translations, _policies(translator, depths), batch_size, beam)
    elif refs is not None:
        sources, references = read_words(src, refs)
        translator = Translator(model, device=device, shortlist=shortlist)
        results = evaluate_error_rates(translator, sources, references, _policies(translator, depths), batch_size, beam)
    for line in _table(results):
        click.echo(line, err=True)
    files = {"src": str(src)} | ({"ref": str(ref)} if refs is None else {"refs": str(refs)})
    click.echo(json.dumps({**files, "results": [_record(result) for result in results]}))


def _policies(translator: Translator, depths: tuple[str, ...]) -> tuple[str, ...]:
    from edgeseq_runtime.policy_names import DEFAULT_POINT

    if depths:
        return depths
    return ("full", "adaptive") if DEFAULT_POINT in translator.bundle.operating_points else ("full",)


def _table(results: Sequence[PolicyResult | PolicyErrorRates]) -> list[str]:
    from edgeseq.evaluation.policies import PolicyResult

    blocks = len(results[0].depth_shares)
    shares = " ".join(f"{f'at {block}':>5}" for block in range(1, blocks + 1))
    quality = " ".join(f"{name:>6}" for name in results[0].quality)
    width = max(13, *(len(result.depth) for result in results))
    lines = [
        f"{'depth':<{width}} {quality} {'average':>8} {'MFLOP':>7} {'tokens':>8}  % of tokens that stop",
        f"{'':<{width}} {'':>{len(quality)}} {'depth':>8} {'/token':>7} {'/s':>8}  {shares}",
    ]
    for result in results:
        percent = " ".join(f"{100 * share:>5.1f}" for share in result.depth_shares)
        values = " ".join(f"{value:>6.2f}" for value in result.quality.values())
        lines.append(
            f"{result.depth:<{width}} {values} {result.average_depth:>8.2f} "
            f"{result.flops_per_token / 1e6:>7.2f} {result.tokens_per_second:>8,.0f}  {percent}"
        )
    translated = [result for result in results if isinstance(result, PolicyResult)]
    lines += [
        f"{result.depth}: {result.line.gain:+.2f} BLEU above the line between fixed depths at "
        f"{result.line.average_depth:.2f}, 95 % interval {result.line.low:+.2f} to {result.line.high:+.2f}"
        for result in translated
        if result.line is not None
    ]
    if translated:
        lines.append(f"BLEU  {translated[0].scores.bleu_signature}")
        lines.append(f"chrF  {translated[0].scores.chrf_signature}")
    lines += [f"{result.depth}  {result.signature}" for result in results]
    return lines


def _record(result: PolicyResult | PolicyErrorRates) -> dict[str, object]:
    from edgeseq.evaluation.policies import PolicyResult

    record: dict[str, object] = {
        "depth": result.depth,
        **{name.lower(): value for name, value in result.quality.items()},
        "average_depth": result.average_depth,
        "depth_shares": result.depth_shares,
        "flops_per_token": result.flops_per_token,
        "sentences": result.sentences,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
    }
    if isinstance(result, PolicyResult):
        record["bleu_signature"] = result.scores.bleu_signature
        record["chrf_signature"] = result.scores.chrf_signature
        if result.line is not None:
            record["line"] = {"gain": result.line.gain, "low": result.line.low, "high": result.line.high}
    record["signature"] = result.signature
    return record
