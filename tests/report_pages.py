"""Reading a page of the report by a parser that is not its writer's, and runs written by hand."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from siri.config import RunConfig
from siri.engine.config import dump_config
from siri.engine.files import write_json_atomic
from siri.report.command import write_report
from siri.skills import BankRules, Origin, SkillBank, Trial

VOID = {"meta", "link", "br"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list["Node | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, **attributes: str) -> list["Node"]:
        here = [self] if self.tag == tag and attributes.items() <= self.attributes.items() else []
        return here + [
            found for child in self.children if isinstance(child, Node) for found in child.all(tag, **attributes)
        ]


class Page(HTMLParser):
    """A page as a tree, by a parser that is not the writer's."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], "every element is closed"

    def handle_starttag(self, tag, attrs):
        found = Node(tag, dict(attrs))
        self._open[-1].children.append(found)
        if tag not in VOID:
            self._open.append(found)

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, data):
        self._open[-1].children.append(data)

    def section(self, name: str) -> Node:
        [found] = [section for section in self.root.all("section") if section.attributes["id"] == name]
        return found

    def table(self, caption: str) -> list[list[str]]:
        """Texts of the cells of the table whose caption begins so, without its heading row."""
        [found] = [t for t in self.root.all("table") if t.all("caption")[0].text.startswith(caption)]
        return [
            [cell.text for cell in row.children if isinstance(cell, Node)] for row in found.all("tbody")[0].all("tr")
        ]


def page_of(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def walk(element: Node) -> Iterator[Node]:
    yield element
    for child in element.children:
        if isinstance(child, Node):
            yield from walk(child)


BANK = BankRules(n_eval=2, max_eval=4, promote_above=0.1, retire_below=-0.1, max_size=10)
ORIGIN = Origin(task_id="t/7", task_type="heat", iteration=1, policy_version=1, played=0, group=2, member=3)
LINE = {
    "rollout/success_rate": 0.5,
    "rollout/plain_success_rate": 0.4,
    "rollout/guided_success_rate": 0.6,
    "skills/plain_return": 0.45,
    "skills/guided_return": 0.55,
    "skills/plain_success": 0.45,
    "skills/guided_success": 0.55,
    "distill/tokens": 120.0,
    "tokens_per_second/rollout": 1500.0,
    "train/approx_kl": 0.001,
    "time/rollout": 2.0,
    "time/train": 6.0,
    "time/iteration": 8.25,
    "phase": "mining",
}
RATE = {"success_rate": 0.25, "episodes": 8, "low": 0.07, "high": 0.59}
EVALUATION = {
    **RATE,
    "split": "valid",
    "split_hash": "a" * 64,
    "mean_turns": 9.5,
    "errors": 0,
    "by_type": {"heat": RATE},
}
HALF = {"success": False, "ended": "max_turns", "turns": [["a room", "look", True], ["the room", "fly", False]]}
SAMPLE = {
    "step": 0, "task_id": "t/1", "task": "heat the egg", "skills": ["when cold: heat"], "delta": 0.5,
    "plain": HALF, "guided": {**HALF, "success": True, "ended": "done"},
}  # fmt: skip
SUMMARY = {
    "iterations": 2, "env_steps": 40, "eval": {"initial": EVALUATION, "after_warmup": None, "final": EVALUATION},
    "wall_seconds": {"rollout": 4.0, "train": 12.0, "total": 16.0}, "tokens_per_second": {"rollout": 1400.0},
    "device": "a computer", "ranks": 1, "versions": {"python": "3.11"}, "git_commit": "abc", "bad_steps": 0,
    "tokens_internalised": 240.0, "saved": "2026-11-23 08:16 UTC",
    "phases": [{"iteration": 0, "phase": "mining", "reason": "the run begins"}],
}  # fmt: skip


def bank_of(*texts: tuple[str, str]) -> SkillBank:
    """Skills with these texts; the first one tried three times, and active."""
    bank = SkillBank(BANK)
    skills = [bank.add(condition, strategy, ORIGIN) for condition, strategy in texts]
    for iteration, effects in ((1, (0.0, 1.0)), (2, (0.5,))):
        trials = [
            Trial(
                iteration=iteration,
                group=group,
                task_id="t/9",
                skills=(skills[0].id,),
                skill_mean=effect,
                plain_mean=0.0,
            )
            for group, effect in enumerate(effects)
        ]
        bank.record(trials, iteration=iteration)
    return bank


def write_run(
    run_dir: Path,
    *,
    config: dict[str, Any] | None = None,
    lines: Sequence[dict[str, Any]] | None = (LINE, LINE),
    bank: SkillBank | None = None,
    samples: Sequence[dict[str, Any]] | None = (SAMPLE,),
    summary: dict[str, Any] | None = SUMMARY,
) -> Path:
    """A run directory written by hand; None leaves a file out."""
    run_dir.mkdir()
    settings = {"algorithm": "siri", "iterations": 2, **(config or {})}
    (run_dir / "config.yaml").write_text(dump_config(RunConfig.model_validate(settings)))
    numbered = None if lines is None else [{"step": step, **line} for step, line in enumerate(lines)]
    for name, content in (("metrics", numbered), ("samples", samples)):
        if content is not None:
            (run_dir / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    if bank is not None:
        write_json_atomic(run_dir / "skills.json", bank.as_dict())
    if summary is not None:
        write_json_atomic(run_dir / "summary.json", summary)
    return run_dir
