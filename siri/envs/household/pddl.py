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
    """A pattern over space-joined tokens; a type that occurs twice must be the same type."""
    pattern = re.escape(" ".join(_TOKEN.findall(template.replace("{object}", "OBJ").replace("{target}", "TGT"))))
    for mark in ("OBJ", "TGT"):
        pattern = pattern.replace(mark, rf"(?P<{mark}>\w+)Type", 1).replace(mark + "\\ ", rf"(?P={mark})Type\ ")
    return re.compile(pattern)


_GOAL_PATTERNS = {task_type: _goal_pattern(template) for task_type, template in _GOALS.items()}


def parse_problem(text: str, source: str) -> Problem:
    """Reads one problem. `source` names the file (and the game in it) in errors.

    Raises UserError with the source, the line and what is wrong there.
    """
    return _Reader(text, source).problem()


@dataclass(slots=True)
class _Facts:
    """What `:init` says, by subject."""

    start: dict[str, str] = field(default_factory=dict)
    place: dict[str, str] = field(default_factory=dict)
    kind: dict[str, str] = field(default_factory=dict)
    receptacles: dict[str, dict[str, None]] = field(default_factory=dict)
    inside: dict[str, dict[str, None]] = field(default_factory=dict)
    flags: dict[str, dict[str, bool]] = field(default_factory=dict)
    can_contain: set[tuple[str, str]] = field(default_factory=set)
    mentioned: set[str] = field(default_factory=set)


