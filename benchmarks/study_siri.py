"""SIRI against GiGPO and against itself with parts left out, at equal environment steps.

    python benchmarks/study_siri.py [--out benchmarks/results/study_siri] [--env-steps 60000] [--arms siri gigpo ...]

One process a run. A run that is there already is not made again, one that was stopped goes on; the table is remade
after each. Rows: arm, seed, success_plain, success_with_bank (active skills in the prompt; None without any),
env_steps. The intervals are bootstrap 95% intervals of the mean over seeds (10,000 resamples of whole runs).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from siri.envs.household.rooms import BY_ROOM

ROOT = Path(__file__).resolve().parent.parent
ARMS: dict[str, list[str]] = {
    "siri": [],
    "gigpo": ["--algorithm", "gigpo"],
    "no_warmup": ["--no_warmup", "true"],
    "no_validation": ["--no_validation", "true"],
    "no_internalisation": ["--no_internalisation", "true"],
    "no_gate": ["--no_gate", "true"],
    "oracle_skills": ["--oracle_skills", "{oracle}"],
}
SEEDS = {"siri": 5, "gigpo": 5}
"""Runs of an arm; 3 of the others."""


def oracle_skills() -> list[dict[str, str]]:
    """Where each thing is most often, by the tables that the games are generated from."""
    best: dict[str, tuple[float, str]] = {}
    for room in BY_ROOM.values():
        for thing, stock in room.things.items():
            for place, weight in stock.places.items():
                share = weight / sum(stock.places.values())
                best[thing.lower()] = max(best.get(thing.lower(), (0.0, "")), (share, place.lower()))
    return [{"condition": f"you need {thing}", "strategy": f"look at {best[thing][1]}"} for thing in sorted(best)]


def run_one(arm: str, seed: int, *, runs_dir: Path, out: Path, env_steps: int, settings: list[str]) -> dict:
    """Train, then compare the plain policy with the one that is shown its bank, on the evaluation split."""
    name = f"{arm}-{seed}"
    oracle = out / "oracle_skills.json"
    oracle.write_text(json.dumps(oracle_skills(), indent=1) + "\n")
    words = [word.replace("{oracle}", str(oracle)) for word in ARMS[arm]]
    budget = ["--iterations", "10000", "--max_env_steps", str(env_steps)]
    base = ["--name", name, "--runs_dir", str(runs_dir), "--seed", str(seed)]
    if "--algorithm" not in words:
        base += ["--algorithm", "siri"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    command = [*torchrun, str(ROOT / "siri" / "train.py"), *base, *budget, *settings, *words]
    subprocess.run(command, check=True)
    summary = json.loads((runs_dir / name / "summary.json").read_text())
    with_bank = None
    if summary["skills"]["active"]:
        evaluation = ["eval", "--run", str(runs_dir / name), "--split", "valid", "--with-skills", "--json"]
        code = "import sys; from siri.cli import main; sys.exit(main())"
        printed = subprocess.run([sys.executable, "-c", code, *evaluation], check=True, capture_output=True, text=True)
        with_bank = json.loads(printed.stdout)["with_bank"]["success_rate"]
    return {
        "arm": arm,
        "seed": seed,
        "success_plain": summary["eval"]["final"]["success_rate"],
        "success_with_bank": with_bank,
        "env_steps": summary["env_steps"],
        "success_initial": summary["eval"]["initial"]["success_rate"],
        "skills": summary["skills"],
        "tokens_internalised": summary["tokens_internalised"],
        "minutes": round(summary["wall_seconds"]["total"] / 60, 1),
        "split_hash": summary["eval"]["final"]["split_hash"],
        "commit": summary["git_commit"],
    }


def bootstrap(values: list[float], *, resamples: int = 10_000) -> list[float]:
    """95% interval of the mean; the seed is fixed, so equal rows give equal tables."""
    rng = np.random.default_rng(0)
    means = rng.choice(np.array(values), (resamples, len(values))).mean(axis=1)
    return [round(float(bound), 4) for bound in np.quantile(means, (0.025, 0.975))]


def summarise(rows: list[dict]) -> list[dict]:
    """A line an arm: mean and interval over its seeds, in the order of ARMS."""
    lines = []
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        line: dict = {"arm": arm, "runs": len(own)}
        for name in ("success_plain", "success_with_bank"):
            values = [row[name] for row in own if row[name] is not None]
            if values:
                line[name] = round(float(np.mean(values)), 4)
                line[f"{name}_interval"] = bootstrap(values)
        if own:
            lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "study_siri")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "study_siri")
    parser.add_argument("--env-steps", type=int, default=60_000, help="environment steps a run may train on [60000]")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--first-seed", type=int, default=0, help="seeds count up from here [0]")
    parser.add_argument("--seeds", type=int, help="runs of each arm [5 of siri and gigpo, 3 of the others]")
    parser.add_argument("settings", nargs=argparse.REMAINDER, help="settings of every run, after --")
    args = parser.parse_args()
    settings = args.settings[1:] if args.settings[:1] == ["--"] else args.settings
    (args.out / "rows").mkdir(parents=True, exist_ok=True)
    # Seed by seed through all arms: a study that is cut short still compares.
    most = args.seeds or max(SEEDS.values())
    todo = [
        (arm, args.first_seed + index)
        for index in range(most)
        for arm in args.arms
        if index < (args.seeds or SEEDS.get(arm, 3))
    ]
    for number, (arm, seed) in enumerate(todo, 1):
        path = args.out / "rows" / f"{arm}-{seed}.json"
        if not path.exists():
            began = time.monotonic()
            print(f"[{number}/{len(todo)}] {arm}, seed {seed}", flush=True)
            row = run_one(arm, seed, runs_dir=args.runs_dir, out=args.out, env_steps=args.env_steps, settings=settings)
            path.write_text(json.dumps({**row, "settings": settings}, indent=1) + "\n")
            print(f"    plain {row['success_plain']:.1%}, {time.monotonic() - began:.0f} s", flush=True)
        rows = [json.loads(found.read_text()) for found in sorted((args.out / "rows").glob("*.json"))]
        assert len({row["split_hash"] for row in rows}) == 1, "rows of different evaluation games"
        (args.out / "table.json").write_text(json.dumps({"arms": summarise(rows), "rows": rows}, indent=1) + "\n")
    print(json.dumps(summarise(rows), indent=1))


if __name__ == "__main__":
    main()
