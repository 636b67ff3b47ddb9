"""Static tables of one game: everything about a problem that play cannot change, with names ready to print.

Receptacles, things and places are numbered in the order of their lower-cased ids, which is the order in which TextWorld
lists them. Display names follow `AlfredDemangler`: the id's first part, plus "basin" where the id has that word, and a
number that counts down, so the first id of a kind gets the highest number.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from siri.engine.errors import UserError
from siri.envs.household.problem import Problem, Receptacle

T = TypeVar("T")

CLEANERS = ("Sink", "SinkBasin")
HEATERS = ("Microwave",)
COOLERS = ("Fridge",)
KNIVES = ("Knife", "ButterKnife")
# What a thing must allow to be treated as the task asks, and the field of `State` that says it has been.
_TREATMENT = {
    "pick_clean_then_place_in_recep": ("cleanable", "clean"),
    "pick_heat_then_place_in_recep": ("heatable", "hot"),
    "pick_cool_then_place_in_recep": ("coolable", "cool"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One place to stand at."""

    receptacles: tuple[int, ...]
    """Receptacles within reach, by number."""
    openable: tuple[int, ...]
    """The openable ones among them."""
    facing: str
    """Their names as `look` prints them."""
    examine: tuple[str, ...]
    """Examine commands for them, sorted."""
    go_to: tuple[str, ...]
    """Go-to commands for all receptacles out of reach, sorted."""
    cleaners: tuple[str, ...]
    heaters: tuple[str, ...]
    coolers: tuple[str, ...]
    """Names of the receptacles here that clean, heat and cool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Tables of a whole game. Thing numbers index the `thing_*` columns, receptacle numbers the `receptacle_*` ones."""

    spots: tuple[Spot, ...]
    """Every place with receptacles, and the start."""
    spot_id: tuple[str, ...]
    start: int
    room: str
    """Every receptacle, as `look` prints it from the middle of the room."""

    receptacle_id: tuple[str, ...]
    receptacle_name: tuple[str, ...]
    receptacle_spot: tuple[int, ...]
    receptacle_openable: tuple[bool, ...]
    receptacle_by_name: dict[str, int]
    accepts: tuple[frozenset[int], ...]
    """Things that may be put there, for each receptacle."""

    thing_id: tuple[str, ...]
    thing_name: tuple[str, ...]
    thing_by_name: dict[str, int]
    inner: tuple[str, ...]
    """For a container thing, what stands inside it, as printed; "" for other things."""
    pickupable: frozenset[int]
    cleanable: frozenset[int]
    heatable: frozenset[int]
    coolable: frozenset[int]
    toggleable: frozenset[int]
    sliceable: frozenset[int]
    knives: frozenset[int]

    opened: int
    """Bit r: receptacle r is open at the start."""
    cool: int
    """Bit t: thing t is cool at the start."""
    contents: tuple[tuple[int, ...], ...]
    """Things in each receptacle at the start."""
    things_at: tuple[tuple[int, ...], ...]
    """Things at each spot at the start."""

    task_type: str
    goal_things: frozenset[int]
    """Things of the goal's type that can be treated as it asks."""
    goal_treatment: str
    """Field of `State` whose bit such a thing must have: "clean", "hot", "cool", or "" for none."""
    goal_receptacles: tuple[int, ...]
    """Receptacles of the goal's type; none for the lamp task."""
    goal_lamps: frozenset[int]


