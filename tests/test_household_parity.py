"""Our engine against recorded transcripts of TextWorld 1.7.0 with alfworld 0.4.2, and the official solutions."""

import json
import lzma
from functools import lru_cache

import pytest
from conftest import shared_path

from siri.envs.household import Game, HouseholdEnv, load_games

GAMES = {"train": 3553, "seen": 140}
ARCHIVES = {"train": "train.jsonl.xz", "seen": "valid_seen.jsonl.xz"}
TRACES = {"train": (140, "traces_train.jsonl.xz"), "seen": (40, "traces_seen.jsonl.xz")}


@lru_cache
def games(split: str) -> dict[str, Game]:
    return {game.id: game for game in load_games(shared_path("data", "alfworld", ARCHIVES[split]))}


@pytest.mark.parametrize("split", TRACES)
def test_transcripts(split: str) -> None:
    number, file = TRACES[split]
    with lzma.open(shared_path("data", "alfworld", file), "rt", encoding="utf-8") as lines:
        transcripts = [json.loads(line) for line in lines]
    assert len(transcripts) == number
    for transcript in transcripts:
        env = HouseholdEnv(games(split)[transcript["id"]])
        initial = env.reset()
        where = transcript["id"]
        assert env.task == transcript["task"], where
        assert initial.text == transcript["initial"]["obs"], where
        assert list(initial.admissible or ()) == transcript["initial"]["admissible"], where
        for number, step in enumerate(transcript["steps"]):
            seen = env.step(step["action"])
            where = f"{transcript['id']} step {number}: {step['action']}"
            assert seen.text == step["obs"], where
            assert list(seen.admissible or ()) == step["admissible"], where
            assert (seen.success, seen.reward, seen.done) == (step["won"], step["score"], step["done"]), where


def assert_walkthroughs_win(chosen: list[Game]) -> None:
    for game in chosen:
        env = HouseholdEnv(game)
        env.reset()
        seen = [env.step(action) for action in game.walkthrough]
        assert [step.reward for step in seen] == [0.0] * (len(seen) - 1) + [1.0], game.id
        assert seen[-1].done, game.id
        assert seen[-1].success, game.id
        assert game.task_type == game.problem.goal.task_type, game.id


@pytest.mark.parametrize(("split", "every"), [("seen", 1), ("train", 20)])
def test_walkthroughs_win(split: str, every: int) -> None:
    assert len(games(split)) == GAMES[split]
    assert_walkthroughs_win(list(games(split).values())[::every])


@pytest.mark.slow  # 12 s alone on a core, minutes on a crowded one.
@pytest.mark.timeout(900)
def test_every_walkthrough_of_train_wins() -> None:
    assert_walkthroughs_win(list(games("train").values()))
