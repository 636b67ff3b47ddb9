"""`siri play`, driven through a pipe as a script would, and through its function."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from siri import cli
from siri.envs.household.generator import generate_game
from siri.play import play

GAME = generate_game("play", size="small")


def shown(*commands: str, show_admissible: bool = False) -> str:
    console = Console(file=io.StringIO(), soft_wrap=True)
    play(GAME, commands, console, show_admissible=show_admissible)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
