import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from siri.engine.processes import die_with_parent, exit_on_signals, signals_deferred

mode, folder = sys.argv[1], Path(sys.argv[2])

def told(name):
    (folder / name).write_text(str(os.getpid()))

def wait():
    time.sleep(60)

if mode == "child":
    die_with_parent(int(sys.argv[3]))
    told("ready")
    wait()
if mode == "orphan":
    die_with_parent(os.getppid() + 1)
    told("still here")
if mode == "parent":
    subprocess.Popen([sys.executable, __file__, "child", str(folder), str(os.getpid())])
    wait()
with exit_on_signals():
    try:
        if mode == "plain":
            told("ready")
            wait()
        if mode == "deferred":
            with signals_deferred():
                with signals_deferred():
                    told("ready")
                    time.sleep(1.0)
                told("committed")
            told("too late")
        if mode == "stuck":
            with signals_deferred():
                told("ready")
                end = time.monotonic() + 60
                while time.monotonic() < end:
                    time.sleep(0.05)
    finally:
        told("finally")
told("after")
"""


def start(mode: str, folder: Path) -> subprocess.Popen:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen([sys.executable, str(script), mode, str(folder)])


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.02)
    return path.read_text()


def gone(pid: int) -> bool:
    """No such process, or one that has ended and was not collected by its (new) parent yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"script.py"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_runs_finally_and_gives_the_usual_code(tmp_path, number, code):
    process = start("plain", tmp_path)
    wait_for(tmp_path / "ready")
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert files(tmp_path) == {"ready", "finally"}


def test_a_commit_is_finished_first_and_a_stop_told_twice_is_one_stop(tmp_path):
    process = start("deferred", tmp_path)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    assert files(tmp_path) == {"ready", "committed", "finally"}


def test_a_stop_repeated_later_ends_the_process_at_once(tmp_path):
    process = start("stuck", tmp_path)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    time.sleep(2.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert files(tmp_path) == {"ready"}


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_does_not_outlive_a_killed_parent(tmp_path):
    process = start("parent", tmp_path)
    child = int(wait_for(tmp_path / "ready"))
    assert not gone(child)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while not gone(child):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_whose_parent_is_dead_already_exits(tmp_path):
    assert start("orphan", tmp_path).wait(timeout=60) == 1
    assert files(tmp_path) == set()
