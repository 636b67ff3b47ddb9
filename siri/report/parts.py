"""Building blocks of the report: elements, tables, and drawings that fit into a cell.

The page is a tree until it is written, so no text in it can be taken for markup.
"""

import re
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from siri.skills import Skill

Child = Element | str | None

NONE = "\N{EN DASH}"
"""Where there is no value."""

_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def node(tag: str, *children: Child, **attributes: object) -> Element:
    """An element; of attribute names a last `_` falls away and others become `-`. None is left out everywhere.

    Characters that no page can show (controls, halves of surrogates) become U+FFFD.
    """
    element = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            element.set(name.rstrip("_").replace("_", "-"), _showable(str(value)))
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child and len(element):
            element[-1].tail = (element[-1].tail or "") + _showable(child)
        elif child:
            element.text = (element.text or "") + _showable(child)
    return element


def _showable(text: str) -> str:
    return _UNSHOWABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def percent(value: float) -> str:
    return f"{value:.1%}"


def compact(value: float) -> str:
    """Three significant digits, thousands and millions abbreviated."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def shown(value: float | None, form: str = "{:.3g}") -> str:
    return NONE if value is None else form.format(value)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def own_text(text: str, tag: str = "span") -> Element:
    """What a model or an environment wrote; its reading direction stays its own."""
    return node(tag, text, class_="own", dir="auto")


def facts(pairs: Iterable[tuple[str, Child]]) -> Element:
    """A list of terms with their values."""
    return node("dl", *(node("div", node("dt", term), node("dd", value)) for term, value in pairs))


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Child]], *, class_: str = "") -> Element:
    """A table that scrolls in its own box where the window is narrow. The first cell of a row is its heading."""
    head = node("thead", node("tr", *(node("th", heading, scope="col") for heading in headings)))
    body = node("tbody")
    for first, *rest in rows:
        cells = (node("td", cell, data_label=label) for label, cell in zip(headings[1:], rest, strict=True))
        body.append(node("tr", node("th", first, scope="row"), *cells))
    content = node("table", node("caption", node("span", caption)), head, body, class_=class_ or None)
    # A box that scrolls must be reachable with the keyboard, and then needs a name.
    return node("div", content, class_="scroll", role="region", tabindex=0, aria_label=caption)


def card_table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Child]], *, class_: str = "") -> Element:
    """A table whose rows become cards where the window is narrow. Roles keep it a table for those who do not see it."""
    roles = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup", "tr": "row", "td": "cell"}
    box = table(caption, headings, rows, class_=f"cards {class_}".strip())
    for element in box.iter():
        role = {"col": "columnheader", "row": "rowheader"}.get(element.get("scope", "")) or roles.get(element.tag)
        if role:
            element.set("role", role)
    return box


def interval_bar(
    value: float,
    interval: tuple[float, float] | None,
    *,
    domain: tuple[float, float],
    says: str,
    at: Sequence[float] = (),
) -> Element:
    """A value on its interval, cut off at the ends of `domain`; `at` are reference values, drawn as thin lines."""

    def x(number: float) -> str:
        return f"{100 * (min(max(number, domain[0]), domain[1]) - domain[0]) / (domain[1] - domain[0]):.4g}%"

    lines = [node("line", x1=x(line), x2=x(line), y1=0, y2=18, class_="border" if line else "zero") for line in at]
    if interval is not None:
        lines.append(node("line", x1=x(interval[0]), x2=x(interval[1]), y1=9, y2=9, class_="whisker"))
    dot = node("svg", node("circle", cx=0, cy=0, r=4, class_="dot s0"), x=x(value), y=9, class_="at")
    return node("svg", *lines, dot, class_="cell", role="img", aria_label=says, width="100%", height=18)


def timeline(skill: Skill, span: tuple[int, int]) -> Element:
    """A skill's life over the iterations `span` (half-open): thin line candidate, thick active, dotted retired.

    A triangle upwards is an evaluation above 0, one downwards below 0, a circle one of 0.
    """

    def x(iteration: float) -> str:
        return f"{100 * (iteration - span[0]) / max(1, span[1] - span[0]):.4g}%"

    parts = []
    for change, until in zip(skill.changes, [*(later.iteration for later in skill.changes[1:]), span[1]], strict=True):
        ends = {"x1": x(change.iteration), "x2": x(max(until, change.iteration))}
        parts.append(node("line", **ends, y1=12, y2=12, class_=f"life {change.status}"))
    shapes = {1: "M0,-10 L3.5,-4 L-3.5,-4 Z", -1: "M0,10 L3.5,4 L-3.5,4 Z"}
    for trial in skill.evaluations:
        sign = (trial.delta > 0) - (trial.delta < 0)
        says = node("title", f"iteration {trial.iteration}, group {trial.group}: {trial.delta:+.3f}")
        if sign:
            shape = node("path", says, d=shapes[sign], class_="trial")
        else:
            shape = node("circle", says, cx=0, cy=0, r=2.5, class_="trial")
        parts.append(node("svg", shape, x=x(trial.iteration + 0.5), y=12, class_="at"))
    told = "; ".join(f"{change.status} from iteration {change.iteration}" for change in skill.changes)
    return node("svg", *parts, class_="cell", role="img", aria_label=told, width="100%", height=24)
