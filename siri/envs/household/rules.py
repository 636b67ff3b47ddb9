"""The rules of the household games, as pure functions of a `Board` and a `State`.

They follow the ALFWorld PDDL domain and its text grammar as TextWorld 1.7.0 plays them, quirks included:

* only a held thing can be examined;
* a thing that starts in two receptacles leaves only the one it is taken from;
* switching a lamp twice prints twice that it turns on;
* slicing and switching reach into closed receptacles;
* a thing moved between two receptacles of one place is afterwards seen "next to" them;
* looking around in the middle of the room shows nothing: only the introduction names the furniture.
"""

from collections.abc import Callable
from typing import NamedTuple

from siri.envs.household.board import Board, listing

HELP = """\
Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""
_ALWAYS = ("help", "inventory", "look")
_ROOM = "You are in the middle of a room. Looking quickly around you, you see {}."


class State(NamedTuple):
    """Everything that play changes. Numbers are those of the game's `Board`. Immutable, hashable, plain integers."""

    spot: int
    held: int
    """Thing in hand, -1 for none."""
    opened: int
    """Bit r: receptacle r is open."""
    clean: int
    hot: int
    cool: int
    sliced: int
    toggled: int
    """Bit t: thing t is clean, is hot, is cool, is sliced, has been switched."""
    contents: tuple[tuple[int, ...], ...]
    """Things in each receptacle, ascending."""
    things_at: tuple[tuple[int, ...], ...]
    """Things at each spot, ascending."""
    left: tuple[tuple[int, ...], ...]
    """Things taken out of each receptacle and not put back into it, ascending."""


def initial_state(board: Board) -> State:
    return State(
        spot=board.start,
        held=-1,
        opened=board.opened,
        clean=0,
        hot=0,
        cool=board.cool,
        sliced=0,
        toggled=0,
        contents=board.contents,
        things_at=board.things_at,
        left=((),) * len(board.contents),
    )


def survey(board: Board, state: State) -> tuple[tuple[str, ...], bytes]:
    """Every command that the game answers now, sorted as strings, and the anchor: see `HouseholdEnv`.

    One pass of plain loops makes both. After other work has swept the caches, as sampling from a model does, every
    further function or comprehension that runs costs some 5 us: two functions of comprehensions took 76 us, this 45.
    """
    spot = board.spots[state.spot]
    held, contents = state.held, state.contents
    receptacle, thing = board.receptacle_name, board.thing_name
    opens, closes, carries = [], [], []
    seen: list[tuple[int, ...] | None] = []
    lamps: dict[int, int] = {}
    disturbed = False
    for r in spot.receptacles:
        inside = contents[r]
        if r in spot.openable and not state.opened >> r & 1:
            opens.append("open " + receptacle[r])
            seen.append(None)
        else:
            if r in spot.openable:
                closes.append("close " + receptacle[r])
            seen.append(inside)
            if held < 0:
                for t in inside:
                    if t in board.pickupable:
                        carries.append(f"take {thing[t]} from {receptacle[r]}")
            elif held in board.accepts[r]:
                carries.append(f"move {thing[held]} to {receptacle[r]}")
        # Lamps can be switched in shut receptacles too; the key does not say in which, as that does not show.
        if not board.toggleable.isdisjoint(inside):
            for t in inside:
                if t in board.toggleable:
                    lamps[t] = state.toggled >> t & 1
        disturbed = disturbed or bool(state.left[r])
    opens.sort()
    closes.sort()
    carries.sort()
    uses = sorted("use " + thing[t] for t in lamps) if lamps else ()
    if held < 0:
        commands = (*closes, *spot.examine, *spot.go_to, *_ALWAYS, *opens, *carries, *uses)
        hand: tuple[object, ...] = ()
    else:
        knife = held in board.knives
        sliceable = [t for t in state.things_at[state.spot] if t in board.sliceable] if knife else []
        treat_first, treat_last = _treatments(board, state, closes)
        examine = sorted((*spot.examine, "examine " + thing[held]))
        slices = sorted(f"slice {thing[t]} with {thing[held]}" for t in sliceable) if sliceable else ()
        commands = (*treat_first, *examine, *spot.go_to, *treat_last, *_ALWAYS, *carries, *opens, *slices, *uses)
        flags = (state.clean, state.hot, state.cool, state.sliced, state.toggled)
        hand = (held, [flag >> held & 1 for flag in flags], sliceable)
    standing_by = _standing_by(board, state) if disturbed else []
    return commands, repr((state.spot, seen, sorted(lamps.items()), hand, standing_by)).encode()


