"""Our household engine beside TextWorld: `pytest benchmarks/test_household_speed.py`.

Rounds time our engine; where TextWorld is installed, both also play the same actions in turn, and the numbers of that
comparison are in `extra_info`. The bounds are what a training run needs: see `docs/log.md`.
"""

import importlib.util
import random
from typing import Any

import pytest
from household_speed import measure, random_action, unread

from siri.envs.household import HouseholdEnv
from siri.envs.household.generator import generate_game

GAMES = [generate_game(f"speed/{i}", size="full") for i in range(8)]


def test_step_with_admissible_commands(benchmark: Any) -> None:
    """One round: 50 random steps in each of 8 games like the official ones."""
    rng = random.Random(0)
    episodes = []
    for game in GAMES:
        env = HouseholdEnv(game)
        seen = env.reset()
        actions: list[str] = []
        while not seen.done and len(actions) < 50:
            actions.append(random_action(seen.admissible or (), rng))
            seen = env.step(actions[-1])
        episodes.append((env, actions))

    def replay() -> None:
        for env, actions in episodes:
            env.reset()
            for action in actions:
                env.step(action)

    benchmark.extra_info["steps_a_round"] = sum(len(actions) for _, actions in episodes)
    benchmark(replay)


def test_first_reset(benchmark: Any) -> None:
    """Reading a problem's text, compiling it, and the first observation."""
    benchmark.pedantic(lambda env: env.reset(), setup=lambda: ((HouseholdEnv(unread(GAMES[0])),), {}), rounds=50)


def test_later_reset(benchmark: Any) -> None:
    env = HouseholdEnv(GAMES[0])
    env.reset()
    benchmark(env.reset)


@pytest.mark.skipif(
    importlib.util.find_spec("alfworld") is None, reason='needs TextWorld: pip install -e ".[alfworld]"'
)
def test_beside_textworld(benchmark: Any) -> None:
    result = benchmark.pedantic(measure, args=(GAMES[:3],), kwargs={"steps": 20, "textworld": True}, rounds=1)
    benchmark.extra_info.update(result)
    assert result["times_faster"]["step"] >= 500
    assert result["times_faster"]["first_reset"] >= 300
