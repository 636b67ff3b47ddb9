"""What the tiny policy imitates of household games. Each episode is a function of its index alone.

A searching expert plays procedural games, with random actions mixed in (shown, not imitated). Its search order is
uniform: the policy learns to look, to remember and to use what it finds, and no prior about where things are; that is
left to reinforcement learning. Half the episodes carry hints, drawn at random, which the expert follows: the policy
learns to act on a skill block, not which skills are true. The skill of a solved episode says where the sought thing was
found.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from random import Random

from siri.demonstrations import WASTE, Play, Sizes
from siri.engine.environment import Observation
from siri.envs.household import HouseholdEnv
from siri.envs.household.brief import brief
from siri.envs.household.experts import SearchingExpert
from siri.envs.household.generator import Size, generate_game
from siri.envs.household.rooms import BY_ROOM
from siri.envs.household.tasks import read_sentence
from siri.prompts import skill_answer, skill_request, skill_text

HINTED = 0.5
"""Share of played episodes with hints."""
NOISE = 0.05
"""Share of random actions. At 0 a policy that slips once never gets back on its way."""
SOLVED_WITHIN = 32
"""Most turns of an episode that a skill is written from; the request shows all its actions."""
LAMP_HINTS = 0.3
"""Share of hints that say where the lamp is, in tasks with one."""
PRESENT = 0.7
"""Share of hints that name only receptacles of this room."""


def play(index: int, *, size: Sizes, max_turns: int, waste: float = WASTE) -> Play:
    """The expert's episode number `index` (train games only).

    On a share `waste` of its turns it looks around, or at what it holds, to no purpose. The last stage of the shipped
    policy was made with 0.1, which leaves little to find out but where things are.
    """
    rng = Random(f"play/{size}/{index}")
    return _play(f"warmstart-{index}", rng, size=size, max_turns=max_turns, hinted=HINTED, waste=waste)


def solved(index: int, *, size: Sizes, waste: float = WASTE) -> Play:
    """A solved episode of at most `SOLVED_WITHIN` turns, without hints, number `index`: to write a skill from.

    Its demonstrator wastes anything from none to the share `waste` of its turns: skills are asked for before and after
    reinforcement learning has made the policy quick.
    """
    rng = Random(f"solved/{size}/{index}")
    for attempt in count():
        seed, wasted = f"warmstart-solved-{index}-{attempt}", rng.random() * waste
        played = _play(seed, rng, size=size, max_turns=SOLVED_WITHIN, hinted=0.0, waste=wasted)
        if played.observations[-1].success:
            return played
    raise AssertionError("unreachable: an expert solves most games")


def _play(seed: str, rng: Random, *, size: Sizes, max_turns: int, hinted: float, waste: float) -> Play:
    drawn: Size = rng.choice(("small", "full")) if size == "both" else size
    game = generate_game(seed, size=drawn, split="train")
    env = HouseholdEnv(game)
    observation = env.reset()
    told: list[tuple[str, list[str]]] = []
    if rng.random() < hinted:
        told = [_hint(rng, game.task, observation) for _ in range(rng.choice((1, 2, 3)))]
    hints: defaultdict[str, list[str]] = defaultdict(list)
    for sought, kinds in told:
        hints[sought] += (kind for kind in kinds if kind not in hints[sought])
    expert = SearchingExpert(game.task, seed=seed, hints=hints, noise=NOISE, dither=waste)
    observations = [observation]
    actions: list[str] = []
    imitate: list[bool] = []
    while len(actions) < max_turns and not observation.done:
        action = expert.act(observation)
        observation = env.step(action)
        observations.append(observation)
        actions.append(action)
        imitate.append(not expert.noisy)
    return Play(
        task=game.task,
        hints=tuple(skill_text(*_skill(sought, kinds)) for sought, kinds in told),
        observations=tuple(observations),
        actions=tuple(actions),
        imitate=tuple(imitate),
    )


def _hint(rng: Random, task: str, start: Observation) -> tuple[str, list[str]]:
    """What to look for, and one or two kinds of receptacles to look at: of rooms with such things, not always this one.

    Skills come from other rooms; a policy that had only ever been told of what is there would go where nothing is.
    """
    errand = read_sentence(task)
    here = sorted({name.partition(" ")[0] for name in brief(start.text).split(", ")})
    rooms = [room for room in BY_ROOM.values() if errand.thing in map(str.lower, room.things)]
    known = sorted({kind.lower() for room in rooms for kind in room.receptacles})
    lamp = errand.task_type == "look_at_obj_in_light" and rng.random() < LAMP_HINTS
    kinds = rng.sample(here if rng.random() < PRESENT else known, rng.choice((1, 1, 1, 2)))
    return errand.target if lamp else errand.thing, kinds


def _skill(sought: str, kinds: Sequence[str]) -> tuple[str, str]:
    """(condition, strategy) of "look there first"."""
    return f"you need {sought}", f"look at {', '.join(kinds)}"


def skill_of(played: Play) -> tuple[str, str]:
    """(condition, strategy): where the sought things were taken, or, every second time where there is one, where the
    lamp was."""
    errand = read_sentence(played.task)
    sought = errand.thing
    found = [a.rpartition(" from ")[2] for a in played.actions if a.startswith(f"take {sought} ")]
    if played.actions[-1].startswith("use ") and Random("; ".join(played.actions)).random() < 0.5:
        sought = errand.target
        found = [a.removeprefix("go to ") for a in played.actions if a.startswith("go to ")][-1:]
    return _skill(sought, list(dict.fromkeys(name.partition(" ")[0] for name in found)))


def corpus_text(played: Play) -> list[str]:
    """Every text of an episode as the dialogue writes it, for the tokenizer."""
    condition, strategy = _skill(read_sentence(played.task).thing, ["everything"])
    return [
        f"Task: {played.task}\n" + "".join(f"Hint: {hint}\n" for hint in played.hints),
        skill_request(played.task, played.actions),
        skill_answer(condition, strategy),
        *played.actions,
        *(brief(observation.text) for observation in played.observations),
        *(observation.text for observation in played.observations[1:3]),
    ]
