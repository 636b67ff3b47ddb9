"""The Triton kernels against the float64 definitions, on the CPU: Triton's interpreter runs them.

The interpreter has to be chosen before triton is imported, so each file of tests is run again in a process of its own.
It sees neither races nor what the compiler does; `test_triton_compile.py` and the tests for GPUs look there.
"""

import os
import subprocess
import sys

import pytest
from conftest import REPO

pytest.importorskip("triton")


FILES = (
    "triton_cases.py",
    "gigpo_cases.py",
    "test_linear_logprob.py",
    "test_compiled_calls.py",
    "test_logprob_sizes.py",
    "test_logprob_exactness.py",
    "test_temperatures.py",
    "test_autograd_habits.py",
    "test_gigpo_kernel.py",
    "test_selective_logprob.py",
    "test_policy_loss.py",
    "test_distill_loss.py",
)

QUICK = {
    "test_gigpo_kernel.py": "not recorded_verl_agent or 5]",
    "test_distill_loss.py": "not reference-",
    "test_autograd_habits.py": "captured or sliced or before_the_backward or selective",
}
"""Four of the forty recorded runs, not the reference again, and what is not plain torch; the slow test has all."""


def run(file: str, *options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}", *options]
    interpret = {"TRITON_INTERPRET": "1", "SIRI_KERNELS": "triton"}
    result = subprocess.run(command, cwd=REPO, env={**os.environ, **interpret}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.parametrize("file", FILES)
def test_interpreted(file: str) -> None:
    run(file, "-m", "not reference and not slow and not multirank", "-k", QUICK.get(file, ""))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", QUICK)
def test_all_interpreted(file: str) -> None:
    run(file, "-m", "not reference", "--timeout", "900")


@pytest.mark.multirank
@pytest.mark.timeout(300)
def test_tensor_parallel_ranks_interpreted() -> None:
    run("test_linear_logprob.py", "-m", "multirank", "--timeout", "280")
