"""Tables and figures of the kernels from what `kernel_speed.py` wrote: the same numbers give the same files.

    cd benchmarks/results
    python ../kernel_figures.py kernels-cpu.json kernels-cpu-two-threads.json --out kernels-cpu

readme_table.md is the table of the README, which a test compares; summary.md has a line a case, tables.md all
contestants with the reasons of those left out, table.csv the same for programs; a figure a case in SVG, its times as
bars. Of further files, runs of some cases in more rounds, readme_table.md has a row under that of the same case, and
table.csv everything; the rest is of the first.
"""

import argparse
import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

from kernel_measure import GEMMS
from kernel_peers import COMPILED, EAGER, INCUMBENT, OURS
from study_figures import BOTTOM, RIGHT, TOP, WIDTH, framed, scale

from siri.engine.files import write_text_atomic
from siri.report.parts import NONE, compact, node, shown

Result = Mapping[str, Any]
Measured = Mapping[str, Any]
"""What a file of `kernel_speed.py` holds."""

LEFT, PITCH = 250, 30
"""Pixels: of the names at the left, and of a row."""
FARTHEST = 50.0
"""Times further apart than this are no bars to compare: the table tells them."""
BAR_STYLE = ".s1.bar { fill: var(--muted); } .roof.bar { fill: var(--grid); }"
COLUMNS = (
    "case", "mode", "contestant", "rounds", "ms_p20", "ms_p50", "ms_p80", "cpu_ms", "teraflops", "percent_of_gemms",
    "peak_mib", "value_error", "gradient_error", "left_out", "inputs", "dtype", "device", "versions", "commit",
)  # fmt: skip


def timed(result: Result) -> list[dict[str, Any]]:
    """Contestants with a time, fastest first; the bare GEMMs last."""
    found = [entry for entry in result["contestants"] if "ms" in entry]
    return sorted(found, key=lambda entry: (entry["name"] == GEMMS, entry["ms"]["p50"]))


def entry_of(result: Result, name: str) -> dict[str, Any] | None:
    return next((entry for entry in timed(result) if entry["name"] == name), None)


def reason(entry: Mapping[str, Any]) -> str | None:
    """Why a contestant has no time."""
    if "ms" in entry:
        return None
    if "left_out" in entry:
        return str(entry["left_out"])
    off, gradients = shown(entry["value_error"]), shown(gradient_error(entry))
    return f"wrong: off by {off}, its gradients by {gradients} of their norm"


def gradient_error(entry: Mapping[str, Any]) -> float | None:
    """The worst; None without gradients, or where one is not a number (null in JSON)."""
    found = entry.get("gradient_errors") or [None]
    return None if None in found else max(found)


def readme_table(measured: Mapping[str, Measured]) -> list[str]:
    """By name of the file. A line a case of the first, and under it one of each other file that has the case."""
    (_, first), *others = measured.items()
    rows = []
    for result in first["results"]:
        # An op without gradients has one mode.
        mode = {"both": ", forward and backward", "forward": ", forward"}[result["mode"]] if result["width"] else ""
        rows.append([f"{result['case']}{mode}", *readme_cells(result)])
        for file, other in others:
            for same in other["results"]:
                if (same["case"], same["mode"]) == (result["case"], result["mode"]):
                    rounds = max(entry["rounds"] for entry in timed(same))
                    told = f"the same in {rounds} rounds (`{file}`, commit {other['commit'][:7]})"
                    rows.append([told, *readme_cells(same)])
    return markdown(("case", "ours", "torch, eager", "torch.compile", "memory, ours and eager's"), rows)


def readme_cells(result: Result) -> list[str]:
    ours, eager, compiled = (entry_of(result, name) for name in (OURS, EAGER, COMPILED.name))
    incumbent = entry_of(result, INCUMBENT)
    told = duration(eager) if incumbent is None else f"{INCUMBENT}: {duration(incumbent)}"
    memory = f"{mebibytes(ours)} and {mebibytes(eager)} MiB" if ours is not None and eager is not None else ""
    return [duration(ours) or "no time: tables.md says why", told, duration(compiled), memory]


def duration(entry: Mapping[str, Any] | None) -> str:
    """The median; empty for nobody."""
    if entry is None:
        return ""
    ms = entry["ms"]["p50"]
    return f"{ms / 1e3:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"


