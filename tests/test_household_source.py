"""Task sources: fixed splits, equal worlds for equal ids, hashes of what was evaluated."""

import json
import lzma
from pathlib import Path

import pytest
from conftest import shared_path

from siri.engine.environment import Environment, TaskSource
from siri.engine.errors import UserError
from siri.envs.household.generator import Size, generate_game
from siri.envs.household.official_format import game_file
from siri.envs.household.pddl import format_problem
from siri.envs.household.source import OfficialGames, ProceduralGames


def procedural(size: Size = "small", num_train: int = 20, num_valid: int = 10, seed: int = 0) -> ProceduralGames:
    return ProceduralGames(size=size, num_train=num_train, num_valid=num_valid, seed=seed)


def test_procedural_source_keeps_the_protocol() -> None:
    source = procedural()
    assert isinstance(source, TaskSource)
    assert source.splits() == ("train", "valid")
    assert len(source.tasks("train")) == 20
    assert source.tasks("valid")[3] == "proc1/small/valid/0/000003"
    task = source.tasks("train")[0]
    first, second = source.make(task), source.make(task)
    assert isinstance(first, Environment)
    assert first is not second
    assert first.reset() == second.reset()
    assert source.task_type(task) == first.game.task_type


def test_more_games_do_not_change_the_ones_there_were() -> None:
    assert procedural(num_train=50).tasks("train")[:20] == procedural().tasks("train")


def test_split_hash_is_recorded_and_tells_contents_apart() -> None:
    # Of generator version 1: an evaluation report with this hash was made on these ten games.
    recorded = "b7019db97865827d943d8ad0c649f19833b7a8aaa074b333abc11d76888875b8"
    assert procedural().split_hash("valid") == recorded
    assert procedural(num_train=7).split_hash("valid") == recorded
    others = [procedural(num_valid=9), procedural(seed=1), procedural("full")]
    assert len({recorded, *(source.split_hash("valid") for source in others)}) == 4


def archive(path: Path, index: int) -> None:
    game = generate_game(index)
    record = {
        "id": f"{game.task_type}-{index}/trial",
        "task": game.task,
        "pddl_problem": format_problem(game.problem),
        "walkthrough": game.walkthrough,
    }
    with lzma.open(path, "wt", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def export(folder: Path, index: int) -> None:
    game = generate_game(index)
    path = folder / f"{game.task_type}-{index}" / "trial" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(game_file(game)), encoding="utf-8")


def test_official_games_as_archives_and_as_folders(tmp_path: Path) -> None:
    """Both layouts of the same games are the same source, the hash included."""
    flat, deep = tmp_path / "flat", tmp_path / "deep"
    flat.mkdir()
    for split, index in (("train", 1), ("valid_seen", 2), ("valid_unseen", 3)):
        archive(flat / f"{split}.jsonl.xz", index)
        export(deep / "json_2.1.1" / split, index)
    sources = [OfficialGames(flat), OfficialGames(deep), OfficialGames(deep / "json_2.1.1")]
    for source in sources:
        assert isinstance(source, TaskSource)
        assert source.splits() == ("train", "valid_seen", "valid_unseen")
        for split, index in (("train", 1), ("valid_seen", 2), ("valid_unseen", 3)):
            [task] = source.tasks(split)
            assert task == f"{generate_game(index).task_type}-{index}/trial"
            assert source.make(task).reset().text == source.make(task).reset().text
            assert source.task_type(task) == generate_game(index).task_type
            assert source.game(task).problem.goal == generate_game(index).problem.goal
            assert source.split_hash(split) == sources[0].split_hash(split)


def test_games_that_alfworld_leaves_out(tmp_path: Path) -> None:
    """An official download holds more files than ALFWorld has games: see its `collect_game_files`."""
    for index in range(4):
        export(tmp_path / "train", index)
    kept, movable, sliced, unsolvable = sorted((tmp_path / "train").iterdir())
    movable.rename(movable.with_name("pick_and_place_with_movable_recep-Apple-Pot-Fridge-2"))
    sliced.rename(sliced.with_name("pick_heat_then_place_in_recep-AppleSliced-None-Fridge-2"))
    file = unsolvable / "trial" / "game.tw-pddl"
    file.write_text(json.dumps({"solvable": False, "grammar": "", "pddl_problem": ""}), encoding="utf-8")
    assert OfficialGames(tmp_path).tasks("train") == (f"{kept.name}/trial",)


def test_official_splits_that_are_absent_are_left_out(tmp_path: Path) -> None:
    archive(tmp_path / "valid_seen.jsonl.xz", 1)
    source = OfficialGames(tmp_path)
    assert source.splits() == ("valid_seen",)
    with pytest.raises(UserError, match="split: 'train' does not exist; this source has valid_seen"):
        source.tasks("train")
    with pytest.raises(UserError, match="task id 'x': no such game"):
        source.make("x")


def test_the_official_splits() -> None:
    source = OfficialGames(shared_path("data", "alfworld"))
    assert source.splits() == ("train", "valid_seen")
    assert [len(source.tasks(split)) for split in source.splits()] == [3553, 140]
    assert not set(source.tasks("train")) & set(source.tasks("valid_seen"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "huge"}, "size: 'huge'"),
        ({"num_train": 0}, "num_train: 0 games"),
        ({"num_valid": -1}, "num_valid: -1 games"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        procedural(**arguments)


def test_a_folder_without_games_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the splits train, valid_seen, valid_unseen"):
        OfficialGames(tmp_path)


def test_unknown_split_and_task() -> None:
    with pytest.raises(UserError, match="split: 'test' does not exist; this source has train, valid"):
        procedural().tasks("test")
    with pytest.raises(UserError, match="task id 'x'"):
        procedural().make("x")
