"""The picture of a run: BLEU against the median latency of a sentence, one thread, greedy.

python benchmarks/peers/plot.py results.json quality_latency.svg
"""

from __future__ import annotations

from pathlib import Path

import click

from results import Report, Result, read

MARKERS = "osD^vPX*<>"


def find_points(report: Report) -> dict[str, list[tuple[float, Result]]]:
    """Finds what can be drawn: latencies and results, by bundle or system; empty where none is greedy on one thread."""
    groups: dict[str, list[tuple[float, Result]]] = {}
    for result in report.results:
        speed = result.speed(1)
        if (result.threads, result.beam_size) == (1, 1) and speed is not None and speed.p50_ms is not None:
            group = f"edgeseq, {result.model}" if result.depth else result.system
            groups.setdefault(group, []).append((speed.p50_ms, result))
    return groups


def draw(report: Report, path: Path) -> None:
    """Writes a picture, of the kind that the path's suffix says; points of one bundle or one system are joined."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    groups = find_points(report)
    if not groups:
        raise click.ClickException("there is nothing to draw: no result of one thread, beam 1 and batch size 1")
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for number, (group, points) in enumerate(groups.items()):
        points.sort(key=lambda point: point[0])
        axes.plot(
            [latency for latency, _ in points],
            [result.bleu for _, result in points],
            color=f"C{number % 10}",
            marker=MARKERS[number % len(MARKERS)],
            linestyle="-" if group.startswith("edgeseq") else ":",
            label=group,
        )
        left = number % 2 == 0  # curves lie beside each other: their words go to either side
        for latency, result in points:
            axes.annotate(
                result.depth or result.model,
                (latency, result.bleu),
                xytext=(-5, 5) if left else (6, -10),
                horizontalalignment="right" if left else "left",
                textcoords="offset points",
                fontsize=8,
                color=f"C{number % 10}",
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("median milliseconds of a sentence, one thread, greedy")
    axes.set_ylabel("BLEU")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


@click.command(help=__doc__)
@click.argument("report", type=click.Path(exists=True, path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
def main(report: Path, picture: Path) -> None:
    """Draws; the module's description is the command's help."""
    draw(read(report), picture)


if __name__ == "__main__":
    main()
