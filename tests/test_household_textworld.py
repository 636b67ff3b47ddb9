"""Our engine against TextWorld itself, on fresh random play: official games, generated games, and our own rules files.

The transcripts of `test_household_parity` need no TextWorld; these tests do, and skip where it is not installed.
"""

import importlib.util
import json
import lzma
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import shared_path
from household_kitchen import kitchen_game

from siri.engine.errors import UserError
from siri.envs.household import Game, HouseholdEnv, load_games
from siri.envs.household.generator import generate_game
from siri.envs.household.official_format import game_file
from siri.envs.household.textworld_oracle import TextWorldEnv

needs_textworld = pytest.mark.skipif(
    importlib.util.find_spec("alfworld") is None, reason='needs TextWorld: pip install -e ".[alfworld]"'
)
# Half of all commands are go-to commands: verbs are drawn first, and those that change most are drawn most.
WEIGHTS = {"take": 4, "move": 4, "open": 4, "heat": 6, "cool": 6, "clean": 6, "slice": 6, "use": 6, "go": 3}


def official_rules() -> dict[str, str]:
    folder = shared_path("data", "alfworld")
    return {"domain": (folder / "domain.pddl").read_text(), "grammar": (folder / "grammar.twl2").read_text()}


def random_action(admissible: tuple[str, ...], rng: random.Random) -> str:
    if rng.random() < 0.05:
        return rng.choice(["dance", "", "LOOK", "take mug 1", "open fridge", " look ", "go to  shelf 1"])
    verbs = sorted({command.split()[0] for command in admissible})
    [verb] = rng.choices(verbs, [WEIGHTS.get(verb, 1) for verb in verbs])
    return rng.choice([command for command in admissible if command.split()[0] == verb])


def assert_equal_play(game: Game, *, steps: int, seed: int, **rules: str) -> None:
    """Every field of every observation, and the whole state behind it."""
    rng = random.Random(seed)
    ours, oracle = HouseholdEnv(game), TextWorldEnv(game, **rules)
    seen = ours.reset()
    assert seen == oracle.reset(), game.id
    taken: list[str] = []
    while not seen.done and len(taken) < steps:
        taken.append(random_action(seen.admissible or (), rng))
        seen = ours.step(taken[-1])
        assert seen == oracle.step(taken[-1]), (game.id, taken)
        assert ours.state == oracle.state, (game.id, taken)


@needs_textworld
@pytest.mark.parametrize("seed", range(3))
def test_kitchen_with_every_quirk(seed: int) -> None:
    # Fast Downward drops every action of a game that cannot be won, so the goal must be within reach; this one is far.
    game = kitchen_game("pick_two_obj_and_place", "Apple", "Fridge")
    assert_equal_play(game, steps=60, seed=seed)
    assert_equal_play(game, steps=60, seed=-seed, **official_rules())


@needs_textworld
@pytest.mark.slow  # About 10 s a game.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rules", ["official", "ours"])
def test_official_games(rules: str) -> None:
    games = load_games(shared_path("data", "alfworld", "valid_seen.jsonl.xz"))
    for seed, game in enumerate(random.Random(rules).sample(games, 5)):
        assert_equal_play(game, steps=40, seed=seed, **(official_rules() if rules == "official" else {}))


@needs_textworld
@pytest.mark.slow  # About 10 s a transcript.
@pytest.mark.timeout(900)
def test_our_rules_give_the_recorded_transcripts() -> None:
    games = {game.id: game for game in load_games(shared_path("data", "alfworld", "valid_seen.jsonl.xz"))}
    with lzma.open(shared_path("data", "alfworld", "traces_seen.jsonl.xz"), "rt", encoding="utf-8") as lines:
        transcripts = [json.loads(line) for line in lines]
    for transcript in transcripts[::8]:
        env = TextWorldEnv(games[transcript["id"]])
        env.reset()
        for step in transcript["steps"]:
            seen = env.step(step["action"])
            assert (seen.text, list(seen.admissible or ()), seen.done) == (
                step["obs"],
                step["admissible"],
                step["done"],
            )


def assert_exported_game_plays_alike(index: int, folder: Path) -> None:
    """Through the file: what TextWorld plays is what `load_games` reads."""
    game = generate_game(index, size="small" if index % 5 else "full")
    path = folder / f"{game.task_type}-{index}" / "trial" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(game_file(game)), encoding="utf-8")
    [loaded] = load_games(path)
    assert (loaded.task, loaded.task_type, loaded.walkthrough) == (game.task, game.task_type, game.walkthrough)
    assert loaded.problem == game.problem
    file = json.loads(path.read_text(encoding="utf-8"))
    grammar = file["grammar"].replace(f"Your task is to: {game.task}", "Your task is to: {TASK}")
    assert_equal_play(loaded, steps=30, seed=index, domain=file["pddl_domain"], grammar=grammar)


@needs_textworld
@pytest.mark.parametrize("index", range(2))
def test_exported_generated_games(index: int, tmp_path: Path) -> None:
    assert_exported_game_plays_alike(index, tmp_path)


@needs_textworld
@pytest.mark.slow
@pytest.mark.parametrize("index", range(2, 50))
def test_fifty_exported_generated_games(index: int, tmp_path: Path) -> None:
    assert_exported_game_plays_alike(index, tmp_path)


@needs_textworld
def test_walkthrough_wins_and_the_command_line_survives() -> None:
    game = generate_game("walkthrough", size="small")
    argv = list(sys.argv)
    env = TextWorldEnv(game)
    env.reset()
    seen = [env.step(action) for action in game.walkthrough]
    assert (seen[-1].reward, seen[-1].done, seen[-1].success) == (1.0, True, True)
    assert not any(step.done for step in seen[:-1])
    with pytest.raises(RuntimeError, match="after the end of the episode"):
        env.step("look")
    assert sys.argv == argv


def test_missing_package_is_named_with_the_remedy(monkeypatch: Any) -> None:
    for name in ("textworld", "alfworld"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r'pip install "siri\[alfworld\]"'):
        TextWorldEnv(kitchen_game()).reset()
