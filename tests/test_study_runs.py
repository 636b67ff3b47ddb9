"""The runs of a study, with fake commands in place of training: side by side, stopped, failed, and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import study_runs
from study_runs import Command
from study_siri import Planned, Study, main, share_done
from test_study import row

PLAN = ["--arms", "gigpo", "siri", "--seeds", "2"]


def fake(script: str, **more):
    """Work that is `script` in a Python of its own, with the run's name as its argument; then the row."""

    def work(study: Study, run: Planned):
        yield Command(words=[sys.executable, "-S", "-c", script, run.name])
        return row(run.arm, run.seed, 0.5 + 0.1 * run.seed, 0.7 if run.arm == "siri" else None, **more)

    return work


def words(folder: Path, *more: str) -> list[str]:
    return ["--out", str(folder / "out"), "--runs-dir", str(folder / "runs"), "--env-steps", "1000", *more]


def rows(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "out" / "rows").iterdir())


def begun(folder: Path) -> dict[str, int]:
    """How often each run was begun, by its log."""
    return {path.stem: path.read_text().count("$ ") for path in (folder / "runs").glob("*.log")}


ALL = ["gigpo-0", "gigpo-1", "siri-0", "siri-1"]


def test_a_failed_run_loses_nothing_else_is_named_with_its_log_and_tried_again(tmp_path, capsys):
    failing = "import sys; print('so far so good'); sys.exit(3 if sys.argv[1] == 'gigpo-1' else 0)"
    assert main(words(tmp_path, *PLAN), work=fake(failing)) == 1
    told = capsys.readouterr()
    log = tmp_path / "runs" / "gigpo-1.log"
    assert f"gigpo-1 failed (exit status 3); see {log}" in told.err
    assert "siri-1" not in told.err
    assert log.read_text().endswith("so far so good\n")
    assert "[4/4] siri-1: plain 60.0%, with the bank 70.0%" in told.out
    assert rows(tmp_path) == ["gigpo-0", "siri-0", "siri-1"]
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(line["arm"], line["runs"]) for line in table["arms"]] == [("siri", 2), ("gigpo", 1)]

    assert main(words(tmp_path, *PLAN), work=fake("")) == 0
    assert rows(tmp_path) == ALL
    assert begun(tmp_path) == {name: 1 for name in ALL} | {"gigpo-1": 2}
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert main(words(tmp_path, *PLAN), work=fake("raise SystemExit(9)")) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    assert {path.name for path in before} >= {"table.json", "table.csv", "table.md", "success_plain.svg"}


def test_a_run_that_leaves_nonsense_has_failed(tmp_path, capsys):
    def work(study, run):
        yield Command(words=[sys.executable, "-S", "-c", ""])
        if run.arm == "gigpo":
            json.loads("{")
        return row(run.arm, run.seed, 0.5)

    assert main(words(tmp_path, *PLAN), work=work) == 1
    assert "gigpo-0 failed (JSONDecodeError: " in capsys.readouterr().err
    assert rows(tmp_path) == ["siri-0", "siri-1"]


def test_stdout_can_go_to_a_file_of_its_own(tmp_path):
    said = tmp_path / "said.txt"

    def work(study, run):
        for text in ("first", "second"):
            script = f"import sys; print({text!r}); print('aside', file=sys.stderr)"
            yield Command(words=[sys.executable, "-S", "-c", script], output=said)
        return row(run.arm, run.seed, 0.5)

    assert main(words(tmp_path, "--arms", "siri", "--seeds", "1"), work=work) == 0
    assert said.read_text() == "second\n"
    assert (tmp_path / "runs" / "siri-0.log").read_text().count("\naside\n") == 2


MEETING = """
import pathlib, sys, time
here = pathlib.Path({folder!r})
(here / sys.argv[1]).touch()
deadline = time.monotonic() + {seconds}
while len(list(here.iterdir())) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
met = len(list(here.iterdir()))
time.sleep(0.3)
(here / sys.argv[1]).unlink()
sys.exit(0 if met == {expected} else 1)
"""


@pytest.mark.parametrize(("jobs", "seconds", "expected"), [(1, 0.3, 1), (2, 60, 2)])
def test_as_many_runs_as_asked_for_go_side_by_side(tmp_path, jobs, seconds, expected):
    """Each waits for another one to be there at the same time; none comes where they go one by one."""
    folder = tmp_path / "here"
    folder.mkdir()
    meeting = MEETING.format(folder=str(folder), seconds=seconds, expected=expected)
    assert main(words(tmp_path, *PLAN, "--jobs", str(jobs)), work=fake(meeting)) == 0
    assert rows(tmp_path) == ALL


