"""How a task is measured: compared with float64, then timed in interleaved rounds.

A contestant that is wrong gets no time. Rounds are those of `rounds.py`. Times on a GPU lie between CUDA events, with
its L2 cache flushed before; times on a CPU are wall time, and beside it the CPU time of all threads.

FLOPs are those that the op cannot do without (`Task.flops`): 2THV a projection, 3 for forward and backward, of kept
tokens only. Who recomputes logits does more and gets no credit for it. `GEMMs alone` are these projections and nothing
else, in the same rounds.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from kernel_peers import EAGER, OURS, Contestant, Unsupported, contestants
from kernel_tasks import Task, tokens_of
from rounds import interleave, percentiles
from torch import Tensor

Outcome = tuple[Tensor | None, tuple[Tensor, ...]]
"""(value, gradients)"""
Run = Callable[[], Outcome]

GEMMS = "GEMMs alone"
FEWEST_ROUNDS, MOST_ROUNDS = 3, 30
GPU_WARM_ROUNDS = 2
L2_FLUSH_BYTES = 2**28
"""More than twice the L2 cache of an H100."""
TOLERANCE = {torch.bfloat16: (0.3, 0.1), torch.float32: (5e-3, 1e-3)}
"""Errors (absolute of values, relative of gradients) beyond which a result is wrong, not rounded: logits of 32 and
more are 0.125 off in bfloat16, and lse - sum p z, which is verl's entropy and Liger's, is 1.3e-3 off in float32."""


def measure(
    task: Task,
    *,
    seconds: float,
    fewest: int = FEWEST_ROUNDS,
    most: int = MOST_ROUNDS,
    slow: bool = False,
    only: Sequence[str] = (),
    patience: float = float("inf"),
) -> list[dict[str, Any]]:
    """A result for each mode of the case.

    Rounds of a mode go on for `seconds`, but there are `fewest` at least and `most` at most. `slow` asks everybody,
    `only` those with these names (nobody: all). Of peers whose checked call takes more than `patience` seconds, that
    call is the only one.
    """
    results = []
    for mode in task.case.modes:
        runs: dict[str, Run] = {}
        entries = []
        for contestant in contestants(task.case):
            if only and contestant.name not in only:
                continue
            limit = float("inf") if contestant.name in (OURS, EAGER) else patience
            entry, run = prepare(task, contestant, mode, slow, limit)
            entries.append(entry)
            if run is not None and entry["right"] and "ms" not in entry:
                runs[contestant.name] = run
            if task.device.type == "cuda":
                torch.cuda.empty_cache()
        if task.gemms(mode):
            runs[GEMMS] = bare_gemms(task, mode)
            entries.append({"name": GEMMS})
        warm = GPU_WARM_ROUNDS if task.device.type == "cuda" else 0
        times = interleave(timed_runs(runs, task.device), seconds=seconds, fewest=fewest, most=most, warm=warm)
        bare = float(np.median([wall for wall, _ in times[GEMMS]])) if GEMMS in times else None
        for entry in entries:
            if entry["name"] in times:
                entry |= told(times[entry["name"]], task.flops(mode), bare)
        results.append(description(task, mode) | {"contestants": entries})
    return results


def description(task: Task, mode: str) -> dict[str, Any]:
    case, linear = task.case, task.tokens is not None
    return {
        "case": case.name,
        "op": case.op,
        "mode": mode,
        "tokens": case.tokens,
        "width": case.width if linear else None,
        "vocabulary": case.vocabulary if linear else None,
        "kept": case.kept,
        "dtype": str(tokens_of(task).hidden.dtype).removeprefix("torch.") if linear else "float32",
        "inputs": task.source,
        "flops": task.flops(mode),
        "gradients_mib": sum(leaf.nbytes for leaf in task.leaves) / 2**20 if mode == "both" else 0.0,
    }


def prepare(
    task: Task, contestant: Contestant, mode: str, slow: bool, patience: float
) -> tuple[dict[str, Any], Run | None]:
    """What is known of a contestant before it is timed, and the call to time; None where there is none."""
    if not slow and contestant.most_rows is not None and task.case.tokens > contestant.most_rows:
        return {"name": contestant.name, "left_out": "takes minutes; asked for by --slow"}, None
    try:
        run = run_of(contestant.make(task), task, mode)
        # The first call of a GPU kernel compiles and tunes it: its memory is not the op's.
        if contestant.compiles or task.device.type == "cuda":
            run()
        wall, cpu = time.perf_counter(), time.process_time()
        outcome, peak = peak_of(run, task) if task.leaves else (run(), None)
        only = (time.perf_counter() - wall, time.process_time() - cpu)
        entry = {"name": contestant.name, **errors(task, outcome), "peak_mib": peak}
    except (ImportError, Unsupported) as error:
        return {"name": contestant.name, "left_out": first_line(error)}, None
    except torch.OutOfMemoryError:
        return {"name": contestant.name, "left_out": "out of memory"}, None
    except Exception as error:  # whatever a peer raises is a result about that peer, and no reason to lose the others
        return {"name": contestant.name, "left_out": f"failed: {type(error).__name__}: {first_line(error)}"}, None
    if (contestant.once or only[0] > patience) and entry["right"]:
        entry |= told([only], task.flops(mode), None)
    return entry, run


def run_of(call: Callable[[], Tensor], task: Task, mode: str) -> Run:
    def run() -> Outcome:
        with torch.set_grad_enabled(mode == "both"):
            value = call()
            if mode == "forward" or not task.leaves:
                return value, ()
            upstream = None if task.upstream is None else task.upstream.to(value.dtype)
            return value, torch.autograd.grad(value, task.leaves, upstream)

    return run


def bare_gemms(task: Task, mode: str) -> Run:
    """The roof: as many projections, with the same numbers."""
    t = tokens_of(task)
    x, w = t.hidden.detach()[: round(len(t.hidden) * task.case.kept)], t.weight.detach()
    forward = task.gemms(mode) - (2 if mode == "both" else 0)

    def run() -> Outcome:
        for _ in range(forward):
            z = x @ w.t()
        return None, (z @ w, z.t() @ x) if mode == "both" else ()

    return run


def errors(task: Task, outcome: Outcome) -> dict[str, Any]:
    """Distance to float64, and whether it is that of a right result."""
    value, gradients = outcome
    assert value is not None
    claimed = ~task.value.isnan()
    off = (value.detach().double().to(task.device) - task.value)[claimed].abs().max().item()
    relative = [relative_error(got, true) for got, true in zip(gradients, task.gradients, strict=False)]
    value_bound, gradient_bound = TOLERANCE[task.leaves[0].dtype if task.leaves else torch.float32]
    right = off <= value_bound and all(error <= gradient_bound for error in relative)
    return {"value_error": off, "gradient_errors": relative, "right": right}


def relative_error(got: Tensor, true: Tensor) -> float:
    """||got - true|| / ||true||, a few rows at a time: a float64 copy of a large gradient takes gigabytes."""
    square = torch.zeros(2, dtype=torch.float64, device=true.device)
    for a, b in zip(got.split(4096), true.split(4096), strict=True):
        square += torch.stack([(a.double() - b).square().sum(), b.square().sum()])
    return (square[0] / square[1]).sqrt().item()


def peak_of(run: Run, task: Task) -> tuple[Outcome, float]:
    """(what it returns, most MiB that it held at a time beside its inputs, its results included)."""
    if task.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outcome = run()
        torch.cuda.synchronize()
        return outcome, (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        outcome = run()
    results = profile.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return outcome, float(held.max(initial=0)) / 2**20


def timed_runs(runs: dict[str, Run], device: torch.device) -> dict[str, Callable[[], tuple[float, float | None]]]:
    """Calls that give (wall, CPU) seconds of one run each."""
    flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
    return {name: partial(timed, run, flush) for name, run in runs.items()}


def timed(run: Run, flush: Tensor | None) -> tuple[float, float | None]:
    if flush is None:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - wall, time.process_time() - cpu
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, None


def told(times: Sequence[tuple[float, float | None]], flops: float, bare: float | None) -> dict[str, Any]:
    wall = [1e3 * wall for wall, _ in times]
    cpu = [1e3 * spent for _, spent in times if spent is not None]
    middle = float(np.median(wall))
    return {
        "rounds": len(times),
        "ms": percentiles(wall),
        "cpu_ms": round(float(np.median(cpu)), 4) if cpu else None,
        "teraflops": round(flops / middle / 1e9, 3) if flops else None,
        "percent_of_gemms": round(100 * 1e3 * bare / middle, 1) if bare is not None else None,
    }


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
