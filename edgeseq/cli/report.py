"""`edgeseq report`: a page about a bundle's depth policies on a test set."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeseq.cli.options import device_option
from edgeseq.cli.streams import log_to_stderr

if TYPE_CHECKING:
    from edgeseq_runtime import Translator

_FILE = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)


@click.command(
    name="report", epilog="Example: edgeseq report en-de.bundle --src test.en --ref test.de --out report.html"
)
@click.argument("bundle", metavar="BUNDLE")
@click.option(
    "--src", type=_FILE, required=True, help="Source text, one sentence a line (.gz and .xz are read directly)."
)
@click.option("--ref", type=_FILE, required=True, help="Reference translations, line by line.")
@click.option("--out", type=_FILE, required=True, metavar="FILE.html", help="The page; it appears when all is done.")
@click.option(
    "--depth",
    "depths",
    multiple=True,
    metavar="POLICY",
    help="Policy to look into: where its tokens stop, and the sample of sentences. Repeat it to compare. Default: "
    "adaptive; where the bundle has no operating point, the middle setting of its first predictor.",
)
@click.option("--sentences", type=_COUNT, metavar="N", help="Evaluate the first N sentences only. Default: all.")
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="Sentences to browse, some of them of extreme depth.",
)
@click.option("--batch-size", type=_COUNT, default=32, show_default=True, help="Sentences decoded together.")
@device_option
def command(
    bundle: str,
    src: Path,
    ref: Path,
    out: Path,
    depths: tuple[str, ...],
    sentences: int | None,
    sample: int,
    batch_size: int,
    device: str,
) -> None:
    """Write a page about a bundle's depth policies: one HTML file that loads nothing from elsewhere.

    It shows quality against average depth and time for fixed depths, several settings of every predictor and all
    operating points; where tokens stop, by position and by confidence; and sentences with each token tinted by its
    depth, with what each exit said.
    """
    from edgeseq.data.text import read_parallel
    from edgeseq.evaluation.report.measuring import measure
    from edgeseq.evaluation.report.page import Heading, render_page
    from edgeseq.evaluation.report.sentences import sample_sentences
    from edgeseq_runtime import Translator
    from edgeseq_runtime.atomic import write_file

    if not out.resolve().parent.is_dir():
        raise click.ClickException(f"cannot write {out}: its folder does not exist")
    log_to_stderr()
    pairs = list(read_parallel(src, ref))[:sentences]
    sources, references = map(list, zip(*pairs, strict=True))
    translator = Translator(bundle, device=device)
    measured = measure(translator, sources, references, depths, batch_size)
    shown = sample_sentences(measured, translator.bundle.tokenizer, sources, references, sample)
    name = translator.bundle.path.resolve().name
    facts = {
        **_bundle_facts(translator),
        "Text": f"{len(pairs):,} sentences of {src.name} and {ref.name}, SHA-256 {_text_hash(sources, references)}",
        "Machine": f"{platform.machine()}, {os.cpu_count()} logical processors, {translator.engine.provider}, "
        f"one thread, {batch_size} sentences at once",
        "Made": dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    predictors = [(entry.name, entry.kind, entry.training) for entry in translator.manifest.predictors]
    page = render_page(Heading(f"edgeseq report: {name}", facts, predictors), measured, shown).encode()
    write_file(out, page)
    click.echo(f"{out}: {len(page) / 1e6:.2f} MB, {len(measured.results)} policies, {len(shown)} sentences", err=True)


def _bundle_facts(translator: Translator) -> dict[str, str]:
    manifest, model = translator.manifest, translator.manifest.model
    return {
        "Bundle": f"{translator.bundle.path.resolve().name}, {manifest.compute_type}, "
        f"SHA-256 {translator.bundle.sha256[:12]}, exported {manifest.created} by edgeseq {manifest.edgeseq_version}",
        "Model": f"{model.parameters:,} parameters, width {model.dim}, {model.encoder_blocks} encoder blocks, "
        f"{model.decoder_blocks} decoder blocks, {manifest.tokenizer.pieces:,} pieces",
        "Predictors": ", ".join(entry.name for entry in manifest.predictors) or "none",
        "Licence and data": f"{manifest.provenance.licence}; {manifest.provenance.data}",
    }


def _text_hash(sources: Sequence[str], references: Sequence[str]) -> str:
    """Names the evaluated text: the first digits of the hash of its lines, sources before references."""
    return hashlib.sha256("\n".join([*sources, *references]).encode()).hexdigest()[:12]
