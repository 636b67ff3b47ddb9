"""The process's random state: python, numpy (legacy global generator), torch CPU, torch CUDA (current device).

vLLM's start-up seeds all of these for the whole process, so starting it belongs inside `preserved()`. Checkpoints hold
one captured state a rank. The state is plain JSON: a checkpoint can be read without unpickling anything.
"""

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]
"""JSON-able: `python`, `numpy`, `torch`, and `cuda` (None where CUDA was not in use)."""


def seed_all(seed: int) -> None:
    """Seeds every generator of the process. `seed` is any integer >= 0; numpy takes its low 32 bits."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def capture() -> RandomState:
    """The state of every generator now. CUDA's is included only if CUDA is in use: asking for it would start CUDA."""
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    return {
        "python": [version, list(words), gauss],
        "numpy": {**legacy, "state": {"key": legacy["state"]["key"].tolist(), "pos": int(legacy["state"]["pos"])}},
        "torch": _encode(torch.get_rng_state()),
        "cuda": _encode(torch.cuda.get_rng_state()) if torch.cuda.is_initialized() else None,
    }


def restore(state: RandomState) -> None:
    """Sets every generator to a captured state. A CUDA state is left aside in a process that does not use CUDA."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    key = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {"key": key, "pos": state["numpy"]["state"]["pos"]}})
    torch.set_rng_state(_decode(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(_decode(state["cuda"]))


@contextmanager
def preserved() -> Iterator[None]:
    """Whatever the body does to the generators, even if it raises, they leave as they came."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
