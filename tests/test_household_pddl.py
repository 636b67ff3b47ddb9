"""Reading and writing problem texts: official ones come back whole, damaged ones say what is wrong and where."""

import json
import lzma
import random
import re

import pytest
from conftest import shared_path
from household_kitchen import RECEPTACLES, kitchen, kitchen_game
from hypothesis import given
from hypothesis import strategies as st

from siri.engine.errors import UserError
from siri.envs.household import HouseholdEnv, load_games
from siri.envs.household.pddl import format_problem, parse_problem
from siri.envs.household.problem import TASK_TYPES, Game, Goal, Problem, Receptacle, Thing

TEXT = format_problem(kitchen_game().problem)
kinds = st.sampled_from(["Mug", "Apple", "Knife", "DeskLamp"])
receptacle_kinds = st.sampled_from(["Shelf", "Fridge", "SinkBasin"])
goals = st.builds(
    lambda task_type, thing, lamp, place: Goal(
        task_type=task_type, object_type=thing, target_type=lamp if task_type == "look_at_obj_in_light" else place
    ),
    st.sampled_from(TASK_TYPES),
    kinds,
    kinds,
    receptacle_kinds,
)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    places = [f"loc_bar_{i}" for i in range(draw(st.integers(1, 4)))]
    receptacles = [
        Receptacle(
            id=f"Box_bar_{i}",
            type=draw(receptacle_kinds),
            location=draw(st.sampled_from(places)),
            openable=draw(st.booleans()),
            opened=draw(st.booleans()),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    flag_names = ["pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable", "container", "cool"]
    number = draw(st.integers(0, 5))
    ids = [f"Thing_bar_{i}" for i in range(number)]
    things = [
        Thing(
            id=id,
            type=draw(kinds),
            location=draw(st.none() | st.sampled_from(places)),
            receptacles=tuple(draw(st.lists(st.sampled_from([r.id for r in receptacles]), unique=True))),
            inside=tuple(draw(st.lists(st.sampled_from(ids), unique=True))),
            **{name: draw(st.booleans()) for name in flag_names},
        )
        for id in ids
    ]
    return Problem(
        name="p",
        start=draw(st.sampled_from(places)),
        locations=tuple(places),
        receptacles=tuple(receptacles),
        things=tuple(things),
        can_contain=frozenset(draw(st.lists(st.tuples(st.sampled_from([r.type for r in receptacles]), kinds)))),
        goal=draw(goals),
    )


@given(problem=problems())
def test_written_problems_read_back_equal(problem: Problem) -> None:
    assert parse_problem(format_problem(problem), "test") == problem


def test_official_problems_survive_writing_and_play_on_alike() -> None:
    rng = random.Random(0)
    for game in load_games(shared_path("data", "alfworld", "valid_seen.jsonl.xz"))[::7]:
        copy = parse_problem(format_problem(game.problem), game.id)
        assert copy == game.problem
        ours = HouseholdEnv(game)
        again = HouseholdEnv(
            Game(id=game.id, task=game.task, task_type=game.task_type, walkthrough=game.walkthrough, problem=copy)
        )
        seen = ours.reset()
        assert seen == again.reset()
        for _ in range(30):
            if seen.done:
                break
            action = rng.choice(seen.admissible or ())
            seen = ours.step(action)
            assert seen == again.step(action)


def test_official_problem_read_whole() -> None:
    """Counts and details of one official game, looked up in its text by hand."""
    with lzma.open(shared_path("data", "alfworld", "train.jsonl.xz"), "rt", encoding="utf-8") as lines:
        record = json.loads(lines.readline())
    problem = parse_problem(record["pddl_problem"], record["id"])
    assert problem.goal == Goal(task_type="look_at_obj_in_light", object_type="AlarmClock", target_type="DeskLamp")
    assert problem.start == "loc_bar__minus_3_bar__minus_5_bar_0_bar_30"
    assert (len(problem.receptacles), len(problem.things), len(problem.locations)) == (27, 38, 28)
    lamp = next(thing for thing in problem.things if thing.toggleable)
    assert lamp.receptacles == ("Dresser_bar__minus_01_dot_33_bar__plus_00_dot_00_bar__minus_00_dot_75",)
    assert not lamp.pickupable


# What is changed in the kitchen's text, and what the message must say.
DAMAGE = [
    ("(define", "(defin", r"line 1 .* must begin with \(define"),
    ("(:domain alfred)", "(:domain blocks)", r"must begin with .*\(:domain alfred\)"),
    ("loc_bar_window - location", "loc_bar_window", r"'loc_bar_window' in ':objects' has no '- type'"),
    ("loc_bar_window - location", "loc_bar_window - location Mug_bar_1 - location", r"as 'object' and as 'location'"),
    (
        "loc_bar_window - location",
        "(loc_bar_window - location)",
        r"must be a list of 'name - type', found '\(loc_bar_window'",
    ),
    ("SinkBasinType - rtype", "SinkBasin - rtype", r"'SinkBasinType' in \(receptacleType ...\) .*not declared"),
    ("agent1 - agent", "agent1 - agent agent2 - agent", r"one agent .* found agents \['agent1', 'agent2'\]"),
    ("(atLocation agent1 loc_bar_middle)", "", r"one agent with one \(atLocation agent place\)"),
    ("(pickupable Knife_bar_1)", "(liftable Knife_bar_1)", r"predicate 'liftable' in ':init' is not one of atLocation"),
    ("(pickupable Knife_bar_1)", "(pickupable Fork_bar_1)", r"'Fork_bar_1' in \(pickupable ...\) .*not declared"),
    ("(pickupable Knife_bar_1)", "(pickupable Fridge_bar_1)", r"must be of type object; it is of type receptacle"),
    ("(pickupable Knife_bar_1)", "(pickupable)", r"\(pickupable ...\) takes 1 names: object; found"),
    (
        "(pickupable Knife_bar_1)",
        "(pickupable Knife_bar_1 Mug_bar_1)",
        r"\(pickupable ...\) takes 1 names: object; found",
    ),
    ("(receptacleType Fridge_bar_1 FridgeType)", "", r"receptacle 'Fridge_bar_1' needs one receptacleType"),
    (
        "(objectAtLocation Knife_bar_1 loc_bar_counter)",
        "(objectAtLocation Knife_bar_1 loc_bar_counter) (objectAtLocation Knife_bar_1 loc_bar_sink)",
        r"'Knife_bar_1' has two values of objectAtLocation: 'loc_bar_counter' and 'loc_bar_sink'",
    ),
    ("(:goal (and", "(:goal (or", r"the goal has the form of none of the task types"),
    ("(objectType ?o StatueType)", "(objectType ?o StatueType) (isHot ?o)", r"form of none of the task types"),
]


@pytest.mark.parametrize(("old", "new", "message"), DAMAGE, ids=lambda text: text[:40])
def test_damaged_text_says_what_is_wrong(old: str, new: str, message: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(UserError, match=message) as error:
        parse_problem(TEXT.replace(old, new), "games.jsonl.xz: line 3")
    assert re.match(r"games.jsonl.xz: line 3: line \d+ of the PDDL problem: ", str(error.value))


@given(cut=st.integers(0, len(TEXT.rstrip()) - 1))
def test_text_cut_short_anywhere_is_a_user_error(cut: int) -> None:
    with pytest.raises(UserError):
        parse_problem(TEXT[:cut], "test")


@given(data=st.data())
def test_a_wrong_word_anywhere_is_a_user_error_or_another_problem(data: st.DataObject) -> None:
    words = TEXT.split(" ")
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] = data.draw(st.sampled_from(["", "(", ")", "-", "Mug_bar_1", "MugType", "(:init", "))"]))
    try:
        read = parse_problem(" ".join(words), "test")
    except UserError:
        return
    assert isinstance(read, Problem)
    assert parse_problem(format_problem(read), "test") == read


def test_error_names_the_line() -> None:
    line = next(i for i, text in enumerate(TEXT.split("\n"), start=1) if "(pickupable Knife_bar_1)" in text)
    with pytest.raises(UserError, match=f"^file: line {line} of the PDDL problem"):
        parse_problem(TEXT.replace("(pickupable Knife_bar_1)", "(liftable Knife_bar_1)"), "file")


def test_objects_that_no_fact_mentions_are_dropped() -> None:
    text = TEXT.replace("agent1 - agent", "agent1 - agent\n    Ghost_bar_1 - object ; unused")
    assert parse_problem(text, "test") == kitchen(kitchen_game().problem.goal)
    assert len(RECEPTACLES) == len(parse_problem(text, "test").receptacles)


def test_a_type_of_receptacles_and_of_things_cannot_be_written() -> None:
    with pytest.raises(UserError, match=r"\['Apple'\] are types of receptacles and of things"):
        format_problem(kitchen_game("pick_and_place_simple", "Mug", "Apple").problem)
