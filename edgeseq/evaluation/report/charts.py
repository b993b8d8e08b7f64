"""Charts as SVG that keeps its text at reading size whatever the width of the page.

Horizontal places are percentages of the plot's width and vertical ones pixels, so that a narrow page squeezes a chart
and leaves letters alone. Axis labels stand outside of the SVG's own box, in the margin that the style sheet gives it.
Colours are CSS classes and follow the page into dark mode.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeseq.evaluation.report.markup import Markup, element, join

PLOT_HEIGHT = 260
SHAPES = ("square", "circle", "triangle", "diamond", "cross", "star", "hexagon", "bowtie")
"""Markers of series, in their order; the style sheet has as many colours. Together they tell 64 series apart."""

_PATHS = {
    "square": "M-4-4H4V4H-4Z",
    "circle": "M-4.5,0A4.5,4.5 0 1 0 4.5,0A4.5,4.5 0 1 0 -4.5,0Z",
    "triangle": "M0-5.5L5.2,3.8H-5.2Z",
    "diamond": "M0-6L5,0L0,6L-5,0Z",
    "cross": "M-5-3L-3-5L0-2L3-5L5-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0Z",
    "star": "M0-6L1.6-1.9L5.7-1.9L2.4,.8L3.6,5L0,2.5L-3.6,5L-2.4,.8L-5.7-1.9L-1.6-1.9Z",
    "hexagon": "M-5,0L-2.5-4.4H2.5L5,0L2.5,4.4H-2.5Z",
    "bowtie": "M-5-4L0,0L5-4V4L0,0L-5,4Z",
}
_TICKS = 6
_LABEL_WIDTH = 0.35
"""Share of a narrow plot's width that a label of a point is taken to need, to keep labels apart."""
_LABEL_HEIGHT = 18


@dataclass(frozen=True)
class Axis:
    """A scale with its title."""

    title: str
    """What is measured, and in what unit."""
    low: float
    high: float
    ticks: list[float]

    @classmethod
    def around(cls, title: str, values: Sequence[float], low: float | None = None) -> Axis:
        """Makes an axis with round ticks that holds all values.

        Args:
            title: of the axis.
            values: what it has to hold, at least one.
            low: where it starts; None: a round number below the values.
        """
        start = min(values) if low is None else low
        width = max(max(values) - start, 1e-9)
        power = 10.0 ** math.floor(math.log10(width / _TICKS))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * _TICKS >= width)
        first, last = math.floor(start / step), math.ceil(max(values) / step)
        last = max(last, first + 1)
        return cls(title, first * step, last * step, [number * step for number in range(first, last + 1)])

    @classmethod
    def of_depths(cls, title: str, blocks: int) -> Axis:
        """Makes an axis of depths from 1 to N, with whole ticks."""
        step = max(1, round(blocks / _TICKS))
        return cls(title, 1, max(blocks, 2), [*range(1, blocks + 1, step)])

    def share(self, value: float) -> float:
        """Place of a value between the ends, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart."""

    x: float
    y: float
    name: str
    """Shown when pointed at."""
    label: str = ""
    """Shown beside the point, which gets a ring."""


@dataclass(frozen=True)
class Series:
    """Points that belong together, joined by a line in their order."""

    name: str
    points: list[Point]


def scatter(title: str, x_axis: Axis, y_axis: Axis, series: Sequence[Series]) -> Markup:
    """Draws series of points, each with its marker and colour.

    Args:
        title: what is seen, for those who do not see it.
        x_axis: of all points.
        y_axis: likewise.
        series: in the order of the legend; see `marker`.
    """
    groups, labels = [], []
    for number, one in enumerate(series):
        style, shape = _style(number)
        places = [(_percent(x_axis.share(point.x)), _vertical(y_axis.share(point.y))) for point in one.points]
        marks = [
            element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=f"{style} join")
            for (x1, y1), (x2, y2) in itertools.pairwise(places)
        ]
        for point, (x, y) in zip(one.points, places, strict=True):
            # A <title> is shown by browsers when its parent is pointed at; a group may hold both.
            mark = element("use", href=shape, x=x, y=y, class_=style)
            marks.append(element("g", element("title", point.name), mark))
            if point.label:
                marks.append(element("circle", cx=x, cy=y, r=9, class_="ring"))
                labels.append((x_axis.share(point.x), float(y), point.label, number))
        groups.append(element("g", marks, data_series=number))
    axes = [_y_axis(y_axis, PLOT_HEIGHT), _x_axis(x_axis, PLOT_HEIGHT)]
    return _svg(title, PLOT_HEIGHT, [*axes, *groups, *_labels(labels)])