def listing(names: Sequence[str]) -> str:
    """`a pen 1, a mug 2, and a mug 1`, as TextWorld joins it; `nothing` for none."""
    if not names:
        return "nothing"
    if len(names) == 1:
        return "a " + names[0]
    return "a " + ", a ".join(names[:-1]) + ", and a " + names[-1]


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """The printed name of each id. Raises UserError for an id without `_bar_`, which TextWorld cannot number."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for id in sorted(ids, key=str.lower):
        kind, bar, _ = id.lower().partition("_bar_")
        if not bar:
            raise UserError(f"id '{id}': ids of receptacles and things must hold '_bar_', such as Mug_bar_1; rename it")
        kinds[kind + ("basin" if "basin" in id.lower() else "")].append(id)
    return {id: f"{kind} {len(same) - i}" for kind, same in kinds.items() for i, id in enumerate(same)}


def build_board(problem: Problem) -> Board:
    """Compiles a problem; under 1 ms. Raises UserError for ids that cannot be named."""
    receptacles = sorted(problem.receptacles, key=lambda r: r.id.lower())
    things = sorted(problem.things, key=lambda t: t.id.lower())
    names = display_names([r.id for r in receptacles] + [t.id for t in things])
    receptacle_name = tuple(names[r.id] for r in receptacles)
    thing_name = tuple(names[t.id] for t in things)
    locations = sorted({r.location for r in receptacles} | {problem.start}, key=str.lower)

    def where(flag: str) -> frozenset[int]:
        return frozenset(t for t, thing in enumerate(things) if getattr(thing, flag))

    of_type = _grouped((thing.type, t) for t, thing in enumerate(things))
    contents = _grouped((id, t) for t, thing in enumerate(things) for id in thing.receptacles)
    things_at = _grouped((thing.location, t) for t, thing in enumerate(things))
    # Some official games put a pot into itself; TextWorld does not list it there.
    inner = _grouped((id, thing_name[t]) for t, thing in enumerate(things) for id in thing.inside if id != thing.id)
    accepted = _grouped((kind, t) for kind, object_type in problem.can_contain for t in of_type[object_type])
    goal = problem.goal
    lamp_task = goal.task_type == "look_at_obj_in_light"
    ability, treatment = _TREATMENT.get(goal.task_type, ("", ""))
    treatable = where(ability) if ability else frozenset(range(len(things)))
    return Board(
        spots=_spots(receptacles, receptacle_name, locations),
        spot_id=tuple(locations),
        start=locations.index(problem.start),
        room=listing(receptacle_name),
        receptacle_id=tuple(r.id for r in receptacles),
        receptacle_name=receptacle_name,
        receptacle_spot=tuple(locations.index(r.location) for r in receptacles),
        receptacle_openable=tuple(r.openable for r in receptacles),
        receptacle_by_name={name: r for r, name in enumerate(receptacle_name)},
        accepts=tuple(frozenset(accepted[r.type]) for r in receptacles),
        thing_id=tuple(thing.id for thing in things),
        thing_name=thing_name,
        thing_by_name={name: t for t, name in enumerate(thing_name)},
        inner=tuple(listing(inner[thing.id]) if thing.container else "" for thing in things),
        pickupable=where("pickupable"),
        cleanable=where("cleanable"),
        heatable=where("heatable"),
        coolable=where("coolable"),
        toggleable=where("toggleable"),
        sliceable=where("sliceable"),
        knives=frozenset(t for t, thing in enumerate(things) if thing.type in KNIVES),
        opened=sum(1 << r for r, receptacle in enumerate(receptacles) if receptacle.opened),
        cool=sum(1 << t for t, thing in enumerate(things) if thing.cool),
        contents=tuple(tuple(contents[r.id]) for r in receptacles),
        things_at=tuple(tuple(things_at[location]) for location in locations),
        task_type=goal.task_type,
        goal_things=frozenset(of_type[goal.object_type]) & treatable,
        goal_treatment=treatment,
        goal_receptacles=tuple(r for r, it in enumerate(receptacles) if not lamp_task and it.type == goal.target_type),
        goal_lamps=where("toggleable") & frozenset(of_type[goal.target_type] if lamp_task else ()),
    )


def _spots(receptacles: Sequence[Receptacle], names: Sequence[str], locations: Iterable[str]) -> tuple[Spot, ...]:
    go_to = sorted(("go to " + name, r) for r, name in enumerate(names))
    at = _grouped((receptacle.location, r) for r, receptacle in enumerate(receptacles))

    def named(here: Iterable[int], kinds: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(names[r] for r in here if receptacles[r].type in kinds))

    def spot(here: Sequence[int]) -> Spot:
        *others, last = [names[r] for r in here] or [""]
        return Spot(
            receptacles=tuple(here),
            openable=tuple(r for r in here if receptacles[r].openable),
            facing=", ".join(others) + ", and " + last if others else last,
            examine=tuple(sorted("examine " + names[r] for r in here)),
            go_to=tuple(command for command, r in go_to if r not in here),
            cleaners=named(here, CLEANERS),
            heaters=named(here, HEATERS),
            coolers=named(here, COOLERS),
        )

    return tuple(spot(at[location]) for location in locations)


def _grouped(pairs: Iterable[tuple[str | None, T]]) -> defaultdict[str | None, list[T]]:
    groups: defaultdict[str | None, list[T]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups
