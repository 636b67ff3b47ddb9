"""What a run directory holds, read for the report: also while the run goes on, and after it was stopped anywhere.

Iterations count from 0, as in the files.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from siri.config import RunConfig
from siri.engine.checkpoint import checkpoint_folders
from siri.engine.config import load_config
from siri.engine.errors import UserError
from siri.report.charts import Series
from siri.report.formats import Checkpointed, Evaluated, PhaseBegan, Sample, StateFile, Summary
from siri.run_dir import iterations_left
from siri.show_skills import check_run, read_bank, read_bytes, read_json
from siri.skills import Skill

Line = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """A run, as far as its files go."""

    name: str
    config: RunConfig
    lines: tuple[Line, ...]
    """metrics.jsonl, ascending in `step`."""
    torn: bool
    """The last line of metrics.jsonl was cut off while it was written; it is not among `lines`."""
    summary: Summary | None
    """None also where it is of an earlier, shorter run that is being continued."""
    ended_at: int | None
    """Iterations at the end that summary.json is of, this one or an earlier one."""
    checkpoint: Checkpointed
    saved: str | None
    """When the newest checkpoint was written; None before the first."""
    skills: tuple[Skill, ...] | None
    """None before skills.json."""
    samples: tuple[Sample, ...]

    @property
    def done(self) -> int:
        """Iterations that have a line in metrics.jsonl, or are in the newest checkpoint."""
        return max([self.checkpoint.step, *(line["step"] + 1 for line in self.lines[-1:])])

    @property
    def is_finished(self) -> bool:
        """The end that the settings name was reached: of the iterations, or of the environment steps."""
        if self.summary is None:
            return False
        return iterations_left(self.config, done=self.summary.iterations, env_steps=int(self.summary.env_steps)) == 0

    @property
    def evaluations(self) -> list[tuple[str, int, Evaluated]]:
        """(name, iterations done before it, result), in that order."""
        found = self.checkpoint.evaluations if self.summary is None else self.summary.eval
        made = [(name, self._made_after(name), result) for name, result in found.items() if result is not None]
        return sorted(made, key=lambda item: item[1])

    def _made_after(self, name: str) -> int:
        if name.startswith("step-") and name[5:].isdecimal():
            return int(name[5:])
        after_warmup = [change.iteration for change in self.transitions if change.phase != "warmup"]
        return {"initial": 0, "after_warmup": after_warmup[0] if after_warmup else 0}.get(
            name, self.ended_at or self.done
        )

    @property
    def transitions(self) -> list[PhaseBegan]:
        """Every phase that began. The metrics know of those after the last checkpoint too, but not of their reasons."""
        known = self.checkpoint.guidance.transitions if self.summary is None else self.summary.phases
        reasons = {(change.iteration, change.phase): change.reason for change in known}
        began = {(begin, phase) for begin, _, phase in self.bands} | reasons.keys()
        unknown = "not recorded yet"
        return [PhaseBegan(iteration=i, phase=p, reason=reasons.get((i, p), unknown)) for i, p in sorted(began)]

    @property
    def bands(self) -> list[tuple[int, int, str]]:
        """(first iteration, the one after the last, phase) of each phase that has iterations."""
        bands: list[tuple[int, int, str]] = []
        for line in self.lines:
            step, phase = line["step"], str(line.get("phase", "unknown"))
            if bands and bands[-1][2] == phase:
                bands[-1] = (bands[-1][0], step + 1, phase)
            else:
                bands.append((step, step + 1, phase))
        return bands

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by activity, most first: of the whole run, or of the iterations done so far."""
        if self.summary is not None:
            found = {name: value for name, value in self.summary.wall_seconds.items() if name != "total"}
        else:
            names = dict.fromkeys(name for line in self.lines for name in line if name.startswith("time/"))
            found = {name[5:]: sum(number(line, name) or 0.0 for line in self.lines) for name in names}
            found.pop("iteration", None)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @property
    def internalised(self) -> float:
        """Tokens distilled so far."""
        if self.summary is not None:
            return self.summary.tokens_internalised
        return sum(number(line, "distill/tokens") or 0.0 for line in self.lines)

    @property
    def env_steps(self) -> float:
        if self.summary is not None:
            return self.summary.env_steps
        return sum(number(line, "rollout/env_steps") or 0.0 for line in self.lines)

    def series(self, *named: tuple[str, str]) -> list[Series]:
        """(label, metric) of each, over the iterations; one that the run never had is left out, but for the first."""
        found = [
            Series(label=label, points=[(line["step"], number(line, metric)) for line in self.lines])
            for label, metric in named
        ]
        return [one for one in found if any(value is not None for _, value in one.points)] or found[:1]


