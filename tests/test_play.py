"""`siri play`, driven through a pipe as a script would, and through its function."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import shared_path
from rich.console import Console
from shop_folder import write_files
from webshop_oracles import shop

from siri import cli
from siri.config import EnvironmentConfig
from siri.envs.household.generator import generate_game
from siri.envs.webshop import procedural_catalogue
from siri.envs.webshop.folder import load_folder
from siri.envs.webshop.source import ProceduralShop
from siri.envs.webshop.splits import winnable_goals
from siri.families import make_shop
from siri.play import Challenge, household, play, shopping

GAME = generate_game("play", size="small")
SHOP = procedural_catalogue(400)


def shown(*commands: str, show_admissible: bool = False, challenge: Challenge | None = None) -> str:
    console = Console(file=io.StringIO(), soft_wrap=True)
    play(challenge or household(GAME), commands, console, show_admissible=show_admissible)
    return console.file.getvalue()


def test_the_walkthrough_wins() -> None:
    output = shown(*GAME.walkthrough, "look")
    assert output.endswith(f"Won in {len(GAME.walkthrough)} steps. The known solution has {len(GAME.walkthrough)}.\n")
    assert output.count("You are") >= 1
    assert GAME.task in output


def test_questions_cost_no_step() -> None:
    output = shown("?", "walkthrough", "", "inventory")
    assert "  inventory\n" in output
    assert "\n".join(GAME.walkthrough) in output
    assert output.endswith("Left after 1 steps.\n")


def test_quit_leaves_at_once() -> None:
    assert shown("quit", *GAME.walkthrough).endswith("Left after 0 steps.\n")


def test_admissible_actions_at_every_step() -> None:
    assert shown("look", "look", show_admissible=True).count("  inventory\n") == 2


def test_a_pipe_plays_and_reads_as_a_transcript() -> None:
    commands = "\n".join(GAME.walkthrough[:-1])
    result = subprocess.run(
        [sys.executable, "-c", "import sys; from siri.cli import main; sys.exit(main())", "play", "--game", GAME.id],
        input=commands,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert all(f"> {command}\n" in result.stdout for command in GAME.walkthrough[:-1])
    assert result.stdout.endswith(f"Left after {len(GAME.walkthrough) - 1} steps.\n")
    assert "\x1b" not in result.stdout


def test_every_goal_of_the_shop_is_won_by_its_walkthrough() -> None:
    for index in range(0, len(SHOP.goals), 97):
        goal = SHOP.goals[index]
        challenge = shopping(SHOP, goal)
        output = shown(*challenge.walkthrough, "search[x]", challenge=challenge)
        assert output.count(goal.instruction) == 1
        assert output.endswith(
            f"Won in {len(challenge.walkthrough)} steps. The known solution has {len(challenge.walkthrough)}.\n"
        )


def test_a_purchase_of_anything_ends_the_game_with_its_score() -> None:
    goal = SHOP.goals[0]
    hasty = f"search[{goal.name}]", f"click[{goal.asin}]", "click[buy now]"
    wanted = len(goal.attributes) + len(goal.options) + 1
    output = shown(*hasty, "search[x]", challenge=shopping(SHOP, goal))
    score = (wanted - len(goal.options)) / wanted
    assert f"Over, with a score of {score:.2f}, in 3 steps." in output
    assert f"\n{goal.asin}\n{goal.name}\n" in output  # a piece a line, as it stands on the page


def test_a_goal_is_found_by_split_and_index_or_by_id(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ProceduralShop(num_products=100, seed=2)
    task = source.tasks("valid")[3]
    for words in (["--split", "valid", "--index", "3"], ["--game", task]):
        monkeypatch.setattr("sys.stdin", io.StringIO("?\n"))
        assert cli.main(["play", "--env", "webshop", "--seed", "2", *words]) == 0
        output = capsys.readouterr().out
        assert source.task(task) in output
        assert "  search[<your query>]\n" in output
        assert output.endswith("Left after 0 steps.\n")


def test_an_index_of_a_shop_is_the_goal_that_a_run_has_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(shared_path("data", "webshop"))
    for words, settings in (
        (["--size", "small"], {"size": "small"}),
        (["--size", "full"], {"size": "full"}),
        (["--official", folder], {"games": "official", "path": folder}),
    ):
        source = make_shop(EnvironmentConfig.model_validate({"name": "webshop", **settings}))
        for split in source.splits():
            index = len(source.tasks(split)) // 2
            monkeypatch.setattr("sys.stdin", io.StringIO("quit\n"))
            assert cli.main(["play", "--env", "webshop", *words, "--split", split, "--index", str(index)]) == 0
            assert f"goal {source.goal(source.tasks(split)[index]).index}  (" in capsys.readouterr().out


def test_a_walkthrough_that_does_not_win_is_none() -> None:
    """7% of the official goals are out of reach of their own product."""
    catalogue = shop()
    some = range(0, len(catalogue.goals), 20)
    winnable, solved = set(winnable_goals(catalogue, some)), set[int]()
    for index in some:
        challenge = shopping(catalogue, catalogue.goals[index])
        if challenge.walkthrough:
            assert "\nWon in " in shown(*challenge.walkthrough, challenge=challenge)
            solved.add(index)
    assert solved <= winnable
    assert len(solved) > 0.95 * len(winnable)
    assert len(winnable) < len(some)
    lost = next(index for index in some if index not in winnable)
    assert "no solution is known" in shown("walkthrough", challenge=shopping(catalogue, catalogue.goals[lost]))


def test_texts_that_no_terminal_can_show(tmp_path: Path) -> None:
    """Of a folder whose third product has half a surrogate pair and a star in its description."""
    folder = write_files(tmp_path)
    catalogue = load_folder(folder)
    product = next(product for product in catalogue.products if "\ud83d" in product.description)
    result = subprocess.run(
        [sys.executable, "-c", "import sys; from siri.cli import main; sys.exit(main())",
         "play", "--env", "webshop", "--official", str(folder)],
        input=f"search[{product.title}]\nclick[{product.asin}]\nclick[description]\n",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "\nlone surrogate ?, ? line," in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "webshop", "--index", "-1"], "--index -1"),
        (["--env", "webshop", "--split", "valid_seen"], "'valid_seen'"),
        (["--env", "webshop", "--game", "nonsense"], "'nonsense'"),
        (["--env", "webshop", "--official", "/nowhere"], "/nowhere"),
        (["--index", "-1"], "--index -1"),
        (["--split", "test"], "'test'"),
        (["--game", "nonsense"], "'nonsense'"),
        (["--official", "/nowhere"], "/nowhere"),
    ],
)
def test_what_does_not_exist_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["play", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
