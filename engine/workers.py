"""Environments in processes of their own, for engines that are slow or keep state in globals (TextWorld is both).

Each worker process plays many games, one call at a time. One that dies, or keeps a call waiting past its deadline,
takes its own games with it: their next call raises, the process is killed with all its descendants, and a fresh one
starts when it is next needed. Workers die with their parent, however it ends.
"""

import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any, Literal

from siri.engine.environment import Environment, Observation
from siri.engine.processes import die_with_parent

MakeEnvironment = Callable[[Any], Environment]
Call = tuple[Literal["reset", "step"], int, Any]
"""What to do, the game's number, and the game or the action."""


class WorkerError(RuntimeError):
    """The environment raised in its worker process, or the process died or did not answer in time."""


class EnvironmentWorkers:
    """A fixed number of worker processes, started when needed; `close` (or leaving the `with` block) ends them."""

    def __init__(
        self,
        make: MakeEnvironment,
        *,
        num_workers: int,
        call_seconds: float = 60.0,
        start_seconds: float = 120.0,
    ) -> None:
        """`make(game)` is called in a worker: it is pickled, and its module must be importable there (not a script).

        A call that takes longer than `call_seconds`, or a start that takes longer than `start_seconds`, counts as hung.
        Raises what `pickle.dumps(make)` raises.
        """
        # The kernel's die-with-parent means the parent's thread. Threads of a rollout come and go, this one stays.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="environment-workers")
        pickled = pickle.dumps(make)
        self._workers = [_Worker(pickled, self._starter, call_seconds, start_seconds) for _ in range(num_workers)]
        self._turn = count()
        self._ended = weakref.finalize(self, _end, self._workers, self._starter)

    def make(self, game: Any) -> "WorkerEnvironment":
        """An environment for one game (whatever `make` takes; it is pickled), on the next worker in turn.

        Nothing happens before its `reset`.
        """
        return WorkerEnvironment(self._workers[next(self._turn) % len(self._workers)], game)

    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        processes = [worker.process for worker in self._workers if worker.process is not None]
        return [process.pid for process in processes if process.poll() is None]

    def close(self) -> None:
        self._ended()

    def __enter__(self) -> "EnvironmentWorkers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class WorkerEnvironment:
    """An `Environment` played by a worker process. Every method raises WorkerError when that goes wrong."""

    blocking = True
    """Calls wait for another process: `collect` makes them in threads."""
    _numbers = count()

    def __init__(self, worker: "_Worker", game: Any) -> None:
        self._worker = worker
        self._game = game
        self._number = next(self._numbers)
        self._life = -1
        self._task: str | None = None
        weakref.finalize(self, worker.forgotten.append, self._number).atexit = False

    @property
    def task(self) -> str:
        """Known after the first `reset`."""
        assert self._task is not None, "reset() comes first"
        return self._task

    def reset(self) -> Observation:
        observation: Observation
        (self._task, observation), self._life = self._worker.ask(("reset", self._number, self._game), life=None)
        return observation

    def step(self, action: str) -> Observation:
        observation: Observation
        observation, _ = self._worker.ask(("step", self._number, action), life=self._life)
        return observation


class _Worker:
    """The parent's side of one worker process. Threads take turns."""

    def __init__(self, make: bytes, starter: ThreadPoolExecutor, call_seconds: float, start_seconds: float) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.forgotten: list[int] = []
        """Games that nobody holds any more; the worker hears of them with its next call."""
        self._make = make
        self._starter = starter
        self._call_seconds = call_seconds
        self._start_seconds = start_seconds
        self._lock = Lock()
        self._connection: Connection | None = None
        self._life = 0
        """Counts the processes that have ended here: games of an earlier one are lost."""

    def ask(self, call: Call, *, life: int | None) -> tuple[Any, int]:
        """The answer, and the life it came from. With `life` given, raises WorkerError if that process is gone."""
        with self._lock:
            if life is not None and life != self._life:
                raise WorkerError("the worker process that played this game has ended")
            connection = self._connection or self._start()
            forgotten, self.forgotten[:] = self.forgotten[:], []
            try:
                connection.send((forgotten, call))
                return self._receive(connection, self._call_seconds), self._life
            except (EOFError, OSError) as error:
                raise self._ended(error) from error

    def _start(self) -> Connection:
        connection = self._starter.submit(self._spawn).result()
        try:
            connection.send(sys.path)
            connection.send_bytes(self._make)
            self._receive(connection, self._start_seconds)
        except (EOFError, OSError, WorkerError) as error:
            raise self._ended(error) from error
        return connection

    def _spawn(self) -> Connection:
        """The whole of it in the starter's thread, which `close` waits for: it overlooks no process."""
        ours, theirs = Pipe()
        command = f"from siri.engine.workers import serve; serve({theirs.fileno()}, {os.getpid()})"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", command],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.__stderr__.fileno() if sys.__stderr__ else None,  # standard output belongs to the run
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in a terminal is told to the parent alone
        )
        theirs.close()
        self._connection = ours
        return ours

    def _receive(self, connection: Connection, seconds: float) -> Any:
        if not connection.poll(seconds):
            raise TimeoutError(f"no answer for {seconds:g} s")
        answer, error = connection.recv()
        if error is not None:
            raise WorkerError(error)
        return answer

    def _ended(self, error: Exception) -> WorkerError:
        """Ends the process (if it has not ended by itself) and says why."""
        assert self.process is not None
        self.end()
        self._life += 1
        return WorkerError(
            f"worker process {self.process.pid} ended ({type(error).__name__}: {str(error) or 'connection closed'})"
        )

    def end(self) -> None:
        connection, self._connection = self._connection, None  # `close` may come while a call waits
        if connection is None or self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        connection.close()


def _end(workers: list[_Worker], starter: ThreadPoolExecutor) -> None:
    starter.shutdown()  # first: a call that waits for its turn must not start a worker again
    for worker in workers:
        worker.end()


def serve(connection_fd: int, parent: int) -> None:
    """The worker process: answers calls until the other end of the pipe is closed."""
    die_with_parent(parent)
    connection = Connection(connection_fd)
    sys.path[:] = connection.recv()
    make, error = _guarded(pickle.loads, connection.recv_bytes())
    connection.send((None, error))
    games: dict[int, Environment] = {}
    while True:
        try:
            forgotten, (what, number, argument) = connection.recv()
        except EOFError:
            return
        for ended in forgotten:
            games.pop(ended, None)
        connection.send(_guarded(_play, make, games, what, number, argument))


def _play(make: MakeEnvironment, games: dict[int, Environment], what: str, number: int, argument: Any) -> Any:
    if what == "step":
        return games[number].step(argument)
    if number not in games:
        games[number] = make(argument)
    observation = games[number].reset()
    return games[number].task, observation


def _guarded(call: Callable[..., Any], *args: Any) -> tuple[Any, str | None]:
    """`(result, None)`, or `(None, type and text)` of whatever the call raises: foreign code."""
    try:
        return call(*args), None
    except Exception as error:  # whatever foreign code raises: it costs one episode, not the worker
        return None, f"{type(error).__name__}: {error}"