def histogram(title: str, shares: Sequence[float], x_title: str) -> Markup:
    """Draws the share of tokens at each depth as bars in the tints of the depths, with figures on top."""
    y_axis = Axis.around("% of tokens", [100 * share for share in shares], low=0)
    width = 100 / len(shares)
    bars: list[Markup] = []
    for depth, share in enumerate(shares, start=1):
        left, top = (depth - 1) * width, _vertical(y_axis.share(100 * share))
        bar = element(
            "rect",
            x=f"{left + 0.1 * width:.2f}%",
            y=top,
            width=f"{0.8 * width:.2f}%",
            height=f"{PLOT_HEIGHT - float(top):.1f}",
            class_=f"bar fill-{depth}",
        )
        middle = f"{left + width / 2:.2f}%"
        bars.append(element("g", element("title", f"depth {depth}: {100 * share:.1f} % of tokens"), bar))
        if len(shares) <= 12:
            bars.append(element("text", f"{100 * share:.1f}", x=middle, y=f"{float(top) - 6:.1f}", class_="value"))
    names = [str(depth) for depth in range(1, len(shares) + 1)]
    return _svg(title, PLOT_HEIGHT, [_y_axis(y_axis, PLOT_HEIGHT), bars, _names(names, PLOT_HEIGHT, x_title)])


def depth_panels(
    title: str, labels: Sequence[str], averages: Sequence[float], shares: Sequence[Sequence[float]]
) -> Markup:
    """Draws the average depth of each group of tokens; see `share_bars` for the panel below it.

    Args:
        title: what is seen.
        labels: of the groups, in words.
        averages: average depth of each group.
        shares: of each group's tokens, the share at depths 1 to N.
    """
    height = PLOT_HEIGHT // 2
    axis = Axis.of_depths("average depth (blocks per token)", len(shares[0]))
    width = 100 / len(labels)
    places = [
        (f"{(group + 0.5) * width:.2f}%", _vertical(axis.share(average), height))
        for group, average in enumerate(averages)
    ]
    lines = [
        element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="average join")
        for (x1, y1), (x2, y2) in itertools.pairwise(places)
    ]
    points = [
        element("g", element("title", f"{label}: {average:.2f} blocks"), element("circle", cx=x, cy=y, r=4))
        for label, average, (x, y) in zip(labels, averages, places, strict=True)
    ]
    return _svg(title, height, [_y_axis(axis, height), lines, element("g", points, class_="average")], "upper")


def share_bars(title: str, labels: Sequence[str], shares: Sequence[Sequence[float]], x_title: str) -> Markup:
    """Draws a bar per group of tokens, divided by the shares of depths, shallow ones at the bottom.

    Args:
        title: what is seen.
        labels: of the groups, short.
        shares: of each group's tokens, the share at depths 1 to N.
        x_title: what divides the groups.
    """
    height = PLOT_HEIGHT * 3 // 4
    width = 100 / len(labels)
    bars = []
    for group, (label, parts) in enumerate(zip(labels, shares, strict=True)):
        below = 0.0
        for depth, share in enumerate(parts, start=1):
            if share:
                bar = element(
                    "rect",
                    x=f"{(group + 0.06) * width:.2f}%",
                    y=_vertical(below + share, height),
                    width=f"{0.88 * width:.2f}%",
                    height=f"{share * height:.1f}",
                    class_=f"bar fill-{depth}",
                )
                name = f"{label}: {100 * share:.1f} % of tokens at depth {depth}"
                bars.append(element("g", element("title", name), bar))
            below += share
    axis = Axis("% of tokens at each depth", 0, 100, [0, 25, 50, 75, 100])
    return _svg(title, height, [_y_axis(axis, height), bars, _names(labels, height, x_title)])


