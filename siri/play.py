"""`siri play`: play a household game or shop for a goal yourself, in the terminal or from a pipe."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from typing import get_args

from rich.console import Console

from siri.config import EnvironmentConfig
from siri.engine.environment import Environment, TaskSource
from siri.engine.errors import UserError
from siri.envs.household.engine import HouseholdEnv
from siri.envs.household.generator import Size
from siri.envs.household.problem import Game
from siri.envs.household.source import OfficialGames, ProceduralGames
from siri.envs.webshop.catalogue import Catalogue
from siri.envs.webshop.engine import WebShopEnv
from siri.envs.webshop.folder import load_folder
from siri.envs.webshop.goals import Goal
from siri.envs.webshop.pages import BUY, NEXT, PAGE_SIZE, SEPARATOR
from siri.envs.webshop.shops import NUM_PRODUCTS
from siri.envs.webshop.source import ProceduralShop, ShopTasks

HINT = "?: the actions possible now   walkthrough: a solution   quit: leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One task, as far as playing it by hand goes."""

    environment: Environment
    title: str
    walkthrough: tuple[str, ...]
    """A solution; empty where none is known."""
    shown: Callable[[str], str] = str
    """An observation for a reader."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", choices=("household", "webshop"), default="household", help="[household]")
    parser.add_argument(
        "--official",
        metavar="PATH",
        help="official games of this ALFWORLD_DATA folder or folder of archives; webshop: the folder of product files",
    )
    parser.add_argument(
        "--size", choices=get_args(Size), default="small", help="size of a generated game or shop (default: small)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of generated games or of the shop (default: 0)")
    parser.add_argument(
        "--split",
        default="train",
        help="train or valid; official games: train, valid_seen or valid_unseen; webshop: train, valid or test",
    )
    parser.add_argument("--index", type=int, default=0, help="which game of the split (default: 0, the first)")
    parser.add_argument("--game", metavar="ID", help="one game by its id, instead of a split and an index")
    parser.add_argument("--show-admissible", action="store_true", help="list the possible actions at every step")


def run(args: argparse.Namespace) -> int:
    """Play until the game is over or left. Returns 0 either way."""
    if sys.stdin is None:
        raise UserError("standard input is closed, so no action can be typed; play in a terminal, or pipe actions in")
    if isinstance(sys.stdout, TextIOWrapper):
        # Official products hold symbols that a terminal may lack, and halves of surrogate pairs that none can show.
        sys.stdout.reconfigure(errors="replace")
    challenge = find_goal(args) if args.env == "webshop" else find_game(args)
    # Lines are wrapped at words for a reader, and left whole for a program.
    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    play(challenge, _typed(console), console, show_admissible=args.show_admissible)
    return 0


def find_game(args: argparse.Namespace) -> Challenge:
    """The household game that the options mean. Raises UserError where there is none."""
    source: OfficialGames | ProceduralGames
    if args.official:
        source = OfficialGames(args.official)
    else:
        # A generated game does not depend on how many others its split has.
        enough = max(args.index + 1, 1)
        source = ProceduralGames(size=args.size, num_train=enough, num_valid=enough, seed=args.seed)
    return household(source.game(args.game or _pick(source, args)))


def find_goal(args: argparse.Namespace) -> Challenge:
    """The goal of a shop that the options mean. Raises UserError where there is none."""
    # The splits of a run with these defaults, so that an index is the same goal in both.
    run = EnvironmentConfig(name="webshop")
    source: ShopTasks
    if args.official:
        source = ShopTasks(load_folder(args.official), split_by=run.split_by, num_valid=run.num_valid)
    else:
        source = ProceduralShop(
            num_products=NUM_PRODUCTS[args.size], seed=args.seed, split_by=run.split_by, num_valid=run.num_valid
        )
    return shopping(source.catalogue, source.goal(args.game or _pick(source, args)))


def _pick(source: TaskSource, args: argparse.Namespace) -> str:
    tasks = source.tasks(args.split)
    if not 0 <= args.index < len(tasks):
        raise UserError(
            f"--index {args.index}: split {args.split!r} has {len(tasks)} games; choose 0 to {len(tasks) - 1}"
        )
    return tasks[args.index]


def household(game: Game) -> Challenge:
    return Challenge(
        environment=HouseholdEnv(game), title=f"{game.id}  ({game.task_type})", walkthrough=tuple(game.walkthrough)
    )


def shopping(catalogue: Catalogue, goal: Goal) -> Challenge:
    return Challenge(
        environment=WebShopEnv(catalogue, goal),
        title=f"goal {goal.index}  ({goal.category})\n{goal.instruction}",
        walkthrough=_purchase(catalogue, goal),
        shown=lambda text: "\n".join(text[1:-1].split(f"'{SEPARATOR}'")),
    )


def _purchase(catalogue: Catalogue, goal: Goal) -> tuple[str, ...]:
    """Finds the product of the goal by its name and buys it as wanted; empty where that does not win."""
    found = catalogue.search(goal.name.lower())
    if goal.product not in found:
        return ()
    options = [option if isinstance(option, str) else option[1] for option in goal.options]
    turns = [NEXT] * (found.index(goal.product) // PAGE_SIZE)
    clicks = [f"click[{thing}]" for thing in (*turns, goal.asin.lower(), *options, BUY)]
    actions = f"search[{goal.name}]", *clicks
    return actions if _wins(WebShopEnv(catalogue, goal), actions) else ()


def _wins(environment: Environment, actions: Iterable[str]) -> bool:
    """An official goal may be out of reach of its own product, and an option may have the name of a button."""
    seen = environment.reset()
    for action in actions:
        if seen.done:
            break
        seen = environment.step(action)
    return seen.success


def play(challenge: Challenge, commands: Iterable[str], console: Console, *, show_admissible: bool = False) -> bool:
    """One episode, driven by `commands` until it is over, they end, or one is `quit`. Returns whether it was won."""
    environment = challenge.environment
    observation = environment.reset()
    steps = 0
    console.print(f"{challenge.title}\n{HINT}\n", style="dim")
    console.print(challenge.shown(observation.text))
    for command in commands:
        if command in ("quit", "exit"):
            break
        if command == "walkthrough":
            console.print("\n".join(challenge.walkthrough) or "no solution is known", style="cyan")
        elif command == "?":
            _list(observation.admissible or (), console)
        elif command:
            observation = environment.step(command)
            steps += 1
            console.print(challenge.shown(observation.text))
            if observation.done:
                outcome = "Won" if observation.success else f"Over, with a score of {observation.score or 0:.2f},"
                known = f" The known solution has {len(challenge.walkthrough)}." if challenge.walkthrough else ""
                console.print(
                    f"\n{outcome} in {steps} steps.{known}", style="bold green" if observation.success else ""
                )
                return observation.success
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
