"""The report's figures: each with a title that says what is seen, its charts, and a table of the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

from edgeseq.evaluation.policies import PolicyResult
from edgeseq.evaluation.probing import Probe
from edgeseq.evaluation.report import charts
from edgeseq.evaluation.report.charts import Axis, Point, Series
from edgeseq.evaluation.report.markup import Child, Markup, element, table
from edgeseq.evaluation.report.measuring import ROUNDS, Measurements
from edgeseq.evaluation.report.tallies import Tally, count_by_position, count_by_probability, count_depths

_FIXED = "fixed depth"


def quality_figure(measured: Measurements) -> Markup:
    """Shows BLEU against average depth, and against wall-clock, of every policy."""
    series = _by_predictor(measured)
    bleu = Axis.around("BLEU", [result.scores.bleu for result in measured.results])
    depth = Axis.of_depths("average depth (blocks per token)", len(measured.full_depth.depth_shares))
    times = Axis.around("wall-clock (ms per sentence; left is faster)", list(measured.milliseconds.values()))
    by_depth = [
        _series(name, results, measured, [result.average_depth for result in results]) for name, results in series
    ]
    by_time = [
        _series(name, results, measured, [measured.milliseconds[result.depth] for result in results])
        for name, results in series
    ]
    title = f"Quality against cost: {_compare(measured)}"
    legend = element(
        "ul",
        [element("li", _series_switch(number, name)) for number, (name, _) in enumerate(series)],
        element("li", element("span", class_="ring-key", aria_hidden="true"), "operating point")
        if measured.points
        else None,
        class_="legend",
    )
    plots = element(
        "div",
        element(
            "div",
            element("h4", "Per block"),
            charts.scatter(f"BLEU against average depth. {title}", depth, bleu, by_depth),
        ),
        element(
            "div", element("h4", "Per millisecond"), charts.scatter(f"BLEU against time. {title}", times, bleu, by_time)
        ),
        class_="pair",
    )
    note = (
        "Each point is one policy; a line joins the settings of one predictor. Up is better, left is cheaper. Settings "
        "are one threshold for all blocks, or one quantile, spread over the range of depth; operating points may have "
        f"been tuned. Times are medians of {ROUNDS} rounds, in each of which all policies decoded "
        f"{measured.timed_sentences:,} of the sentences in turn."
    )
    return _figure(title, legend, plots, element("p", note, class_="note"), _results_table(measured))


def depth_figures(policy: str, probes: Sequence[Probe], blocks: int) -> list[Markup]:
    """Shows where the tokens of one policy stop: in all, by position, by probability."""
    by_position, by_probability = count_by_position(probes, blocks), count_by_probability(probes, blocks)
    return [
        _histogram_figure(policy, count_depths(probes, blocks)),
        _group_figure("Depth by position in the sentence", by_position, "position (pieces; the end counts)"),
        _group_figure("Depth against confidence", by_probability, "probability of the token at its exit, up to"),
    ]


def depth_legend(blocks: int) -> Markup:
    """Shows which tint stands for which depth."""
    items = [
        element("li", element("span", str(depth), class_=f"swatch tint-{depth}")) for depth in range(1, blocks + 1)
    ]
    return element("div", "depth ", element("ol", items, class_="depths"), class_="depth-legend")


def _histogram_figure(policy: str, tally: Tally) -> Markup:
    shares, counts = tally.shares[0], tally.counts[0].tolist()
    ranked = sorted(range(len(shares)), key=lambda place: -shares[place])
    title = f"Where tokens stop: {100 * shares[ranked[0]]:.0f} % after block {ranked[0] + 1}"
    if len(ranked) > 1 and shares[ranked[1]] > 0:
        title += f", {100 * shares[ranked[1]]:.0f} % after block {ranked[1] + 1}"
    title += f"; {tally.averages[0]:.2f} blocks on average"
    chart = charts.histogram(title, shares, "depth (block after which the token stopped)")
    rows = [
        (str(depth), f"{100 * share:.1f}", f"{count:,}")
        for depth, (share, count) in enumerate(zip(shares, counts, strict=True), start=1)
    ]
    data = table(f"Tokens by depth with {policy}", ("depth", "% of tokens", "tokens"), rows)
    return _figure(title, chart, _details(data))


def _group_figure(start: str, tally: Tally, x_title: str) -> Markup:
    title = f"{start}: {_extremes(tally)}"
    panels = element(
        "div",
        charts.depth_panels(f"Average depth. {title}", tally.names, tally.averages, tally.shares),
        charts.share_bars(f"Shares of depths. {title}", tally.labels, tally.shares, x_title),
    )
    blocks = tally.counts.shape[1]
    header = ["tokens at", "number", "average depth", *(f"% at {depth}" for depth in range(1, blocks + 1))]
    rows = [
        [name, f"{tokens:,}", f"{average:.2f}", *(f"{100 * share:.1f}" for share in shares)]
        for name, tokens, average, shares in zip(tally.names, tally.tokens, tally.averages, tally.shares, strict=True)
    ]
    return _figure(title, panels, _details(table(title, header, rows)))


def _extremes(tally: Tally) -> str:
    averages = tally.averages
    if len(averages) == 1:
        return "too few tokens to tell groups apart"
    low, high = averages.index(min(averages)), averages.index(max(averages))
    if averages[low] == averages[high]:
        return f"{averages[low]:.2f} blocks everywhere"
    first, second = sorted((low, high))  # in the order in which the chart shows them
    return (
        f"{averages[first]:.2f} blocks on average at {tally.names[first]}, {averages[second]:.2f} at "
        f"{tally.names[second]}"
    )


def _by_predictor(measured: Measurements) -> list[tuple[str, list[PolicyResult]]]:
    series: dict[str, list[PolicyResult]] = {}
    for result in measured.results:
        name = result.depth.partition(":")[0]
        series.setdefault(_FIXED if name == "full" or name.isdigit() else name, []).append(result)
    return [(name, sorted(results, key=lambda result: result.average_depth)) for name, results in series.items()]


def _series(name: str, results: Sequence[PolicyResult], measured: Measurements, places: Sequence[float]) -> Series:
    points = [
        Point(
            place,
            result.scores.bleu,
            f"{result.depth}: BLEU {result.scores.bleu:.2f}, {result.average_depth:.2f} blocks, "
            f"{measured.milliseconds[result.depth]:.2f} ms per sentence",
            ", ".join(measured.points.get(result.depth, [])),
        )
        for place, result in zip(places, results, strict=True)
    ]
    return Series(name, points)


def _series_switch(number: int, name: str) -> Markup:
    """An entry of the legend; the page's script makes it a switch that hides the series."""
    box = element("input", type="checkbox", checked=True, hidden=True, data_shows=number)
    return element("label", box, charts.marker(number), name)


