import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from worker_games import EchoGame, make_unless_cursed

from siri.engine.workers import EnvironmentWorkers, WorkerError


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(seconds: float, pids: list[int]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(alive(pid) for pid in pids):
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def pid_in(text: str) -> int:
    return int(text.rpartition(" ")[2])


@pytest.fixture
def workers():
    with EnvironmentWorkers(EchoGame, num_workers=2, call_seconds=2.0) as workers:
        yield workers


def test_games_are_played_elsewhere_and_side_by_side(workers):
    first, second, third = (workers.make(name) for name in "abc")
    started = [game.reset() for game in (first, second, third)]
    pids = [pid_in(observation.text) for observation in started]
    assert pids[0] == pids[2] != pids[1]
    assert os.getpid() not in pids
    assert sorted(set(pids)) == sorted(workers.pids())
    assert first.task == "play a"
    assert [first.step("x").text, third.step("y").text, first.step("z").text] == [
        f"x 1 in {pids[0]}",
        f"y 1 in {pids[0]}",
        f"z 2 in {pids[0]}",
    ]
    won = second.step("win")
    assert (won.done, won.success, won.reward) == (True, True, 1.0)
    assert first.reset().text == f"start 0 in {pids[0]}"


def test_an_exception_costs_the_call_and_not_the_worker(workers):
    game = workers.make("a")
    pid = pid_in(game.reset().text)
    with pytest.raises(WorkerError, match=r"^ValueError: the lamp broke$"):
        game.step("raise")
    assert game.step("x").text == f"x 2 in {pid}"


def test_an_environment_that_cannot_be_made():
    with EnvironmentWorkers(make_unless_cursed, num_workers=1) as workers:
        with pytest.raises(WorkerError, match=r"^RuntimeError: no such game$"):
            workers.make("cursed").reset()
        assert workers.make("fine").reset().text.startswith("start")


@pytest.mark.parametrize("end", ["kill", "die", "hang"])
def test_a_worker_that_ends_takes_its_own_games_and_no_others(workers, end):
    games = [workers.make(str(index)) for index in range(4)]
    pids = [pid_in(game.reset().text) for game in games]
    if end == "kill":
        os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(WorkerError, match="no answer for 2 s" if end == "hang" else f"worker process {pids[0]} ended"):
        games[0].step("x" if end == "kill" else end)
    with pytest.raises(WorkerError, match="the worker process that played this game has ended"):
        games[2].step("x")
    assert [games[index].step("x").text for index in (1, 3)] == [f"x 1 in {pids[1]}"] * 2
    assert gone_within(5, [pids[0]])
    again = games[2].reset().text
    assert pid_in(again) not in pids
    assert games[2].step("x").text == f"x 1 in {pid_in(again)}"


def test_close_leaves_no_process(workers):
    pids = [pid_in(workers.make("a").reset().text) for _ in range(2)]
    workers.close()
    assert gone_within(5, pids)
    assert workers.pids() == []


def test_close_ends_the_calls_that_wait_and_starts_nothing_more():
    """Each worker hangs in one game, and three others wait for their turn to begin on it."""
    before = psutil.Process().children()
    workers = EnvironmentWorkers(EchoGame, num_workers=4)
    games = [workers.make(str(index)) for index in range(16)]
    for game in games[:4]:
        game.reset()
    with ThreadPoolExecutor(16) as threads:
        answers = [threads.submit(game.step, "hang") for game in games[:4]]
        time.sleep(0.3)
        answers += [threads.submit(game.reset) for game in games[4:]]
        time.sleep(0.3)
        workers.close()
    assert all(isinstance(answer.exception(), RuntimeError) for answer in answers)
    assert psutil.Process().children() == before


def test_a_finished_episode_is_forgotten_in_the_worker(workers):
    game, other = workers.make("a"), workers.make("b")
    third = workers.make("c")
    game.reset(), third.reset()
    number, worker = game._number, game._worker
    assert third._worker is worker is not other._worker
    del game
    third.step("x")
    with pytest.raises(WorkerError, match="KeyError"):
        worker.ask(("step", number, "x"), life=None)


SCRIPT = """
import sys, time
from siri.engine.processes import exit_on_signals
from siri.engine.workers import EnvironmentWorkers
from worker_games import EchoGame

with exit_on_signals(), EnvironmentWorkers(EchoGame, num_workers=2) as workers:
    games = [workers.make("a"), workers.make("b")]
    print(*(game.reset().text.rpartition(" ")[2] for game in games), flush=True)
    if sys.argv[1] == "crash":
        raise RuntimeError("a bug")
    if sys.argv[1] == "busy":
        from threading import Thread
        Thread(target=games[0].step, args=("hang",), daemon=False).start()
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        ("idle", signal.SIGKILL),
        ("idle", signal.SIGTERM),
        ("idle", signal.SIGINT),
        ("busy", signal.SIGTERM),
        ("crash", None),
    ],
)
def test_no_worker_outlives_its_parent(tmp_path, mode, number):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen(
        [sys.executable, str(script), mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    if number is not None:
        time.sleep(0.2)
        assert all(alive(pid) for pid in pids)
        parent.send_signal(number)
    parent.communicate(timeout=20)
    assert gone_within(5, pids)
