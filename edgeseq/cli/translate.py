"""``edgeseq translate``: lines of text through a bundle, one line out per line in."""

import contextlib
import json
import sys
import warnings
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeseq.cli.depth_view import DepthView, output_takes_colours, takes_colours
from edgeseq.cli.options import (
    beam_size_option,
    device_option,
    length_penalty_option,
    shortlist_option,
    threads_option,
)
from edgeseq.cli.streams import STANDARD, LenientLines, open_output, warn
from edgeseq.cli.translators import open_translator

if TYPE_CHECKING:
    from edgeseq_runtime import Translation

INPUT_REPAIRED = 2
"""Exit code when all lines were translated, but some were not valid UTF-8 or too long to be translated whole."""


@click.command(
    name="translate",
    epilog="Example: edgeseq translate --model en-de.bundle --depth 2 --threads 2 -i text.en -o text.de",
)
@click.option("--model", required=True, metavar="BUNDLE", help="The bundle's folder.")
@click.option(
    "-i",
    "--input",
    "input_path",
    default=STANDARD,
    metavar="FILE",
    help="Text to translate, one sentence a line; .gz and .xz are read directly. Default: stdin.",
)
@click.option(
    "-o",
    "--output",
    "output_path",
    default=STANDARD,
    metavar="FILE",
    help="Where translations go; the file appears when all is done. Default: stdout.",
)
@click.option(
    "--depth",
    metavar="POLICY",
    help="How many decoder blocks a token uses: full, speculative (as full, but drafted by block 1 where a line is "
    "decoded alone), a number, adaptive (the bundle's operating point), adaptive:NAME, or a predictor of the bundle "
    "such as halting:0.9 (edgeseq inspect lists them). Default: adaptive where the bundle has it, else full.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Sentences decoded together; lines are read ahead to batch similar lengths. With 1, and one "
    "thread, each line is answered before the next is read.",
)
@shortlist_option
@threads_option
@device_option
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most tokens of a translation. Default: 2 x source pieces + 10.",
)
@beam_size_option
@length_penalty_option
@click.option(
    "--n-best",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Hypotheses to write per line, at most the beam size. With more than one, each is a line "
    "of its own: input line number ||| text ||| score.",
)
@click.option(
    "--min-length",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Fewest tokens of a translation, the end token included.",
)
@click.option(
    "--no-repeat-ngram",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Never the same N tokens in a row twice in a translation; 0 allows it.",
)
@click.option(
    "--show-depth",
    is_flag=True,
    help="Show how many blocks each token used: as a tint in a terminal, elsewhere (or with NO_COLOR set) as a "
    "number after it. How to read it stands on stderr.",
)
@click.option(
    "--prefix",
    "prefix_path",
    metavar="FILE",
    help="What each translation has to begin with, one line per input line, blank for none; whole words "
    "work best. It counts in no length, depth or score.",
)
@click.option(
    "--trace",
    "trace_path",
    metavar="FILE.jsonl",
    help="Also write each line's tokens and depths, one JSON object a line; with a beam, of its best "
    "hypothesis, with scores.",
)
def command(
    model: str,
    input_path: str,
    output_path: str,
    depth: str | None,
    batch_size: int,
    shortlist: bool,
    threads: int,
    device: str,
    max_length: int | None,
    beam_size: int,
    length_penalty: float,
    n_best: int,
    min_length: int,
    no_repeat_ngram: int,
    show_depth: bool,
    prefix_path: str | None,
    trace_path: str | None,
) -> None:
    r"""Translate text with a bundle: one line out per line in, a blank line for a blank one.

    Lines end at \n only; a \r before it is dropped. A line that is not valid UTF-8 is translated
    from its best decoding, and of one with more than 1,024 pieces the first 1,024 are: a warning on stderr names
    the line, and the exit code is 2 at the end.
    """
    if trace_path is not None and _same_file(trace_path, output_path):
        message = f"--output and --trace both name {trace_path!r}; give them different files"
        raise click.UsageError(message)
    if input_path == prefix_path == STANDARD:
        message = "--input and --prefix both read stdin; name a file for one of them"
        raise click.UsageError(message)
    if show_depth and n_best > 1:
        message = f"--show-depth shows one translation a line, --n-best {n_best} writes several; leave one of them out"
        raise click.UsageError(message)
    from edgeseq_runtime import BeamOptions

    beam = BeamOptions(beam_size, length_penalty, n_best, min_length, no_repeat_ngram)
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(LenientLines(input_path))
        translator = open_translator(stack, model, depth, device, threads, shortlist=shortlist)
        stack.enter_context(_without_truncation_warnings())
        output = stack.enter_context(open_output(output_path))
        trace = stack.enter_context(open_output(trace_path)) if trace_path else None
        prefixes = stack.enter_context(LenientLines(prefix_path)) if prefix_path else None
        view = _start_view(translator.bundle.manifest.model.decoder_blocks, output_path) if show_depth else None
        results = translator.translate_iter(
            lines, batch_size=batch_size, max_length=max_length, beam=beam, prefixes=prefixes
        )
        cut = 0
        for number, result in enumerate(results, start=1):
            cut += _warn_if_cut(f"{lines.name}, line {number}", result)
            for line in _lines(number, result, n_best, view):
                output.write(line)
            if trace:
                trace.write(_trace_line(number, result))
    repairs = [(file.name, "that were not valid UTF-8", file.invalid) for file in (lines, prefixes) if file]
    _report_repairs([*repairs, (lines.name, "cut short", cut)])


