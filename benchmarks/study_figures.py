"""Tables and figures of a study, from its rows alone: the same rows give the same files.

    write_results   table.json, table.csv, table.md, and the figures: SVG files in the colours of `siri report`

Intervals are bootstrap 95% intervals of the mean over runs: 10,000 resamples of whole runs, percentiles. Differences
are paired: each run less the gigpo run of the same seed, then the mean and the interval of those.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

import numpy as np

from siri.engine.files import write_json_atomic, write_text_atomic
from siri.report.charts import nice_ticks
from siri.report.parts import NONE, compact, node, percent
from siri.report.style import STYLE

Row = Mapping[str, Any]

BASELINE = "gigpo"
COLUMNS = ("arm", "seed", "success_plain", "success_with_bank", "env_steps")
MORE_COLUMNS = ("success_initial", "tokens_internalised", "minutes", "split_hash", "commit")
"""Of a row, what table.csv holds."""
BULK = ("curve", "by_iteration")
"""Of a row, what table.json leaves to the row's own file."""
ESTIMATES = {
    "success_plain": "success, plain",
    "success_with_bank": "success with the bank",
    "plain_minus_gigpo": "plain, less gigpo",
    "with_bank_minus_gigpo": "with the bank, less gigpo (plain)",
    "with_bank_minus_plain": "with the bank, less plain",
}
"""What is told of an arm, each with `_interval` and `_runs` beside it, and its heading."""

WIDTH, TOP, RIGHT, BOTTOM = 760, 64, 96, 46
"""Pixels of a figure, and of its margins."""
GRID = 61
"""Points of a mean curve."""
OWN_STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
.paper { fill: var(--page); }
.heading { font-size: 15px; font-weight: 600; fill: var(--text); }
.plot .name { fill: var(--text); }
.area { opacity: .18; }
.s0.area { fill: var(--s0); }
.s1.area { fill: var(--s1); }
"""


def bootstrap(values: Sequence[float], *, resamples: int = 10_000) -> list[float]:
    """95% interval of the mean; the seed is fixed, so equal rows give equal tables."""
    rng = np.random.default_rng(0)
    means = rng.choice(np.array(values), (resamples, len(values))).mean(axis=1)
    return [round(float(bound), 4) for bound in np.quantile(means, (0.025, 0.975))]


def values_of(rows: Sequence[Row], arm: str) -> dict[str, list[float]]:
    """For each of ESTIMATES the values of the arm's runs, by seed; runs that have none (no bank, no pair) left out."""
    own = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["seed"])
    baseline = {row["seed"]: row["success_plain"] for row in rows if row["arm"] == BASELINE}
    paired = [row for row in own if row["seed"] in baseline and arm != BASELINE]
    helped = [row for row in own if row["success_with_bank"] is not None]
    return {
        "success_plain": [row["success_plain"] for row in own],
        "success_with_bank": [row["success_with_bank"] for row in helped],
        "plain_minus_gigpo": [row["success_plain"] - baseline[row["seed"]] for row in paired],
        "with_bank_minus_gigpo": [
            row["success_with_bank"] - baseline[row["seed"]] for row in paired if row["success_with_bank"] is not None
        ],
        "with_bank_minus_plain": [row["success_with_bank"] - row["success_plain"] for row in helped],
    }


def summarise(rows: Sequence[Row], arms: Sequence[str]) -> list[dict[str, Any]]:
    """A line an arm that has runs, in the order of `arms`: means, their intervals, and of how many runs each is.

    A mean of no run is None, and so is the interval of fewer than two: one run says nothing of its spread. Runs that
    ended without an active skill are in no number `with_bank`; the number of runs beside it tells.
    """
    lines = []
    for arm in arms:
        values = values_of(rows, arm)
        if not values["success_plain"]:
            continue
        line: dict[str, Any] = {"arm": arm, "runs": len(values["success_plain"])}
        for name in ESTIMATES:
            own = values[name]
            line[name] = round(float(np.mean(own)), 4) if own else None
            line[f"{name}_interval"] = bootstrap(own) if len(own) > 1 else None
            line[f"{name}_runs"] = len(own)
        lines.append(line)
    return lines


def write_results(out: Path, rows: Sequence[Row], arms: Sequence[str]) -> None:
    """Everything that the rows of a study give, into the folder `out`."""
    lines = summarise(rows, arms)
    order = {arm: place for place, arm in enumerate(arms)}
    rows = sorted(rows, key=lambda row: (order[row["arm"]], row["seed"]))
    listed = [{name: value for name, value in row.items() if name not in BULK} for row in rows]
    write_json_atomic(out / "table.json", {"arms": lines, "rows": listed})
    write_text_atomic(out / "table.csv", csv_text(rows))
    write_text_atomic(out / "table.md", markdown(lines, rows))
    for name, figure in figures(rows, lines).items():
        write_text_atomic(out / f"{name}.svg", tostring(figure, encoding="unicode") + "\n")


