"""Charts over the iterations of a run, as inline SVG.

A chart is an SVG without a view box: positions are percentages of its width and letters keep their size, so that one
drawing serves a telephone and a desk. Labels of the axes lie outside of its box, in the margin that the style leaves.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from siri.report.parts import compact, node

HEIGHT = 200
"""Pixels of a chart's plotting area."""
MOST_POINTS = 400
"""Drawn points of a line; of more iterations, means of equally many are drawn."""
MARKED_POINTS = 60
"""Up to here each point has a mark and says its value under the pointer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    label: str
    points: Sequence[tuple[int, float | None]]
    """(iteration, value); None leaves a gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A value with an interval, measured between iterations."""

    label: str
    done: int
    """Iterations done before it."""
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Values over the iterations. Lines differ in dashes and marks, phases have their names above them."""

    title: str
    series: Sequence[Series]
    form: Callable[[float], str] = compact
    bands: Sequence[tuple[int, int, str]] = ()
    """(first iteration, the one after the last, phase)"""
    marks: Sequence[Mark] = ()
    marks_label: str = ""
    bars: bool = False
    """Of the one series there is: bars from 0 in place of a line, as long as they are few enough to be told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """From iterations and values to percentages of the plotting area."""

    first: int
    last: int
    """Half-open, like the bands."""
    low: float
    high: float
    ticks: Sequence[float]

    def x(self, iteration: float) -> float:
        return 100 * (iteration - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        return 100 * (self.high - value) / (self.high - self.low)


def draw(chart: Chart) -> Element:
    """The figure: caption, legend, names of the phases, plot. Without any value, a sentence that says so."""
    caption = node("figcaption", node("strong", chart.title))
    axes = _axes(chart)
    if axes is None:
        return node("figure", caption, node("p", "No values yet.", class_="muted"))
    several = len(chart.series) > 1 or chart.marks
    legend = [*(_legend_entry(index, series.label) for index, series in enumerate(chart.series))] if several else []
    if chart.marks:
        legend.append(_legend_entry("mark", chart.marks_label))
    name = "chart-" + re.sub(r"\W+", "-", chart.title.casefold()).strip("-")
    svg = node(
        "svg",
        node("title", chart.title, id=f"{name}-title"),
        node("desc", _description(chart, axes), id=f"{name}-desc"),
        *_grid(chart, axes),
        *(part for index, series in enumerate(chart.series) for part in _drawn(chart, axes, index, series)),
        *(_mark(chart, axes, mark) for mark in chart.marks),
        class_="plot",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        width="100%",
        height=HEIGHT,
    )
    strip = [
        node("span", phase, style=f"width:{axes.x(stop) - axes.x(start):.4g}%", title=phase)
        for start, stop, phase in chart.bands
    ]
    return node(
        "figure",
        caption,
        node("div", *legend, class_="legend") if legend else None,
        node("div", *strip, class_="strip", aria_hidden="true") if strip else None,
        svg,
        node("div", "iteration", class_="axis", aria_hidden="true"),
    )


def _axes(chart: Chart) -> Axes | None:
    values = [value for series in chart.series for _, value in series.points if value is not None]
    steps = [step for series in chart.series for step, _ in series.points]
    values += [end for mark in chart.marks for end in (mark.low, mark.high)]
    if not values or not steps:
        return None
    low, high = min(0.0, *values), max(0.0, *values)
    ticks = nice_ticks(low, high if high - low > 1e-99 else low + 1)
    return Axes(first=min(steps), last=max(steps) + 1, low=ticks[0], high=ticks[-1], ticks=ticks)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, the first at or below `low`, the last at or above `high > low`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _grid(chart: Chart, axes: Axes) -> list[Element]:
    parts = []
    for index, (start, stop, _) in enumerate(chart.bands):
        at, width = axes.x(start), axes.x(stop) - axes.x(start)
        if index % 2:
            parts.append(node("rect", x=f"{at:.4g}%", y=0, width=f"{width:.4g}%", height="100%", class_="band"))
        if index:
            parts.append(node("line", x1=f"{at:.4g}%", x2=f"{at:.4g}%", y1=0, y2="100%", class_="border"))
    for tick in axes.ticks:
        y = f"{axes.y(tick):.4g}%"
        parts.append(node("line", x1=0, x2="100%", y1=y, y2=y, class_="zero" if tick == 0 else "grid-line"))
        label = chart.form(tick).replace(".0%", "%")
        parts.append(node("text", label, x=-8, y=y, dy="0.32em", text_anchor="end"))
    span = axes.last - axes.first
    every = max(1, round(nice_ticks(0, span, 6)[1])) if span > 6 else 1
    for step in range(-(-axes.first // every) * every, axes.last, every):
        parts.append(
            node("text", str(step), x=f"{axes.x(step + 0.5):.4g}%", y="100%", dy="1.4em", text_anchor="middle")
        )
    return parts


def _drawn(chart: Chart, axes: Axes, index: int, series: Series) -> list[Element]:
    """A line in pieces, broken where a value is missing, with its marks; or bars."""
    if chart.bars and len(series.points) <= MARKED_POINTS:
        return [_bar(chart, axes, step, value) for step, value in series.points if value]
    pieces: list[list[tuple[float, float]]] = [[]]
    for step, value in thinned(series.points):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((axes.x(step + 0.5), axes.y(value)))
    lines = [
        node("polyline", points=" ".join(f"{x:.4g},{y:.4g}" for x, y in piece), class_=f"line s{index}")
        for piece in pieces
        if len(piece) > 1
    ]
    # Only this inner drawing is stretched: a polyline takes no percentages. Its strokes are not.
    stretched = node("svg", *lines, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%")
    is_marked = len(series.points) <= MARKED_POINTS
    dots = [
        _symbol(
            index,
            f"{axes.x(step + 0.5):.4g}%",
            f"{axes.y(value):.4g}%",
            f"{series.label}, iteration {step}: {chart.form(value)}",
        )
        for step, value in series.points
        if value is not None and is_marked
    ]
    return [stretched, *dots]


def thinned(points: Sequence[tuple[int, float | None]]) -> list[tuple[float, float | None]]:
    """Means of equally many points, where there are more than can be told apart."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return list(points)
    found: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = [value for _, value in part if value is not None]
        found.append((sum(step for step, _ in part) / len(part), sum(values) / len(values) if values else None))
    return found


