import errno
import io
import json
import os
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from siri.engine import metrics
from siri.engine.distributed import World
from siri.engine.errors import UserError
from siri.engine.metrics import RunLog, keep_before, without_clock

MAIN = World()


@pytest.fixture(autouse=True)
def no_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def lines_of(run_dir):
    lines = (run_dir / "metrics.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def numbers(step):
    return {
        "rollout/success_rate": step / 100,
        "rollout/return": 0.1 * step,
        "train/approx_kl": 1e-4,
        "phase": "warmup",
    }


def sitting(run_dir, start, stop, total=8):
    """Iterations `start` to `stop` of a run of `total`."""
    with RunLog(run_dir, MAIN, total=total, start=start) as log:
        for step in range(start, stop):
            with log.timed("rollout"):
                pass
            log.record(step, numbers(step))


def test_one_strict_object_an_iteration(tmp_path):
    with RunLog(tmp_path, MAIN, total=2) as log:
        with log.timed("rollout"), log.timed("inner"):
            pass
        with log.timed("rollout"):
            pass
        assert set(log.seconds) == {"rollout", "inner"}
        assert log.seconds["rollout"] >= log.seconds["inner"]
        log.record(0, {"a": float("nan"), "b": np.float32(0.5), "c": np.int64(3), "phase": "warm\u2028up", "d": None})
        assert log.seconds == {}
        log.record(1, {"a": -np.inf, "b": True})
    first, second = lines_of(tmp_path)
    assert without_clock(first) == {"step": 0, "a": None, "b": 0.5, "c": 3, "phase": "warm\u2028up", "d": None}
    assert set(first) - set(without_clock(first)) == {"time/rollout", "time/inner", "time/iteration"}
    assert without_clock(second) == {"step": 1, "a": None, "b": True}


@settings(max_examples=30, deadline=None)
@given(stops=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=4), torn=st.binary(max_size=6))
def test_a_run_stopped_anywhere_leaves_the_file_of_one_that_was_not(tmp_path_factory, stops, torn):
    """Each sitting starts at some earlier checkpoint, and is killed after some lines, perhaps inside of one."""
    straight, resumed = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("resumed")
    sitting(straight, 0, 8)
    done = 0
    for checkpoint, stop in stops:
        start = min(checkpoint, done)
        sitting(resumed, start, max(start, stop))
        done = max(start, stop)
        with open(resumed / "metrics.jsonl", "ab") as file:
            file.write(b'{"step": ' + torn.replace(b"\n", b""))
    sitting(resumed, done, 8)
    assert [without_clock(line) for line in lines_of(resumed)] == [without_clock(line) for line in lines_of(straight)]


def test_lines_before_the_start_stay_byte_for_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":0,   "x": 1e-3}\n{"step": 1}\n{"step": 2}\n{"st')
    keep_before(path, 2)
    assert path.read_bytes() == b'{"step":0,   "x": 1e-3}\n{"step": 1}\n'
    keep_before(tmp_path / "absent", 2)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("bad", [b"nonsense", b"[]", b'{"x": 1}', b'{"step": null}', b"\xff\xfe"])
def test_a_damaged_file_is_named_and_left_alone(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 0}\n' + bad + b'\n{"step": 1}\n'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not .* remove that line"):
        RunLog(tmp_path, MAIN, total=3, start=2).__enter__()
    assert path.read_bytes() == content


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    with RunLog(tmp_path, MAIN, total=3) as log:
        log.record(0, {})
        before = (tmp_path / "metrics.jsonl").read_bytes()

        def full(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written .*free some space"):
            log.record(1, {"x": 1})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_other_ranks_are_silent(tmp_path, capsys):
    with RunLog(tmp_path, World(rank=1, size=2), total=2, tensorboard=True) as log:
        log.note("hello")
        log.progress("rollout", 1, 2)
        log.record(0, {"a": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def fixed_clock(monkeypatch, seconds):
    now = iter(range(0, 10**6, seconds))
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: float(next(now)))


def test_a_line_an_iteration_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    fixed_clock(monkeypatch, 60)
    shown = {
        "rollout/success_rate": 0.4375,
        "rollout/return": 4.375,
        "tokens_per_second/rollout": 5321.4,
        "tokens_per_second/train": 987654.0,
        "train/approx_kl": 0.00123,
        "mismatch/mean": 0.0004,
    }
    with RunLog(tmp_path, MAIN, total=200, start=7) as log:
        log.note("from [checkpoint] step-7")
        log.record(7, shown)
        log.record(8, {"rollout/success_rate": 1.0})
        log.progress("rollout", 3, 4)
    assert capsys.readouterr().out.splitlines() == [
        "from [checkpoint] step-7",
        "8/200  success 43.8%  return 4.38  rollout 5,321 tok/s  train 987,654 tok/s  kl 0.0012  mismatch 4.0e-04"
        "  left 3 h 12 min",
        "9/200  success 100.0%  left 3 h 11 min",
    ]


def test_what_is_left_where_something_else_ends_the_run(tmp_path, capsys, monkeypatch):
    fixed_clock(monkeypatch, 60)
    with RunLog(tmp_path, MAIN, total=10_000) as log:
        log.record(0, {}, to_go=2)
        log.record(1, {}, to_go=0)
    assert capsys.readouterr().out.splitlines() == ["1/3  left 2 min", "2/2  left 0 s"]


def test_quiet_under_ci(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with RunLog(tmp_path, MAIN, total=25, start=2) as log:
        for step in range(2, 25):
            log.record(step, {})
    assert [line.split("/")[0] for line in capsys.readouterr().out.splitlines()] == ["3", "13", "23", "25"]
    assert len(lines_of(tmp_path)) == 23
    with RunLog(tmp_path, MAIN, total=10_000, start=25) as log:
        for step in range(25, 28):
            log.record(step, {}, to_go=27 - step)
    assert [line.split("/")[0] for line in capsys.readouterr().out.splitlines()] == ["26", "28"]


def test_a_bar_in_a_terminal(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(metrics, "Console", lambda: Console(file=screen, force_terminal=True, width=120))
    with RunLog(tmp_path, MAIN, total=2) as log:
        log.progress("rollout", 5, 64)
        log.progress("rollout", 6, 64)  # too soon to draw again
        log.progress("rollout", 64, 64)
        log.record(0, {"rollout/success_rate": 0.5})
        log.progress("eval", 10, 10)
    text = screen.getvalue()
    for part in ("rollout", " 5/64", "64/64", "1/2  success 50.0%", "eval", "10/10"):
        assert part in text
    assert " 6/64" not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5000, "83 min"), (5400, "1 h 30 min")]
)
def test_durations(seconds, text):
    assert metrics._duration(seconds) == text


def test_tensorboard_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"tensorboard: true, but the package is not installed; pip install"):
        RunLog(tmp_path, MAIN, total=1, tensorboard=True).__enter__()


def test_tensorboard_gets_the_numbers(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with RunLog(tmp_path, MAIN, total=9, start=4, tensorboard=True) as log:
        log.record(4, {"a": 1.5, "phase": "warmup", "nan": float("nan")})
    assert calls[0] == (str(tmp_path / "tensorboard"), 4)
    assert ("a", 1.5, 4) in calls
    assert not any(call[0] == "phase" for call in calls)
    assert calls[-1] == "closed"