class _Reader:
    """A cursor over the tokens. Lines are counted only when an error needs one."""

    def __init__(self, text: str, source: str) -> None:
        self._text = _COMMENT.sub("", text) if ";" in text else text
        self._source = source
        self._tokens = _TOKEN.findall(self._text)
        self._at = 0

    def problem(self) -> Problem:
        self._expect("(", "define", "(", "problem")
        name = self._next()
        self._expect(")", "(", ":domain", "alfred", ")")
        declared = self._objects()
        facts = self._init(declared)
        goal = self._goal()
        self._expect(")")
        if self._at != len(self._tokens):
            raise self._error(self._at, f"text after the end of the problem: '{self._tokens[self._at]}'")
        agents = [id for id, kind in declared.items() if kind == "agent"]
        if len(agents) != 1 or agents[0] not in facts.start:
            raise self._error(0, f"one agent with one (atLocation agent place) is needed, found agents {agents}")
        return Problem(
            name=name,
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

    def _objects(self) -> dict[str, str]:
        self._expect("(", ":objects")
        declared: dict[str, str] = {}
        names: list[str] = []
        while (token := self._next()) != ")":
            if token == "(":
                raise self._error(self._at - 1, "':objects' must be a list of 'name - type', found '('")
            if token != "-":
                names.append(token)
                continue
            kind = self._next()
            for name in names:
                if declared.setdefault(name, kind) != kind:
                    raise self._error(self._at - 1, f"'{name}' is declared as '{declared[name]}' and as '{kind}'")
            names = []
        if names:
            raise self._error(self._at - 1, f"'{names[0]}' in ':objects' has no '- type'")
        return declared

    def _init(self, declared: dict[str, str]) -> _Facts:
        self._expect("(", ":init")
        facts = _Facts()
        tokens = self._tokens
        at = self._at
        try:
            while tokens[at] == "(":
                predicate = tokens[at + 1]
                signature = _SIGNATURES.get(predicate)
                if signature is None:
                    known = ", ".join(sorted(_SIGNATURES))
                    raise self._error(at + 1, f"predicate '{predicate}' in ':init' is not one of {known}")
                end = at + 2 + len(signature)
                arguments = tokens[at + 2 : end]
                if tokens[end] != ")" or tuple(map(declared.get, arguments)) != signature:
                    raise self._fact_error(at, predicate, signature, declared)
                self._record(facts, predicate, arguments, at)
                at = end + 1
        except IndexError:
            raise self._error(len(tokens) - 1, "the text ends inside ':init'; the file is cut short") from None
        self._at = at
        self._expect(")")
        return facts

    def _record(self, facts: _Facts, predicate: str, arguments: list[str], at: int) -> None:
        if predicate == "canContain":
            facts.can_contain.add((self._type(arguments[0], at), self._type(arguments[1], at)))
            return
        facts.mentioned.update(arguments)
        subject = arguments[0]
        if predicate in _THING_FLAGS:
            facts.flags.setdefault(subject, {})[_THING_FLAGS[predicate]] = True
        elif predicate in _RECEPTACLE_FLAGS:
            facts.flags.setdefault(subject, {})[_RECEPTACLE_FLAGS[predicate]] = True
        elif predicate == "inReceptacle":
            facts.receptacles.setdefault(subject, {})[arguments[1]] = None
        elif predicate == "inReceptacleObject":
            facts.inside.setdefault(subject, {})[arguments[1]] = None
        elif predicate in ("objectType", "receptacleType"):
            self._record_once(facts.kind, predicate, subject, self._type(arguments[1], at), at)
        elif predicate == "atLocation":
            self._record_once(facts.start, predicate, subject, arguments[1], at)
        else:
            self._record_once(facts.place, predicate, subject, arguments[1], at)

    def _record_once(self, table: dict[str, str], predicate: str, subject: str, value: str, at: int) -> None:
        if table.setdefault(subject, value) != value:
            raise self._error(at, f"'{subject}' has two values of {predicate}: '{table[subject]}' and '{value}'")

    def _type(self, name: str, at: int) -> str:
        if not name.endswith("Type"):
            raise self._error(at, f"type '{name}' must end in 'Type'")
        return name[:-4]

    def _receptacle(self, id: str, facts: _Facts) -> Receptacle:
        if id not in facts.kind or id not in facts.place:
            raise self._error(0, f"receptacle '{id}' needs one receptacleType and one receptacleAtLocation fact")
        return Receptacle(id=id, type=facts.kind[id], location=facts.place[id], **facts.flags.get(id, {}))

    def _goal(self) -> Goal:
        self._expect("(", ":goal")
        start, depth = self._at, 0
        while True:
            depth += {"(": 1, ")": -1}.get(self._next(), 0)
            if depth <= 0:
                break
        text = " ".join(self._tokens[start : self._at])
        for task_type, pattern in _GOAL_PATTERNS.items():
            if match := pattern.fullmatch(text):
                self._expect(")")
                return Goal(task_type=task_type, object_type=match["OBJ"], target_type=match["TGT"])
        raise self._error(start, f"the goal has the form of none of the task types {', '.join(_GOALS)}: {text[:200]}")

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise self._error(len(self._tokens) - 1, "the text ends inside the problem; the file is cut short")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, *expected: str) -> None:
        for token in expected:
            if (found := self._next()) != token:
                raise self._error(self._at - 1, f"expected '{token}', found '{found}'")

    def _fact_error(self, at: int, predicate: str, signature: tuple[str, ...], declared: dict[str, str]) -> UserError:
        arguments = self._tokens[at + 2 : at + 2 + len(signature)]
        for argument, kind in zip(arguments, signature, strict=False):
            if argument not in "()" and declared.get(argument) != kind:
                found = f"a {declared[argument]}" if argument in declared else "not declared in ':objects'"
                return self._error(at, f"'{argument}' in ({predicate} ...) must be a {kind}; it is {found}")
        return self._error(at, f"({predicate} ...) takes {len(signature)} names: {' '.join(signature)}")

    def _error(self, token_index: int, what: str) -> UserError:
        starts = [match.start() for match in _TOKEN.finditer(self._text)]
        line = self._text.count("\n", 0, starts[token_index]) + 1 if starts else 1
        return UserError(
            f"{self._source}: line {line} of the PDDL problem: {what}."
            " Download or export the game again, or leave it out."
        )


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
