"""The report of a run as one page: no network, no script, light and dark, for telephones and desks.

`page` is a pure function of what the run's files hold: the same files give the same bytes.
"""

from collections.abc import Sequence
from xml.etree.ElementTree import Element, tostring

from siri.engine.files import strict_json
from siri.report.charts import MOST_POINTS, Chart, Mark, draw
from siri.report.formats import Evaluated, Rate
from siri.report.parts import (
    NONE,
    Child,
    card_table,
    duration,
    facts,
    interval_bar,
    node,
    own_text,
    percent,
    shown,
    table,
)
from siri.report.run_files import RunFiles, number, settings
from siri.report.skill_sections import episodes, internalisation, skills
from siri.report.style import STYLE

COLUMNS = (
    ("success", "rollout/success_rate", "{:.1%}"),
    ("plain", "rollout/plain_success_rate", "{:.1%}"),
    ("with skills", "rollout/guided_success_rate", "{:.1%}"),
    ("return", "rollout/return", "{:.3f}"),
    ("internalised tokens", "distill/tokens", "{:,.0f}"),
    ("rollout tok/s", "tokens_per_second/rollout", "{:,.0f}"),
    ("training tok/s", "tokens_per_second/train", "{:,.0f}"),
    ("KL", "train/approx_kl", "{:.3g}"),
    ("entropy", "train/entropy", "{:.3f}"),
    ("mismatch", "mismatch/mean", "{:.3g}"),
    ("seconds", "time/iteration", "{:.1f}"),
)
"""Heading, metric and format of the table of all iterations."""


def page(run: RunFiles) -> str:
    """The HTML text."""
    sections = [
        ("success", "Success", success(run)),
        ("evaluations", "Evaluations", evaluations(run)),
        ("phases", "Phases", phases(run)),
        ("skills", "Skills", skills(run)),
        ("internalisation", "Internalisation", internalisation(run)),
        ("episodes", "Episodes side by side", episodes(run)),
        ("speed", "Speed and health", speed(run)),
        ("settings", "What the run was", what(run)),
        ("numbers", "Every iteration", numbers(run)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", http_equiv="Content-Security-Policy", content=policy),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", f"{run.name}: siri report"),
        node("link", rel="icon", href="data:,"),
        node("style", STYLE),
    )
    nav = node("nav", *(node("a", title, href=f"#{name}") for name, title, _ in sections), aria_label="Sections")
    parts = [node("section", node("h2", title), *content, id=name) for name, title, content in sections]
    body = node("body", node("header", *top(run), nav), node("main", *parts))
    return "<!DOCTYPE html>\n" + tostring(node("html", head, body, lang="en"), encoding="unicode", method="html") + "\n"


def top(run: RunFiles) -> list[Element]:
    """Title, how far the run is, and the few numbers that it is about."""
    config = run.config
    if run.is_finished:
        state = f"Finished: {run.done} iterations."
    else:
        most = f"{'at most ' if config.max_env_steps else ''}{config.iterations}"
        state = f"{run.done} of {most} iterations are done: the run is going on, or was stopped before its end."
    if run.torn:
        state += " The last line of metrics.jsonl was cut off while it was written, and is left out."
    tiles: list[tuple[str, str, str]] = []
    rated = [(name, result) for name, _, result in run.evaluations if result.success_rate is not None]
    for name, result in rated[:1] + rated[-1:] if len(rated) > 1 else rated:
        tiles.append((_named(name), percent(result.success_rate or 0.0), f"{_interval(result)}, split {result.split}"))
    if config.algorithm == "siri":
        found = run.skills or ()
        promoted = sum(any(change.status == "active" for change in skill.changes) for skill in found)
        active = sum(skill.status == "active" for skill in found)
        tiles.append(("skills mined", str(len(found)), f"{promoted} promoted, {active} active now"))
        tiles.append(("tokens internalised", f"{run.internalised:,.0f}", "under the plain prompt"))
    tiles.append(
        ("wall clock", duration(sum(run.seconds.values())), "all sittings" if run.summary else "the iterations done")
    )
    boxes = [node("div", node("dt", t), node("dd", node("b", v), node("small", s))) for t, v, s in tiles]
    told = f"{config.algorithm} on {config.environment.name} with the policy {config.policy.model}, seed {config.seed}."
    return [
        node("h1", run.name),
        node("p", told, " ", state, class_="lead" if run.is_finished else "lead unfinished"),
        node("dl", *boxes, class_="tiles"),
    ]


