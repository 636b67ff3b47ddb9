"""How fast our household engine is, beside TextWorld on the same games and actions in the same process.

    python benchmarks/household_speed.py valid_seen.jsonl.xz --out benchmarks/results/household_speed.json

Of each game, ours plays an episode of random actions, then TextWorld plays the same actions; the observations must be
equal. While TextWorld plays, ours does too, action by action: these `cold_step` times show what a step costs when other
work has just swept the processor's caches, as sampling from a model does. Times are CPU seconds of this process, so
that a busy machine does not slow down one of the two: medians over all steps, a step with its admissible commands; of a
reset, the first one of a game (from the text of its problem to the first observation) and later ones.
"""

import argparse
import importlib.metadata
import json
import platform
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from siri.engine.environment import Observation
from siri.envs.household import Game, HouseholdEnv, load_games
from siri.envs.household.official_format import game_file
from siri.envs.household.pddl import format_problem, parse_problem
from siri.envs.household.textworld_oracle import open_textworld

T = TypeVar("T")


@dataclass(slots=True)
class Seconds:
    """CPU seconds, one entry a call."""

    first_reset: list[float] = field(default_factory=list)
    reset: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    cold_step: list[float] = field(default_factory=list)


def timed(into: list[float], call: Callable[[], T]) -> T:
    start = time.process_time()
    result = call()
    into.append(time.process_time() - start)
    return result


def unread(game: Game) -> Game:
    """The same game with its problem still to be parsed."""
    return Game(
        id=game.id,
        task=game.task,
        task_type=game.task_type,
        walkthrough=game.walkthrough,
        problem=partial(parse_problem, format_problem(game.problem), game.id),
    )


def random_action(admissible: Sequence[str], rng: random.Random) -> str:
    """A command that changes the world, four times in five: the others are the easy case.

    Verbs are drawn first, because most commands are go-to commands and the hand would stay empty.
    """
    verbs = {command.split()[0] for command in admissible}
    easy = {"help", "inventory", "look", "examine"}
    verb = rng.choice(sorted(verbs & easy if rng.random() < 0.2 else verbs - easy))
    return rng.choice([command for command in admissible if command.split()[0] == verb])


def play(game: Game, steps: int, rng: random.Random, ours: Seconds) -> list[tuple[str, Observation]]:
    """One episode of ours: the actions and what was seen, the first with no action."""
    env = HouseholdEnv(unread(game))
    timed(ours.first_reset, env.reset)
    episode = [("", timed(ours.reset, env.reset))]
    while not episode[-1][1].done and len(episode) <= steps:
        action = random_action(episode[-1][1].admissible or (), rng)
        episode.append((action, timed(ours.step, partial(env.step, action))))
    return episode


def replay(game: Game, episode: Sequence[tuple[str, Observation]], ours: Seconds, theirs: Seconds) -> None:
    """The same episode in TextWorld, and again in ours between its steps."""
    file = game_file(game)
    textworld = timed(theirs.first_reset, lambda: _opened(file))
    assert timed(theirs.reset, textworld.reset).feedback == episode[0][1].text
    env = HouseholdEnv(game)
    env.reset()
    for action, seen in episode[1:]:
        state, _, _ = timed(theirs.step, partial(textworld.step, action))
        assert (state.feedback, state.admissible_commands) == (seen.text, list(seen.admissible or ()))
        assert timed(ours.cold_step, partial(env.step, action)) == seen


def _opened(file: dict[str, Any]) -> Any:
    textworld = open_textworld(file)
    textworld.reset()
    return textworld


def measure(games: Sequence[Game], *, steps: int, textworld: bool) -> dict[str, Any]:
    """Medians (and 90th percentiles of a step) in microseconds, and how many times faster ours is."""
    rng = random.Random(0)
    ours, theirs = Seconds(), Seconds()
    for game in games:
        episode = play(game, steps, rng, ours)
        if textworld:
            replay(game, episode, ours, theirs)
    result: dict[str, Any] = {"games": len(games), "steps": len(ours.step), "ours_us": summary(ours)}
    if textworld:
        result["textworld_us"] = summary(theirs)
        result["times_faster"] = {
            "step": round(median(theirs.step) / median(ours.step)),
            "cold_step": round(median(theirs.step) / median(ours.cold_step)),
            "first_reset": round(median(theirs.first_reset) / median(ours.first_reset)),
            "reset": round(median(theirs.reset) / median(ours.reset)),
        }
    return result


def summary(seconds: Seconds) -> dict[str, float]:
    table = {f.name: getattr(seconds, f.name) for f in fields(seconds)}
    numbers = {name: micro(median(times)) for name, times in table.items() if times}
    return numbers | {"step_p90": micro(quantiles(seconds.step, n=10)[-1])}


def micro(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def surroundings(textworld: bool) -> dict[str, Any]:
    packages = ("textworld", "alfworld") if textworld else ()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?: ?"
    )
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "cpu": cpu.split(":")[1].strip(),
        "commit": commit.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="official games, as read by load_games")
    parser.add_argument("--games", type=int, default=20, help="an even sample of that many games")
    parser.add_argument("--steps", type=int, default=30, help="random steps of each game")
    parser.add_argument("--no-textworld", action="store_true", help="time our engine alone")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    games = load_games(arguments.archive)
    sample = games[:: max(1, len(games) // arguments.games)][: arguments.games]
    textworld = not arguments.no_textworld
    result = surroundings(textworld) | measure(sample, steps=arguments.steps, textworld=textworld)
    command = f"python benchmarks/household_speed.py {arguments.archive.name}"
    command += f" --games {arguments.games} --steps {arguments.steps}" + (" --no-textworld" if not textworld else "")
    text = json.dumps({"command": command, "times": "CPU time of the process, medians"} | result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
