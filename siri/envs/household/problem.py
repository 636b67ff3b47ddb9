"""The compact data model of one household game.

A `Problem` says what a PDDL problem of the ALFWorld domain says and nothing else: which receptacles and things exist,
where they are, what can be done to them, and the goal. Ids are PDDL names; types are written without the `Type` suffix
that PDDL gives them (`Mug`, not `MugType`). `siri.envs.household.pddl` reads and writes the text form, `generator`
builds problems from scratch, `engine` plays them. Everything here pickles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receptacle:
    """A fixed piece of furniture that things lie on or in."""

    id: str
    type: str
    location: str
    """The place an agent stands at to reach it. Several receptacles may share one."""
    openable: bool = False
    opened: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """An object. The flags say what actions it allows and what it is like at the start."""

    id: str
    type: str | None
    """None where the file declares none: two official games have such an egg. Nothing of no type can be put down."""
    location: str | None = None
    """Where it can be sliced. Official files do not always give the place of one of its receptacles."""
    receptacles: tuple[str, ...] = ()
    """Ids of every receptacle it is in: none for scenery, and sometimes two to four in official files."""
    inside: tuple[str, ...] = ()
    """Ids of the container things it is inside. It shows in their description only."""
    pickupable: bool = False
    cleanable: bool = False
    heatable: bool = False
    coolable: bool = False
    toggleable: bool = False
    sliceable: bool = False
    container: bool = False
    cool: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What wins: one of the six task types, filled in."""

    task_type: str
    """One of `TASK_TYPES`."""
    object_type: str
    target_type: str
    """The receptacle type to put it in, or the lamp type for `look_at_obj_in_light`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One game's world at the start. The order of the tuples is that of the file and has no effect on play."""

    name: str
    agent: str = "agent1"
    start: str
    """The agent's location. At a location without receptacles the agent stands in the middle of the room."""
    locations: tuple[str, ...]
    """Every location, those of receptacles and things and `start` included."""
    receptacles: tuple[Receptacle, ...]
    things: tuple[Thing, ...]
    can_contain: frozenset[tuple[str, str]]
    """Pairs (receptacle type, object type): what may be put where."""
    goal: Goal


class Game:
    """A problem with its task sentence and a known solution. Compared and hashed by identity.

    `problem` may be given as a function that makes it: it is then called once, on first use, so that thousands of games
    load without parsing their texts.
    """

    __slots__ = ("__weakref__", "_problem", "id", "task", "task_type", "walkthrough")

    def __init__(
        self,
        *,
        id: str,
        task: str,
        task_type: str,
        walkthrough: Sequence[str],
        problem: Problem | Callable[[], Problem],
    ) -> None:
        self.id = id
        self.task = task
        self.task_type = task_type
        self.walkthrough = tuple(walkthrough)
        self._problem = problem

    @property
    def problem(self) -> Problem:
        """The parsed problem. Raises UserError where its text is malformed."""
        if not isinstance(self._problem, Problem):
            self._problem = self._problem()
        return self._problem

    def __repr__(self) -> str:
        return f"Game({self.id!r})"
