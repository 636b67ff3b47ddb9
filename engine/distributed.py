"""Ranks: who am I, on which device, with how many threads, and the few collectives outside of the optimiser.

Under torchrun with several ranks a process group is made (gloo on CPU, gloo and nccl on GPU), before anything else can
make one: vLLM uses the group it finds, and makes itself a world of one if it finds none. A single process, with or
without torchrun, has no process group, and its collectives are the identity.

Small vectors and objects travel over gloo and are reduced in rank order in float64, so that every rank holds the same
bits whatever algorithm the back end picks.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from siri.engine.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among the ranks of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among those of this machine."""
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    """CPU threads of one torch operation."""

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that writes and prints."""
        return self.rank == 0

    def __str__(self) -> str:
        ranks = "1 process" if self.size == 1 else f"rank {self.rank} of {self.size}"
        return f"{ranks} on {self.device}, {self.threads} CPU thread{'s' * (self.threads > 1)} a rank"


def init_world(device: Literal["auto", "cpu", "cuda"] = "auto", *, timeout_seconds: float = 1800.0) -> World:
    """Reads torchrun's environment, picks device and thread count, and makes a process group if there are more ranks.

    A collective that waits longer than `timeout_seconds` for another rank raises instead of hanging.
    Raises UserError if CUDA is asked for and absent, if there are more ranks than GPUs, or if the environment is
    torchrun's only in part.
    """
    ranks = _ranks(os.environ)
    where = _pick_device(device, **ranks)
    threads = _num_threads(os.environ, ranks["local_size"])
    torch.set_num_threads(threads)
    if where.type == "cuda":
        torch.cuda.set_device(where)
        torch.cuda.init()
    if ranks["size"] > 1:
        on_gpu = {"backend": "cpu:gloo,cuda:nccl", "device_id": where} if where.type == "cuda" else {"backend": "gloo"}
        dist.init_process_group(timeout=timedelta(seconds=timeout_seconds), **on_gpu)
    return World(device=where, threads=threads, **ranks)


def shutdown() -> None:
    """Leaves the process group, if there is one. Without waiting for others: they may be gone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce_sum(world: World, values: np.ndarray) -> np.ndarray:
    """f64, shape of `values`: the sum over ranks, added in rank order."""
    return _gathered(world, values).sum(axis=0)


def all_reduce_max(world: World, values: np.ndarray) -> np.ndarray:
    """f64, shape of `values`: the largest over ranks; NaN where any rank has NaN."""
    return _gathered(world, values).max(axis=0)


def all_gather_object(world: World, value: T) -> list[T]:
    """The picklable `value` of every rank, in rank order, on every rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def barrier(world: World) -> None:
    """Waits for every rank."""
    if world.size > 1:
        all_gather_object(world, None)


def tell_torchrun(message: str) -> None:
    """Has torchrun end its report of failed ranks with `message`, instead of a link to how one gets a traceback."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        reason = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": reason}), encoding="utf-8")


def under_ci() -> bool:
    """CI services set CI=true."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def _gathered(world: World, values: np.ndarray) -> np.ndarray:
    """f64[size, *shape]"""
    local = torch.from_numpy(np.array(values, dtype=np.float64))
    if world.size == 1:
        return local.numpy()[None]
    parts = [torch.empty_like(local) for _ in range(world.size)]
    dist.all_gather(parts, local)
    return torch.stack(parts).numpy()


def _ranks(environ: Mapping[str, str]) -> dict[str, int]:
    names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
    if "RANK" not in environ and environ.get("WORLD_SIZE", "1") == "1":
        return {"rank": 0, "size": 1, "local_rank": 0, "local_size": 1}
    bad = [name for name in names.values() if not environ.get(name, "").isdecimal()]
    if bad:
        raise UserError(
            f"environment: {bad[0]}={environ.get(bad[0], '')!r} is not a number, yet RANK or WORLD_SIZE is set; "
            "start with torchrun --nproc-per-node=N, or unset them for a single process"
        )
    ranks = {field: int(environ[name]) for field, name in names.items()}
    if not ranks["rank"] < ranks["size"] or not ranks["local_rank"] < ranks["local_size"]:
        raise UserError(
            f"environment: RANK={ranks['rank']} of WORLD_SIZE={ranks['size']} and LOCAL_RANK={ranks['local_rank']} of "
            f"LOCAL_WORLD_SIZE={ranks['local_size']} cannot be: ranks count from 0; start with torchrun"
        )
    if ranks["size"] > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= set(environ):
        raise UserError(
            "environment: MASTER_ADDR and MASTER_PORT are not both set, so ranks cannot find each other; "
            "start with torchrun --nproc-per-node=N"
        )
    return ranks


def _pick_device(device: str, *, local_rank: int, local_size: int, **_: int) -> torch.device:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and available == 0):
        return torch.device("cpu")
    if available == 0:
        raise UserError("device: cuda, but torch sees no GPU here; set device: cpu, or see `siri doctor`")
    if local_size > available:
        raise UserError(
            f"--nproc-per-node: {local_size} ranks on a machine with {available} GPU(s); each rank needs its own, "
            f"start at most {available}, or set device: cpu"
        )
    return torch.device("cuda", local_rank)


def _num_threads(environ: Mapping[str, str], local_size: int) -> int:
    """OMP_NUM_THREADS is respected, unless torchrun has set it (to 1, for several ranks): then cores are shared out."""
    if environ.get("OMP_NUM_THREADS") == "1" and local_size > 1 and "TORCHELASTIC_RUN_ID" in environ:
        return max(1, num_cores() // local_size)
    if "OMP_NUM_THREADS" in environ:
        return torch.get_num_threads()
    return max(1, torch.get_num_threads() // local_size)


def num_cores() -> int:
    """Cores this process may run on. `torch.get_num_threads()` cannot tell once OMP_NUM_THREADS has been set."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
