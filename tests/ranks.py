"""Runs a function of a test module on several gloo ranks, as torchrun would."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from siri.engine.distributed import init_world, shutdown


def on_ranks(size: int, function: Callable[..., Any], *args: Any, folder: Path) -> list[Any]:
    """`function(world, *args)` on each of `size` ranks; what they return, in rank order. `folder` is scratch space."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(size, port, function, args, str(folder)), nprocs=size)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(size)]


def _rank(rank: int, size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...], folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    world = init_world("cpu", timeout_seconds=60)
    try:
        torch.save(function(world, *args), Path(folder) / f"result-{rank}.pt")
    finally:
        shutdown()
