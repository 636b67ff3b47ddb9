"""Contestants timed in rounds: each once a round, and the order turns by one a round.

So a busy or warm machine hits all of them alike, and the ratio of two medians is that of the contestants.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

Time = TypeVar("Time")


def interleave(
    timed: Mapping[str, Callable[[], Time]], *, seconds: float = 0.0, fewest: int, most: int, warm: int = 0
) -> dict[str, list[Time]]:
    """What each call of `timed` returned, by name.

    Rounds go on for `seconds`, but there are `fewest` at least and `most` at most, after `warm` ones that do not count.
    """
    names, started, rounds = list(timed), time.perf_counter(), 0
    times: dict[str, list[Time]] = {name: [] for name in names}
    while rounds < fewest + warm or (rounds < most + warm and time.perf_counter() - started < seconds):
        turn = rounds % len(names) if names else 0
        gc.collect()
        for name in names[turn:] + names[:turn]:
            times[name].append(timed[name]())
        rounds += 1
    return {name: found[warm:] for name, found in times.items()}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (20, 50, 80)}