def summary(results: Sequence[Result]) -> list[str]:
    """A line a case: ours, the fastest of the others, eager."""
    rows = []
    for result in results:
        ours, eager = entry_of(result, OURS), entry_of(result, EAGER)
        others = [entry for entry in timed(result) if entry["name"] not in (OURS, GEMMS)]
        if ours is None:
            rows.append([result["case"], result["mode"], "no time: tables.md says why", *[NONE] * 6])
            continue
        best = others[0] if others else None
        rows.append(
            [
                result["case"],
                result["mode"],
                milliseconds(ours),
                shown(ours["teraflops"]),
                NONE if ours["percent_of_gemms"] is None else f"{ours['percent_of_gemms']:.0f}%",
                NONE if best is None else f"{best['name']}: {milliseconds(best)}",
                NONE if best is None else f"{best['ms']['p50'] / ours['ms']['p50']:.3g}",
                mebibytes(ours),
                NONE if eager is None else mebibytes(eager),
            ]
        )
    headings = (
        "case", "mode", "ours, ms", "TFLOP/s", "of bare GEMMs", "fastest of the others, ms", "its time / ours",
        "memory, MiB", "eager's",
    )  # fmt: skip
    return markdown(headings, rows)


def tables(results: Sequence[Result]) -> list[str]:
    """A table a case and mode, and beneath it who is not in it, and why."""
    lines: list[str] = []
    headings = (
        "", "ms", "p20 to p80", "CPU ms", "TFLOP/s", "of bare GEMMs", "memory, MiB", "error", "gradient error",
        "rounds",
    )  # fmt: skip
    for result in results:
        rows = [
            [
                entry["name"],
                milliseconds(entry),
                f"{four_digits(entry['ms']['p20'])} to {four_digits(entry['ms']['p80'])}",
                four_digits(entry["cpu_ms"]),
                shown(entry["teraflops"]),
                NONE if entry["percent_of_gemms"] is None else f"{entry['percent_of_gemms']:.0f}%",
                mebibytes(entry),
                shown(entry.get("value_error"), "{:.1e}"),
                shown(gradient_error(entry), "{:.1e}"),
                str(entry["rounds"]),
            ]
            for entry in timed(result)
        ]
        absent = [f"{entry['name']} ({why})" for entry in result["contestants"] if (why := reason(entry))]
        lines += [
            f"### {result['case']}, {result['mode']}",
            "",
            f"{inputs(result)}.",
            "",
            *markdown(headings, rows),
            "",
        ]
        if absent:
            lines += [f"No time: {'; '.join(absent)}.", ""]
    return lines


def inputs(result: Result) -> str:
    shape = f"T = {result['tokens']}, H = {result['width']}, V = {result['vocabulary']}, " if result["width"] else ""
    kept = f"; {result['kept']:.0%} of the tokens are trained" if result["kept"] < 1 else ""
    held = f"; the gradients alone take {result['gradients_mib']:.0f} MiB" if result["gradients_mib"] else ""
    return f"{shape}{result['dtype']}; inputs: {result['inputs']}{kept}{held}"


def milliseconds(entry: Mapping[str, Any]) -> str:
    return four_digits(entry["ms"]["p50"])


def four_digits(ms: float | None) -> str:
    return NONE if ms is None else f"{ms:,.0f}" if ms >= 1000 else f"{ms:.4g}"


def mebibytes(entry: Mapping[str, Any]) -> str:
    """Of what an op holds beside its inputs, at its peak."""
    peak = entry.get("peak_mib")
    return NONE if peak is None else f"{peak:.0f}" if peak >= 10 else f"{peak:.2g}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]


def head(measured: Measured) -> list[str]:
    """What the numbers were measured with."""
    hardware = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured["hardware"].items())
    lines = [
        f"`{measured['command']}`, commit {measured['commit'][:7]}; {hardware}; {versions(measured)}.",
        f"Our kernels: {measured['kernels']}.",
        "",
        "Medians of interleaved rounds. CPU ms: of all threads together. FLOPs: 2THV for each projection that the op",
        "cannot do without (forward and backward: 3), for kept tokens; who recomputes logits does more and gets no",
        "credit. Memory: the most that is held beside the inputs, gradients included. Errors: against float64; of",
        "values the largest, of gradients the norm of the difference by the norm.",
        "",
    ]
    lines += [f"Not measured: {case['case']} ({case['reason']})." for case in measured["left_out"]]
    return [*lines, ""] if measured["left_out"] else lines


