"""Does the default run learn? Plain success on held-out tasks before and after, over seeds, and without learning.

    python benchmarks/learning.py [--seeds 0 1 2] [--jobs 2] [--out benchmarks/results/learning]
    python benchmarks/learning.py --config webshop_tiny --gigpo --out benchmarks/results/learning_webshop

One process a run, `--jobs` of them side by side; the control is the run of the first seed with learning rate 0. The
directory gets every run's `summary.json` under the run's name, and `gain.json`. A run that is there already is not made
again, one that failed or was stopped goes on with the same command. What a run says goes to RUNS_DIR/NAME.log.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from study_runs import Command, Going, Steps, StudyLog, side_by_side

from siri.config import RunConfig
from siri.engine.config import load_config
from siri.engine.files import user_error_on_write, write_json_atomic
from siri.engine.processes import exit_on_signals

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {"": [], "-lr-0": ["--optim.lr", "0"], "-gigpo": ["--algorithm", "gigpo"]}
"""Endings of a run's name, and what such a run has beside the configuration."""


def run_names(seeds: Sequence[int], *, gigpo: bool) -> list[str]:
    beside = [f"seed-{seed}-gigpo" for seed in seeds] if gigpo else []
    return [*(f"seed-{seed}" for seed in seeds), *beside, f"seed-{seeds[0]}-lr-0"]


def command(name: str, *, config: str | None, runs_dir: Path) -> list[str]:
    seed, variant = name.removeprefix("seed-").partition("-")[::2]
    settings = [*(["--config", config] if config else []), "--name", name, "--runs_dir", str(runs_dir), "--seed", seed]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    return [*torchrun, str(ROOT / "siri" / "train.py"), *settings, *VARIANTS[f"-{variant}" if variant else ""]]


def train(name: str, *, config: str | None, runs_dir: Path) -> Steps:
    yield Command(words=command(name, config=config, runs_dir=runs_dir))
    return json.loads((runs_dir / name / "summary.json").read_text())


def share_done(runs_dir: Path, name: str) -> float:
    """How much of its iterations a run has done."""
    try:
        done = (runs_dir / name / "metrics.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0.0
    return done / load_config(RunConfig, str(runs_dir / name / "config.yaml")).iterations


def gain(summary: dict) -> float:
    """Points of success."""
    return 100 * (summary["eval"]["final"]["success_rate"] - summary["eval"]["initial"]["success_rate"])


def row(name: str, summary: dict) -> dict:
    before, after = summary["eval"]["initial"], summary["eval"]["final"]
    assert before["split_hash"] == after["split_hash"]
    return {
        "run": name,
        "before": before["success_rate"],
        "after": after["success_rate"],
        "interval_after": [after["low"], after["high"]],
        "gain_points": round(gain(summary), 2),
        "games": after["episodes"],
        **({"score": [before["mean_score"], after["mean_score"]]} if "mean_score" in after else {}),
        "minutes": round(summary["wall_seconds"]["total"] / 60, 1),
        "mismatch_mean": summary["mismatch"]["mean"],
        "commit": summary["git_commit"],
    }


def table(out: Path, seeds: Sequence[int]) -> dict:
    """What `gain.json` holds: a row a run, and the median gain of those that learn.

    The control plays the same games with the same draws before and after, so it shows what the harness adds: nothing.
    """
    names = [name for name in run_names(seeds, gigpo=True) if (out / f"{name}.json").exists()]
    rows = [row(name, json.loads((out / f"{name}.json").read_text())) for name in names]
    learning = [row["gain_points"] for row in rows if row["run"].count("-") == 1]
    return {"median_gain_points": statistics.median(learning) if learning else None, "seeds": seeds, "runs": rows}


def main(words: Sequence[str] | None = None, work: Callable[..., Steps] = train) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", help="settings of the runs [those of the default run]")
    parser.add_argument("--gigpo", action="store_true", help="also train each seed by GiGPO alone, to compare")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, sharing out the cores [1]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "learning")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "learning")
    args = parser.parse_args(words)
    for place in (args.out, args.runs_dir):
        with user_error_on_write(place):
            place.mkdir(parents=True, exist_ok=True)
    names = run_names(args.seeds, gigpo=args.gigpo)
    left = [name for name in names if not (args.out / f"{name}.json").exists()]

    def take(run: Going, summary: dict) -> str:
        write_json_atomic(args.out / f"{run.name}.json", summary)
        write_json_atomic(args.out / "gain.json", table(args.out, args.seeds))
        return f"{gain(summary):+.1f} points"

    runs = {name: partial(work, name, config=args.config, runs_dir=args.runs_dir) for name in left}
    with StudyLog(total=len(names), done=len(names) - len(left), share_done=partial(share_done, args.runs_dir)) as log:
        failures = side_by_side(runs, jobs=args.jobs, logs=args.runs_dir, log=log, take=take)
    for failure in failures:
        print(f"learning.py: {failure.name} failed ({failure.reason}); see {failure.log_file}", file=sys.stderr)
    print(json.dumps(table(args.out, args.seeds), indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    with exit_on_signals():
        sys.exit(main())
