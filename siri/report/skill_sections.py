"""Sections of the report that only a run with skills has: the bank, what was internalised, pairs of episodes."""

from collections.abc import Sequence
from typing import TypeVar
from xml.etree.ElementTree import Element

from siri.report.charts import Chart, draw
from siri.report.formats import Half, Sample
from siri.report.parts import Child, card_table, interval_bar, node, own_text, percent, table, timeline
from siri.report.run_files import RunFiles, number
from siri.screening import Rejection
from siri.show_skills import STATUSES, mean_interval, ranked, utility_text
from siri.skills import Skill, effect_since_promotion

T = TypeVar("T")

REJECTED: dict[str, str] = {
    Rejection.UNPARSED: "not in the form of a skill",
    Rejection.EMPTY: "a part without a word",
    Rejection.TOO_LONG: "too long, or without an end",
    Rejection.NOT_PLAIN_TEXT: "not plain text",
    Rejection.INJECTION: "imitates the prompt or leads away from the task",
    Rejection.INSTANCE_NUMBER: "names a thing by its number",
    Rejection.UNKNOWN_WORDS: "too few words of English or of the environment",
    Rejection.DUPLICATE: "too similar to a known skill, for which it is one more witness",
}
"""By the name of the metric, without `mining/`; the first that applied, in this order."""

PAIRS_SHOWN = 6
"""Of samples.jsonl, evenly spread over the run."""
BANK_COLUMNS = (
    "skill",
    "status",
    "evaluations",
    "mean utility [95% t-interval]",
    "mined from",
    "history, by iteration",
)


def skills(run: RunFiles) -> list[Element]:
    if run.config.algorithm != "siri":
        return [node("p", f"None: algorithm {run.config.algorithm} trains on plain episodes only.", class_="muted")]
    if not run.skills:
        known = "No skill has been mined" if run.skills is not None else "skills.json comes with the first checkpoint"
        return [node("p", f"{known}.", class_="muted"), *mining(run)]
    found, rules = ranked(run.skills), run.config.skills
    counts = Chart(
        title="Skills by status",
        series=run.series(*((status, f"skills/{status}") for status in STATUSES)),
        bands=run.bands,
    )
    told = (
        "Utility: mean reward of a task group's skill half less that of its plain half, over the groups that showed "
        "the skill; its 95% interval is that of Student's t. "
    )
    if run.config.no_validation:
        told += "This run does not validate (no_validation): every skill is used, and none is judged."
    else:
        told += (
            f"After {rules.n_eval} evaluations a skill becomes active above {rules.promote_above:g} and is retired "
            f"below {rules.retire_below:g}, if its mean is {rules.confidence:g} standard errors beyond; the lines in "
            "the drawings are at 0 and there. As skills are kept for a high mean, the means of active ones overstate, "
            "on average, what they are worth. "
        )
        since, groups = effect_since_promotion(found)
        if since is not None:
            told += f"In the {groups} task groups that showed one after its promotion the effect was {since:+.3f}."
    legend = (
        "The drawings of utility reach from the smallest to the largest single evaluation. History: a thin line is a "
        "candidate, a thick one active, a dotted one retired; a triangle upwards is an evaluation above 0, one "
        "downwards below 0, a circle one of 0."
    )
    at = (0.0, rules.promote_above, rules.retire_below)
    # Not to the ends of the intervals: those of two evaluations reach far beyond any effect that there can be.
    effects = [*at, *(trial.delta for skill in found for trial in skill.evaluations)]
    low, high = min(effects), max(effects)
    pad = 0.05 * (high - low) or 1.0
    scale = (low - pad, high + pad)
    banks = []
    for status in STATUSES:
        rows = [_row(skill, scale, at, (0, max(1, run.done))) for skill in found if skill.status == status]
        if rows:
            summary = node("summary", f"{len(rows)} {status}")
            bank = card_table(f"Skills that are {status}, the highest mean first", BANK_COLUMNS, rows, class_="bank")
            # Most candidates of a young bank have not been tried yet.
            banks.append(node("details", summary, bank, open="" if status == "active" or len(rows) <= 10 else None))
    return [draw(counts), *mining(run), node("p", told, class_="muted"), node("p", legend, class_="muted"), *banks]


def mining(run: RunFiles) -> list[Element]:
    """What became of the answers of all minings; nothing where none was asked for."""

    def count(name: str) -> float:
        return sum(number(line, f"mining/{name}") or 0.0 for line in run.lines)

    drawn = count("drawn")
    if not drawn:
        return []
    named = [("kept as new skills", "kept"), *((f"rejected: {text}", reason) for reason, text in REJECTED.items())]
    rows = [("drawn", f"{drawn:,.0f}", percent(1.0))]
    rows += [(text, f"{count(name):,.0f}", percent(count(name) / drawn)) for text, name in named]
    return [table("Answers to requests for a skill, over the run", ("answers", "number", "share"), rows)]


