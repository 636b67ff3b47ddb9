"""Loading official games: archives, directories, and what a damaged one says."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from household_kitchen import kitchen_game

from siri.engine.errors import UserError
from siri.envs.household import HouseholdEnv, load_games
from siri.envs.household.official_format import game_file
from siri.envs.household.pddl import format_problem
from siri.envs.household.problem import Game

ID = "pick_and_place_simple-Apple-None-SinkBasin-1/trial_1"
PLAN = ("go to countertop 1", "take apple 2 from countertop 1", "go to sinkbasin 1", "move apple 2 to sinkbasin 1")


def game(task: str = "put an apple in sinkbasin.") -> Game:
    problem = kitchen_game("pick_and_place_simple", "Apple", "SinkBasin").problem
    return Game(id=ID, task=task, task_type="pick_and_place_simple", walkthrough=PLAN, problem=problem)


def record(**changes: Any) -> dict[str, Any]:
    text = format_problem(game().problem)
    whole = {"id": ID, "task": game().task, "pddl_problem": text, "walkthrough": list(PLAN)} | changes
    return {key: value for key, value in whole.items() if value is not None}


def write_archive(path: Path, *records: object) -> Path:
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in records)
    return path


def write_game(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def assert_plays(loaded: Game) -> None:
    assert (loaded.id, loaded.task, loaded.task_type) == (ID, game().task, "pick_and_place_simple")
    assert loaded.problem == game().problem
    env = HouseholdEnv(loaded)
    env.reset()
    assert [env.step(action).success for action in loaded.walkthrough] == [False, False, False, True]


def test_archive(tmp_path: Path) -> None:
    loaded = load_games(write_archive(tmp_path / "games.jsonl.xz", record(), record(id=ID + "2")))
    assert [each.id for each in loaded] == [ID, ID + "2"]
    assert_plays(loaded[0])


@pytest.mark.parametrize("start", ["", "json_2.1.1", "json_2.1.1/train", f"json_2.1.1/train/{ID}"])
def test_directory(tmp_path: Path, start: str) -> None:
    train = tmp_path / "json_2.1.1" / "train"
    write_game(train / ID / "game.tw-pddl", game_file(game()))
    assert_plays(load_games(tmp_path / start)[0])


def test_one_file(tmp_path: Path) -> None:
    assert_plays(load_games(write_game(tmp_path / ID / "game.tw-pddl", game_file(game())))[0])


def test_directory_order_is_that_of_the_paths(tmp_path: Path) -> None:
    names = ["valid_seen/pick_and_place_simple-B/t1", "train/pick_and_place_simple-C/t2"]
    names += ["train/pick_and_place_simple-C/t1"]
    for name in names:
        write_game(tmp_path / name / "game.tw-pddl", game_file(game()))
    ids = [each.id for each in load_games(tmp_path)]
    assert ids == [f"pick_and_place_simple-{name}" for name in ("C/t1", "C/t2", "B/t1")]


def test_games_are_parsed_when_first_played(tmp_path: Path) -> None:
    [loaded] = load_games(write_archive(tmp_path / "games.jsonl.xz", record(pddl_problem="(define nothing)")))
    with pytest.raises(UserError, match=rf"games.jsonl.xz: line 1 \({ID}\): line 1 of the PDDL problem: the text"):
        HouseholdEnv(loaded).reset()


ARCHIVE_FAULTS = {
    "line 2: malformed JSON": [record(), '{"id": '],
    "line 1: key 'task' is missing; it has id, pddl_problem, walkthrough": [record(task=None)],
    "line 1: key 'id' must be a string, found int": [record(id=3)],
    "line 1: key 'walkthrough' must be a list of strings": [record(walkthrough="look")],
    "line 1: expected a JSON object, found list": [[1, 2]],
    "id 'stack_blocks-3' must begin with a task type": [record(id="stack_blocks-3")],
    "holds no games": [],
}


@pytest.mark.parametrize("message", ARCHIVE_FAULTS)
def test_archive_faults(tmp_path: Path, message: str) -> None:
    path = write_archive(tmp_path / "games.jsonl.xz", *ARCHIVE_FAULTS[message])
    with pytest.raises(UserError) as error:
        load_games(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_archive(tmp_path: Path, kept: float) -> None:
    path = write_archive(tmp_path / "games.jsonl.xz", *[record(task=f"task {i}") for i in range(50)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=r"not a whole \.jsonl\.xz archive"):
        load_games(path)


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "games.jsonl.xz").write_text(json.dumps(record()))
    with pytest.raises(UserError, match=r"not a whole \.jsonl\.xz archive"):
        load_games(tmp_path / "games.jsonl.xz")


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or directory"):
        load_games(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no game\.tw-pddl below this directory"):
        load_games(tmp_path)


def test_a_task_that_the_grammar_cannot_print_is_not_exported() -> None:
    with pytest.raises(UserError, match=r"holds # \|, marks of the grammar"):
        game_file(game("put #1 | in sinkbasin."))


FILE_FAULTS: dict[str, object] = {
    "malformed JSON": "{",
    "key 'grammar' is missing": {"pddl_problem": "", "walkthrough": []},
    "key 'pddl_problem' is missing": {"grammar": game_file(game())["grammar"], "walkthrough": []},
    "key 'walkthrough' must be a list": game_file(game()) | {"walkthrough": None},
    "the grammar holds no 'Your task is to: ...'": game_file(game()) | {"grammar": "nothing"},
    "alfworld < 0.4": game_file(game())
    | {"grammar": game_file(game())["grammar"].replace("move {o} to", "put {o} in/on")},
}


@pytest.mark.parametrize("message", FILE_FAULTS)
def test_game_file_faults(tmp_path: Path, message: str) -> None:
    path = write_game(tmp_path / ID / "game.tw-pddl", FILE_FAULTS[message])
    with pytest.raises(UserError) as error:
        load_games(tmp_path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
