"""Generated games: reproducible, winnable, of the promised sizes, and like the official ones."""

import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import REPO, shared_path

from siri.engine.errors import UserError
from siri.envs.household import Game, HouseholdEnv, load_games
from siri.envs.household.generator import VERSION, Size, Split, game_from_id, generate_game
from siri.envs.household.pddl import format_problem
from siri.envs.household.problem import TASK_TYPES
from siri.envs.household.rooms import CAN_CONTAIN, THINGS
from siri.envs.household.tasks import GOALS, SENTENCES, Errand, read_sentence

SIZES: tuple[Size, ...] = ("small", "full")
# Games of generator version 1, recorded on Python 3.11. If they change, VERSION must be raised.
RECORDED = {
    "proc1/small/train/0/000000": "fba749b10fef88fe",
    "proc1/small/valid/0/000007": "f7168dadbd22f034",
    "proc1/full/train/1/000123": "ba1d7ebbda8fb693",
    "proc1/full/any/7": "2abeee9853dc00b1",
}


def content(game: Game) -> str:
    """All of a game but its name."""
    return f"{game.task} {game.walkthrough} {format_problem(replace(game.problem, name='x'))}"


def digest(ids: list[str]) -> dict[str, str]:
    return {id: sha256(content(game_from_id(id)).encode()).hexdigest()[:16] for id in ids}


def test_an_id_means_the_recorded_game() -> None:
    assert VERSION == 1
    assert digest(list(RECORDED)) == RECORDED


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_equal_in_every_process(hash_seed: str) -> None:
    code = "import json, test_household_generator as t; print(json.dumps(t.digest(list(t.RECORDED))))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(run.stdout) == RECORDED


@pytest.mark.parametrize("size", SIZES)
def test_three_hundred_walkthroughs_win(size: Size) -> None:
    for seed in range(300):
        game = generate_game(seed, size=size)
        env = HouseholdEnv(game)
        observation = env.reset()
        assert not observation.success, game.id
        for action in game.walkthrough:
            assert not observation.done, game.id
            assert action in (observation.admissible or ()), (game.id, action)
            observation = env.step(action)
        assert observation.success, game.id
        assert read_sentence(game.task) == errand(game), game.id


def errand(game: Game) -> Errand:
    goal = game.problem.goal
    return Errand(goal.task_type, goal.object_type.lower(), goal.target_type.lower())


def test_sizes() -> None:
    for seed in range(300):
        small = generate_game(seed, size="small").problem
        assert 6 <= len(small.receptacles) <= 10
        assert 5 <= len(small.things) <= 12
        assert len(generate_game(seed, size="full").problem.receptacles) >= 6


def test_ids_name_no_two_entities_alike() -> None:
    for seed in range(100):
        problem = generate_game(seed).problem
        ids = [r.id for r in problem.receptacles] + [t.id for t in problem.things]
        assert len(set(ids)) == len(ids)
        places = {r.id: r.location for r in problem.receptacles}
        assert all(thing.location == places[thing.receptacles[0]] for thing in problem.things)
        assert problem.start not in places.values()


def test_every_task_type_and_room_occurs_with_official_frequency() -> None:
    # 600 games: three standard deviations of a share are at most 0.06.
    games = [generate_game(f"mix-{i}", size="small") for i in range(600)]
    found = Counter(game.task_type for game in games)
    total = sum(GOALS.values())
    assert total == 3553
    for task_type in TASK_TYPES:
        expected = sum(n for (_, goal), n in GOALS.items() if goal.task_type == task_type) / total
        assert found[task_type] / 600 == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("size", SIZES)
def test_splits_share_no_content_and_no_room_with_goal(size: Size) -> None:
    splits: tuple[Split, ...] = ("train", "valid")
    games = {split: [generate_game(i, size=size, split=split) for i in range(250)] for split in splits}

    def layout(game: Game) -> tuple[object, ...]:
        return game.problem.goal, tuple(sorted(Counter(r.type for r in game.problem.receptacles).items()))

    assert not {content(game) for game in games["train"]} & {content(game) for game in games["valid"]}
    assert not {layout(game) for game in games["train"]} & {layout(game) for game in games["valid"]}
    # Both are drawn from the same distribution: the goal mix differs by chance only (0.12 is three deviations).
    for task_type in TASK_TYPES:
        shares = [sum(game.task_type == task_type for game in games[split]) / 250 for split in splits]
        assert shares[0] == pytest.approx(shares[1], abs=0.12)


def test_numbers_agree_with_official_games() -> None:
    """Shares within 0.06, means within a tenth of the 3553 official train games, recorded by the benchmark script."""
    path = REPO / "benchmarks"
    recorded = json.loads((path / "results" / "household_generator.json").read_text())
    script = runpy.run_path(str(path / "household_statistics.py"))
    games = [script["generated_scene"](generate_game(seed)) for seed in range(500)]
    found = script["summarise"](games)
    assert recorded["official_games"] == 3553
    assert len(recorded["rows"]) > 40
    for key, row in recorded["rows"].items():
        tolerance = {"abs": 0.06} if key.startswith("share") else {"rel": 0.1}
        assert found.get(key, 0.0) == pytest.approx(row["official"], **tolerance), key


def test_official_rules_of_things_and_places() -> None:
    """Against games that the tables were not measured on."""
    for game in load_games(shared_path("data", "alfworld", "valid_seen.jsonl.xz")):
        problem = game.problem
        kinds = {thing.type for thing in problem.things}
        receptacles = {r.type for r in problem.receptacles}
        expected = {(r, t) for r, things in CAN_CONTAIN.items() if r in receptacles for t in things if t in kinds}
        assert problem.can_contain == expected, game.id
        for thing in problem.things:
            if thing.type and thing.receptacles:
                ours = THINGS[thing.type]
                official = replace(ours, id=thing.id, location=thing.location, receptacles=thing.receptacles)
                assert thing == replace(official, inside=thing.inside, cool=thing.cool), game.id


@pytest.mark.parametrize("split", ["train", "valid_seen"])
def test_every_official_sentence_is_read(split: str) -> None:
    for game in load_games(shared_path("data", "alfworld", f"{split}.jsonl.xz")):
        task_type, thing, _, target, _ = game.id.split("/")[0].split("-")
        assert read_sentence(game.task) == Errand(task_type, thing.lower(), target.lower())


def test_sentence_forms_are_told_apart() -> None:
    for task_type, forms in SENTENCES.items():
        for form in forms:
            assert read_sentence(form.format("mug", "desk")) == Errand(task_type, "mug", "desk")


@pytest.mark.parametrize("sentence", ["", "put a mug in desk", "eat a mug.", "put a very clean mug in desk."])
def test_other_sentences_are_refused(sentence: str) -> None:
    with pytest.raises(UserError, match="task sentence"):
        read_sentence(sentence)


@pytest.mark.parametrize(
    "id", ["", "7", "proc0/small/train/1", "proc1/tiny/train/1", "proc1/small/test/1", "proc1/small/train/"]
)
def test_other_ids_are_refused(id: str) -> None:
    with pytest.raises(UserError, match="task id"):
        game_from_id(id)
