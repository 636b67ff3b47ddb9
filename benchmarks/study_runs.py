"""Runs of a study as processes, some side by side: a run is a sequence of commands that ends in a row.

side_by_side   works through all runs; one that fails leaves the others alone, and leaving early stops them all
StudyLog       what a person sees of it: a bar in a terminal, and lines
"""

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from siri.engine.errors import UserError
from siri.engine.processes import die_with_parent

POLL_SECONDS = 0.2
REFRESH_SECONDS = 2.0
STOP_SECONDS = 45.0
"""From SIGTERM to SIGKILL; torchrun gives its ranks 30 s."""


class RunFailed(Exception):
    """A run did not come to its end; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    words: Sequence[str]
    output: Path | None = None
    """File for its stdout, made anew; None: the log of the run."""


Steps = Generator[Command, None, dict[str, Any]]
"""The commands of a run, each asked for when the one before has succeeded; at last its row."""


@dataclass(slots=True, kw_only=True)
class Going:
    """A run that is being worked on."""

    name: str
    steps: Steps
    log_file: Path
    """What its commands print is added to it."""
    environ: Mapping[str, str]
    began: float = field(default_factory=time.monotonic)
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_busy(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def advance(self) -> dict[str, Any] | None:
        """Start the next command; after the last one, the row. Raises RunFailed."""
        if self.process is not None and self.process.returncode:
            raise RunFailed(f"exit status {self.process.returncode}")
        try:
            command = next(self.steps)
        except StopIteration as end:
            row: dict[str, Any] = end.value
            return row
        except (OSError, ValueError, KeyError, TypeError) as error:  # a file it left is not as it should be
            raise RunFailed(f"{type(error).__name__}: {error}") from error
        self.process = start(command, self.log_file, self.environ)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    name: str
    reason: str
    log_file: Path


class StudyLog:
    """The voice of a study; a context manager. `share_done` says of a run how much of it is done, from 0 to 1."""

    def __init__(self, *, total: int, done: int, share_done: Callable[[str], float]) -> None:
        self._console = Console()
        self._total = total
        self._done = done
        self._share_done = share_done
        self._shown = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # No refreshing thread: processes are forked here, and a fork copies a lock that the thread holds. Steps
            # come once a minute or so, so the time left is told from those of the last hours, not of 30 s.
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"),
                TimeRemainingColumn(), console=self._console, transient=True, auto_refresh=False,
                speed_estimate_period=4 * 3600,
            )  # fmt: skip
            self._bar.add_task("", total=self._total, completed=self._done)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begins(self, run: Going) -> None:
        self.line(f"{run.name} begins; what it says: {run.log_file}")

    def ends(self, run: Going, told: str) -> None:
        self._done += 1
        self.line(f"[{self._done}/{self._total}] {run.name}: {told}, {time.monotonic() - run.began:.0f} s")

    def show(self, going: Sequence[Going]) -> None:
        """Moves the bar, where there is one."""
        if self._bar is None or time.monotonic() - self._shown < REFRESH_SECONDS:
            return
        self._shown = time.monotonic()
        shares = {run.name: self._share_done(run.name) for run in going}
        listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        told = f"{self._done}/{self._total} runs; {listed}"
        self._bar.update(self._bar.task_ids[0], description=told, completed=self._done + sum(shares.values()))
        self._bar.refresh()


def side_by_side(
    runs: Mapping[str, Callable[[], Steps]],
    *,
    jobs: int,
    logs: Path,
    log: StudyLog,
    take: Callable[[Going, dict[str, Any]], str],
) -> list[Failure]:
    """Work through `runs` in their order, `jobs` at a time, and hand each row to `take`; returns what failed.

    `take` returns what there is to tell of a row; where it raises a UserError, the run has failed too. What the runs
    print is in the folder `logs`, as NAME.log.
    """
    waiting, going = list(runs), list[Going]()
    failures: list[Failure] = []
    environ = environment(jobs)
    try:
        while waiting or going:
            while waiting and len(going) < jobs:
                name = waiting.pop(0)
                going.append(Going(name=name, steps=runs[name](), log_file=logs / f"{name}.log", environ=environ))
                log.begins(going[-1])
            for run in [run for run in going if not run.is_busy]:
                try:
                    row = run.advance()
                    if row is None:
                        continue
                    log.ends(run, take(run, row))
                except (RunFailed, UserError) as error:
                    failures.append(Failure(name=run.name, reason=str(error), log_file=run.log_file))
                    log.ends(run, f"FAILED, {error}")
                going.remove(run)
            log.show(going)
            time.sleep(POLL_SECONDS)
    finally:
        stop(going)
    return failures


def environment(jobs: int) -> dict[str, str]:
    """Of the commands: the cores shared out over `jobs`, unless OMP_NUM_THREADS says otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // jobs)))
    # A log is read while the run goes on, and after a crash.
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}


def start(command: Command, log_file: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """It gets a session of its own, so that Ctrl-C reaches this process alone, which then ends it in order; and it is
    killed with this process, as two of them in one run directory would spoil the run."""
    with log_file.open("ab") as log, (command.output or log_file).open("wb" if command.output else "ab") as output:
        log.write(f"$ {shlex.join(command.words)}\n".encode())
        log.flush()
        return subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
            env=environ,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def stop(going: Sequence[Going]) -> None:
    """End what still runs: asked first, killed after STOP_SECONDS."""
    processes = [run.process for run in going if run.process is not None and run.is_busy]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
