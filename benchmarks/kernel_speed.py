"""Every kernel beside its peers, on CPU or on a GPU, into one JSON file.

    python benchmarks/kernel_speed.py --out benchmarks/results/kernels-cpu.json

`kernel_measure.py` says how, `kernel_tasks.py` on what, `kernel_peers.py` beside whom; `kernel_figures.py` makes tables
and figures of it.
"""

import argparse
import gc
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from kernel_measure import measure
from kernel_tasks import Case, make_task

from siri.engine.files import write_json_atomic
from siri.kernels import dispatch

PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "quack-kernels", "trl", "verl")

ADVANTAGE: dict[str, Any] = {"op": "gigpo_advantage", "modes": ("forward",)}
SHAPE_A = {"tokens": 8192, "width": 3584, "vocabulary": 152064}
SHAPE_B = {"tokens": 16384, "width": 1536, "vocabulary": 151936}
SHAPE_C = {"tokens": 8192}
CPU_CASES = (
    Case(name="linear_logprob, T=2048", op="linear_logprob", tokens=2048),
    Case(name="linear_logprob, T=512", op="linear_logprob", tokens=512, modes=("forward",)),
    Case(name="linear_policy_loss, T=256", op="linear_policy_loss", tokens=256),
    Case(name="masked_distill_loss nll, T=256", op="masked_distill_loss", tokens=256),
    Case(name="masked_distill_loss jsd, T=256", op="masked_distill_loss", tokens=256, divergence="jsd"),
    Case(name="selective_logprob, T=256", op="selective_logprob", tokens=256),
    Case(name="gigpo_advantage, 16384 rows, verl-agent's rule", tokens=16384, parity=True, **ADVANTAGE),
    Case(name="gigpo_advantage, 131072 rows, verl-agent's rule", tokens=131072, parity=True, **ADVANTAGE),
    Case(name="gigpo_advantage, 131072 rows", tokens=131072, **ADVANTAGE),
)
MORE_CPU_CASES = (
    Case(name="linear_logprob with entropy, T=512", op="linear_logprob", tokens=512, entropy=True),
    Case(name="linear_policy_loss with KL and entropy, T=256", op="linear_policy_loss", tokens=256, entropy=True),
    Case(name="linear_policy_loss, T=512, 30% of tokens", op="linear_policy_loss", tokens=512, kept=0.3),
    Case(name="masked_distill_loss reverse_kl, T=256", op="masked_distill_loss", tokens=256, divergence="reverse_kl"),
)
GPU_CASES = (
    Case(name="linear_logprob, A", op="linear_logprob", modes=("forward", "both"), **SHAPE_A),
    Case(name="linear_policy_loss, A", op="linear_policy_loss", **SHAPE_A),
    Case(name="masked_distill_loss nll, A", op="masked_distill_loss", **SHAPE_A),
    Case(name="gigpo_advantage, 131072 rows", tokens=131072, **ADVANTAGE),
    Case(name="linear_policy_loss, A, 30% of tokens", op="linear_policy_loss", kept=0.3, **SHAPE_A),
    Case(name="linear_logprob, C", op="linear_logprob", modes=("forward", "both"), **SHAPE_C),
    Case(name="linear_logprob, B", op="linear_logprob", modes=("forward", "both"), **SHAPE_B),
    Case(name="linear_policy_loss, C", op="linear_policy_loss", **SHAPE_C),
    Case(name="masked_distill_loss jsd, C", op="masked_distill_loss", divergence="jsd", **SHAPE_C),
    Case(name="masked_distill_loss forward_kl, A", op="masked_distill_loss", divergence="forward_kl", **SHAPE_A),
    Case(name="selective_logprob, T=4096 V=152064", op="selective_logprob", **SHAPE_A | {"tokens": 4096}),
    Case(name="gigpo_advantage, 131072 rows, verl-agent's rule", tokens=131072, parity=True, **ADVANTAGE),
)
"""A and B are the heads of 7B and 1.5B models of the Qwen2.5 family, C that of SmolLM2-135M. What is stated as a goal
comes first: time on a GPU may run out."""
MORE_GPU_CASES = (
    Case(name="linear_logprob with entropy, A", op="linear_logprob", entropy=True, **SHAPE_A),
    Case(name="linear_policy_loss with KL and entropy, A", op="linear_policy_loss", entropy=True, **SHAPE_A),
    Case(name="masked_distill_loss reverse_kl, C", op="masked_distill_loss", divergence="reverse_kl", **SHAPE_C),
)


