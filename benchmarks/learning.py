"""Does the default run learn? Plain success on held-out games before and after, over seeds, and without learning.

    python benchmarks/learning.py [--seeds 0 1 2] [--out benchmarks/results/learning]
    python benchmarks/learning.py --config webshop_tiny --out benchmarks/results/learning_webshop

One process a run; the control is the same run with learning rate 0. The directory gets every run's `summary.json` under
the run's name, and `gain.json`. A run that is there already is not made again, one that was stopped goes on.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command(seed: int, *, config: str | None, control: bool, runs_dir: Path) -> list[str]:
    settings = [*(["--config", config] if config else [])]
    settings += ["--name", run_name(seed, control=control), "--runs_dir", str(runs_dir), "--seed", str(seed)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    return [*torchrun, str(ROOT / "siri" / "train.py"), *settings, *(["--optim.lr", "0"] if control else [])]


def run_name(seed: int, *, control: bool) -> str:
    return f"seed-{seed}" + ("-lr-0" if control else "")


def gain(summary: dict) -> float:
    """Points of success."""
    return 100 * (summary["eval"]["final"]["success_rate"] - summary["eval"]["initial"]["success_rate"])


def table(out: Path, seeds: list[int]) -> dict:
    """What `gain.json` holds: a row a run, and the median gain of those that learn.

    The control plays the same games with the same draws before and after, so it shows what the harness adds: nothing.
    """
    rows = []
    names = [*(run_name(seed, control=False) for seed in seeds), run_name(seeds[0], control=True)]
    for path in (out / f"{name}.json" for name in names):
        if not path.exists():
            continue
        summary = json.loads(path.read_text())
        before, after = summary["eval"]["initial"], summary["eval"]["final"]
        assert before["split_hash"] == after["split_hash"]
        rows.append(
            {
                "run": path.stem,
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
        )
    learning = [row["gain_points"] for row in rows if not row["run"].endswith("lr-0")]
    return {"median_gain_points": statistics.median(learning) if learning else None, "seeds": seeds, "runs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", help="settings of the runs [those of the default run]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "learning")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "learning")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed, control in [*((seed, False) for seed in args.seeds), (args.seeds[0], True)]:
        name = run_name(seed, control=control)
        target = args.out / f"{name}.json"
        if target.exists():
            continue
        began = time.monotonic()
        line = command(seed, config=args.config, control=control, runs_dir=args.runs_dir)
        print(f"{name}: {' '.join(line[1:])}", flush=True)
        subprocess.run(line, check=True)
        shutil.copy(args.runs_dir / name / "summary.json", target)
        print(
            f"{name}: {gain(json.loads(target.read_text())):+.1f} points, {time.monotonic() - began:.0f} s", flush=True
        )
    (args.out / "gain.json").write_text(json.dumps(table(args.out, args.seeds), indent=1) + "\n")
    print(json.dumps(table(args.out, args.seeds), indent=1))


if __name__ == "__main__":
    main()
