"""Training with the games in worker processes: the numbers of a run without, and what a broken game costs."""

import importlib.util
import re
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from refusals import TRAIN, assert_refused
from test_train import metrics, weights, words
from worker_games import household

from siri import families, session
from siri.config import EnvironmentConfig, RunConfig
from siri.engine.distributed import World
from siri.engine.rollout import collect
from siri.engine.trajectory import Trajectory
from siri.engine.workers import EnvironmentWorkers
from siri.envs.household import HouseholdEnv
from siri.run import draw_tasks
from siri.train import main

NUM_WORKERS = 4  # As many as episodes an iteration: a worker that dies takes one game with it.
SETTINGS = {
    "iterations": 3,
    "rollout.num_tasks": 2,
    "rollout.group_size": 2,
    "environment.num_train": 6,
    "environment.num_valid": 2,
}
TEXTWORLD = {"environment.engine": "textworld"}
SOURCE = families.make_games(EnvironmentConfig(size="small", num_train=6, num_valid=2), HouseholdEnv)
[CURSED] = draw_tasks(SOURCE.tasks("train"), 2, 1, seed=0)  # The first task of the second of three iterations.


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A run that is over."""

    run_dir: Path
    trajectories: list[Trajectory]
    """Of training and evaluation, in order."""

    def count(self, name: str) -> list[float]:
        return [line[name] for line in metrics(self.run_dir)]


def train(folder: Path, name: str, **settings: object) -> Played:
    """A run that ends well and leaves no process."""
    trajectories: list[Trajectory] = []

    def keep(*args: Any, **kwargs: Any) -> list[Trajectory]:
        trajectories.extend(played := collect(*args, **kwargs))
        return played

    before = psutil.Process().children(recursive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("siri.run.collect", keep)
        patch.setattr("siri.evaluate.collect", keep)
        assert main(words(folder, name=name, **{**SETTINGS, **settings})) == 0
    assert psutil.Process().children(recursive=True) == before
    return Played(run_dir=folder / name, trajectories=trajectories)


def assert_equal_runs(one: Played, other: Played) -> None:
    """Equal in every episode, and in what was learned from them up to rounding: which prompts are drawn from together
    is a matter of time, and it decides the last bits of the log-probs."""
    assert len(one.trajectories) == len(other.trajectories) > 0
    for first, second in zip(one.trajectories, other.trajectories, strict=True):
        assert plain(first) == plain(second)
    for line, expected in zip(metrics(one.run_dir), metrics(other.run_dir), strict=True):
        assert line.pop("phase") == expected.pop("phase")
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)
    step = len(metrics(one.run_dir))
    learned, expected = weights(one.run_dir, step), weights(other.run_dir, step)
    for name in expected:
        torch.testing.assert_close(learned[name], expected[name], rtol=1e-3, atol=1e-4)


def plain(trajectory: Trajectory) -> dict[str, Any]:
    """Everything but log-probs and the text of an error, comparable."""
    fields = asdict(trajectory)
    del fields["error"]
    for turn in fields["turns"]:
        del turn["behavior_logprob"]
        turn.update({name: value.tolist() for name, value in turn.items() if isinstance(value, np.ndarray)})
    return fields


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Played:
    """A run without workers."""
    return train(folder, "whole")


@pytest.fixture(scope="module")
def lost(folder: Path) -> Played:
    """The same, in which the games of one task raise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "HouseholdEnv", partial(household, cursed=CURSED))
        return train(folder, "lost")


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[EnvironmentWorkers]:
    """The engine `textworld` plays `household` in its workers, whether TextWorld is installed or not; all there were.

    This process cannot play.
    """
    opened: list[EnvironmentWorkers] = []

    def open_workers(make: object, *, num_workers: int) -> EnvironmentWorkers:
        assert (make, num_workers) == (families.TextWorldEnv, NUM_WORKERS)
        opened.append(EnvironmentWorkers(families.TextWorldEnv, num_workers=num_workers))
        return opened[-1]

    monkeypatch.setattr(families, "EnvironmentWorkers", open_workers)
    monkeypatch.setattr(families, "check_textworld", lambda setting: None)
    monkeypatch.setattr(families, "num_cores", lambda: NUM_WORKERS)
    monkeypatch.setattr(families, "TextWorldEnv", household)
    monkeypatch.setattr(HouseholdEnv, "reset", lambda self: pytest.fail("played in the process of the run"))
    return opened