def _compare(measured: Measurements) -> str:
    """One sentence: the first policy that is shown, against full depth."""
    full, shown = measured.full_depth, measured.result(measured.shown[0].policy)
    if shown is full:
        first = measured.results[0]
        return f"BLEU {first.scores.bleu:.1f} at depth {first.depth}, {full.scores.bleu:.1f} at full depth"
    return (
        f"BLEU {shown.scores.bleu:.1f} with {shown.average_depth:.2f} blocks per token, "
        f"{full.scores.bleu:.1f} with all {full.average_depth:.0f}"
    )


def _results_table(measured: Measurements) -> Markup:
    header = [
        "policy",
        "operating point",
        "BLEU",
        "chrF",
        "average depth",
        "MFLOP per token",
        "ms per sentence",
        "BLEU above fixed depths, 95 % interval",
    ]
    header += [f"% at {depth}" for depth in range(1, len(measured.full_depth.depth_shares) + 1)]
    rows: list[list[Child]] = []
    for result in measured.results:
        line = result.line
        rows.append(
            [
                result.depth,
                ", ".join(measured.points.get(result.depth, [])),
                f"{result.scores.bleu:.2f}",
                f"{result.scores.chrf:.2f}",
                f"{result.average_depth:.2f}",
                f"{result.flops_per_token / 1e6:.2f}",
                f"{measured.milliseconds[result.depth]:.2f}",
                "" if line is None else f"{line.gain:+.2f} ({line.low:+.2f} to {line.high:+.2f})",
                *(f"{100 * share:.1f}" for share in result.depth_shares),
            ]
        )
    return _details(table("All policies that were measured", header, rows))


def _details(data: Markup) -> Markup:
    return element("details", element("summary", "Data table"), data)


def _figure(title: str, *parts: Markup) -> Markup:
    return element("figure", element("figcaption", element("h3", title)), parts)
