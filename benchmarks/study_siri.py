"""SIRI against GiGPO and against itself with parts left out, at equal environment steps.

    python benchmarks/study_siri.py [--out DIR] [--runs-dir DIR] [--arms siri gigpo ...] [-- --some.setting X ...]

Without options 25 runs of 30,000 environment steps, two side by side: about 100 minutes on two idle cores.

One process a run, `--jobs` of them side by side; what a run says goes to RUNS_DIR/ARM-SEED.log. A run that is there
already is not made again; one that failed or was stopped (Ctrl-C, SIGTERM) goes on when the command is given again.
Rows: arm, seed, success_plain, success_with_bank (skills in use in the prompt; None without any), env_steps. Tables and
figures (`study_figures.py`) are remade after each run.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from study_figures import write_results
from study_runs import Command, Failure, Going, Steps, StudyLog, side_by_side

from siri.config import RunConfig
from siri.engine.config import load_config
from siri.engine.errors import UserError
from siri.engine.files import user_error_on_write, write_json_atomic
from siri.engine.processes import exit_on_signals
from siri.envs.household.rooms import BY_ROOM, OPENABLE, Room
from siri.envs.household.tasks import GOALS

ROOT = Path(__file__).resolve().parent.parent
ARMS: dict[str, list[str]] = {
    "siri": [],
    "gigpo": ["--algorithm", "gigpo"],
    "no_warmup": ["--no_warmup", "true"],
    "no_validation": ["--no_validation", "true"],
    "no_internalisation": ["--no_internalisation", "true"],
    "no_gate": ["--no_gate", "true"],
    # As large as its 149 skills: a full bank gives up the oldest of untested skills first, which are the best places.
    "oracle_skills": ["--oracle_skills", "{oracle}", "--skills.max_size", "{oracle_size}"],
}
SEEDS = {"siri": 5, "gigpo": 5}
"""Runs of an arm; 3 of the others."""
MAX_DEVIATION = 0.05
"""Most that the environment steps of a run may be off, as a share: half an iteration of the default run is 4%."""
PLACES = 3
"""Skills of a thing in `oracle_skills`. The uniform expert, told of 0, 1, 2, 3, 4 places, wins 29, 58, 69, 73, 74% of
full rooms within 10 turns (600 games of the train split)."""


BY_ITERATION = (
    "rollout/env_steps",
    "rollout/success_rate",
    "rollout/plain_success_rate",
    "rollout/guided_success_rate",
    "skills/trials",
    "skills/effect",
    "distill/gated_tokens",
    "distill/tokens",
    "distill/weight_mean",
    "train/approx_kl",
)
"""Metrics that a row keeps of every iteration: what helped, how much, and what was made of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What all runs have in common."""

    out: Path
    runs_dir: Path
    env_steps: int
    """Environment steps that a run trains on, to the nearest iteration."""
    settings: tuple[str, ...]
    """Command-line words of every run."""

    @property
    def oracle_file(self) -> Path:
        return self.out.resolve() / "oracle_skills.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A run of the study."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


def oracle_skills() -> list[dict[str, str]]:
    """Where to look for what tasks ask for, lamps included, by the tables that the games are generated from.

    The best places of a thing, a skill each, over the rooms with tasks that ask for it, weighted by how many do. All
    first places come before all second ones, things before lamps: of untested skills that match a task equally well the
    older are shown, so of three shown in a task with a lamp two are of the thing and one is of the lamp.
    """
    things: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    lamps: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (room, goal), games in GOALS.items():
        asked = [(things, goal.object_type)]
        if goal.task_type == "look_at_obj_in_light":
            asked.append((lamps, goal.target_type))
        for known, sought in asked:
            for place, pays in paying_places(BY_ROOM[room], sought).items():
                known[sought][place] += games * pays
    ranked = [
        [(sought, place) for place in sorted(known[sought], key=lambda place: -known[sought][place])[:PLACES]]
        for known in (things, lamps)
        for sought in sorted(known)
    ]
    pairs = [pair for rank in zip_longest(*ranked) for pair in rank if pair is not None]
    return [{"condition": f"you need {a.lower()}", "strategy": f"look at {b.lower()}"} for a, b in pairs]


def paying_places(room: Room, thing: str) -> dict[str, float]:
    """Receptacle type to how well it pays to look for `thing` in one of that type, as `experts.likelihood` has it: the
    chance that it is there, shared among receptacles of the type, over the actions it takes to look.

    A mean over the room's equally likely numbers of such receptacles. Types that it never has are left out.
    """
    places = {place: weight for place, weight in room.things[thing].places.items() if any(room.receptacles[place])}
    present = {place: fmean(number > 0 for number in room.receptacles[place]) for place in places}
    total = sum(weight * present[place] for place, weight in places.items())
    pays = {}
    for place, weight in places.items():
        shared = fmean(1 / number if number else 0.0 for number in room.receptacles[place])
        actions = 2 if OPENABLE.get(place, 0.0) > 0.5 else 1
        pays[place] = weight / total * shared / actions
    return pays


def train_and_compare(study: Study, run: Planned) -> Steps:
    """Train, then compare the plain policy with the one that is shown its bank, on the evaluation games."""
    fill = {"{oracle}": str(study.oracle_file), "{oracle_size}": str(len(oracle_skills()))}
    words = [fill.get(word, word) for word in ARMS[run.arm]]
    base = ["--name", run.name, "--runs_dir", str(study.runs_dir), "--seed", str(run.seed)]
    if "--algorithm" not in words:
        base += ["--algorithm", "siri"]
    budget = ["--iterations", "10000", "--max_env_steps", str(study.env_steps)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    yield Command(words=[*torchrun, str(ROOT / "siri" / "train.py"), *base, *budget, *study.settings, *words])
    run_dir = study.runs_dir / run.name
    summary = json.loads((run_dir / "summary.json").read_text())
    final, with_bank = summary["eval"]["final"], None
    in_use = ("active", "candidate") if run.arm == "no_validation" else ("active",)
    if any(summary["skills"][status] for status in in_use):
        limit = load_config(RunConfig, str(run_dir / "config.yaml")).eval.limit
        evaluation = ["eval", "--run", str(run_dir), "--split", final["split"], "--with-skills", "--json"]
        evaluation += ["--limit", str(limit)] if limit else []
        code, printed = "import sys; from siri.cli import main; sys.exit(main())", run_dir / "with_bank.json"
        yield Command(words=[sys.executable, "-c", code, *evaluation], output=printed)
        compared = json.loads(printed.read_text())["with_bank"]
        if compared["split_hash"] != final["split_hash"]:
            raise ValueError(f"{printed} is of other games than the last evaluation of the run")
        with_bank = compared["success_rate"]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "arm": run.arm,
        "seed": run.seed,
        "success_plain": final["success_rate"],
        "success_with_bank": with_bank,
        "env_steps": summary["env_steps"],
        "success_initial": summary["eval"]["initial"]["success_rate"],
        "skills": summary["skills"],
        "tokens_internalised": summary["tokens_internalised"],
        "minutes": round(summary["wall_seconds"]["total"] / 60, 1),
        "split_hash": final["split_hash"],
        "commit": summary["git_commit"],
        "curve": curve(summary, lines),
        "by_iteration": {name: [line.get(name) for line in lines] for name in BY_ITERATION},
    }


def curve(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(environment steps trained on, plain success of the weights then): in evaluations, and in training episodes."""
    before = [0.0]
    for line in lines:
        before.append(before[-1] + line["rollout/env_steps"])
    at = {f"step-{done}": steps for done, steps in enumerate(before)} | {"initial": 0.0, "final": before[-1]}
    return {
        "evaluation": sorted((at[name], done["success_rate"]) for name, done in summary["eval"].items() if name in at),
        "rollout": [
            (steps, line["rollout/plain_success_rate"]) for steps, line in zip(before[:-1], lines, strict=True)
        ],
    }