def _bar(chart: Chart, axes: Axes, step: int, value: float) -> Element:
    top, bottom = sorted((axes.y(value), axes.y(0)))
    return node(
        "rect",
        node("title", f"iteration {step}: {chart.form(value)}"),
        x=f"{axes.x(step + 0.15):.4g}%",
        y=f"{top:.4g}%",
        width=f"{0.7 * (axes.x(step + 1) - axes.x(step)):.4g}%",
        height=f"{bottom - top:.4g}%",
        class_="bar s0",
    )


def _symbol(index: int, x: str, y: str, says: str) -> Element:
    """Circle, square, triangle: marks are told apart without their colour. They keep their size in any plot."""
    title = node("title", says)
    if index == 0:
        shape = node("circle", title, r=3.5, class_="dot s0")
    elif index == 1:
        shape = node("rect", title, x=-3.5, y=-3.5, width=7, height=7, class_="dot s1")
    else:
        shape = node("path", title, d="M0,-5 L4.5,3.5 L-4.5,3.5 Z", class_="dot s2")
    return node("svg", shape, x=x, y=y, class_="at")


def _mark(chart: Chart, axes: Axes, mark: Mark) -> Element:
    """A diamond on a bar with end caps."""
    x, low, high = (f"{value:.4g}%" for value in (axes.x(mark.done), axes.y(mark.low), axes.y(mark.high)))
    says = f"{mark.label}: {chart.form(mark.value)}, 95% interval {chart.form(mark.low)} to {chart.form(mark.high)}"
    diamond = node("path", node("title", says), d="M0,-6 L5,0 L0,6 L-5,0 Z", class_="diamond")
    return node(
        "g",
        node("line", x1=x, x2=x, y1=low, y2=high, class_="whisker"),
        *(
            node("svg", node("line", x1=-4, x2=4, y1=0, y2=0, class_="whisker"), x=x, y=y, class_="at")
            for y in (low, high)
        ),
        node("svg", diamond, x=x, y=f"{axes.y(mark.value):.4g}%", class_="at"),
    )


def _legend_entry(kind: int | str, label: str) -> Element:
    if kind == "mark":
        sample = [node("path", d="M14,2 L19,8 L14,14 L9,8 Z", class_="diamond")]
    else:
        assert isinstance(kind, int)
        line = node("line", x1=0, x2=28, y1=8, y2=8, class_=f"line s{kind}")
        sample = [line, _symbol(kind, "14", "8", label)]
    return node("span", node("svg", *sample, width=28, height=16, aria_hidden="true"), " ", label)


def _description(chart: Chart, axes: Axes) -> str:
    """What a reader would say who sees the chart."""
    told = []
    for series in chart.series:
        known = [(step, value) for step, value in series.points if value is not None]
        if known:
            (first, begin), (last, end) = known[0], known[-1]
            values = [value for _, value in known]
            told.append(
                f"{series.label}: {chart.form(begin)} in iteration {first}, {chart.form(end)} in iteration {last}, "
                f"lowest {chart.form(min(values))}, highest {chart.form(max(values))}."
            )
    told += [f"{mark.label}: {chart.form(mark.value)} after {mark.done} iterations." for mark in chart.marks]
    told += [f"{phase}: iterations {start} to {stop - 1}." for start, stop, phase in chart.bands]
    span = f"Iterations {axes.first} to {axes.last - 1}."
    thin = " Lines show means of several iterations." if axes.last - axes.first > MOST_POINTS else ""
    return " ".join([span + thin, *told])
