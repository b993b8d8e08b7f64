"""``edgeseq inspect``: what a bundle holds, after every file of it has been checked."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeseq_runtime.bundle import Bundle
    from edgeseq_runtime.calibration import Calibration, MeasuredPolicy
    from edgeseq_runtime.manifest import Manifest, ModelFacts

_LABEL_WIDTH = 11


@click.command(name="inspect", epilog="Example: edgeseq inspect en-de.bundle")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document: the manifest too.")
def command(bundle: str, as_json: bool) -> None:
    """Show what a bundle holds: model, depths, quality, parity with torch, licence.

    Every file is checked against the manifest first; neither torch nor onnxruntime is needed.
    """
    from edgeseq_runtime.bundle import load_bundle

    loaded = load_bundle(bundle)
    if as_json:
        click.echo(json.dumps(summarise(loaded), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(describe(loaded)))


def summarise(bundle: "Bundle") -> dict[str, object]:
    """What ``--json`` prints: the folder, the bundle's hash and size in bytes, the manifest."""
    return {
        "bundle": str(bundle.path),
        "sha256": bundle.sha256,
        "size_bytes": _size_bytes(bundle.manifest),
        "manifest": bundle.manifest.model_dump(mode="json"),
        "calibration": None if bundle.calibration is None else bundle.calibration.model_dump(mode="json"),
    }


def describe(bundle: "Bundle") -> Iterator[str]:
    """Yield the lines that a person reads."""
    from edgeseq_runtime.policy_names import available_policies

    manifest = bundle.manifest
    files = len(manifest.graphs) + len(manifest.files) + 1
    yield _field("Bundle", str(bundle.path))
    yield _field(
        "Format",
        f"{manifest.format_version}, written by edgeseq {manifest.edgeseq_version} on {manifest.created}",
    )
    yield _field("Size", f"{_megabytes(_size_bytes(manifest))} MB in {files} files, {manifest.compute_type}")
    yield _field("SHA-256", bundle.sha256)
    yield _field("Licence", manifest.provenance.licence)
    yield _field("Data", manifest.provenance.data)
    yield from _describe_model(manifest)
    for entry in manifest.predictors:
        units = {1: "one unit for all blocks"}.get(entry.rows, f"{entry.rows} units")
        yield _field("Predictor", f"{entry.name}: {entry.kind}, {units}; learnt {entry.training}")
    yield _field("Depths", "; ".join(available_policies(manifest, bundle.calibration)))
    if manifest.shortlist is not None:
        best, frequent = manifest.shortlist.best, manifest.shortlist.frequent
        yield _field("Shortlist", f"{best} target pieces of each source piece, {frequent} frequent ones (--shortlist)")
    yield from _describe_quality(manifest)
    if bundle.calibration is not None:
        yield from _describe_calibration(bundle.calibration)
    yield from _describe_graphs(manifest)


def _describe_model(manifest: "Manifest") -> Iterator[str]:
    model = manifest.model
    yield _field(
        "Model",
        f"{model.parameters:,} parameters, width {model.dim}, {model.norm}-norm, {model.heads} attention heads",
    )
    yield _field("Encoder", f"{model.encoder_blocks} blocks")
    yield _field(
        "Decoder",
        f"{model.decoder_blocks} blocks, {_describe_mixer(model)}, "
        f"feed-forward {model.feed_forward_dim}, exit heads {model.head}",
    )
    yield _field("Tokenizer", f"{manifest.tokenizer.pieces:,} pieces")


def _describe_mixer(model: "ModelFacts") -> str:
    if model.mixer == "attention":
        windows = " ".join(str(reach) if reach else "all" for reach in model.decoder_reaches)
        return f"self-attention, {model.heads} heads, windows {windows}"
    gate = ", gated (GLU)" if model.glu else ""
    kernels = " ".join(map(str, model.decoder_reaches))
    return f"{model.mixer} convolution{gate}, {model.convolution_heads} heads, kernel sizes {kernels}"


def _describe_quality(manifest: "Manifest") -> Iterator[str]:
    yield ""
    if not manifest.operating_points and not manifest.quality:
        yield "Quality: not measured; export with validation text to have it here."
        return
    yield "Quality on the validation set"
    rows = [
        (
            f"{point.name} = {point.policy}",
            f"{point.bleu:.1f}",
            f"{point.chrf:.1f}",
            f"{point.average_depth:.2f}",
            f"{point.sentences:,}",
            f"{point.full_depth_bleu:.1f}",
        )
        for point in manifest.operating_points
    ]
    rows += [
        (
            row.depth,
            f"{row.bleu:.1f}",
            f"{row.chrf:.1f}",
            f"{row.average_depth:.2f}",
            f"{row.sentences:,}",
            "",
        )
        for row in manifest.quality
    ]
    header = ("depth", "BLEU", "chrF", "average depth", "sentences", "BLEU at full depth")
    yield from _table(header, rows)


def _describe_calibration(calibration: "Calibration") -> Iterator[str]:
    machine = calibration.machine
    yield ""
    yield (
        f"Calibrated on {calibration.created}: {calibration.sentences:,} sentences; times at batch size "
        f"{machine.batch_size}, {machine.provider}, 1 of {machine.cpu_count} processors"
    )
    rows: list[tuple[str, MeasuredPolicy]] = [("full", calibration.full_depth)]
    rows += [(f"adaptive:{point.name} = {point.policy}", point) for point in calibration.points]
    yield from _table(
        ("depth", "BLEU", "chrF", "average depth", "MFLOP/token", "ms/sentence"),
        [
            (
                name,
                f"{row.bleu:.1f}",
                f"{row.chrf:.1f}",
                f"{row.average_depth:.2f}",
                f"{row.flops_per_token / 1e6:.2f}",
                f"{row.ms_per_sentence:.2f}",
            )
            for name, row in rows
        ],
    )
    for point in calibration.points:
        if point.guarantee is not None:
            yield f"  adaptive:{point.name}: {point.guarantee.describe()}"


def _describe_graphs(manifest: "Manifest") -> Iterator[str]:
    parity = {row.graph: row for row in manifest.parity.rows}
    rows = []
    for graph in manifest.graphs:
        row = parity.get(graph.file)
        compared = (
            (f"{row.max_abs_diff:.1e}", f"{row.tolerance:.0e}", str(row.shapes)) if row else ("not compared", "", "")
        )
        rows.append((graph.file, *compared))
    yield ""
    if manifest.quantisation is not None:
        yield manifest.quantisation.describe()
        yield ""
    if manifest.shortlist is not None and manifest.shortlist.report is not None:
        yield manifest.shortlist.report.describe()
        yield ""
    in_float32 = "" if manifest.compute_type == "float32" else ", in float32"
    yield f"Graphs, and their largest difference from the torch modules they come from{in_float32}"
    yield from _table(("file", "difference", "tolerance", "shapes"), rows)
    decoding = manifest.parity.decoding
    yield (
        f"  Whole decodes: {decoding.sentences:,} sentences, {decoding.tokens:,} tokens, "
        f"{decoding.decisions:,} decisions; {decoding.disagreements:,} differ, "
        f"{decoding.ties:,} ties (margin below {manifest.parity.tie_margin:g})"
    )


def _field(label: str, value: str) -> str:
    return f"{label:<{_LABEL_WIDTH}}{value}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Align columns: the first to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(["", first, *others]).rstrip()


def _size_bytes(manifest: "Manifest") -> int:
    """Bytes of all listed files; the manifest itself is small beside them."""
    graphs = sum(entry.size for entry in manifest.graphs)
    return graphs + sum(entry.size for entry in manifest.files)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f}"
