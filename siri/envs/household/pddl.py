"""PDDL problem text of the ALFWorld domain to `Problem` and back.

The reader takes exactly the predicates and the six goals that official games use: anything else would be played
wrongly, so it is an error. Declared objects that no fact mentions are dropped: they have no name in TextWorld.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from siri.engine.errors import UserError
from siri.envs.household.problem import Goal, Problem, Receptacle, Thing

_TOKEN = re.compile(r"[()]|[^\s()]+")
_HEAD = re.compile(
    r"\s*\(\s*define\s*\(\s*problem\s+([^\s()]+)\s*\)\s*\(\s*:domain\s+alfred\s*\)\s*\(\s*:objects(?=\s)"
)
_INIT = re.compile(r"\)\s*\(\s*:init(?=[\s(])")
_COMMENT = re.compile(r";[^\n]*")

# Unary predicates, and the flag each one sets.
_THING_FLAGS = {
    "pickupable": "pickupable",
    "cleanable": "cleanable",
    "heatable": "heatable",
    "coolable": "coolable",
    "toggleable": "toggleable",
    "sliceable": "sliceable",
    "isReceptacleObject": "container",
    "isCool": "cool",
}
_RECEPTACLE_FLAGS = {"openable": "openable", "opened": "opened"}
_FLAGS = _THING_FLAGS | _RECEPTACLE_FLAGS

# Argument types of every predicate that may stand in `:init`.
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "atLocation": ("agent", "location"),
    "receptacleAtLocation": ("receptacle", "location"),
    "receptacleType": ("receptacle", "rtype"),
    "objectAtLocation": ("object", "location"),
    "objectType": ("object", "otype"),
    "inReceptacle": ("object", "receptacle"),
    "inReceptacleObject": ("object", "object"),
    "canContain": ("rtype", "otype"),
    **{predicate: ("object",) for predicate in _THING_FLAGS},
    **{predicate: ("receptacle",) for predicate in _RECEPTACLE_FLAGS},
}

_PLACE = "(and (exists (?r - receptacle) (exists (?o - object) (and {facts}))))"
_TYPES = "(objectType ?o {object}) (receptacleType ?r {target})"
_GOALS = {
    "pick_and_place_simple": _PLACE.format(facts=f"(inReceptacle ?o ?r) {_TYPES}"),
    "look_at_obj_in_light": (
        "(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot {target})"
        " (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))"
        " (exists (?o - object ?a - agent) (and (objectType ?o {object}) (holds ?a ?o))))"
    ),
    "pick_clean_then_place_in_recep": _PLACE.format(facts=f"(cleanable ?o) {_TYPES} (isClean ?o) (inReceptacle ?o ?r)"),
    "pick_heat_then_place_in_recep": _PLACE.format(facts=f"(heatable ?o) {_TYPES} (isHot ?o) (inReceptacle ?o ?r)"),
    "pick_cool_then_place_in_recep": _PLACE.format(facts=f"(coolable ?o) {_TYPES} (isCool ?o) (inReceptacle ?o ?r)"),
    "pick_two_obj_and_place": (
        "(and (exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {object})"
        " (receptacleType ?r {target}) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2))"
        " (objectType ?o2 {object}) (receptacleType ?r {target}) (inReceptacle ?o2 ?r)))))))"
    ),
}


def _goal_pattern(template: str) -> re.Pattern[str]:
    """A pattern over the space-joined tokens of the whole goal section; a type that occurs twice must be the same."""
    pattern = re.escape(" ".join(_TOKEN.findall(template.replace("{object}", "OBJ").replace("{target}", "TGT"))))
    for mark in ("OBJ", "TGT"):
        pattern = pattern.replace(mark, rf"(?P<{mark}>\w+)Type", 1).replace(mark + "\\ ", rf"(?P={mark})Type\ ")
    return re.compile(rf"\( :goal {pattern} \) \)")


_GOAL_PATTERNS = {task_type: _goal_pattern(template) for task_type, template in _GOALS.items()}


def parse_problem(text: str, source: str) -> Problem:
    """Reads one problem, in under 1 ms. `source` names the file (and the game in it) in errors.

    Raises UserError with the source, the line and what is wrong there.
    """
    return _Reader(_COMMENT.sub("", text) if ";" in text else text, source).problem()


@dataclass(slots=True)
class _Facts:
    """What `:init` says, by subject."""

    start: dict[str, str] = field(default_factory=dict)
    place: dict[str, str] = field(default_factory=dict)
    kind: dict[str, str] = field(default_factory=dict)
    receptacles: dict[str, list[str]] = field(default_factory=dict)
    inside: dict[str, list[str]] = field(default_factory=dict)
    flags: dict[str, dict[str, bool]] = field(default_factory=dict)
    can_contain: set[tuple[str, str]] = field(default_factory=set)
    mentioned: set[str] = field(default_factory=set)


class _Reader:
    """Cuts the text at its few landmarks and splits what lies between. Lines are counted when an error needs one."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source

    def problem(self) -> Problem:
        head = _HEAD.match(self._text)
        if head is None:
            raise self._error(0, "the text must begin with (define (problem NAME) (:domain alfred) (:objects")
        objects_end = self._find(")", head.end())
        declared = self._objects(head.end(), objects_end)
        init = _INIT.match(self._text, objects_end)
        if init is None:
            raise self._error(objects_end, "'(:init' must follow ':objects'")
        goal_start = self._find("(:goal", init.end())
        facts = self._init(init.end(), goal_start, declared)
        goal = self._goal(goal_start)
        agents = [id for id, kind in declared.items() if kind == "agent"]
        if len(agents) != 1 or agents[0] not in facts.start:
            raise self._error(0, f"one agent with one (atLocation agent place) is needed, found agents {agents}")
        return Problem(
            name=head[1],
            agent=agents[0],
            start=facts.start[agents[0]],
            locations=tuple(id for id, kind in declared.items() if kind == "location"),
            receptacles=tuple(self._receptacle(id, facts) for id, kind in declared.items() if kind == "receptacle"),
            things=tuple(
                _thing(id, facts) for id, kind in declared.items() if kind == "object" and id in facts.mentioned
            ),
            can_contain=frozenset(facts.can_contain),
            goal=goal,
        )

    def _find(self, landmark: str, start: int) -> int:
        found = self._text.find(landmark, start)
        if found < 0:
            raise self._error(len(self._text), f"'{landmark}' is missing after this; the text is cut short")
        return found

    def _objects(self, start: int, end: int) -> dict[str, str]:
        declared: dict[str, str] = {}
        names: list[str] = []
        words = iter(self._text[start:end].split())
        for word in words:
            if "(" in word:
                raise self._error(end, f"':objects' must be a list of 'name - type', found '{word}'")
            if word != "-":
                names.append(word)
                continue
            kind = next(words, "")
            for name in names:
                if declared.setdefault(name, kind) != kind:
                    raise self._error(end, f"'{name}' is declared as '{declared[name]}' and as '{kind}'")
            names = []
        if names:
            raise self._error(end, f"'{names[0]}' in ':objects' has no '- type'")
        return declared

    def _init(self, start: int, end: int, declared: dict[str, str]) -> _Facts:
        facts = _Facts()
        # Official files repeat most of their canContain facts: they are read once.
        *texts, closing, after = self._text[start:end].split(")")
        if closing.strip() or after.strip():
            raise self._error(end, "':init' must be a list of facts, closed before '(:goal'")
        for text in dict.fromkeys(texts):
            words = text.replace("(", "( ", 1).split()
            predicate, *arguments = words[1:] or [""]
            if words[:1] != ["("] or tuple(map(declared.get, arguments)) != _SIGNATURES.get(predicate):
                problem = _fault(predicate, arguments, declared) if words[:1] == ["("] else f"expected '(' in '{text}'"
                raise self._error(self._text.index(text, start), problem, text)
            try:
                _record(facts, predicate, arguments)
            except _Fault as fault:
                raise self._error(self._text.index(text, start), str(fault), text) from None
        return facts

    def _receptacle(self, id: str, facts: _Facts) -> Receptacle:
        if id not in facts.kind or id not in facts.place:
            raise self._error(0, f"receptacle '{id}' needs one receptacleType and one receptacleAtLocation fact")
        return Receptacle(id=id, type=facts.kind[id], location=facts.place[id], **facts.flags.get(id, {}))

    def _goal(self, start: int) -> Goal:
        text = " ".join(_TOKEN.findall(self._text[start:]))
        for task_type, pattern in _GOAL_PATTERNS.items():
            if match := pattern.fullmatch(text):
                return Goal(task_type=task_type, object_type=match["OBJ"], target_type=match["TGT"])
        raise self._error(start, f"the goal has the form of none of the task types {', '.join(_GOALS)}: {text[:200]}")

    def _error(self, offset: int, what: str, skipped: str = "") -> UserError:
        """`skipped`: text at the offset whose leading white space does not count."""
        offset += len(skipped) - len(skipped.lstrip())
        line = self._text.count("\n", 0, offset) + 1
        return UserError(
            f"{self._source}: line {line} of the PDDL problem: {what}."
            " Download or export the game again, or leave it out."
        )


