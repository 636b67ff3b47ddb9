"""Every kernel beside its peers: `pytest benchmarks/test_kernels.py`, on the GPU where there is one.

Rounds of pytest-benchmark time ours; the comparison, measured in interleaved rounds before, is in `extra_info`, in the
form that `kernel_speed.py` writes. Bounds on times are in CPU time, so that a busy machine does not fail them.
"""

from typing import Any

import pytest
import torch
from kernel_measure import measure, run_of
from kernel_peers import COMPILED, EAGER, INCUMBENT, OURS, contestants
from kernel_speed import dtype_of, quick_cases
from kernel_tasks import TRUTH_ROWS, Case, Task, checkpoint, make_task

from siri.kernels import linear_logprob

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SECONDS, FEWEST_ROUNDS, PATIENCE = 3.0, 3, 5.0
"""For the rounds of one comparison; how many there are however long they take; and the time from which a peer has none:
all of it is to stay under five minutes on two cores. `kernel_speed.py` takes its time."""
LARGE, NEAREST = 2048, (OURS, EAGER, COMPILED)
"""Tokens from which on a CPU has time for these only; the other peers are beside them at 512 tokens."""
CONTRACT_ERROR = 2e-5
"""Of log-prob and entropy, float32: measured 5.8e-6 (log-prob) over 2048 tokens of a checkpoint, whose hidden states
have outliers; eager float32 is off by 2.7e-5."""


@pytest.mark.timeout(600)  # on a busy machine: alone on two cores, the longest takes two minutes
@pytest.mark.parametrize("case", quick_cases(DEVICE), ids=lambda case: case.name)
def test_kernel(benchmark: Any, case: Case) -> None:
    task = make_task(case, DEVICE, dtype_of(DEVICE))
    only = NEAREST if DEVICE.type == "cpu" and task.tokens is not None and case.tokens >= LARGE else ()
    results = measure(task, seconds=SECONDS, fewest=FEWEST_ROUNDS, patience=PATIENCE, only=only)
    benchmark.extra_info["results"] = results
    for result in results:
        entries = {entry["name"]: entry for entry in result["contestants"]}
        check(entries[OURS], entries.get(EAGER), task)
        if "ms" in entries.get(INCUMBENT, {}) and DEVICE.type == "cpu":
            # The contract is 1000 times at 131072 rows, where theirs takes minutes. Theirs is quadratic and took 65
            # times as long there as for 16384 rows, ours 4.8 times: 1000 there is 74 here. Measured: 564 and 7636.
            assert entries[INCUMBENT]["cpu_ms"] >= 400 * entries[OURS]["cpu_ms"]
    (ours,) = [contestant for contestant in contestants(case) if contestant.name == OURS]
    benchmark.pedantic(run_of(ours.make(task), task, case.modes[-1]), rounds=1)


def check(ours: dict[str, Any], eager: dict[str, Any] | None, task: Task) -> None:
    """Right, and no further off than eager; and on the CPU in bounded memory, and not slower at worst."""
    assert ours["right"], ours
    if eager is None:
        return
    if task.case.op in ("linear_logprob", "selective_logprob"):
        assert ours["value_error"] <= CONTRACT_ERROR
    if "ms" in eager:  # eager may not have found the memory
        for own, theirs in zip(ours["gradient_errors"], eager["gradient_errors"], strict=True):
            assert own <= max(1.5 * theirs, 1e-5)
    if DEVICE.type == "cpu" and task.case.tokens >= LARGE:
        assert ours["peak_mib"] <= 0.15 * eager["peak_mib"]
        check_pace(ours, eager, task)


def check_pace(ours: dict[str, Any], eager: dict[str, Any], task: Task) -> None:
    """A guard against getting slower on any machine, not the contract, which is "at least as fast as eager".

    That holds in two threads on free cores: 0.85 to 0.89 of eager's time in 3 to 11 rounds, and
    tests/test_kernel_benchmarks.py asks it of the published results. In one thread beside two busy processes, 3 to 6
    rounds gave 0.87, 0.97, 1.07 and 1.11, so a bound of 1 would be thrown by chance here. What three rounds deny is
    asked again, in seven rounds of these two.
    """
    if ours["cpu_ms"] > eager["cpu_ms"]:
        (again,) = measure(task, seconds=0, fewest=7, only=(OURS, EAGER))
        ours, eager = again["contestants"][:2]
    assert ours["cpu_ms"] <= 1.15 * eager["cpu_ms"]


@pytest.mark.timeout(280)
def test_log_prob_entropy_and_lse_of_a_checkpoint() -> None:
    """Against float64, on all the hidden states that there are."""
    found = checkpoint(DEVICE.type)
    if found is None:
        pytest.skip("SmolLM2-135M is not installed")
    hidden, weight = (tensor.to(dtype_of(DEVICE)) for tensor in found[:2])
    targets, wide = found[2], weight.double()
    with torch.no_grad():
        got = torch.stack(linear_logprob(hidden, weight, targets, return_entropy=True, return_lse=True)).double()
        for start in range(0, len(hidden), TRUTH_ROWS):
            rows = slice(start, start + TRUTH_ROWS)
            z = hidden[rows].double() @ wide.t()
            lse = z.logsumexp(-1, keepdim=True)
            log_p = z - lse
            true = [log_p.gather(1, targets[rows, None])[:, 0], -(log_p.exp() * log_p).sum(-1), lse[:, 0]]
            torch.testing.assert_close(got[:, rows], torch.stack(true), rtol=0, atol=CONTRACT_ERROR)