@pytest.mark.parametrize(("given", "jobs", "expected"), [(None, 2, "4"), (None, 16, "1"), ("3", 2, "3")])
def test_cores_are_shared_out_unless_the_user_said_otherwise(tmp_path, monkeypatch, given, jobs, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    said = fake("import os; print('threads', os.environ['OMP_NUM_THREADS'])")
    assert main(words(tmp_path, "--arms", "siri", "--seeds", "1", "--jobs", str(jobs)), work=said) == 0
    assert (tmp_path / "runs" / "siri-0.log").read_text().endswith(f"threads {expected}\n")


STUDY = """
import sys
sys.path[:0] = {path!r}
import test_study_runs as tests
sys.exit(tests.main({words!r}, work=tests.fake({script!r})))
"""
WORKING = """
import os, pathlib, signal, sys, time
mark = pathlib.Path({folder!r}) / sys.argv[1]
def stopped(*_):
    mark.with_suffix(".stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stopped)
mark.with_suffix(".writing").write_text(str(os.getpid()))
mark.with_suffix(".writing").rename(mark.with_suffix(".pid"))
time.sleep(100)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_study_that_is_stopped_leaves_no_process_and_goes_on(tmp_path, number, code):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("children die with a killed parent on Linux only")
    folder = tmp_path / "here"
    folder.mkdir()
    script = WORKING.format(folder=str(folder))
    path = [str(Path(study_runs.__file__).parent), str(Path(__file__).parent)]
    code_of_it = STUDY.format(path=path, words=words(tmp_path, *PLAN, "--jobs", "2"), script=script)
    study = subprocess.Popen(
        [sys.executable, "-c", code_of_it], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: len(list(folder.glob("*.pid"))) == 2)
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    assert all(map(is_alive, pids))
    # Ctrl-C is told to all processes of the terminal; those of the runs must not be among them.
    (os.killpg if number == signal.SIGINT else os.kill)(study.pid, number)
    _, told = study.communicate(timeout=60)
    assert study.returncode == code
    wait_for(lambda: not any(map(is_alive, pids)))
    asked = sorted(path.stem for path in folder.glob("*.stopped"))
    assert asked == ([] if number == signal.SIGKILL else ["gigpo-0", "siri-0"])
    assert ("the same command goes on" in told) is (number != signal.SIGKILL)
    assert rows(tmp_path) == []
    assert main(words(tmp_path, *PLAN), work=fake("")) == 0
    assert rows(tmp_path) == ALL


def test_a_run_that_does_not_heed_the_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(study_runs, "STOP_SECONDS", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(100)"
    log = tmp_path / "log"
    process = study_runs.start(Command(words=[sys.executable, "-S", "-u", "-c", deaf]), log, study_runs.environment(1))
    wait_for(lambda: log.read_text().endswith("deaf\n"))
    study_runs.stop([study_runs.Going(name="x", steps=iter(()), log_file=log, environ={}, process=process)])
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--jobs", "0"], "--jobs: 0 makes no study; give 1 or more"),
        (["--env-steps", "1040"], "max_env_steps 1000, not 1040"),
        (["--", "--optim.lr", "0"], "settings [], not ['--optim.lr', '0']"),
    ],
)
def test_rows_of_another_study_are_not_mixed_in(tmp_path, capsys, more, message):
    assert main(words(tmp_path, "--arms", "siri", "--seeds", "1"), work=fake("")) == 0
    assert main(words(tmp_path, *PLAN, *more), work=fake("")) == 2
    assert message in capsys.readouterr().err
    assert rows(tmp_path) == ["siri-0"]


def test_a_row_of_other_games_is_a_failed_run(tmp_path, capsys):
    assert main(words(tmp_path, "--arms", "siri", "--seeds", "1"), work=fake("")) == 0
    assert main(words(tmp_path, *PLAN), work=fake("", split_hash="b" * 64)) == 1
    assert "siri-1 failed (--out: rows/siri-1.json is of another study (evaluation games bbb" in capsys.readouterr().err
    assert rows(tmp_path) == ["siri-0"]


@pytest.mark.parametrize(("env_steps", "code"), [(949, 1), (950, 0), (1050, 0), (1051, 1)])
def test_a_run_that_missed_the_budget_has_failed(tmp_path, capsys, env_steps, code):
    assert main(words(tmp_path, "--arms", "siri", "--seeds", "1"), work=fake("", env_steps=env_steps)) == code
    told = f"siri-0 failed (--env-steps: run siri-0 trained on {env_steps:,}, more than 5% from 1,000, and"
    assert (told in capsys.readouterr().err) is bool(code)
    assert rows(tmp_path) == ([] if code else ["siri-0"])


def test_how_much_of_a_run_is_done_is_told_by_its_metrics(tmp_path):
    study = Study(out=tmp_path, runs_dir=tmp_path, env_steps=900, settings=())
    assert share_done(study, "siri-0") == 0
    (tmp_path / "siri-0").mkdir()
    (tmp_path / "siri-0" / "metrics.jsonl").write_text('{"rollout/env_steps": 300.0}\n{"rollout/env_steps": 60')
    assert share_done(study, "siri-0") == pytest.approx(1 / 3)
    with (tmp_path / "siri-0" / "metrics.jsonl").open("a") as file:
        file.write('0.5}\n{"rollout/env_steps": 100.0}\n')
    assert share_done(study, "siri-0") == 1