def number(line: Line, name: str) -> float | None:
    """The value of a metric; None where it is absent or was not finite."""
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_run(run_dir: Path) -> RunFiles:
    """Raises UserError if the directory is not that of a run, or a file in it is damaged (but for a torn last line)."""
    check_run(run_dir)
    # In the order in which a run that goes on writes them last: a file read later may know more than one read before.
    content = read_json(run_dir / "summary.json")
    summary = None if content is None else _checked(Summary, content, run_dir / "summary.json")
    checkpoint = _newest_checkpoint(run_dir)
    lines, torn = read_lines(run_dir / "metrics.jsonl")
    steps = [step for line in lines if isinstance(step := line.get("step"), int)]
    if len(steps) < len(lines) or sorted(set(steps)) != steps:
        raise UserError(
            f"{run_dir / 'metrics.jsonl'}: the `step` of each line must be an integer above that of the line before; "
            "take the file from a copy of the run, or move it away"
        )
    done = max([checkpoint.step, *(step + 1 for step in steps[-1:])])
    return RunFiles(
        name=run_dir.resolve().name,
        config=load_config(RunConfig, str(run_dir / "config.yaml")),
        lines=lines,
        torn=torn,
        ended_at=None if summary is None else summary.iterations,
        summary=summary if summary is not None and summary.iterations >= done else None,
        checkpoint=checkpoint,
        saved=last_saved(run_dir),
        skills=read_bank(run_dir),
        # A resumed run has lines of iterations that it has not come to again yet.
        samples=tuple(sample for sample in read_samples(run_dir / "samples.jsonl") if sample.step < done),
    )


def last_saved(run_dir: Path) -> str | None:
    """When the newest checkpoint was written: `2026-11-23 08:16 UTC`. Giving the command again does not change it."""
    for folder in reversed(checkpoint_folders(run_dir)):
        try:
            written = (folder / "manifest.json").stat().st_mtime
        except OSError:
            continue  # a run that goes on removes old checkpoints
        return f"{datetime.fromtimestamp(written, UTC):%Y-%m-%d %H:%M} UTC"
    return None


def _newest_checkpoint(run_dir: Path) -> Checkpointed:
    for folder in reversed(checkpoint_folders(run_dir)):
        content = read_json(folder / "state.json")
        if content is not None:  # else it was removed since it was listed
            return _checked(StateFile, content, folder / "state.json").state
    return Checkpointed()


def read_lines(path: Path) -> tuple[tuple[Line, ...], bool]:
    """The objects of a file with one a line, and whether the last one is torn; none if there is no file.

    Raises UserError if another line is not a JSON object.
    """
    *lines, torn = (read_bytes(path) or b"").split(b"\n")
    found = []
    for index, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise UserError(f"{path}: line {index} is not a JSON object; remove that line, or move the file away")
        found.append(line)
    return tuple(found), bool(torn)


def read_samples(path: Path) -> list[Sample]:
    """The pairs of samples.jsonl, oldest first. Raises UserError if a line is not one."""
    lines, _ = read_lines(path)
    return [_checked(Sample, line, f"{path}: line {index}") for index, line in enumerate(lines, start=1)]


def _checked(kind: type[T], content: Any, source: Path | str) -> T:
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{source}: is not as runs write it ({where}: {first['msg']}); take it from a copy of the run, "
            "or move it away to do without it"
        ) from None


def settings(config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Every setting that differs from its default: dotted name, value, default. The run's own name is left out."""
    now, default = (dict(_leaves(model.model_dump(mode="json"))) for model in (config, RunConfig()))
    return [(name, now[name], default[name]) for name in now if now[name] != default[name] and name != "name"]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found