def marker(number: int) -> Markup:
    """Draws a series' marker by itself, for a legend."""
    style, shape = _style(number)
    mark = element("use", href=shape, x=8, y=8, class_=style)
    return element("svg", mark, class_="key", width=16, height=16, aria_hidden="true")


def marker_definitions() -> Markup:
    """Defines the markers' shapes, once per page."""
    shapes = [element("path", id=name, d=path) for name, path in _PATHS.items()]
    return element("svg", element("defs", shapes), class_="hidden", width=0, height=0, aria_hidden="true")


def _style(number: int) -> tuple[str, str]:
    """Colour class and shape of a series; no two of the first 64 share both."""
    rounds, colour = divmod(number, len(SHAPES))
    return f"series-{colour}", f"#{SHAPES[(colour + rounds) % len(SHAPES)]}"


def _svg(title: str, height: int, parts: Sequence[Markup | Sequence[Markup]], style: str = "") -> Markup:
    return element("svg", parts, class_=f"plot {style}".strip(), height=height, role="img", aria_label=title)


def _y_axis(axis: Axis, height: int) -> Markup:
    parts = [element("text", axis.title, x=-44, y=-14, class_="axis-title")]
    for tick in axis.ticks:
        y = _vertical(axis.share(tick), height)
        parts.append(element("line", x1="0", x2="100%", y1=y, y2=y, class_="rule"))
        parts.append(element("text", f"{tick:g}", x=-8, y=y, dy="0.35em", class_="tick end"))
    return join(parts)


def _x_axis(axis: Axis, height: int) -> Markup:
    parts = [_x_title(axis.title, height)]
    for tick in axis.ticks:
        x = _percent(axis.share(tick))
        parts.append(element("line", x1=x, x2=x, y1=height, y2=height + 5, class_="rule"))
        parts.append(element("text", f"{tick:g}", x=x, y=height + 19, class_="tick"))
    return join(parts)


def _names(names: Sequence[str], height: int, title: str) -> Markup:
    """Names of groups below their bars; where there are many, not all of them."""
    every = math.ceil(len(names) / 12)
    width = 100 / len(names)
    texts = [
        element("text", name, x=f"{(place + 0.5) * width:.2f}%", y=height + 19, class_="tick")
        for place, name in enumerate(names)
        # The last one always: it may say that it stands for several.
        if (place % every == 0 and place + every < len(names)) or place == len(names) - 1
    ]
    return join([texts, _x_title(title, height)])


def _x_title(title: str, height: int) -> Markup:
    return element("text", title, x="50%", y=height + 40, class_="axis-title middle")


def _labels(labels: Sequence[tuple[float, float, str, int]]) -> list[Markup]:
    """Writes labels to the lower right of their points, where curves of quality against cost leave room.

    Args:
        labels: place from 0 to 1, height in pixels, text, and number of the series.
    """
    texts: list[Markup] = []
    last_x, last_y = -1.0, 0.0
    for x, y, label, series in sorted(labels):
        below = y + _LABEL_HEIGHT + 6
        near = x - last_x < _LABEL_WIDTH
        last_x, last_y = x, max(below, last_y + _LABEL_HEIGHT) if near else below
        at_edge = x > 1 - _LABEL_WIDTH
        place = {"x": _percent(x), "y": f"{last_y:.1f}", "dx": -8 if at_edge else 8, "data_series": series}
        texts.append(element("text", label, **place, class_=f"label {'end' if at_edge else 'start'}"))
    return texts


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _vertical(share: float, height: int = PLOT_HEIGHT) -> str:
    return f"{(1 - share) * height:.1f}"