def share_done(study: Study, name: str) -> float:
    """How much of its environment steps a run has taken, by its metrics so far."""
    try:
        *lines, _unfinished = (study.runs_dir / name / "metrics.jsonl").read_text().split("\n")
    except FileNotFoundError:
        return 0.0
    return min(1.0, sum(json.loads(line)["rollout/env_steps"] for line in lines) / study.env_steps)


def check_rows(study: Study, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError unless all rows are of this study: its settings, its budget, the same games; and have spent that
    budget, to within MAX_DEVIATION."""
    for row in rows:
        if abs(row["env_steps"] - study.env_steps) > MAX_DEVIATION * study.env_steps:
            raise UserError(
                f"--env-steps: run {row['arm']}-{row['seed']} trained on {row['env_steps']:,}, more than "
                f"{MAX_DEVIATION:.0%} from {study.env_steps:,}, and runs of one table must have had the same; ask for "
                "more steps or for smaller iterations (rollout.num_tasks), with another --out and --runs-dir"
            )
        asked = {"settings": list(study.settings), "max_env_steps": study.env_steps}
        differing = [f"{name} {row.get(name)}, not {value}" for name, value in asked.items() if row.get(name) != value]
        if row["split_hash"] != rows[0]["split_hash"]:
            differing.append(f"evaluation games {row['split_hash'][:12]}, not {rows[0]['split_hash'][:12]}")
        if differing:
            raise UserError(
                f"--out: rows/{row['arm']}-{row['seed']}.json is of another study ({'; '.join(differing)}), and rows "
                "of one table must be comparable; give the command it was begun with, or another --out and --runs-dir"
            )


def work_through(study: Study, planned: Sequence[Planned], jobs: int, work: Callable[[Study, Planned], Steps]) -> int:
    """All runs that have no row yet; returns the exit status."""
    folder = study.out / "rows"
    for place in (folder, study.runs_dir):
        with user_error_on_write(place):
            place.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    check_rows(study, rows)
    write_json_atomic(study.oracle_file, oracle_skills())
    done = {f"{row['arm']}-{row['seed']}" for row in rows}
    runs = {run.name: partial(work, study, run) for run in planned if run.name not in done}

    def take(run: Going, row: dict[str, Any]) -> str:
        row = {**row, "max_env_steps": study.env_steps, "settings": list(study.settings)}
        check_rows(study, [*rows, row])
        write_json_atomic(folder / f"{run.name}.json", row)
        rows.append(row)
        write_results(study.out, rows, list(ARMS))
        bank = "" if row["success_with_bank"] is None else f", with the bank {row['success_with_bank']:.1%}"
        return f"plain {row['success_plain']:.1%}{bank}"

    with StudyLog(total=len(planned), done=len(planned) - len(runs), share_done=partial(share_done, study)) as log:
        failures = side_by_side(runs, jobs=jobs, logs=study.runs_dir, log=log, take=take)
    if rows:
        write_results(study.out, rows, list(ARMS))  # also where there was nothing left to run
        print((study.out / "table.md").read_text())
    return report_failures(failures)


def report_failures(failures: Sequence[Failure]) -> int:
    for failure in failures:
        print(f"study_siri.py: {failure.name} failed ({failure.reason}); see {failure.log_file}", file=sys.stderr)
    if failures:
        print("study_siri.py: the same command tries what failed again", file=sys.stderr)
    return 1 if failures else 0


def main(words: Sequence[str] | None = None, work: Callable[[Study, Planned], Steps] = train_and_compare) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "study_siri")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "study_siri")
    parser.add_argument("--env-steps", type=int, default=30_000, help="environment steps a run trains on [30000]")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--first-seed", type=int, default=0, help="seeds count up from here [0]")
    parser.add_argument("--seeds", type=int, help="runs of each arm [5 of siri and gigpo, 3 of the others]")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, sharing out the cores [2]")
    parser.add_argument("settings", nargs=argparse.REMAINDER, help="settings of every run, after --")
    args = parser.parse_args(words)
    settings = args.settings[1:] if args.settings[:1] == ["--"] else args.settings
    study = Study(out=args.out, runs_dir=args.runs_dir, env_steps=args.env_steps, settings=tuple(settings))
    try:
        for option, value in (("--jobs", args.jobs), ("--env-steps", args.env_steps), ("--seeds", args.seeds)):
            if value is not None and value < 1:
                raise UserError(f"{option}: {value} makes no study; give 1 or more")
        # Seed by seed through all arms: a study that is cut short still compares.
        planned = [
            Planned(arm=arm, seed=args.first_seed + index)
            for index in range(args.seeds or max(SEEDS.values()))
            for arm in args.arms
            if index < (args.seeds or SEEDS.get(arm, 3))
        ]
        with exit_on_signals():
            return work_through(study, planned, args.jobs, work)
    except UserError as error:
        print(f"study_siri.py: {error}", file=sys.stderr)
        return 2
    except SystemExit:
        print("study_siri.py: stopped; the same command goes on", file=sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main())
