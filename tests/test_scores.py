"""Scores between 0 and 1, where an environment gives them: from its observations to evaluations and metrics."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from report_pages import EVALUATION, SUMMARY, page_of, write_run
from rollout_fakes import VERSION, FakeGame, FakeSampler, episode

from siri.config import EvalConfig, PolicyConfig
from siri.engine.distributed import World
from siri.engine.environment import Observation
from siri.engine.rollout import collect
from siri.engine.trajectory import Trajectory
from siri.evaluate import evaluate
from siri.rollout_metrics import rollout_metrics


@dataclass
class GradedGame(FakeGame):
    grades: tuple[float, ...] = (0.0, 0.1, 0.6, 0.3)
    """After so many steps."""

    def _observe(self, action: str) -> Observation:
        return replace(super()._observe(action), score=self.grades[self.steps])


def played(*games: FakeGame, max_turns: int = 3) -> list[Trajectory]:
    return collect(
        FakeSampler(),
        [episode(group, 0, game) for group, game in enumerate(games)],
        max_turns=max_turns,
        max_prompt_tokens=100,
        max_action_tokens=4,
        temperature=1.0,
        run_seed=0,
        step=0,
        policy_version=VERSION,
    )


GAMES = {
    "a": lambda: GradedGame("a"),
    "b": lambda: GradedGame("b", wins=False, grades=(0.0, 0.0, 0.0, 0.5)),
    "broken": lambda: GradedGame("broken", breaks_at=2),
    "plain": lambda: FakeGame("plain"),
}


def test_an_episode_has_the_last_score() -> None:
    [graded, other, plain] = played(*(GAMES[name]() for name in ("a", "b", "plain")))
    assert [graded.score, other.score, plain.score] == [0.3, 0.5, None]
    [cut] = played(GradedGame("a"), max_turns=2)
    assert cut.score == 0.6


def evaluated(*names: str):
    source = SimpleNamespace(
        tasks=lambda split: names,
        task_type=lambda task: "fake",
        make=lambda task: GAMES[task](),
        split_hash=lambda split, limit: "0" * 64,
    )
    renderer = SimpleNamespace(dialogue=episode(0, 0, FakeGame("x")).dialogue)
    return evaluate(
        FakeSampler(),
        source,
        renderer,
        split="valid",
        policy=PolicyConfig(max_prompt_tokens=100, max_action_tokens=4),
        config=EvalConfig(),
        max_turns=3,
        max_concurrent=4,
        seed=0,
        policy_version=VERSION,
        world=World(),
    )


def test_an_evaluation_has_the_mean_of_the_episodes_that_count() -> None:
    result = evaluated("a", "b", "broken")
    assert result.mean_score == pytest.approx(0.4)
    assert result.errors == 1
    assert result.as_dict()["mean_score"] == pytest.approx(0.4)
    assert ", score 0.400, 1 episodes lost" in str(result)


def test_without_scores_nothing_is_said_of_them() -> None:
    result = evaluated("plain")
    assert result.mean_score is None
    assert "mean_score" not in result.as_dict()
    assert "score" not in str(result)
    assert "rollout/score" not in metrics("plain")


def metrics(*names: str) -> dict[str, float]:
    trajectories = played(*(GAMES[name]() for name in names))
    advantages = [None if t.error else np.zeros(len(t.turns)) for t in trajectories]
    return rollout_metrics(trajectories, advantages, World())


def test_a_rollout_has_the_mean_of_the_episodes_that_count() -> None:
    assert metrics("a", "b", "broken")["rollout/score"] == pytest.approx(0.4)
    assert metrics("a", "plain")["rollout/score"] == pytest.approx(0.3)


def test_the_report_shows_the_scores_there_are(tmp_path: Path) -> None:
    evaluations = {"initial": {**EVALUATION, "mean_score": 0.4567}, "after_warmup": None, "final": EVALUATION}
    scored = page_of(write_run(tmp_path / "scored", summary={**SUMMARY, "eval": evaluations}))
    assert "Mean score of the episodes, from 0 to 1: initial 0.457." in scored.root.text
    assert "Mean score" not in page_of(write_run(tmp_path / "plain")).root.text
