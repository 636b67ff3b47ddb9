"""`benchmarks/gpu.sh` without a GPU, on a stand-in for Python that notes what it is asked for, fails, or hangs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO

STAND_IN = """#!/usr/bin/env bash
case "$*" in *"$HANG"*) [ -n "$HANG" ] && exec sleep 60 ;; esac
echo "$*" >>"$NOTES"
"$REAL" -S -c 'import importlib.util as u
print(*(m and m.origin for m in map(u.find_spec, ("siri", "kernel_tasks"))))' >>"$NOTES.origins"
case "$*" in "-P -c "*) exit "${INSTALLED:-0}" ;; *"$FAIL"*) [ -n "$FAIL" ] && exit 3 ;; esac
exit 0
"""
STEPS = ("tests/test_gpu_kernels.py -m", "kernel_speed.py", "pytest tests ", "siri/train.py", "pytest benchmarks ")


def run(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """(the script's end, what it asked Python for)."""
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    known = {
        "PYTHON": str(python),
        "NOTES": str(folder / "notes"),
        "FAIL": "",
        "HANG": "",
        "PYTHONPATH": "",
        "REAL": sys.executable,
    }
    result = subprocess.run(
        ["bash", REPO / "benchmarks" / "gpu.sh", folder / "out"], env={**os.environ, **known, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    return result, (folder / "notes").read_text().splitlines()


def test_every_step_runs_and_is_told(tmp_path: Path) -> None:
    result, asked = run(tmp_path)
    assert result.returncode == 0, result.stderr
    orders = [next(i for i, line in enumerate(asked) if step in line + " ") for step in STEPS]
    assert orders == sorted(orders)
    told = (tmp_path / "out" / "steps.txt").read_text()
    assert told.count(": 0") == len(STEPS), told


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_stops_no_other(tmp_path: Path, step: str) -> None:
    result, asked = run(tmp_path, FAIL=step.strip())
    assert result.returncode == 1
    for other in STEPS:
        assert any(other in line + " " for line in asked)
    told = (tmp_path / "out" / "steps.txt").read_text()
    assert ": 3" in told, told


def test_a_step_that_hangs_ends_in_its_time(tmp_path: Path) -> None:
    started = time.monotonic()
    result, asked = run(tmp_path, HANG="kernel_speed.py", SECONDS_IN_ALL="3")
    assert time.monotonic() - started < 30
    assert result.returncode == 1
    assert any("siri/train.py" in line for line in asked)


def test_without_an_installation_the_checkout_is_imported(tmp_path: Path) -> None:
    """A machine with torch and triton, and nothing of ours: a folder of links has the installed shape."""
    run(tmp_path, INSTALLED="1")
    steps = (tmp_path / "notes.origins").read_text().splitlines()[-len(STEPS) :]
    assert len(set(steps)) == 1
    package, module = steps[0].split()
    assert Path(package).parts[-2:] == ("siri", "__init__.py")
    assert REPO not in Path(package).parents
    assert module == str(REPO / "benchmarks" / "kernel_tasks.py")
    assert not Path(package).parent.exists()  # the links are gone when it ends
