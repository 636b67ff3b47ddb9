"""Life and death of processes: a stop signal ends a run cleanly, and nothing outlives its parent.

    exit_on_signals    the entry's whole body: SIGINT and SIGTERM become SystemExit with the usual code
    signals_deferred   a stretch that is finished before such a signal takes effect (a commit to disk)
    die_with_parent    called by a worker process, or by a rank under torchrun

Signal dispositions belong to the process, hence the one piece of module state.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

REPEAT_SECONDS = 2.0
"""A signal repeated within this time is one stop told twice (terminal and torchrun both tell); later it means now."""

_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Stop:
    deferring: int = 0
    """Depth of `signals_deferred` blocks."""
    number: int | None = None
    """The signal that asked to stop."""
    since: float = 0.0
    """When it came (monotonic seconds)."""


_stop = _Stop()


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Inside, SIGINT raises SystemExit(130) and SIGTERM SystemExit(143), so that `finally` blocks run.

    The same wish repeated after two seconds ends the process at once. Main thread only.
    """
    previous = {number: signal.signal(number, _on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _stop.number = None


@contextmanager
def signals_deferred() -> Iterator[None]:
    """A stop signal that comes inside takes effect when the outermost block is left."""
    _stop.deferring += 1
    try:
        yield
    finally:
        _stop.deferring -= 1
    if _stop.number is not None and not _stop.deferring:
        raise SystemExit(128 + _stop.number)


def die_with_parent(parent: int | None = None) -> None:
    """The kernel kills this process (SIGKILL) when the thread that started it ends, however that happens.

    `parent` is the process id of the starter, if known: where it has died already, this process exits now with 1.
    Linux only; elsewhere nothing happens. torchrun starts its ranks in sessions of their own, so without this they
    outlive a torchrun that was killed.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if parent is not None and os.getppid() != parent:
        sys.exit(1)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _stop.number is not None:
        if time.monotonic() - _stop.since > REPEAT_SECONDS:
            os._exit(128 + number)
        return
    _stop.number, _stop.since = number, time.monotonic()
    if not _stop.deferring:
        raise SystemExit(128 + number)
