"""How fast the searching experts solve household games.

    python benchmarks/household_experts.py TRAIN.jsonl.xz --out benchmarks/results/household_experts.json

Success rates within step limits, on the same games for both search orders: generated games and an even sample of the
official train games. The shortest plan is the bound that full knowledge sets.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from siri.envs.household import Game, HouseholdEnv, load_games
from siri.envs.household.experts import Order, SearchingExpert
from siri.envs.household.generator import VERSION, generate_game

LIMITS = (10, 15, 20, 25, 30, 50)
GIVE_UP = 200


def steps_to_win(game: Game, order: Order, noise: float = 0.0) -> int | None:
    """Actions that the expert takes to win, None if it has not won after `GIVE_UP`."""
    env = HouseholdEnv(game)
    observation = env.reset()
    expert = SearchingExpert(game.task, seed=game.id, order=order, noise=noise)
    for step in range(1, GIVE_UP + 1):
        observation = env.step(expert.act(observation))
        if observation.success:
            return step
    return None


def row(steps: Sequence[int | None]) -> dict[str, float]:
    """Success rates within each limit, and the mean number of steps of the games won."""
    won = [step for step in steps if step is not None]
    rates = {f"within {limit}": round(sum(step <= limit for step in won) / len(steps), 3) for limit in LIMITS}
    return {**rates, "ever": round(len(won) / len(steps), 3), "mean steps": round(fmean(won), 2)}


def measure(archive: Path, number: int) -> dict[str, dict[str, float]]:
    official = load_games(archive)
    sets: dict[str, list[Game]] = {
        "small": [generate_game(f"experts/{i}", size="small") for i in range(number)],
        "full": [generate_game(f"experts/{i}", size="full") for i in range(number)],
        "official train": official[:: max(1, len(official) // number)][:number],
    }
    orders: tuple[Order, ...] = ("uniform", "informed")
    table: dict[str, dict[str, float]] = {}
    for name, games in sets.items():
        for order in orders:
            for noise in (0.0, 0.1):
                label = f"{name}, {order}" + (f", noise {noise}" if noise else "")
                table[label] = row([steps_to_win(game, order, noise) for game in games])
        table[f"{name}, shortest plan"] = row([len(game.walkthrough) for game in games])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="official train games, as read by load_games")
    parser.add_argument("--games", type=int, default=200, help="games of each set")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    table = measure(arguments.archive, arguments.games)
    for label, numbers in table.items():
        print(f"{label:36} " + "  ".join(f"{name}: {value:5}" for name, value in numbers.items()))
    if arguments.out:
        head = {"games_of_each_set": arguments.games, "generator_version": VERSION}
        arguments.out.write_text(json.dumps(head | {"rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
