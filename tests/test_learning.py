"""The learning benchmark, with fake commands in place of training: which runs there are, and what is kept of them."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from learning import command, main, run_names, share_done
from study_runs import Command

from siri.config import RunConfig
from siri.engine.config import dump_config, load_config

SUCCESS = {"seed-0": (0.25, 0.5), "seed-1": (0.25, 0.75), "seed-0-gigpo": (0.25, 1.0), "seed-0-lr-0": (0.25, 0.25)}


def summary(name: str) -> dict:
    before, after = (
        {"success_rate": rate, "split_hash": "h", "low": 0.0, "high": 1.0, "episodes": 4, "mean_score": rate / 2}
        for rate in SUCCESS.get(name, (0.25, 0.25))
    )
    times = {"wall_seconds": {"total": 90.0}, "mismatch": {"mean": 1e-7}, "git_commit": "c"}
    return {"eval": {"initial": before, "final": after}, **times}


def fake(script: str):
    def work(name: str, **_: object):
        yield Command(words=[sys.executable, "-S", "-c", script, name])
        return summary(name)

    return work


def words(folder: Path, *more: str) -> list[str]:
    return ["--out", str(folder / "out"), "--runs-dir", str(folder / "runs"), "--jobs", "2", *more]


def test_what_each_run_is_told(tmp_path: Path) -> None:
    assert run_names([3, 4], gigpo=True) == ["seed-3", "seed-4", "seed-3-gigpo", "seed-4-gigpo", "seed-3-lr-0"]
    for name, changed in (
        ("seed-3", {}),
        ("seed-4-gigpo", {"algorithm": "gigpo"}),
        ("seed-3-lr-0", {"optim": {"lr": 0.0}}),
    ):
        told = command(name, config="webshop_tiny", runs_dir=tmp_path)
        at = told.index("--config")
        assert (Path(told[at - 1]).name, told[at + 1]) == ("train.py", "webshop_tiny")
        config = load_config(RunConfig, None, told[at + 2 :])
        expected = RunConfig.model_validate({"name": name, "runs_dir": str(tmp_path), "seed": int(name[5]), **changed})
        assert config == expected


def test_rows_and_the_median_gain_of_the_runs_that_learn(tmp_path: Path) -> None:
    assert main(words(tmp_path, "--seeds", "0", "1", "--gigpo"), work=fake("")) == 0
    table = json.loads((tmp_path / "out" / "gain.json").read_text())
    found = {row["run"]: (row["gain_points"], row["score"], row["minutes"]) for row in table["runs"]}
    assert found == {
        "seed-0": (25.0, [0.125, 0.25], 1.5),
        "seed-1": (50.0, [0.125, 0.375], 1.5),
        "seed-0-gigpo": (75.0, [0.125, 0.5], 1.5),
        "seed-1-gigpo": (0.0, [0.125, 0.125], 1.5),
        "seed-0-lr-0": (0.0, [0.125, 0.125], 1.5),
    }
    assert table["median_gain_points"] == 37.5
    assert json.loads((tmp_path / "out" / "seed-1.json").read_text()) == summary("seed-1")


def test_a_run_that_failed_is_named_and_tried_again_and_the_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path), work=fake("import sys; sys.exit(sys.argv[1] == 'seed-1')")) == 1
    told = capsys.readouterr()
    assert f"seed-1 failed (exit status 1); see {tmp_path / 'runs' / 'seed-1.log'}" in told.err
    assert json.loads(told.out[told.out.index("{") :])["median_gain_points"] == 12.5
    assert main(words(tmp_path), work=fake("")) == 0
    logs = {path.stem: path.read_text().count("$ ") for path in (tmp_path / "runs").glob("*.log")}
    assert logs == {"seed-0": 1, "seed-1": 2, "seed-2": 1, "seed-0-lr-0": 1}


def test_how_far_a_run_is(tmp_path: Path) -> None:
    assert share_done(tmp_path, "seed-0") == 0
    folder = tmp_path / "seed-0"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(RunConfig(iterations=4)))
    (folder / "metrics.jsonl").write_text("{}\n{}\n{}\n")
    assert share_done(tmp_path, "seed-0") == 0.75
