"""What a run says: a line of JSON an iteration in `metrics.jsonl`, and a readable one on stdout. Rank 0 speaks.

`metrics.jsonl` of a resumed run equals that of a run that was never stopped, but for fields under `time/` and
`tokens_per_second/`: whatever depends on the clock is named so.
"""

import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from siri.engine.distributed import World, under_ci
from siri.engine.errors import UserError
from siri.engine.files import strict_json, user_error_on_write, write_text_atomic

CLOCK = ("time/", "tokens_per_second/")
"""Prefixes of the fields that two equal runs may differ in."""

SHOWN = (
    ("success", "rollout/success_rate", "{:.1%}"),
    ("return", "rollout/return", "{:.2f}"),
    ("rollout", "tokens_per_second/rollout", "{:,.0f} tok/s"),
    ("train", "tokens_per_second/train", "{:,.0f} tok/s"),
    ("kl", "train/approx_kl", "{:.4f}"),
    ("mismatch", "mismatch/mean", "{:.1e}"),
)
"""Label, metric and format of what the line on stdout holds; a metric that is absent is left out."""

CI_EVERY = 10
REFRESH_SECONDS = 0.2

Value = float | int | str | bool | None


def without_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that two equal runs agree in."""
    return {name: value for name, value in record.items() if not name.startswith(CLOCK)}


class RunLog:
    """The voice of one sitting of a run; a context manager.

    On entry, lines of iterations from `start` on are removed from `metrics.jsonl`: they will be written again.
    In a terminal a bar shows how far the iteration is; elsewhere a line appears for each iteration, under CI for the
    first, every tenth and the last.
    Raises UserError on entry if `metrics.jsonl` is damaged or TensorBoard is asked for and missing.
    """

    def __init__(
        self,
        run_dir: Path,
        world: World,
        *,
        total: int,
        start: int = 0,
        tensorboard: bool = False,
    ) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds of this iteration so far, by activity, on this rank."""
        self._path = run_dir / "metrics.jsonl"
        self._world = world
        self._total = total
        self._start = start
        self._tensorboard = tensorboard
        self._console = Console()
        self._every = CI_EVERY if under_ci() else 1
        self._durations: list[float] = []
        self._began = 0.0
        self._refreshed = 0.0
        self._bar: Progress | None = None
        self._events: Any = None

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        if not self._world.is_main:
            return self
        open_events = _summary_writer() if self._tensorboard else None
        keep_before(self._path, self._start)
        if open_events is not None:
            self._events = open_events(str(self._path.parent / "tensorboard"), purge_step=self._start)
        if self._console.is_terminal:
            # No refreshing thread: environments may fork, and a fork copies a lock that the thread holds.
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                console=self._console, transient=True, auto_refresh=False,
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            self._events.close()

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Adds the body's wall-clock seconds to `seconds[activity]`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - began

    def note(self, text: str) -> None:
        """A line of its own on stdout."""
        if self._world.is_main:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, activity: str, finished: int, total: int) -> None:
        """Moves the bar, where there is one."""
        now = time.perf_counter()
        if self._bar is None or (finished < total and now - self._refreshed < REFRESH_SECONDS):
            return
        self._refreshed = now
        if not self._bar.task_ids:
            self._bar.add_task(activity)
        self._bar.update(self._bar.task_ids[0], description=activity, completed=finished, total=total, refresh=True)

    def record(self, step: int, metrics: Mapping[str, Value], *, to_go: int | None = None) -> None:
        """Closes iteration `step` (0-based): adds `time/<activity>` and `time/iteration`, writes, shows, starts anew.

        `to_go`: iterations still to come, where something else than `total` ends the run; 0 in the last.
        Not-finite numbers become null. Raises UserError if the line cannot be written; the file is then as before.
        """
        now = time.perf_counter()
        self._durations.append(now - self._began)
        times = {f"time/{name}": round(value, 4) for name, value in self.seconds.items()}
        line = {"step": step, **metrics, **times, "time/iteration": round(self._durations[-1], 4)}
        self._began = now
        self.seconds.clear()
        if not self._world.is_main:
            return
        append_line(self._path, strict_json(line))
        if self._events is not None:
            for name, value in line.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(name, value, step)
        to_go = self._total - step - 1 if to_go is None else to_go
        if to_go == 0 or (step - self._start) % self._every == 0:
            self.note(self._sentence(step, line, to_go))

    def _sentence(self, step: int, line: Mapping[str, Any], to_go: int) -> str:
        shown = [f"{label} {form.format(line[name])}" for label, name, form in SHOWN if line.get(name) is not None]
        left = statistics.median(self._durations[-20:]) * to_go
        return "  ".join([f"{step + 1}/{step + 1 + to_go}", *shown, f"left {_duration(left)}"])


def keep_before(path: Path, step: int) -> None:
    """Removes from a metrics file the lines of iterations >= `step`, and a last line that was cut off while written.

    Raises UserError if another line is not a JSON object with an integer `step`, or the file cannot be read.
    """
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); move it away to go on without the past metrics"
        ) from None
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if int(json.loads(line)["step"]) < step:
                kept.append(line + b"\n")
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path}: line {number} is not a JSON object with a step; remove that line, "
                "or move the file away to go on without the past metrics"
            ) from None
    write_text_atomic(path, b"".join(kept).decode("utf-8"))


def append_line(path: Path, text: str) -> None:
    """Appends a line, synced to disk; whole or not at all. Raises UserError if the disk is full or not writable."""
    data = text.encode("utf-8") + b"\n"
    with user_error_on_write(path), open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _summary_writer() -> Any:
    """The class. Raises UserError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "tensorboard: true, but the package is not installed; pip install 'siri[tensorboard]', "
            "or set tensorboard: false (metrics.jsonl holds the same numbers)"
        ) from None
    return SummaryWriter


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