def _same_file(one: str, other: str) -> bool:
    """Whether two names are of one file, however they are spelled; only ``-`` is stdin or stdout."""
    return one == other if STANDARD in (one, other) else Path(one).resolve() == Path(other).resolve()


def _lines(number: int, result: "Translation", n_best: int, view: DepthView | None) -> list[str]:
    """The lines that are written for an input line: its translation, with depths or without, or each of the n best."""
    if view:
        return [view.line(result.tokens, result.depths, result.prefix)]
    if n_best == 1:
        return [result.text]
    return [
        f"{number} ||| {hypothesis.text} ||| {hypothesis.score or 0.0:.4f}"
        for hypothesis in (result, *result.alternatives)
    ]


def _start_view(blocks: int, output_path: str) -> DepthView:
    """Choose how depths are shown, and say on stderr how to read them."""
    view = DepthView(blocks, tinted=output_takes_colours(output_path))
    click.echo(view.legend(tinted=takes_colours(sys.stderr)), err=True)
    return view


def _trace_line(number: int, result: "Translation") -> str:
    """One line of a trace: the input line's number from 1, tokens and depths of equal length."""
    record: dict[str, object] = {"line": number, "tokens": result.tokens, "depths": result.depths}
    if result.score is not None:
        record |= {"score": result.score, "token_scores": result.token_scores}
    return json.dumps(record, ensure_ascii=False)


def _warn_if_cut(where: str, result: "Translation") -> bool:
    """Name a line that was not translated to its end; say whether it was one."""
    if not result.pieces_left_out:
        return False
    translated = result.source_pieces - 1  # but for EOS
    warn(
        f"{where}: {translated + result.pieces_left_out:,} pieces, of which only the first {translated:,} are "
        "translated; split the line into sentences"
    )
    return True


def _report_repairs(repairs: Iterable[tuple[str, str, int]]) -> None:
    """Say how many lines of each input were repaired, and in what way; exit with a code that says so if any were."""
    found = [(name, how, count) for name, how, count in repairs if count]
    for name, how, count in found:
        warn(f"{name}: lines {how}, named above: {count}")
    if found:
        click.get_current_context().exit(INPUT_REPAIRED)


@contextlib.contextmanager
def _without_truncation_warnings() -> Generator[None]:
    """Leave what is said of long lines to this command, which knows their numbers."""
    from edgeseq_runtime import TruncationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        yield
