"""Games as official `game.tw-pddl` files, which TextWorld plays and every ALFWorld tool reads.

Such a file carries the rules of the domain (PDDL) and the words of the game (a TextWorld grammar) beside the problem.
`DOMAIN` and `GRAMMAR` state ours: written from the rules in `rules.py`, they give the same transcripts as ALFWorld's
own, which is tested in TextWorld. So a generated game exports without anything being downloaded.
"""

import json
from typing import Any

from siri.engine.errors import UserError
from siri.envs.household.pddl import format_problem
from siri.envs.household.problem import Game
from siri.envs.household.rules import HELP

DOMAIN = """\
(define (domain alfred)
(:requirements :adl :typing)
(:types agent location receptacle object rtype otype)
(:predicates
    (atLocation ?a - agent ?l - location)
    (receptacleAtLocation ?r - receptacle ?l - location)
    (receptacleType ?r - receptacle ?t - rtype)
    (openable ?r - receptacle)
    (opened ?r - receptacle)
    (canContain ?rt - rtype ?ot - otype)
    (objectAtLocation ?o - object ?l - location)
    (objectType ?o - object ?t - otype)
    (inReceptacle ?o - object ?r - receptacle)
    (inReceptacleObject ?inner - object ?outer - object)
    (isReceptacleObject ?o - object)
    (pickupable ?o - object)
    (holds ?a - agent ?o - object)
    (holdsAny ?a - agent)
    (cleanable ?o - object)
    (isClean ?o - object)
    (heatable ?o - object)
    (isHot ?o - object)
    (coolable ?o - object)
    (isCool ?o - object)
    (toggleable ?o - object)
    (isToggled ?o - object)
    (sliceable ?o - object)
    (isSliced ?o - object)
    (noticed ?x)
)
(:action goTo
    :parameters (?a - agent ?from - location ?to - location ?r - receptacle)
    :precondition (and (atLocation ?a ?from) (receptacleAtLocation ?r ?to))
    :effect (and (not (atLocation ?a ?from)) (atLocation ?a ?to)))
(:action open
    :parameters (?a - agent ?l - location ?r - receptacle)
    :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l) (openable ?r) (not (opened ?r)))
    :effect (and (opened ?r)))
(:action close
    :parameters (?a - agent ?l - location ?r - receptacle)
    :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l) (openable ?r) (opened ?r))
    :effect (and (not (opened ?r))))
(:action take
    :parameters (?a - agent ?l - location ?o - object ?r - receptacle)
    :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l) (or (not (openable ?r)) (opened ?r))
                       (inReceptacle ?o ?r) (pickupable ?o) (not (holdsAny ?a)))
    :effect (and (holds ?a ?o) (holdsAny ?a) (not (inReceptacle ?o ?r)) (not (objectAtLocation ?o ?l))))
(:action move
    :parameters (?a - agent ?l - location ?o - object ?r - receptacle ?ot - otype ?rt - rtype)
    :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l) (or (not (openable ?r)) (opened ?r))
                       (holds ?a ?o) (objectType ?o ?ot) (receptacleType ?r ?rt) (canContain ?rt ?ot))
    :effect (and (inReceptacle ?o ?r) (objectAtLocation ?o ?l) (not (holds ?a ?o)) (not (holdsAny ?a))))
(:action clean
    :parameters (?a - agent ?l - location ?r - receptacle ?o - object)
    :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l)
                       (or (receptacleType ?r SinkType) (receptacleType ?r SinkBasinType))
                       (holds ?a ?o) (cleanable ?o))
    :effect (and (isClean ?o)))
(:action heat
    :parameters (?a - agent ?l - location ?r - receptacle ?o - object)
    :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l) (receptacleType ?r MicrowaveType)
                       (holds ?a ?o) (heatable ?o))
    :effect (and (isHot ?o) (not (isCool ?o))))
(:action cool
    :parameters (?a - agent ?l - location ?r - receptacle ?o - object)
    :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l) (receptacleType ?r FridgeType)
                       (holds ?a ?o) (coolable ?o))
    :effect (and (isCool ?o) (not (isHot ?o))))
(:action use
    :parameters (?a - agent ?l - location ?o - object ?r - receptacle)
    :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l) (inReceptacle ?o ?r) (toggleable ?o))
    :effect (and (isToggled ?o)))
(:action slice
    :parameters (?a - agent ?l - location ?co - object ?ko - object)
    :precondition (and (atLocation ?a ?l) (objectAtLocation ?co ?l) (sliceable ?co) (holds ?a ?ko)
                       (or (objectType ?ko KnifeType) (objectType ?ko ButterKnifeType)))
    :effect (and (isSliced ?co)))
(:action examineReceptacle
    :parameters (?a - agent ?l - location ?r - receptacle)
    :precondition (and (atLocation ?a ?l) (receptacleAtLocation ?r ?l))
    :effect (and (noticed ?r)))
(:action examineHeld
    :parameters (?a - agent ?o - object)
    :precondition (and (holds ?a ?o))
    :effect (and (noticed ?o)))
(:action look
    :parameters (?a - agent ?l - location)
    :precondition (and (atLocation ?a ?l))
    :effect (and (noticed ?l)))
(:action inventory :parameters (?a - agent) :precondition () :effect (and (noticed ?a)))
(:action help :parameters (?a - agent) :precondition () :effect (and (noticed ?a)))
)
"""

