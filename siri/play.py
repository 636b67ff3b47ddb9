"""`siri play`: play a household game yourself, in the terminal or from a pipe."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import get_args

from rich.console import Console

from siri.engine.errors import UserError
from siri.envs.household.engine import HouseholdEnv
from siri.envs.household.generator import Size
from siri.envs.household.problem import Game
from siri.envs.household.source import OfficialGames, ProceduralGames

HINT = "?: the actions possible now   walkthrough: a solution   quit: leave"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--official", metavar="PATH", help="official games of this ALFWORLD_DATA folder or folder of archives"
    )
    parser.add_argument(
        "--size", choices=get_args(Size), default="small", help="size of a generated game (default: small)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of generated games (default: 0)")
    parser.add_argument("--split", default="train", help="train or valid; official: train, valid_seen or valid_unseen")
    parser.add_argument("--index", type=int, default=0, help="which game of the split (default: 0, the first)")
    parser.add_argument("--game", metavar="ID", help="one game by its id, instead of a split and an index")
    parser.add_argument("--show-admissible", action="store_true", help="list the possible actions at every step")


def run(args: argparse.Namespace) -> int:
    """Play until the game is won or left. Returns 0 either way."""
    if sys.stdin is None:
        raise UserError("standard input is closed, so no action can be typed; play in a terminal, or pipe actions in")
    game = find_game(args)
    # Lines are wrapped at words for a reader, and left whole for a program.
    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    play(game, _typed(console), console, show_admissible=args.show_admissible)
    return 0


def find_game(args: argparse.Namespace) -> Game:
    """The game that the options mean. Raises UserError where there is none."""
    source: OfficialGames | ProceduralGames
    if args.official:
        source = OfficialGames(args.official)
    else:
        # A generated game does not depend on how many others its split has.
        enough = max(args.index + 1, 1)
        source = ProceduralGames(size=args.size, num_train=enough, num_valid=enough, seed=args.seed)
    if args.game:
        return source.game(args.game)
    tasks = source.tasks(args.split)
    if not 0 <= args.index < len(tasks):
        raise UserError(
            f"--index {args.index}: split {args.split!r} has {len(tasks)} games; choose 0 to {len(tasks) - 1}"
        )
    return source.game(tasks[args.index])


def play(game: Game, commands: Iterable[str], console: Console, *, show_admissible: bool = False) -> bool:
    """One episode, driven by `commands` until it is won, they end, or one is `quit`. Returns whether it was won."""
    environment = HouseholdEnv(game)
    observation = environment.reset()
    steps = 0
    console.print(f"{game.id}  ({game.task_type})\n{HINT}\n", style="dim")
    console.print(observation.text)
    for command in commands:
        if command in ("quit", "exit"):
            break
        if command == "walkthrough":
            console.print("\n".join(game.walkthrough), style="cyan")
        elif command == "?":
            _list(observation.admissible or (), console)
        elif command:
            observation = environment.step(command)
            steps += 1
            console.print(observation.text)
            if observation.done:
                console.print(
                    f"\nWon in {steps} steps. The known solution has {len(game.walkthrough)}.", style="bold green"
                )
                return True
            if show_admissible:
                _list(observation.admissible or (), console)
    console.print(f"\nLeft after {steps} steps.", style="dim")
    return False


def _list(actions: Iterable[str], console: Console) -> None:
    console.print("\n".join(f"  {action}" for action in actions), style="cyan")


def _typed(console: Console) -> Iterator[str]:
    """Lines from the keyboard, or from a pipe: then echoed, so that the output reads as a transcript."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives `input` a history and the arrow keys)
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            return
        if not sys.stdin.isatty():
            console.print(line)
        yield line
