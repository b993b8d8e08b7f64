"""`edgeseq export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeseq.cli.options import refuse_given
from edgeseq.cli.streams import log_to_stderr

if TYPE_CHECKING:
    from edgeseq_runtime.records import ComputeTypeName

_FILE = click.Path(path_type=Path)


@click.command(epilog="Example: edgeseq export runs/first --out en-de.bundle --valid-src valid.en --valid-ref valid.de")
@click.argument("run", type=_FILE)
@click.option("--out", "bundle", type=_FILE, required=True, help="Folder of the bundle; an older bundle is replaced.")
@click.option("--valid-src", type=_FILE, help="Validation text: measures each depth and the default operating point.")
@click.option("--valid-ref", type=_FILE, help="Its reference translations, line by line.")
@click.option(
    "--compute-type",
    type=click.Choice(["float32", "int8", "int8-weights", "int4"]),
    default="float32",
    show_default=True,
    help="How graphs keep their weights and multiply. int8: a quarter of the size, fastest in batches; int8-weights: "
    "fastest for one sentence at a time; int4: smallest. All but float32 need validation text, and are refused where "
    "they change too much.",
)
@click.option(
    "--keep-float32", multiple=True, metavar="GRAPH", help="A graph that stays float32, such as head; may be repeated."
)
@click.option(
    "--shortlist",
    is_flag=True,
    help="Let users choose tokens from a shortlist of pieces for each sentence (translate --shortlist), made from "
    "alignments of the training text. Needs validation text, on which what it changes is measured.",
)
@click.option(
    "--shortlist-best",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Target pieces that each piece of a sentence brings into its shortlist: fewer are faster and change more.",
)
def command(
    run: Path,
    bundle: Path,
    valid_src: Path | None,
    valid_ref: Path | None,
    compute_type: ComputeTypeName,
    keep_float32: tuple[str, ...],
    shortlist: bool,
    shortlist_best: int,
) -> None:
    """Turn the training run RUN into a bundle.

    Every graph is compared with its torch module, and whole decodes with torch's; a bundle that differs is not
    written. The table is printed and stored in the manifest. Graphs of fewer bits are compared with float32 instead.
    """
    from edgeseq_export import ValidationText, export_run

    if (valid_src is None) != (valid_ref is None):
        raise click.UsageError("--valid-src and --valid-ref go together; give both or none")
    if not shortlist:
        refuse_given(("shortlist_best",), "belongs to --shortlist; give that too, or leave it out")
    if compute_type == "float32":
        refuse_given(("keep_float32",), "belongs to a --compute-type of fewer bits; in float32 all graphs stay so")
    log_to_stderr()
    validation = None
    if valid_src is not None and valid_ref is not None:
        validation = ValidationText(valid_src, valid_ref)
    best = shortlist_best if shortlist else None
    manifest = export_run(run, bundle, validation, compute_type, keep_float32, best)
    size = sum(entry.size for entry in manifest.entries)
    click.echo(f"{bundle}: {len(manifest.graphs)} graphs, {size / 2**20:.1f} MiB", err=True)
