"""A searching expert: plays from what the game has printed, as an agent must.

It looks into receptacles one after the other until it knows where the sought thing is, remembers everything it has
seen, and does what the task sentence asks. It decides on the texts alone, never on the list of admissible commands, so
that a policy that sees only texts can copy it. (The list serves twice: to draw a noisy action from, and to get rid of a
thing that a noisy action picked up.) The order of the search is the one thing left open: `uniform` is competent but
slow, `informed` looks first where official games most often have such things.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Literal

from siri.engine.environment import Observation
from siri.envs.household.rooms import BY_ROOM, OPENABLE
from siri.envs.household.tasks import TOOL, read_sentence

Order = Literal["uniform", "informed"]

_ROOM = re.compile(r"Looking quickly around you, you see (.*?)\.\n")
_ARRIVED = re.compile(r"You arrive at (\w+ \d+)\.")
_FACING = re.compile(r"You are facing the (.*?)\. Next to it")
_LISTED = re.compile(r"(?:On the (\w+ \d+), you|The (\w+ \d+) is open\. In it, you) see (.*)\.$")
_CLOSED = re.compile(r"The (\w+ \d+) is closed\.$|You close the (\w+ \d+)\.$")
_TOOK = re.compile(r"You pick up the (\w+ \d+) from the (\w+ \d+)\.$")
_MOVED = re.compile(r"You move the (\w+ \d+) to the (\w+ \d+)\.$")
_TREATED = re.compile(r"You (clean|heat|cool) the (\w+ \d+) using")
_NAME = re.compile(r"\w+ \d+")

_VERB = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}
_NOTHING_HAPPENS = "Nothing happens."
# Each kind of room has one of these, and no other kind has it.
_MARKS = {"fridge": "kitchen", "toilet": "bathroom", "bed": "bedroom", "sofa": "living"}


class SearchingExpert:
    """Plays one episode: `act` takes the observation and gives the next action.

    Equal observations, task, seed and settings give equal actions, in every process. With probability `noise` the
    action is a random admissible one; the expert then goes on from wherever that led. With probability `dither` it is
    one that shows what is known already: `inventory` with something in hand, else `look`.
    """

    def __init__(
        self,
        task: str,
        *,
        seed: int | str,
        order: Order = "uniform",
        hints: Mapping[str, Sequence[str]] = MappingProxyType({}),
        noise: float = 0.0,
        dither: float = 0.0,
    ) -> None:
        """`hints` names for a kind of thing or lamp the receptacle kinds (all in lower case) to look into before the
        others, in this order; those that the room lacks, and hints for other things, are passed over.

        Raises UserError where `task` is not an ALFWorld task sentence.
        """
        self._errand = read_sentence(task)
        self._rng = Random(f"{seed}/{order}/{noise}/{task}")
        self._order_kind = order
        self._hints = hints
        self._noise = noise
        self._dither = dither
        self._action = ""
        self.noisy = False
        """The last action was drawn at random, not decided on: not one to imitate."""
        self._failed: set[str] = set()
        """Actions that did nothing since the world last changed."""
        self._receptacles: list[str] = []
        self._search_order: list[str] = []
        self._lamp_order: list[str] = []
        self._contents: dict[str, list[str]] = {}
        """What is in the receptacles looked into so far."""
        self._closed: set[str] = set()
        self._here: set[str] = set()
        """Receptacles known to be within reach."""
        self._beside: dict[str, set[str]] = {}
        """Receptacle to those known to share its place, itself included."""
        self._held: str | None = None
        self._origin = ""
        """Where the thing in hand was taken from."""
        self._treated: set[str] = set()
        """Things that are clean, hot or cool as the task wants them."""

    def act(self, observation: Observation) -> str:
        """The next action. Call it with every observation of the episode, from that of `reset` on."""
        if not self._receptacles:
            self._enter(observation.text)
        else:
            self._learn(observation.text)
        admissible = observation.admissible or ()
        self.noisy = bool(admissible) and self._rng.random() < self._noise
        if self.noisy:
            self._action = admissible[int(self._rng.random() * len(admissible))]
        elif self._dither and self._rng.random() < self._dither:
            self._action = "inventory" if self._held else "look"
        else:
            self._action = next(wish for wish in self._wishes(admissible) if wish not in self._failed)
        return self._action

    def _enter(self, text: str) -> None:
        room = _ROOM.search(text)
        assert room, "the first observation must be that of reset"
        self._receptacles = sorted(_NAME.findall(room[1]), key=lambda name: (_kind(name), int(name.split()[1])))
        self._beside = {name: {name} for name in self._receptacles}
        shuffled = list(self._receptacles)
        for i in range(len(shuffled) - 1, 0, -1):
            j = int(self._rng.random() * (i + 1))
            shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
        self._search_order = self._lamp_order = shuffled
        if self._order_kind == "informed":
            thing, lamp = (likelihood(kind, shuffled) for kind in (self._errand.thing, self._errand.target))
            for name in self._never():
                thing[name] = 0.0
            self._search_order = sorted(shuffled, key=lambda name: -thing[name] - lamp.get(name, 0.0))
            self._lamp_order = sorted(shuffled, key=lambda name: -lamp.get(name, 0.0))
        self._search_order = self._hinted_first(self._errand.thing, self._search_order)
        self._lamp_order = self._hinted_first(self._errand.target, self._lamp_order)

    def _hinted_first(self, sought: str, order: Sequence[str]) -> list[str]:
        rank = {kind: place for place, kind in enumerate(self._hints.get(sought, ()))}
        return sorted(order, key=lambda name: rank.get(_kind(name), len(rank)))

    def _never(self) -> Sequence[str]:
        """Receptacles where the sought thing cannot be: the task would be done, or makes no sense."""
        tool = TOOL.get(self._errand.task_type, self._errand.target).lower()
        return [name for name in self._receptacles if _kind(name) == tool]

    def _learn(self, text: str) -> None:
        """Takes in what the last action has shown or changed."""
        if text == _NOTHING_HAPPENS:
            self._failed.add(self._action)
            if self._action.startswith("go to "):  # It is refused for a receptacle that is within reach already.
                self._join({*self._here, self._action.removeprefix("go to ")})
            return
        if not self._action.startswith(("look", "inventory", "help", "examine")):
            self._failed.clear()
        if match := _ARRIVED.match(text):
            self._here = self._beside[match[1]]
        elif match := _FACING.match(text):
            self._join(set(_NAME.findall(match[1])))
        if match := _CLOSED.search(text):
            self._closed.add(match[1] or match[2])
        elif match := _LISTED.search(text):
            name = match[1] or match[2]
            self._closed.discard(name)
            self._contents[name] = _NAME.findall(match[3])
        elif match := _TOOK.match(text):
            self._held, self._origin = match[1], match[2]
            if match[1] in self._contents.get(match[2], ()):
                self._contents[match[2]].remove(match[1])
        elif match := _MOVED.match(text):
            self._held = None
            self._contents.setdefault(match[2], []).append(match[1])
        elif match := _TREATED.match(text):
            self._learn_treatment(match[1], match[2])

    def _learn_treatment(self, verb: str, thing: str) -> None:
        wanted = _VERB.get(self._errand.task_type)
        if verb == wanted:
            self._treated.add(thing)
        elif {verb, wanted} == {"heat", "cool"}:
            self._treated.discard(thing)

    def _join(self, names: set[str]) -> None:
        joined = set().union(*(self._beside[name] for name in names))
        for name in joined:
            self._beside[name] = joined
        self._here = joined

    def _wishes(self, admissible: Sequence[str]) -> Iterator[str]:
        """What to do next, best first. Those that have just failed are passed over."""
        if self._held is None:
            for thing, receptacle in self._known_things():
                yield from self._at(receptacle, f"take {thing} from {receptacle}", reach_in=True)
        elif _kind(self._held) == self._errand.thing:
            yield from self._deliver(self._held)
        else:
            yield from (action for action in admissible if action.startswith(f"move {self._held} to "))
            for receptacle in (self._origin, *self._receptacles):
                yield from self._at(receptacle, f"move {self._held} to {receptacle}", reach_in=True)
        yield from self._search()
        yield "look"

    def _known_things(self) -> list[tuple[str, str]]:
        """Sought things seen, save those that a two-thing task has put away: within reach first, then treated."""
        placed = self._targets()[0] if self._errand.task_type == "pick_two_obj_and_place" else None
        known = [
            (thing, receptacle)
            for receptacle, things in self._contents.items()
            for thing in things
            if _kind(thing) == self._errand.thing and receptacle != placed
        ]
        return sorted(known, key=lambda at: (at[1] not in self._here, at[0] not in self._treated))

    def _deliver(self, thing: str) -> Iterator[str]:
        errand = self._errand
        if errand.task_type == "look_at_obj_in_light":
            for receptacle, things in self._contents.items():
                for lamp in things:
                    if _kind(lamp) == errand.target:
                        yield from self._at(receptacle, f"use {lamp}", reach_in=False)
            return
        if errand.task_type in _VERB and thing not in self._treated:
            for tool in self._of_kind(TOOL[errand.task_type].lower()):
                yield from self._at(tool, f"{_VERB[errand.task_type]} {thing} with {tool}", reach_in=False)
        for target in self._targets():
            yield from self._at(target, f"move {thing} to {target}", reach_in=True)

    def _targets(self) -> list[str]:
        """Receptacles of the target type: first those with sought things in them, then the ones easiest to use."""

        def sought_inside(receptacle: str) -> int:
            return sum(_kind(thing) == self._errand.thing for thing in self._contents.get(receptacle, ()))

        return sorted(
            self._of_kind(self._errand.target),
            key=lambda r: (-sought_inside(r), r not in self._here, r not in self._contents),
        )

    def _of_kind(self, kind: str) -> list[str]:
        return [name for name in self._receptacles if _kind(name) == kind]

    def _at(self, receptacle: str, action: str, *, reach_in: bool) -> Iterator[str]:
        """Steps towards doing `action` at a receptacle."""
        if receptacle not in self._here:
            yield f"go to {receptacle}"
        elif reach_in and receptacle in self._closed:
            yield f"open {receptacle}"
        else:
            yield action
            if reach_in and receptacle not in self._contents:
                yield f"open {receptacle}"

    def _search(self) -> Iterator[str]:
        order = self._search_order if self._held is None else self._lamp_order
        unseen = [name for name in order if name not in self._contents]
        for name in sorted(unseen, key=lambda name: name not in self._here):
            if name not in self._here:
                yield f"go to {name}"
            elif name in self._closed:
                yield f"open {name}"
            else:
                yield f"examine {name}"


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def likelihood(kind: str, receptacles: Sequence[str]) -> dict[str, float]:
    """How well it pays to look for a thing of a type (lower case) in each of a room's receptacles (display names).

    Chance of it being there by the tables of `rooms`, shared among receptacles of a type, over the actions it takes to
    look: two where such receptacles are mostly closed. Higher is better; only the order of the values means something.
    """
    kinds = [_kind(name) for name in receptacles]
    room = next((BY_ROOM[room] for mark, room in _MARKS.items() if mark in kinds), None)
    stock = next((s for name, s in room.things.items() if name.lower() == kind), None) if room else None
    places = {name.lower(): weight for name, weight in stock.places.items()} if stock else {}
    shut = {name.lower() for name, chance in OPENABLE.items() if chance > 0.5}
    return {
        name: places.get(own, 0) / kinds.count(own) / (2 if own in shut else 1)
        for name, own in zip(receptacles, kinds, strict=True)
    }