class _Fault(Exception):
    """What is wrong with a fact, before it is known where it stands."""


def _record(facts: _Facts, predicate: str, arguments: list[str]) -> None:
    subject = arguments[0]
    if predicate == "canContain":
        facts.can_contain.add((_type(subject), _type(arguments[1])))
        return
    facts.mentioned.update(arguments)
    if predicate in _FLAGS:
        facts.flags.setdefault(subject, {})[_FLAGS[predicate]] = True
    elif predicate in ("inReceptacle", "inReceptacleObject"):
        table = facts.receptacles if predicate == "inReceptacle" else facts.inside
        if arguments[1] not in table.setdefault(subject, []):
            table[subject].append(arguments[1])
    else:
        is_type = predicate in ("objectType", "receptacleType")
        once = facts.kind if is_type else facts.start if predicate == "atLocation" else facts.place
        value = _type(arguments[1]) if is_type else arguments[1]
        if once.setdefault(subject, value) != value:
            raise _Fault(f"'{subject}' has two values of {predicate}: '{once[subject]}' and '{value}'")


def _type(name: str) -> str:
    if not name.endswith("Type"):
        raise _Fault(f"type '{name}' must end in 'Type'")
    return name[:-4]


def _fault(predicate: str, arguments: list[str], declared: dict[str, str]) -> str:
    """Why a fact does not fit its signature."""
    signature = _SIGNATURES.get(predicate)
    if signature is None:
        return f"predicate '{predicate}' in ':init' is not one of {', '.join(sorted(_SIGNATURES))}"
    if len(arguments) != len(signature):
        return f"({predicate} ...) takes {len(signature)} names: {' '.join(signature)}; found {len(arguments)}"
    argument, kind = next((a, k) for a, k in zip(arguments, signature, strict=True) if declared.get(a) != k)
    found = f"of type {declared[argument]}" if argument in declared else "not declared in ':objects'"
    return f"'{argument}' in ({predicate} ...) must be of type {kind}; it is {found}"


