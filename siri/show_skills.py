"""`siri skills`: the bank of a run as a table, and what else people want to know of a bank: how sure a utility is."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from siri.config import SkillsConfig
from siri.engine.errors import UserError
from siri.engine.files import strict_json
from siri.skills import BankRules, Skill, SkillBank

STATUSES = ("active", "candidate", "retired")

# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom (Abramowitz and Stegun, table 26.10).
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def t_quantile(freedom: int) -> float:
    """The two-sided 95% quantile of Student's t; `freedom >= 1`. Past the table by its expansion around the normal."""
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    return 1.959964 + 2.372271 / freedom + 2.822498 / freedom**2


def mean_interval(skill: Skill) -> tuple[float, float] | None:
    """95% t-interval of a skill's mean utility; None below two evaluations, which say nothing of their spread."""
    if skill.variance is None:
        return None
    half = t_quantile(skill.count - 1) * math.sqrt(skill.variance / skill.count)
    return skill.mean - half, skill.mean + half


def check_run(run_dir: Path) -> None:
    """Raises UserError if the directory is not that of a run."""
    if not run_dir.is_dir():
        problem = "is not a directory" if run_dir.exists() else "does not exist"
    elif not (run_dir / "config.yaml").exists():
        problem = "is not a run directory (no config.yaml in it)"
    else:
        return
    raise UserError(f"--run: {run_dir} {problem}; give one like runs/default")


def read_bytes(path: Path) -> bytes | None:
    """The content of a file of a run; None if there is none. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it a readable file") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run; None if there is none. Raises UserError if it is something else."""
    content = read_bytes(path)
    try:
        return None if content is None else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: is not JSON ({error}); take it from a copy of the run, or move it away to do without it"
        ) from None


def read_bank(run_dir: Path) -> tuple[Skill, ...] | None:
    """Every skill of a run, oldest first, from its skills.json; None if it has written none yet.

    Raises UserError if the file is damaged.
    """
    path = run_dir / "skills.json"
    content = read_json(path)
    if content is None:
        return None
    names = {"n_eval", "max_eval", "promote_above", "retire_below", "max_size", "confidence"}
    rules = BankRules(**SkillsConfig().model_dump(include=names))  # they matter when a bank changes
    try:
        return SkillBank.from_dict(content, rules).skills
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def ranked(skills: Sequence[Skill]) -> list[Skill]:
    """Active ones first, retired ones last; of each status the highest mean first, of equal means the oldest."""
    return sorted(skills, key=lambda skill: (STATUSES.index(skill.status), -skill.mean, skill.id))


def utility_text(skill: Skill) -> str:
    if not skill.count:
        return "untested"
    interval = mean_interval(skill)
    return f"{skill.mean:+.3f}" + ("" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory, e.g. runs/default")
    parser.add_argument("--status", choices=STATUSES, help="only skills with this status")
    parser.add_argument("--json", action="store_true", help="print one JSON list, as skills.json has it")


def run(args: argparse.Namespace) -> int:
    check_run(args.run)
    skills = read_bank(args.run)
    if skills is None:
        raise UserError(
            f"--run: {args.run} holds no skills.json yet; a run writes it with each checkpoint (checkpoint.every), "
            "so wait for the first one"
        )
    shown = [skill for skill in ranked(skills) if args.status in (None, skill.status)]
    console = Console(highlight=False, markup=False, emoji=False)
    if args.json:
        described = {skill["id"]: skill for skill in read_json(args.run / "skills.json")["skills"]}
        console.out(strict_json([described[skill.id] for skill in shown], indent=2), highlight=False)
        return 0
    counts = ", ".join(f"{sum(skill.status == status for skill in skills)} {status}" for status in STATUSES)
    console.print(f"{len(skills)} skills: {counts}")
    if shown:
        console.print(bank_table(shown))
        console.print(
            "utility: mean reward with the skill less without, 95% t-interval over n task groups", style="dim"
        )
    return 0


def bank_table(skills: Sequence[Skill]) -> Table:
    """One row a skill, in the words of the model: `read_bank` lets no character pass that steers terminals."""
    table = Table(show_lines=True)
    for heading in ("skill", "status", "n", "utility"):
        table.add_column(heading, justify="right" if heading == "n" else "left", overflow="fold")
    for skill in skills:
        text = f"{skill.id}  when {skill.condition}: {skill.strategy}"
        reason = skill.changes[-1].reason
        status = f"{skill.status}, iteration {skill.changes[-1].iteration}: {reason}"
        status += f"; found in {skill.support} tasks" if skill.witnesses else ""
        table.add_row(Text(text), Text(status), str(skill.count), utility_text(skill))
    return table