def _treatments(board: Board, state: State, closes: list[str]) -> tuple[list[str], list[str]]:
    """The commands from `clean` to `cool`, and the `heat` commands: go-to commands sort between them."""
    spot, held = board.spots[state.spot], state.held
    name = board.thing_name[held]
    cleaners = spot.cleaners if held in board.cleanable else ()
    coolers = spot.coolers if held in board.coolable else ()
    heaters = spot.heaters if held in board.heatable else ()
    cleans = [f"clean {name} with {r}" for r in cleaners]
    cools = [f"cool {name} with {r}" for r in coolers]
    return cleans + closes + cools, [f"heat {name} with {r}" for r in heaters]


def act(board: Board, state: State, command: str) -> tuple[State, str]:
    """The state after an admissible command, and what the game says. The same state object where nothing changes."""
    verb, _, rest = command.partition(" ")
    return _VERBS[verb](board, state, rest)


def won(board: Board, state: State) -> bool:
    """Whether the goal holds."""
    if board.task_type == "look_at_obj_in_light":
        if state.held in board.goal_things:
            for r in board.spots[state.spot].receptacles:
                for t in state.contents[r]:
                    if t in board.goal_lamps and state.toggled >> t & 1:
                        return True
        return False
    needed = 2 if board.task_type == "pick_two_obj_and_place" else 1
    treated = getattr(state, board.goal_treatment) if board.goal_treatment else -1
    for r in board.goal_receptacles:
        found = 0
        for t in state.contents[r]:
            found += t in board.goal_things and treated >> t & 1
        if found >= needed:
            return True
    return False


def introduction(board: Board, state: State, task: str) -> str:
    """The first observation."""
    around = look(board, state) if board.spots[state.spot].receptacles else _ROOM.format(board.room)
    return f"-= Welcome to TextWorld, ALFRED! =-\n\n{around}\n\nYour task is to: {task}"


def look(board: Board, state: State) -> str:
    """What `look` answers."""
    spot = board.spots[state.spot]
    if not spot.receptacles:
        return _ROOM.format("nothing")
    return f"You are facing the {spot.facing}. Next to it, you see {listing(_standing_by(board, state))}."


def _standing_by(board: Board, state: State) -> list[str]:
    """Things at this place that were taken out of a receptacle here and not put back into that one."""
    here = board.spots[state.spot].receptacles
    return [board.thing_name[t] for t in state.things_at[state.spot] for r in here if t in state.left[r]]


def _describe(board: Board, state: State, r: int) -> str:
    name = board.receptacle_name[r]
    if not board.receptacle_openable[r]:
        return f"On the {name}, you see {listing([board.thing_name[t] for t in state.contents[r]])}."
    if state.opened >> r & 1:
        return f"The {name} is open. In it, you see {listing([board.thing_name[t] for t in state.contents[r]])}."
    return f"The {name} is closed."


def _describe_held(board: Board, state: State) -> str:
    t = state.held
    name = board.thing_name[t]
    if board.inner[t]:
        return f"This is a normal {name}. In it, you see {board.inner[t]}."
    clean, hot, cool, sliced = (flags >> t & 1 for flags in (state.clean, state.hot, state.cool, state.sliced))
    if cool and not clean and not sliced:
        return f"This is a cold {name}."
    treatment = " and ".join(word for word, holds in (("hot", hot), ("cool", cool), ("clean", clean)) if holds)
    words = [word for word in (treatment, "sliced" if sliced else "") if word]
    if words:
        return f"This is a {' '.join(words)} {name}."
    if t in board.toggleable and state.toggled >> t & 1:
        return f"This {name} is on."
    return f"There's nothing special about {name}."