def _named(evaluation: str) -> str:
    return {"initial": "success before", "final": "success after"}.get(evaluation, f"success {evaluation}")


def _interval(rate: Rate) -> str:
    return f"{percent(rate.low)} to {percent(rate.high)}, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{rate.episodes}"


def success(run: RunFiles) -> list[Element]:
    marks = [
        Mark(label=name, done=done, value=result.success_rate, low=result.low, high=result.high)
        for name, done, result in run.evaluations
        if result.success_rate is not None
    ]
    whole = Chart(
        title="Solved episodes by iteration",
        series=run.series(("training episodes, all", "rollout/success_rate")),
        form=percent,
        bands=run.bands,
        marks=marks,
        marks_label=f"evaluation, plain prompt, split {run.config.eval.split}, 95% interval",
    )
    halves = Chart(
        title="Solved episodes of the groups that were played both ways",
        series=run.series(("without skills", "skills/plain_success"), ("with skills", "skills/guided_success")),
        form=percent,
        bands=run.bands,
    )
    told = (
        f"Training episodes are drawn at temperature {run.config.rollout.temperature:g}, evaluations at "
        f"{run.config.eval.temperature:g} and on the split {run.config.eval.split}: compare each with its own kind. "
        "Iterations count from 0, as in metrics.jsonl."
    )
    if not any("skills/guided_success" in line for line in run.lines):
        none = f"No task group was played both without and with skills{_why_no_skills(run)}."
        return [node("p", told, class_="muted"), draw(whole), node("p", none, class_="muted")]
    # Groups that no skill matches are plain altogether, and of other tasks: against them the skills would look as good
    # or as bad as the tasks that they are for.
    paired = (
        "Of a group that is played both ways, one half of the episodes is shown skills. All its episodes are of one "
        "task: the two lines are of the same tasks, and groups that are plain altogether are in neither."
    )
    return [node("p", told, class_="muted"), draw(whole), draw(halves), node("p", paired, class_="muted")]


def _why_no_skills(run: RunFiles) -> str:
    if run.config.algorithm != "siri":
        return f": algorithm {run.config.algorithm} has none"
    return " so far" if not run.is_finished else ""


def evaluations(run: RunFiles) -> list[Element]:
    if not run.evaluations:
        return [node("p", "None is known yet: they are written with the first checkpoint.", class_="muted")]
    rows = [
        (name, *_rated(result), str(done), f"{result.mean_turns:.1f}", f"{result.split} ({result.split_hash[:12]})")
        for name, done, result in run.evaluations
    ]
    columns = ("evaluation", "success", "95% interval (Wilson)", "from 0% to 100%", "iterations done", "turns", "split")
    told = "Evaluation has no access to the skills."
    scores = [f"{name} {result.mean_score:.3f}" for name, _, result in run.evaluations if result.mean_score is not None]
    if scores:
        told += f" Mean score of the episodes, from 0 to 1: {', '.join(scores)}."
    lost = [f"{name}: {result.errors}" for name, _, result in run.evaluations if result.errors]
    if lost:
        told += f" Episodes lost to the environment, in no rate: {', '.join(lost)}."
    parts = [
        node("p", told, class_="muted"),
        card_table("Each task once, on the plain prompt", columns, rows, class_="drawn"),
    ]
    types = sorted({name for _, _, result in run.evaluations for name in result.by_type})
    by_type: list[Sequence[Child]] = [
        (name, *(_cell(result, name) for _, _, result in run.evaluations)) for name in types
    ]
    headings = ("task type", *(name for name, _, _ in run.evaluations))
    parts.append(card_table("Success by task type: rate, 95% interval (Wilson), episodes", headings, by_type))
    return parts


def _rated(rate: Rate) -> tuple[Child, Child, Child]:
    if rate.success_rate is None:
        return NONE, "no episodes", None
    drawn = interval_bar(
        rate.success_rate,
        (rate.low, rate.high),
        domain=(0, 1),
        says=f"{percent(rate.success_rate)}, between {percent(rate.low)} and {percent(rate.high)}",
        at=(0, 0.25, 0.5, 0.75, 1),
    )
    return percent(rate.success_rate), _interval(rate), drawn


def _cell(result: Evaluated, name: str) -> Child:
    rate = result.by_type.get(name)
    if rate is None or rate.success_rate is None:
        return NONE
    return node(
        "span", node("b", percent(rate.success_rate)), node("br"), " ", node("small", _interval(rate)), class_="rate"
    )


