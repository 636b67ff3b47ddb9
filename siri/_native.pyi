"""The C++ extension: `csrc/bindings.cpp`. `siri.engine.native` is its public face."""

import numpy as np

COMPILER: str

def hash_states(
    states: tuple[bytes, ...] | tuple[str, ...] | np.ndarray, offsets: np.ndarray | None, threads: int
) -> np.ndarray: ...
def group_states(
    states: tuple[bytes, ...] | tuple[str, ...] | np.ndarray,
    offsets: np.ndarray | None,
    task_group: np.ndarray | None,
    similarity: float | None,
    threads: int,
    hash_bits: int = 64,
) -> np.ndarray: ...