def csv_text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS + MORE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(lines: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """Two tables for people: arms, and single runs."""
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    budgets = ", ".join(sorted({f"{row['max_env_steps']:,}" for row in rows}))
    arms = [[line["arm"], str(line["runs"]), *(_estimate(line, name) for name in ESTIMATES)] for line in lines]
    runs = [
        [
            row["arm"],
            str(row["seed"]),
            percent(row["success_initial"]),
            percent(row["success_plain"]),
            NONE if row["success_with_bank"] is None else percent(row["success_with_bank"]),
            f"{row['env_steps']:,}",
        ]
        for row in rows
    ]
    return "\n".join(
        [
            f"Each run trained on {budgets} environment steps, to the nearest iteration. Means over",
            "runs; in brackets bootstrap 95% intervals of the mean (10,000 resamples of whole runs: of three runs from",
            "the lowest to the highest); then the number of runs where it is not all. Differences are in points,",
            f"between runs of the same seed. Commit {commits}.",
            "",
            *_table(("arm", "runs", *ESTIMATES.values()), arms),
            "",
            *_table(("arm", "seed", "before", "plain", "with the bank", "environment steps"), runs),
            "",
        ]
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]


def _estimate(line: Mapping[str, Any], name: str) -> str:
    if line[name] is None:
        return NONE
    form = points if "minus" in name else percent
    interval = line[f"{name}_interval"]
    told = form(line[name]) + (f" [{form(interval[0])}, {form(interval[1])}]" if interval else "")
    runs = line[f"{name}_runs"]
    return told if runs == line["runs"] else f"{told} ({runs} of {line['runs']} runs)"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def figures(rows: Sequence[Row], lines: Sequence[Mapping[str, Any]]) -> dict[str, Element]:
    """Figures by file name; those without any value are left out."""
    arms = [line["arm"] for line in lines]
    plain = [group(rows, line, "success_plain", line["arm"]) for line in lines]
    bank = [
        group(rows, line, name, f"{line['arm']}{told}", series=series)
        for line in lines
        if line["success_with_bank"] is not None
        for series, (name, told) in enumerate((("success_plain", ", plain"), ("success_with_bank", ", with bank")))
    ]
    differences = [
        group(rows, line, "plain_minus_gigpo", line["arm"]) for line in lines if line["plain_minus_gigpo"] is not None
    ]
    unpaired = "dots: runs; diamonds: means, with bootstrap 95% intervals"
    paired = "points; dots: pairs of runs with the same seed; diamonds: means, with bootstrap 95% intervals"
    drawn = {
        "success_plain": dot_plot("Success on the plain prompt", unpaired, plain, percent),
        "with_bank": dot_plot("Success with the skill bank in the prompt, and without", unpaired, bank, percent),
        "difference_to_gigpo": dot_plot("Plain success, less that of gigpo", paired, differences, points),
        "success_over_steps": curves(rows, [arm for arm in ("siri", BASELINE) if arm in arms]),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A row of a dot plot."""

    label: str
    series: int
    values: Sequence[float]
    """Of single runs."""
    mean: float
    interval: Sequence[float] | None
    runs: int
    """Of the arm; some may have no value."""


def group(rows: Sequence[Row], line: Mapping[str, Any], name: str, label: str, *, series: int = 0) -> Group:
    return Group(
        label=label,
        series=series,
        values=values_of(rows, line["arm"])[name],
        mean=line[name],
        interval=line[f"{name}_interval"],
        runs=line["runs"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to pixels, over `ticks`."""

    ticks: Sequence[float]
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return round(self.start + (value - low) / (high - low) * (self.stop - self.start), 2)


def scale(values: Sequence[float], start: float, stop: float) -> Scale:
    low, high = min(values), max(values)
    return Scale(ticks=nice_ticks(low, high if high - low > 1e-9 else low + 0.01), start=start, stop=stop)


def dot_plot(title: str, told: str, groups: Sequence[Group], form: Callable[[float], str]) -> Element | None:
    """A row a group: single runs as dots, above them the mean on its interval; its value stands at the right."""
    if not groups:
        return None
    pitch, left = 38, 200
    bottom = TOP + pitch * len(groups)
    x = scale([end for g in groups for end in (*g.values, *(g.interval or ()))], left, WIDTH - RIGHT)
    parts = []
    for tick in x.ticks:
        kind = "zero" if abs(tick) < 1e-12 else "grid-line"
        parts.append(node("line", x1=x(tick), x2=x(tick), y1=TOP, y2=bottom, class_=kind))
        parts.append(node("text", form(tick).replace(".0", ""), x=x(tick), y=bottom + 20, text_anchor="middle"))
    for place, g in enumerate(groups):
        y = TOP + pitch * place + pitch // 2
        says = f"{g.label}: mean {form(g.mean)} of {len(g.values)} runs"
        if g.interval is not None:
            says += f", 95% interval {form(g.interval[0])} to {form(g.interval[1])}"
            ends = [x(end) for end in g.interval]
            parts.append(node("line", x1=ends[0], x2=ends[1], y1=y - 6, y2=y - 6, class_="whisker"))
            parts += [node("line", x1=end, x2=end, y1=y - 10, y2=y - 2, class_="whisker") for end in ends]
        diamond = f"M{x(g.mean)},{y - 12} l5,6 l-5,6 l-5,-6 Z"
        parts.append(node("path", node("title", says), d=diamond, class_="diamond"))
        parts += [
            node("circle", node("title", form(value)), cx=x(value), cy=y + 8, r=3.5, class_=f"dot s{g.series}")
            for value in g.values
        ]
        parts.append(node("text", g.label, x=left - 14, y=y, dy="0.32em", text_anchor="end", class_="name"))
        value = form(g.mean) + (f" ({len(g.values)}/{g.runs})" if len(g.values) < g.runs else "")
        parts.append(node("text", value, x=WIDTH - RIGHT + 14, y=y, dy="0.32em", class_="name"))
    return framed(title, told, parts, bottom + BOTTOM)


def curves(rows: Sequence[Row], arms: Sequence[str]) -> Element | None:
    """Mean plain success over environment steps, with bands: of the evaluations where all runs were evaluated on the
    way (`eval.every`), else of the plain episodes that they trained on.

    Runs have their values after different numbers of steps: each is read off at the same ones, on the straight line
    between its own.
    """
    shown = [row for row in rows if row["arm"] in arms]
    # Before the first and after the last iteration every run is evaluated: that alone is no curve.
    kind = "evaluation" if all(len(row["curve"]["evaluation"]) > 2 for row in shown) else "rollout"
    runs = {arm: [row["curve"][kind] for row in shown if row["arm"] == arm] for arm in arms}
    known = [curve for own in runs.values() for curve in own]
    if not known or any(len(curve) < 2 for curve in known):
        return None
    left, bottom = 64, TOP + 260
    steps = np.linspace(max(curve[0][0] for curve in known), min(curve[-1][0] for curve in known), GRID)
    at_steps = {arm: np.array([np.interp(steps, *np.transpose(curve)) for curve in own]) for arm, own in runs.items()}
    bands = {
        arm: np.array([bootstrap(column) if len(own) > 1 else [column[0]] * 2 for column in own.T])
        for arm, own in at_steps.items()
    }
    x = scale([0.0, *steps], left, WIDTH - RIGHT)
    y = scale([end for band in bands.values() for end in band.flat], bottom, TOP + 20)
    parts = []
    for tick in y.ticks:
        parts.append(node("line", x1=left, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid-line"))
        parts.append(
            node("text", percent(tick).replace(".0", ""), x=left - 8, y=y(tick), dy="0.32em", text_anchor="end")
        )
    parts += [node("text", compact(tick), x=x(tick), y=bottom + 20, text_anchor="middle") for tick in x.ticks]
    parts.append(node("text", "environment steps", x=(left + WIDTH - RIGHT) / 2, y=bottom + 38, text_anchor="middle"))
    for series, (arm, own) in enumerate(at_steps.items()):
        mean, edges = own.mean(axis=0), [*zip(steps, bands[arm][:, 0], strict=True)]
        edges += [*zip(steps[::-1], bands[arm][::-1, 1], strict=True)]
        says = (
            f"{arm}, mean of {len(own)} runs: {percent(mean[0])} after {compact(steps[0])} environment steps, "
            f"{percent(mean[-1])} after {compact(steps[-1])}"
        )
        pairs = [" ".join(f"{x(a)},{y(b)}" for a, b in path) for path in (edges, zip(steps, mean, strict=True))]
        parts.append(node("polygon", points=pairs[0], class_=f"area s{series}"))
        parts.append(node("polyline", node("title", says), points=pairs[1], class_=f"line s{series}"))
        key = left + 12 + 190 * series
        parts.append(node("line", x1=key, x2=key + 28, y1=TOP + 4, y2=TOP + 4, class_=f"line s{series}"))
        parts.append(
            node("text", f"{arm}, {percent(mean[-1])} in the end", x=key + 34, y=TOP + 4, dy="0.32em", class_="name")
        )
    source = {"evaluation": "evaluations on the way", "rollout": "plain episodes of the training rollouts"}[kind]
    told = f"{source}; bands: bootstrap 95% intervals of the mean over runs"
    return framed("Success on the plain prompt over environment steps", told, parts, bottom + BOTTOM)


def framed(title: str, told: str, parts: Sequence[Element], height: int) -> Element:
    """A whole SVG file: heading, a line that says what is drawn, the parts. Who cannot see it is told every value."""
    values = "; ".join(text.text or "" for part in parts for text in part.iter("title") if part.tag != "circle")
    return node(
        "svg",
        node("title", title, id="title"),
        node("desc", f"{values}.", id="desc"),
        node("style", STYLE + OWN_STYLE),
        node("rect", width=WIDTH, height=height, class_="paper"),
        node("text", title, x=16, y=24, class_="heading"),
        node("g", node("text", told, x=16, y=44), *parts, class_="plot"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        width=WIDTH,
        height=height,
        role="img",
        aria_labelledby="title desc",
    )