def _go(board: Board, state: State, rest: str) -> tuple[State, str]:
    r = board.receptacle_by_name[rest.removeprefix("to ")]
    state = state._replace(spot=board.receptacle_spot[r])
    return state, f"You arrive at {board.receptacle_name[r]}. {_describe(board, state, r)}"


def _open(board: Board, state: State, rest: str) -> tuple[State, str]:
    r = board.receptacle_by_name[rest]
    state = state._replace(opened=state.opened | 1 << r)
    return state, f"You open the {rest}. {_describe(board, state, r)}"


def _close(board: Board, state: State, rest: str) -> tuple[State, str]:
    return state._replace(opened=state.opened & ~(1 << board.receptacle_by_name[rest])), f"You close the {rest}."


def _take(board: Board, state: State, rest: str) -> tuple[State, str]:
    thing, receptacle = rest.split(" from ")
    t, r = board.thing_by_name[thing], board.receptacle_by_name[receptacle]
    state = state._replace(
        held=t,
        contents=_without(state.contents, r, t),
        things_at=_without(state.things_at, state.spot, t),
        left=_with(state.left, r, t),
    )
    return state, f"You pick up the {thing} from the {receptacle}."


def _move(board: Board, state: State, rest: str) -> tuple[State, str]:
    thing, receptacle = rest.split(" to ")
    t, r = state.held, board.receptacle_by_name[receptacle]
    state = state._replace(
        held=-1,
        contents=_with(state.contents, r, t),
        things_at=_with(state.things_at, state.spot, t),
        left=_without(state.left, r, t),
    )
    return state, f"You move the {thing} to the {receptacle}."


def _clean(board: Board, state: State, rest: str) -> tuple[State, str]:
    thing, receptacle = rest.split(" with ")
    return state._replace(clean=state.clean | 1 << state.held), f"You clean the {thing} using the {receptacle}."


def _heat(board: Board, state: State, rest: str) -> tuple[State, str]:
    thing, receptacle = rest.split(" with ")
    bit = 1 << state.held
    return state._replace(hot=state.hot | bit, cool=state.cool & ~bit), f"You heat the {thing} using the {receptacle}."


def _cool(board: Board, state: State, rest: str) -> tuple[State, str]:
    thing, receptacle = rest.split(" with ")
    bit = 1 << state.held
    return state._replace(cool=state.cool | bit, hot=state.hot & ~bit), f"You cool the {thing} using the {receptacle}."


def _slice(board: Board, state: State, rest: str) -> tuple[State, str]:
    thing, knife = rest.split(" with ")
    return state._replace(
        sliced=state.sliced | 1 << board.thing_by_name[thing]
    ), f"You sliced the {thing} with the {knife}."


def _use(board: Board, state: State, rest: str) -> tuple[State, str]:
    return state._replace(toggled=state.toggled | 1 << board.thing_by_name[rest]), f"You turn on the {rest}."


def _examine(board: Board, state: State, rest: str) -> tuple[State, str]:
    r = board.receptacle_by_name.get(rest)
    return state, _describe_held(board, state) if r is None else _describe(board, state, r)


def _look(board: Board, state: State, rest: str) -> tuple[State, str]:
    return state, look(board, state)


def _inventory(board: Board, state: State, rest: str) -> tuple[State, str]:
    if state.held < 0:
        return state, "You are not carrying anything."
    return state, f"You are carrying: a {board.thing_name[state.held]}."


def _help(board: Board, state: State, rest: str) -> tuple[State, str]:
    return state, HELP


_VERBS: dict[str, Callable[[Board, State, str], tuple[State, str]]] = {
    "go": _go,
    "open": _open,
    "close": _close,
    "take": _take,
    "move": _move,
    "clean": _clean,
    "heat": _heat,
    "cool": _cool,
    "slice": _slice,
    "use": _use,
    "examine": _examine,
    "look": _look,
    "inventory": _inventory,
    "help": _help,
}

Table = tuple[tuple[int, ...], ...]


def _with(table: Table, row: int, thing: int) -> Table:
    return (*table[:row], tuple(sorted({*table[row], thing})), *table[row + 1 :])


def _without(table: Table, row: int, thing: int) -> Table:
    return (*table[:row], tuple(t for t in table[row] if t != thing), *table[row + 1 :])
