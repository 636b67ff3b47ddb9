"""Procedural games of the ALFWorld domain, with the distributions of `rooms` and `tasks`.

A game is made in two steps. The sketch fixes the room, the goal and how many receptacles of each type there are; the
furnishing fixes places, doors and things. Two games with different sketches are different games, so a split that is a
function of the sketch alone keeps `train` and `valid` apart: no room-with-goal of one ever occurs in the other.

Only `Random.random()` is drawn from, because no other method of `random` promises the same values in every Python
version. A task id alone makes the game again: everything is drawn from a generator seeded with the id.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Literal, TypeVar, get_args

from siri.engine.errors import UserError
from siri.envs.household.planner import shortest_plan
from siri.envs.household.problem import Game, Goal, Problem, Receptacle, Thing
from siri.envs.household.rooms import BY_ROOM, CAN_CONTAIN, JOINS, OPENABLE, THINGS, Room
from siri.envs.household.tasks import COPIES, GOALS, SENTENCES, TOOL

VERSION = 1
"""Raised whenever the same task id would give another game."""

Size = Literal["small", "full"]
Split = Literal["train", "valid", "any"]

# One sketch in four is a validation sketch: a smaller share would cost more redraws (a sketch takes 0.1 ms).
_VALID_SHARE = 4
_FEWEST_RECEPTACLES = 6  # No official room has fewer.
_SMALL_RECEPTACLES = (6, 10)
_SMALL_OTHER_THINGS = (4, 9)
_SMALL_SOUGHT = (2, 3)  # At most: where one is sought, where two are.

_ID = re.compile(
    rf"proc{VERSION}/(?P<size>{'|'.join(get_args(Size))})/(?P<split>{'|'.join(get_args(Split))})/(?P<seed>\S+)"
)
_GOALS, _GOAL_WEIGHTS = list(GOALS), list(accumulate(GOALS.values()))
_T = TypeVar("_T")


def generate_game(seed: int | str, *, size: Size = "full", split: Split = "any") -> Game:
    """The game of a seed. `full`: like official train games; `small`: 6 to 10 receptacles, 5 to 12 things.

    Every game can be won, none is won at the start, and its walkthrough is a shortest solution. About 1 ms.
    """
    return game_from_id(f"proc{VERSION}/{size}/{split}/{seed}")


def game_from_id(task_id: str) -> Game:
    """Makes a generated game again from its id. Raises UserError for an id that this version does not make."""
    match = _ID.fullmatch(task_id)
    if match is None:
        raise UserError(
            f"task id '{task_id}': this version makes ids of the form proc{VERSION}/small|full/train|valid|any/SEED;"
            " use such an id, or the version of siri that made this one"
        )
    rng = Random(task_id)
    while (sketch := _draw_sketch(rng, small=match["size"] == "small")) is None or (
        match["split"] not in ("any", _split_of(sketch))
    ):
        pass
    problem = _furnish(rng, sketch, name=re.sub(r"\W", "_", task_id))
    plan = shortest_plan(problem)
    assert plan, f"{task_id}: a generated game must have a solution, and not be won at the start"
    goal = sketch.goal
    sentence = _draw(rng, SENTENCES[goal.task_type]).format(goal.object_type.lower(), goal.target_type.lower())
    return Game(id=task_id, task=sentence, task_type=goal.task_type, walkthrough=plan, problem=problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sketch:
    room: str
    goal: Goal
    small: bool
    receptacles: dict[str, int]
    """Receptacle type to how many there are."""
    sought_homes: tuple[str, ...]
    """Receptacle type that each thing of the sought type starts in."""
    lamp_homes: tuple[str, ...]


def _draw_sketch(rng: Random, *, small: bool) -> _Sketch | None:
    """A room and a goal for it; None where the room drawn is too bare, or has no place for what the goal needs."""
    room_name, goal = _GOALS[_index(rng, _GOAL_WEIGHTS)]
    room = BY_ROOM[room_name]
    needed, shut_out = _demands(goal)
    counts = {
        kind: n
        for kind, numbers in room.receptacles.items()
        if (n := _one_of(rng, [n for n in numbers if n] or [1]) if kind in needed else _one_of(rng, numbers))
    }
    copies = _index(rng, COPIES[goal.task_type])
    if small:
        copies = min(copies, _SMALL_SOUGHT[goal.task_type == "pick_two_obj_and_place"])
    sought_homes = _homes(rng, room, goal.object_type, copies, [kind for kind in counts if kind not in shut_out])
    lamp_homes = _homes(rng, room, goal.target_type, 1, counts) if goal.task_type == "look_at_obj_in_light" else ()
    if sought_homes is None or lamp_homes is None or sum(counts.values()) < _FEWEST_RECEPTACLES:
        return None
    if small:
        counts = _thin_out(rng, counts, needed.union(sought_homes, lamp_homes))
    return _Sketch(
        room=room_name,
        goal=goal,
        small=small,
        receptacles=counts,
        sought_homes=sought_homes,
        lamp_homes=lamp_homes,
    )


def _demands(goal: Goal) -> tuple[set[str], set[str]]:
    """Receptacle types that must be there, and those in which the sought thing may not start.

    Official games never start it where it would be cleaned, heated, cooled or simply put.
    """
    if goal.task_type == "look_at_obj_in_light":
        return set(), set()
    if goal.task_type in TOOL:
        return {TOOL[goal.task_type], goal.target_type}, {TOOL[goal.task_type]}
    return {goal.target_type}, {goal.target_type}


def _homes(rng: Random, room: Room, kind: str, copies: int, present: Iterable[str]) -> tuple[str, ...] | None:
    """Receptacle types that `copies` things start in; None where no type present ever holds such things."""
    places = room.things[kind].places
    weights = {home: places[home] for home in present if home in places}
    return tuple(_draw(rng, weights) for _ in range(copies)) if weights else None


def _thin_out(rng: Random, counts: Mapping[str, int], needed: Iterable[str]) -> dict[str, int]:
    """A few receptacles of a full room: one of each needed type, the others at random."""
    low, high = _SMALL_RECEPTACLES
    kept = Counter(needed)
    spare = [kind for kind, n in counts.items() for _ in range(n - kept[kind])]
    _shuffle(rng, spare)
    kept.update(spare[: low + _below(rng, high - low + 1) - len(kept)])
    return {kind: kept[kind] for kind in counts if kept[kind]}


def _split_of(sketch: _Sketch) -> str:
    goal = sketch.goal
    key = f"{goal.task_type} {goal.object_type} {goal.target_type} {sorted(sketch.receptacles.items())}"
    return "valid" if hashlib.sha256(key.encode()).digest()[0] % _VALID_SHARE == 0 else "train"


def _furnish(rng: Random, sketch: _Sketch, *, name: str) -> Problem:
    receptacles = _place_receptacles(rng, sketch)
    by_type: dict[str, list[Receptacle]] = {}
    for receptacle in receptacles:
        by_type.setdefault(receptacle.type, []).append(receptacle)
    things: list[Thing] = []
    numbers: Counter[str] = Counter()
    for kind, home in _inventory(rng, sketch):
        numbers[kind] += 1
        receptacle = _one_of(rng, by_type[home])
        thing = replace(
            THINGS[kind],
            id=f"{kind}_bar_{numbers[kind]:02}",
            location=receptacle.location,
            receptacles=(receptacle.id,),
            # Of all that is in official fridges, the sought things alone start cool.
            cool=home == "Fridge" and kind == sketch.goal.object_type and THINGS[kind].coolable,
        )
        things.append(thing)
    return Problem(
        name=name,
        start="loc_bar_0",
        locations=("loc_bar_0", *dict.fromkeys(r.location for r in receptacles)),
        receptacles=receptacles,
        things=tuple(things),
        can_contain=frozenset((r, t) for r, held in CAN_CONTAIN.items() if r in by_type for t in held if t in numbers),
        goal=sketch.goal,
    )


def _place_receptacles(rng: Random, sketch: _Sketch) -> tuple[Receptacle, ...]:
    placed: list[Receptacle] = []
    latest: dict[str, str] = {}
    for kind, n in sketch.receptacles.items():
        for i in range(1, n + 1):
            location = f"loc_bar_{len(placed) + 1}"
            for other, chance in JOINS.get(kind, {}).items():
                if other in latest and rng.random() < chance:
                    location = latest[other]
            latest[kind] = location
            # The game prints "sinkbasin 1" for an id that starts with "Sink" and has the word "basin" in it.
            id = f"{kind[:-5]}_bar_{i:02}_bar_{kind}" if kind.endswith("Basin") else f"{kind}_bar_{i:02}"
            openable = rng.random() < OPENABLE.get(kind, 0.0)
            placed.append(Receptacle(id=id, type=kind, location=location, openable=openable))
    return tuple(placed)


def _inventory(rng: Random, sketch: _Sketch) -> list[tuple[str, str]]:
    """Every thing as (type, receptacle type it starts in)."""
    room, goal = BY_ROOM[sketch.room], sketch.goal
    others: list[tuple[str, str]] = []
    for kind, stock in room.things.items():
        if kind in (goal.object_type, goal.target_type):
            continue
        copies = _index(rng, stock.cumulative_copies)
        homes = _homes(rng, room, kind, copies, sketch.receptacles) if copies else ()
        others += [(kind, home) for home in homes or ()]
    if sketch.small:
        low, high = _SMALL_OTHER_THINGS
        _shuffle(rng, others)
        others = sorted(others[: low + _below(rng, high - low + 1)])
    sought = [(goal.object_type, home) for home in sketch.sought_homes]
    return sought + [(goal.target_type, home) for home in sketch.lamp_homes] + others


def _index(rng: Random, cumulative: Sequence[int]) -> int:
    """An index drawn with cumulative weights."""
    at = rng.random() * cumulative[-1]
    return next(i for i, total in enumerate(cumulative) if at < total)


def _draw(rng: Random, weights: Mapping[_T, int]) -> _T:
    at = rng.random() * sum(weights.values())
    for value, weight in weights.items():
        at -= weight
        if at < 0:
            return value
    return value


def _below(rng: Random, n: int) -> int:
    return int(rng.random() * n)


def _one_of(rng: Random, values: Sequence[_T]) -> _T:
    return values[_below(rng, len(values))]


def _shuffle(rng: Random, values: list[_T]) -> None:
    for i in range(len(values) - 1, 0, -1):
        j = _below(rng, i + 1)
        values[i], values[j] = values[j], values[i]
