"""Shortest plans with full knowledge of the world: walkthroughs of generated games, and the proof that they can be won.

A plan of this domain is a chain of stops: at each, something is done with one receptacle. Walking to a stop costs one
action unless its place is where the agent stands, opening a closed receptacle costs one the first time, the deed itself
one. All chains that can win are enumerated (which thing, from where, with which tool, into which target), so the
shortest of them has the fewest actions any solution can have. Slicing, closing and putting things elsewhere in between
never shorten a plan.
"""

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

from siri.envs.household.board import CLEANERS, COOLERS, HEATERS, display_names
from siri.envs.household.problem import Problem, Receptacle, Thing

_TREATMENT = {
    "pick_clean_then_place_in_recep": ("clean", CLEANERS, "cleanable"),
    "pick_heat_then_place_in_recep": ("heat", HEATERS, "heatable"),
    "pick_cool_then_place_in_recep": ("cool", COOLERS, "coolable"),
}


class _Stop(NamedTuple):
    verb: str
    thing: Thing
    at: Receptacle
    reach_in: bool
    """Whether the receptacle must be open for it."""


_Chain = tuple[_Stop, ...]


def shortest_plan(problem: Problem) -> tuple[str, ...] | None:
    """The commands of a shortest solution from the start; empty if the goal holds already, None if there is none."""
    best: _Chain | None = None
    fewest = 1 << 30
    for chain in _chains(problem):
        if (length := _length(problem, chain)) < fewest:
            best, fewest = chain, length
    return None if best is None else tuple(_commands(problem, best))


def _chains(problem: Problem) -> Iterator[_Chain]:
    """Every chain of stops that wins and has no stop too many."""
    goal = problem.goal
    receptacles = {r.id: r for r in problem.receptacles}
    sought = [t for t in problem.things if t.type == goal.object_type]
    targets = [r for r in problem.receptacles if r.type == goal.target_type]
    if targets and (goal.target_type, goal.object_type) not in problem.can_contain:
        return
    if goal.task_type == "look_at_obj_in_light":
        yield from _look_chains(problem, sought, receptacles)
    elif goal.task_type == "pick_two_obj_and_place":
        for target in targets:
            for pair in permutations(sought, 2):
                for first in _fetch(pair[0], target, receptacles):
                    for second in _fetch(pair[1], target, receptacles):
                        yield first + second
    elif goal.task_type in _TREATMENT:
        verb, tool_types, flag = _TREATMENT[goal.task_type]
        tools = [r for r in problem.receptacles if r.type in tool_types]
        for thing in sought:
            if getattr(thing, flag):
                ready = verb == "cool" and thing.cool
                if ready and any(target.id in thing.receptacles for target in targets):
                    yield ()
                treatments: list[_Chain] = [()] if ready else [(_Stop(verb, thing, tool, False),) for tool in tools]
                yield from _treat_chains(thing, treatments, targets, receptacles)
    else:
        for thing in sought:
            for target in targets:
                yield from _fetch(thing, target, receptacles)


def _takes(thing: Thing, receptacles: dict[str, Receptacle]) -> Iterator[_Stop]:
    if thing.pickupable:
        for id in thing.receptacles:
            yield _Stop("take", thing, receptacles[id], True)


def _fetch(thing: Thing, target: Receptacle, receptacles: dict[str, Receptacle]) -> Iterator[_Chain]:
    """Ways to have the thing in the target: no stop where it is there already."""
    if target.id in thing.receptacles:
        yield ()
        return
    for take in _takes(thing, receptacles):
        yield take, _Stop("move", thing, target, True)


def _treat_chains(
    thing: Thing, treatments: list[_Chain], targets: list[Receptacle], receptacles: dict[str, Receptacle]
) -> Iterator[_Chain]:
    for take in _takes(thing, receptacles):
        # Some official files list a thing in two receptacles. Taken from one, it still counts as being in the other.
        there = any(target.id in thing.receptacles and target.id != take.at.id for target in targets)
        for treatment in treatments:
            if there:
                yield take, *treatment
            else:
                yield from ((take, *treatment, _Stop("move", thing, target, True)) for target in targets)


def _look_chains(problem: Problem, sought: list[Thing], receptacles: dict[str, Receptacle]) -> Iterator[_Chain]:
    lamps = [t for t in problem.things if t.type == problem.goal.target_type and t.toggleable]
    for lamp in lamps:
        for id in lamp.receptacles:
            for thing in sought:
                for take in _takes(thing, receptacles):
                    yield take, _Stop("use", lamp, receptacles[id], False)


def _length(problem: Problem, chain: _Chain) -> int:
    place, opened, length = problem.start, set(), len(chain)
    for stop in chain:
        if stop.at.location != place:
            place = stop.at.location
            length += 1
        if stop.reach_in and stop.at.openable and not stop.at.opened and stop.at.id not in opened:
            opened.add(stop.at.id)
            length += 1
    return length


def _commands(problem: Problem, chain: _Chain) -> Iterator[str]:
    names = display_names([r.id for r in problem.receptacles] + [t.id for t in problem.things])
    place, opened = problem.start, set()
    for stop in chain:
        thing, here = names[stop.thing.id], names[stop.at.id]
        if stop.at.location != place:
            place = stop.at.location
            yield f"go to {here}"
        if stop.reach_in and stop.at.openable and not stop.at.opened and stop.at.id not in opened:
            opened.add(stop.at.id)
            yield f"open {here}"
        if stop.verb == "use":
            yield f"use {thing}"
        else:
            preposition = {"take": "from", "move": "to"}.get(stop.verb, "with")
            yield f"{stop.verb} {thing} {preposition} {here}"