def quick_cases(device: torch.device) -> Sequence[Case]:
    """What pytest runs too."""
    return GPU_CASES if device.type == "cuda" else CPU_CASES


def cases(device: torch.device) -> Sequence[Case]:
    return (*quick_cases(device), *(MORE_GPU_CASES if device.type == "cuda" else MORE_CPU_CASES))


def dtype_of(device: torch.device) -> torch.dtype:
    """What models are trained in there."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def surroundings(device: torch.device, out: Path) -> dict[str, Any]:
    commit = said(["git", "rev-parse", "HEAD"])
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        # Folders of this machine are nobody's business.
        "command": shlex.join(["python", "benchmarks/kernel_speed.py", *sys.argv[1:]]).replace(str(out), out.name),
        "commit": commit,
        "device": device.type,
        "hardware": hardware(device),
        "versions": versions,
        "kernels": dispatch.explain(device.type),
    }


def said(command: Sequence[str]) -> str:
    """Standard output of a program; empty if it fails or is not there, which is no reason not to measure."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def hardware(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        fields = "name,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        found = said(command).splitlines()
        return {"name": torch.cuda.get_device_name(), "nvidia-smi": found[0].strip() if found else None, "of": fields}
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"name": name, "threads": torch.get_num_threads(), "load_before": round(os.getloadavg()[0], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file, written after each case")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                        help="default: cuda where torch finds a GPU")  # fmt: skip
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--contestant", action="append", default=[], help="only this one, by its name; may be repeated")
    parser.add_argument("--seconds", type=float, help="for the rounds of one case and mode (CPU 60, GPU 3)")
    parser.add_argument("--within", type=float, default=float("inf"),
                        help="no case is begun after so many seconds (default: no limit)")  # fmt: skip
    parser.add_argument("--slow", action="store_true",
                        help="the incumbent's algorithm on 131072 rows too, which took 317 s")  # fmt: skip
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; leave it away for the CPU")
    if arguments.seconds is not None and arguments.seconds <= 0:
        parser.error(f"--seconds {arguments.seconds:g} must be > 0")
    names = [case.name for case in cases(device)]
    if not any(arguments.only in name for name in names):
        parser.error(f"--only {arguments.only!r} is in the name of no case; they are:\n  " + "\n  ".join(names))
    seconds = arguments.seconds or (3.0 if device.type == "cuda" else 60.0)
    head = surroundings(device, arguments.out)
    started, results, left_out = time.perf_counter(), [], []
    for case in cases(device):
        if arguments.only not in case.name:
            continue
        reason = None if time.perf_counter() - started < arguments.within else "no time left"
        try:
            if reason is None:
                found = measure(
                    make_task(case, device, dtype_of(device)),
                    seconds=seconds,
                    slow=arguments.slow,
                    only=arguments.contestant,
                )
                if arguments.contestant and not any(entry["contestants"] for entry in found):
                    reason = "none of the contestants asked for takes part"
                results += found
                print_results(found)
        except torch.OutOfMemoryError:
            reason = "inputs and truth take more memory than there is"
        if reason is not None:
            left_out.append({"case": case.name, "reason": reason})
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(arguments.out, head | {"left_out": left_out, "results": results})


def print_results(results: Sequence[dict[str, Any]]) -> None:
    for result in results:
        print(f"{result['case']}, {result['mode']}: {result['inputs']}")
        for entry in result["contestants"]:
            if "ms" in entry:
                numbers = {name: value for name, value in entry.items() if name not in ("name", "right")}
                print(f"  {entry['name']:34} {numbers}", flush=True)
            else:
                print(f"  {entry['name']:34} {entry.get('left_out', 'WRONG: ' + str(entry))}", flush=True)


if __name__ == "__main__":
    main()