def _thing(id: str, facts: _Facts) -> Thing:
    return Thing(
        id=id,
        type=facts.kind.get(id),
        location=facts.place.get(id),
        receptacles=tuple(facts.receptacles.get(id, ())),
        inside=tuple(facts.inside.get(id, ())),
        **facts.flags.get(id, {}),
    )


def format_problem(problem: Problem) -> str:
    """The PDDL text of a problem. `parse_problem` reads it back equal.

    Raises UserError for a type of both receptacles and things, which the text cannot tell apart.
    """
    objects = "\n".join(f"    {name} - {kind}" for name, kind in _declarations(problem))
    facts = "\n".join(f"    ({' '.join(fact)})" for fact in _facts(problem))
    goal = _GOALS[problem.goal.task_type].format(
        object=problem.goal.object_type + "Type", target=problem.goal.target_type + "Type"
    )
    return (
        f"(define (problem {problem.name})\n(:domain alfred)\n(:objects\n{objects}\n)\n(:init\n{facts}\n)\n"
        f"(:goal {goal})\n)\n"
    )


def _declarations(problem: Problem) -> Iterator[tuple[str, str]]:
    goal = problem.goal
    object_types = {thing.type for thing in problem.things if thing.type} | {kind for _, kind in problem.can_contain}
    receptacle_types = {r.type for r in problem.receptacles} | {kind for kind, _ in problem.can_contain}
    object_types.add(goal.object_type)
    (object_types if goal.task_type == "look_at_obj_in_light" else receptacle_types).add(goal.target_type)
    if both := object_types & receptacle_types:
        raise UserError(f"problem '{problem.name}': {sorted(both)} are types of receptacles and of things; rename one")
    # The rules of the domain name these types, so they exist in every problem.
    object_types |= {"Knife", "ButterKnife"}
    receptacle_types |= {"Sink", "SinkBasin", "Microwave", "Fridge"} - object_types
    yield problem.agent, "agent"
    yield from ((f"{kind}Type", "otype") for kind in sorted(object_types))
    yield from ((f"{kind}Type", "rtype") for kind in sorted(receptacle_types))
    yield from ((thing.id, "object") for thing in problem.things)
    yield from ((receptacle.id, "receptacle") for receptacle in problem.receptacles)
    yield from ((location, "location") for location in problem.locations)


def _facts(problem: Problem) -> Iterator[tuple[str, ...]]:
    yield "atLocation", problem.agent, problem.start
    for receptacle in problem.receptacles:
        yield "receptacleType", receptacle.id, receptacle.type + "Type"
        yield "receptacleAtLocation", receptacle.id, receptacle.location
        yield from ((p, receptacle.id) for p, flag in _RECEPTACLE_FLAGS.items() if getattr(receptacle, flag))
    for thing in problem.things:
        if thing.type:
            yield "objectType", thing.id, thing.type + "Type"
        if thing.location:
            yield "objectAtLocation", thing.id, thing.location
        yield from (("inReceptacle", thing.id, receptacle) for receptacle in thing.receptacles)
        yield from (("inReceptacleObject", thing.id, outer) for outer in thing.inside)
        yield from ((p, thing.id) for p, flag in _THING_FLAGS.items() if getattr(thing, flag))
    yield from (("canContain", f"{r}Type", f"{o}Type") for r, o in sorted(problem.can_contain))