def _row(skill: Skill, domain: tuple[float, float], at: Sequence[float], span: tuple[int, int]) -> tuple[Child, ...]:
    name = node("small", skill.id, " ")
    text = node("span", name, node("b", "when "), own_text(skill.condition), node("b", ": "), own_text(skill.strategy))
    utility = node("div", utility_text(skill))
    if skill.count:
        utility.append(interval_bar(skill.mean, mean_interval(skill), domain=domain, says=utility_text(skill), at=at))
    changes = [node("li", f"{change.iteration}: {change.status}, {change.reason}") for change in skill.changes]
    history = node("div", timeline(skill, span), node("ul", *changes))
    return text, skill.status, str(skill.count), utility, _origin(skill), history


def _origin(skill: Skill) -> Child:
    origin = skill.origin
    if origin.task_type == "oracle":
        return "given by oracle_skills"
    return node(
        "span",
        own_text(origin.task_type),
        node("br"),
        own_text(origin.task_id),
        node("br"),
        f"iteration {origin.played}, group {origin.group}, member {origin.member}; "
        f"written in iteration {origin.iteration} by policy version {origin.policy_version}",
        f"; found in {skill.support} tasks" if skill.witnesses else "",
    )


def internalisation(run: RunFiles) -> list[Element]:
    config = run.config
    if config.algorithm != "siri" or config.no_internalisation:
        setting = "no_internalisation" if config.no_internalisation else f"algorithm {config.algorithm}"
        return [node("p", f"None: {setting}.", class_="muted")]
    if not any(number(line, "distill/tokens") for line in run.lines):
        return [node("p", "No token has been internalised.", class_="muted")]
    # An iteration without the metric internalised nothing.
    chart = Chart(
        title="Internalised tokens by iteration",
        series=run.series(("tokens", "distill/tokens")),
        bands=run.bands,
        bars=True,
    )
    told = (
        f"{run.internalised:,.0f} action tokens of skill-guided episodes were distilled into the plain prompt, in all."
    )
    loss = Chart(title="Internalisation loss", series=run.series(("loss", "distill/loss")), bands=run.bands)
    return [node("p", told), node("div", draw(chart), draw(loss), class_="grid")]


def episodes(run: RunFiles) -> list[Element]:
    if not run.samples:
        return [node("p", "There is no pair of episodes to show (samples.jsonl).", class_="muted")]
    chosen = pick(run.samples, PAIRS_SHOWN)
    told = (
        f"{len(chosen)} of the {len(run.samples)} pairs in samples.jsonl. Each is the first plain and the first "
        "skill-guided episode of the first task group that was played both ways: chosen by place, not by outcome. "
        "Long texts are cut."
    )
    return [node("p", told, class_="muted"), *(_pair(sample, is_open=sample is chosen[0]) for sample in chosen)]


def pick(items: Sequence[T], count: int) -> list[T]:
    """`count >= 2` of them, evenly spread, the first and the last among them; all if there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _pair(sample: Sample, *, is_open: bool) -> Element:
    outcome = f"plain {_outcome(sample.plain)}, with skill {_outcome(sample.guided)}"
    return node(
        "details",
        node("summary", f"Iteration {sample.step}: {outcome}. ", own_text(sample.task)),
        node("p", "Task ", own_text(sample.task_id), f"; effect in its group {sample.delta:+.3f}"),
        *(node("p", node("b", "Skill shown: "), own_text(skill)) for skill in sample.skills),
        node("div", _half("Plain", sample.plain), _half("With skill", sample.guided), class_="pair"),
        open="" if is_open else None,
    )


def _outcome(half: Half) -> str:
    return "solved" if half.success else "not solved"


def _half(title: str, half: Half) -> Element:
    turns = []
    for observation, action, valid in half.turns:
        words: list[Child] = [own_text(observation, "div"), node("b", "> "), own_text(action or "(nothing)")]
        turns.append(
            node("li", *words, None if valid else node("em", " ✗ not valid"), class_=None if valid else "invalid")
        )
    ended = half.ended.replace("_", " ")
    end = node("p", node("b", f"{_outcome(half).capitalize()}"), f" after {len(half.turns)} turns ({ended})")
    return node("div", node("h3", title), node("ol", *turns), end)