# What `examine` says of a held thing: the first line whose condition holds.
_EXAMINE_HELD = [
    (
        "isreceptacleobject(o:object)",
        "This is a normal {o.name}. In it, you see"
        " [{i.indefinite + ' ' + i.name | inreceptacleobject(i:object, o:object)}].",
    ),
    ("isclean(o:object) & ishot(o:object) & issliced(o:object)", "This is a hot and clean sliced {o.name}."),
    ("isclean(o:object) & iscool(o:object) & issliced(o:object)", "This is a cool and clean sliced {o.name}."),
    ("isclean(o:object) & issliced(o:object)", "This is a clean sliced {o.name}."),
    ("ishot(o:object) & issliced(o:object)", "This is a hot sliced {o.name}."),
    ("iscool(o:object) & issliced(o:object)", "This is a cool sliced {o.name}."),
    ("isclean(o:object) & ishot(o:object)", "This is a hot and clean {o.name}."),
    ("isclean(o:object) & iscool(o:object)", "This is a cool and clean {o.name}."),
    ("ishot(o:object)", "This is a hot {o.name}."),
    ("isclean(o:object)", "This is a clean {o.name}."),
    ("iscool(o:object)", "This is a cold {o.name}."),
    ("toggleable(o:object) & istoggled(o:object)", "This {o.name} is on."),
    ("sliceable(o:object) & issliced(o:object)", "This is a sliced {o.name}."),
    ("", "There's nothing special about {o.name}."),
]
_IN_SIGHT = "[{o.indefinite + ' ' + o.name | inreceptacle(o:object, r:receptacle)}]"
_HERE = "atlocation(a:agent, l:location) & receptacleatlocation(r:receptacle, l:location)"
# TextWorld holds such a negative fact only from the moment that an action made the positive one false.
_STANDING_BY = (
    "atlocation(a:agent, l:location) & objectatlocation(o:object, l:location)"
    " & receptacleatlocation(r:receptacle, l:location) & not_inreceptacle(o:object, r:receptacle)"
)
_RULES: dict[str, list[tuple[str, str]]] = {
    "intro": [("", "-= Welcome to TextWorld, ALFRED! =-\n\n#look#\n\nYour task is to: {TASK}")],
    "look": [
        (
            _HERE,
            f"You are facing the [{{r.name | {_HERE}}}]."
            f" Next to it, you see [{{o.indefinite + ' ' + o.name | {_STANDING_BY}}}].",
        ),
        (
            "",
            "You are in the middle of a room. Looking quickly around you, you see"
            " [{r.indefinite + ' ' + r.name | receptacleatlocation(r:receptacle, l:location)}].",
        ),
    ],
    "receptacle": [
        ("openable(r:receptacle) & opened(r:receptacle)", f"The {{r.name}} is open. In it, you see {_IN_SIGHT}."),
        ("openable(r:receptacle)", "The {r.name} is closed."),
        ("", f"On the {{r.name}}, you see {_IN_SIGHT}."),
    ],
    "held": _EXAMINE_HELD,
    "inventory": [
        (
            "holdsany(a:agent)",
            "You are carrying: [{o.indefinite + ' ' + o.name | holds(a:agent, o:object)}].",
        ),
        ("", "You are not carrying anything."),
    ],
    "help": [("", HELP)],
    "list_empty": [("", "nothing")],
    "list_separator": [("", ", ")],
    "list_last_separator": [("", ", and ")],
}
# Action, command, answer.
_COMMANDS = [
    ("goTo", "go to {r}", "You arrive at {r.name}. #receptacle#"),
    ("open", "open {r}", "You open the {r.name}. #receptacle#"),
    ("close", "close {r}", "You close the {r.name}."),
    ("take", "take {o} from {r}", "You pick up the {o.name} from the {r.name}."),
    ("move", "move {o} to {r}", "You move the {o.name} to the {r.name}."),
    ("clean", "clean {o} with {r}", "You clean the {o.name} using the {r.name}."),
    ("heat", "heat {o} with {r}", "You heat the {o.name} using the {r.name}."),
    ("cool", "cool {o} with {r}", "You cool the {o.name} using the {r.name}."),
    ("use", "use {o}", "You turn on the {o.name}."),
    ("slice", "slice {co} with {ko}", "You sliced the {co.name} with the {ko.name}."),
    ("examineReceptacle", "examine {r}", "#receptacle#"),
    ("examineHeld", "examine {o}", "#held#"),
    ("look", "look", "#look#"),
    ("inventory", "inventory", "#inventory#"),
    ("help", "help", "#help#"),
]


def _grammar() -> str:
    rules = {
        name: [{"condition": condition, "rhs": text} if condition else {"rhs": text} for condition, text in lines]
        for name, lines in _RULES.items()
    }
    actions = "\n".join(
        f'action {action} {{\n    template :: "{command}";\n    feedback :: "{answer}";\n}}\n'
        for action, command, answer in _COMMANDS
    )
    return f'grammar :: """\n{json.dumps(rules, indent=4)}\n""";\n\n{actions}'


# Characters that TextWorld's grammar reads as its own.
_MARKS = frozenset(';|"<>[]#{}\\\n')
GRAMMAR = _grammar()
"""The words of the game; `{TASK}` stands where the task sentence goes."""


def game_file(game: Game, *, domain: str = DOMAIN, grammar: str = GRAMMAR) -> dict[str, Any]:
    """The content of a `game.tw-pddl` file, to be written as JSON. `grammar` holds `{TASK}` for the task sentence.

    TextWorld cannot open a game that cannot be won: Fast Downward drops all its actions. Raises UserError for a task
    sentence that TextWorld's grammar cannot print.
    """
    if unprintable := _MARKS.intersection(game.task):
        raise UserError(
            f"task of {game.id}: {game.task!r} holds {' '.join(sorted(unprintable))}, marks of the grammar; remove them"
        )
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("{TASK}", game.task),
        "pddl_problem": format_problem(game.problem),
        "solvable": True,
        "walkthrough": list(game.walkthrough),
    }