def phases(run: RunFiles) -> list[Element]:
    if not run.transitions:
        return [node("p", "None has begun yet.", class_="muted")]
    rows = [(change.phase, str(change.iteration), own_text(change.reason)) for change in run.transitions]
    return [table("When each phase began, and why", ("phase", "begins with iteration", "reason"), rows)]


def speed(run: RunFiles) -> list[Element]:
    kl = [("to the policy before the update", "train/approx_kl")]
    if any(number(line, "train/kl_ref") for line in run.lines):
        kl.append(("to the starting policy", "train/kl_ref"))
    tokens = (("rollout, drawn", "tokens_per_second/rollout"), ("training, passed through", "tokens_per_second/train"))
    gap = (("mean", "mismatch/mean"), ("99th percentile", "mismatch/p99"))
    charts = [
        Chart(title="Tokens a second", series=run.series(*tokens)),
        Chart(title="Seconds an iteration", series=run.series(("seconds", "time/iteration"))),
        Chart(title="KL divergence, nats a token", series=run.series(*kl)),
        Chart(title="Entropy, nats a token", series=run.series(("entropy", "train/entropy"))),
        Chart(title="Mismatch: |trainer - sampler| log-probability, nats", series=run.series(*gap)),
    ]
    parts = [node("div", *(draw(chart) for chart in charts), class_="grid")]
    total = sum(run.seconds.values())
    if total:
        rows = [(name, f"{value:,.1f}", _share(value / total)) for name, value in run.seconds.items()]
        span = "all sittings" if run.summary else "the iterations done, without start-up"
        parts.append(
            table(f"Wall-clock seconds by activity, {span}", ("activity", "seconds", "share"), rows, class_="drawn")
        )
    if run.summary is not None and run.summary.tokens_per_second:
        speeds = [(name, f"{value:,.0f}") for name, value in run.summary.tokens_per_second.items()]
        parts.append(table("Tokens a second over the whole run", ("activity", "tokens a second"), speeds))
    skipped = sum(number(line, "train/skipped_steps") or 0.0 for line in run.lines)
    lost = sum(number(line, "ended/env_error") or 0.0 for line in run.lines)
    told = (
        f"Optimiser steps skipped for a gradient that was not finite: {skipped:.0f}. "
        f"Episodes lost to the environment: {lost:.0f}."
    )
    return [*parts, node("p", told)]


def _share(share: float) -> Element:
    return node("div", percent(share), node("div", style=f"width:{100 * share:.1f}%", class_="share"))


def what(run: RunFiles) -> list[Element]:
    config, known = run.config, run.summary
    unknown = "written when the run ends"
    commit = known.git_commit if known else run.checkpoint.commit
    changed = [
        (name, own_text(strict_json(value)), own_text(strict_json(default)))
        for name, value, default in settings(config)
    ]
    pairs = [
        ("algorithm", config.algorithm),
        ("environment", f"{config.environment.name}, {config.environment.games} games"),
        ("policy", config.policy.model),
        ("seed", str(config.seed)),
        ("environment steps", f"{run.env_steps:,.0f}"),
        ("last checkpoint", (known.saved if known else None) or run.saved or "none yet"),
        ("device", f"{known.device}, {known.ranks} rank(s)" if known else unknown),
        ("commit", commit or ("not from a git checkout" if known else unknown)),
        ("versions", ", ".join(f"{name} {version}" for name, version in known.versions.items()) if known else unknown),
    ]
    parts = [facts((term, own_text(value)) for term, value in pairs)]
    if changed:
        parts.append(table("Settings that differ from the defaults", ("setting", "value", "default"), changed))
    else:
        parts.append(node("p", "Every setting is the default."))
    return parts


def numbers(run: RunFiles) -> list[Element]:
    if not run.lines:
        return [node("p", "No iteration has ended yet.", class_="muted")]
    every = -(-len(run.lines) // MOST_POINTS)
    rows = [
        (str(line["step"]), str(line.get("phase", NONE)), *(shown(number(line, m), form) for _, m, form in COLUMNS))
        for line in run.lines[::every]
    ]
    caption = "The numbers of metrics.jsonl" + (f", of one iteration in {every}" if every > 1 else "")
    content = table(caption, ("iteration", "phase", *(heading for heading, _, _ in COLUMNS)), rows, class_="numbers")
    return [node("details", node("summary", f"{len(rows)} rows"), content)]