def test_workers_change_nothing(folder: Path, whole: Played, workers: list[EnvironmentWorkers]) -> None:
    played = train(folder, "workers", **TEXTWORLD)
    assert_equal_runs(played, whole)
    assert played.count("ended/env_error") == [0, 0, 0]
    assert [one.pids() for one in workers] == [[]]


@pytest.mark.parametrize("fate", ["raise", "kill"])
def test_a_broken_game_costs_its_own_episodes(
    folder: Path,
    lost: Played,
    workers: list[EnvironmentWorkers],
    monkeypatch: pytest.MonkeyPatch,
    fate: str,
) -> None:
    """Two of four in the second iteration, whatever ends them: the run is the one in which they raise at home."""
    monkeypatch.setattr(families, "TextWorldEnv", partial(household, cursed=CURSED, fate=fate))
    played = train(folder, fate, **TEXTWORLD)
    assert played.count("ended/env_error") == [0, 2, 0]
    assert played.count("rollout/episodes") == [4, 2, 4]
    assert_equal_runs(played, lost)
    errors = {trajectory.error for trajectory in played.trajectories if trajectory.task_id == CURSED}
    assert all(re.search("the lamp broke" if fate == "raise" else "worker process .* ended", text) for text in errors)
    assert [one.pids() for one in workers] == [[]]


def test_a_run_that_crashes_leaves_no_worker(
    folder: Path, workers: list[EnvironmentWorkers], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        [one] = workers
        assert len(one.pids()) == NUM_WORKERS
        raise RuntimeError("a bug")

    before = psutil.Process().children(recursive=True)
    monkeypatch.setattr("siri.update.linear_policy_loss", crash)
    with pytest.raises(RuntimeError, match="a bug"):
        main(words(folder, name="crashed", **SETTINGS, **TEXTWORLD))
    assert psutil.Process().children(recursive=True) == before


@pytest.mark.parametrize(
    ("cores", "ranks", "max_concurrent", "expected"), [(12, 1, 256, 12), (13, 4, 256, 3), (2, 4, 256, 1), (12, 1, 5, 5)]
)
def test_the_ranks_of_a_machine_share_its_cores(
    cores: int, ranks: int, max_concurrent: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.model_validate(
        {"environment": {"engine": "textworld"}, "rollout": {"max_concurrent": max_concurrent}}
    )
    asked: list[int] = []

    def open_workers(make: object, *, num_workers: int) -> EnvironmentWorkers:
        asked.append(num_workers)
        return EnvironmentWorkers(household, num_workers=num_workers)

    monkeypatch.setattr(families, "EnvironmentWorkers", open_workers)
    monkeypatch.setattr(families, "check_textworld", lambda setting: None)
    monkeypatch.setattr(families, "num_cores", lambda: cores)
    with families.open_games(config, World(local_size=ranks)):
        assert asked == [expected]


@pytest.mark.parametrize("package", ["alfworld", "textworld", "fast_downward"])
@pytest.mark.usefixtures("place")
def test_without_textworld_nothing_is_started(
    package: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    owners = {"make_games": families, "EnvironmentWorkers": families, "load_policy": session, "make_sampler": session}
    for name, owner in owners.items():
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("called too early"))
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"environment\.engine: 'textworld' needs .*{package}.*pip install \"siri\[alfworld\]\".*engine: siri"
    assert_refused(TRAIN + "--environment.engine textworld", message, capfd)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    importlib.util.find_spec("alfworld") is None, reason='needs TextWorld: pip install -e ".[alfworld]"'
)
def test_a_run_on_textworld_is_a_run_on_our_engine(tmp_path: Path) -> None:
    """With the shipped policy: it does things in its games, which the minuscule one cannot."""
    settings = {"policy.model": "tiny", "iterations": 2, "environment.max_turns": 8}
    ours = train(tmp_path, "ours", **settings)
    assert max(ours.count("rollout/invalid_actions")) < 0.5
    reference = train(tmp_path, "reference", **settings, **TEXTWORLD)
    assert_equal_runs(reference, ours)
    assert reference.count("ended/env_error") == [0, 0]