def versions(measured: Measured) -> str:
    return ", ".join(f"{name} {version}" for name, version in measured["versions"].items())


def csv_text(measured: Sequence[Measured]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in measured:
        hardware = one["hardware"]
        threads = f", {hardware['threads']} threads" if "threads" in hardware else ""
        where = {"device": hardware["name"] + threads, "versions": versions(one), "commit": one["commit"]}
        for result in one["results"]:
            for entry in result["contestants"]:
                percentiles = {f"ms_{name}": value for name, value in entry.get("ms", {}).items()}
                row = {"contestant": entry["name"], "gradient_error": gradient_error(entry), "left_out": reason(entry)}
                writer.writerow({**result, **entry, **percentiles, **row, **where})
    return text.getvalue()


def figure(result: Result) -> Element | None:
    """Times as bars, ours in colour; the value stands beside its bar."""
    entries = timed(result)
    if not entries:
        return None
    longest = max(entry["ms"]["p80"] for entry in entries)
    if longest > FARTHEST * min(entry["ms"]["p50"] for entry in entries):
        return None
    bottom = TOP + PITCH * len(entries)
    x = scale([0.0, longest], LEFT, WIDTH - RIGHT)
    parts = [node("style", BAR_STYLE)]
    for tick in x.ticks:
        parts.append(node("line", x1=x(tick), x2=x(tick), y1=TOP, y2=bottom, class_="grid-line"))
        parts.append(node("text", compact(tick), x=x(tick), y=bottom + 20, text_anchor="middle"))
    for place, entry in enumerate(entries):
        y, ms = TOP + PITCH * place + PITCH // 2, entry["ms"]
        kind = {OURS: "s0", GEMMS: "roof"}.get(entry["name"], "s1")
        says = f"{entry['name']}: {ms['p50']:.4g} ms, p20 {ms['p20']:.4g}, p80 {ms['p80']:.4g}"
        bar = node(
            "rect", node("title", says), x=x(0), y=y - 9, width=round(x(ms["p50"]) - x(0), 2), height=18,
            class_=f"bar {kind}",
        )  # fmt: skip
        parts += [bar, node("line", x1=x(ms["p20"]), x2=x(ms["p80"]), y1=y, y2=y, class_="whisker")]
        parts.append(node("text", entry["name"], x=LEFT - 12, y=y, dy="0.32em", text_anchor="end", class_="name"))
        end = x(max(ms["p50"], ms["p80"])) + 8
        parts.append(node("text", four_digits(ms["p50"]), x=end, y=y, dy="0.32em", class_="name"))
    parts.append(node("text", "milliseconds", x=(LEFT + WIDTH - RIGHT) / 2, y=bottom + 38, text_anchor="middle"))
    told = "medians of interleaved rounds; lines from p20 to p80; less is better"
    return framed(f"{result['case']}, {result['mode']}", told, parts, bottom + BOTTOM)


def write_results(measured: Mapping[str, Measured], out: Path) -> None:
    """All files, into the folder `out`, from what files of these names hold."""
    first = next(iter(measured.values()))
    results = first["results"]
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomic(out / "readme_table.md", "\n".join([*readme_table(measured), ""]))
    write_text_atomic(out / "summary.md", "\n".join([*head(first), *summary(results), ""]))
    write_text_atomic(out / "tables.md", "\n".join([*head(first), *tables(results)]))
    write_text_atomic(out / "table.csv", csv_text(list(measured.values())))
    for result in results:
        drawn = figure(result)
        if drawn is not None:
            name = re.sub(r"\W+", "-", f"{result['case']} {result['mode']}").strip("-").casefold()
            write_text_atomic(out / f"{name}.svg", tostring(drawn, encoding="unicode") + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, nargs="+", help="JSON files of kernel_speed.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    write_results({path.name: json.loads(path.read_text()) for path in arguments.measured}, arguments.out)
    print((arguments.out / "summary.md").read_text(), end="")


if __name__ == "__main__":
    main()
