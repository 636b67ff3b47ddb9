"""Our engine by itself: states, anchors, goals, quirks of the rules. Equality with TextWorld is tested elsewhere."""

import pickle
import random

import pytest
from household_kitchen import kitchen_game
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.engine.environment import Environment, Observation
from siri.engine.errors import UserError
from siri.envs.household import Game, HouseholdEnv
from siri.envs.household.board import display_names, listing
from siri.envs.household.problem import Problem
from siri.envs.household.rules import State

NOTHING = "Nothing happens."


def play(env: HouseholdEnv, *actions: str) -> Observation:
    observation = env.reset()
    for action in actions:
        observation = env.step(action)
        assert observation.text != NOTHING, action
    return observation


def view(env: HouseholdEnv) -> tuple[object, ...]:
    """What an agent can find out without changing anything, asked of the game itself command by command."""
    now = env.restore(env.state)
    questions = [c for c in now.admissible or () if c in ("look", "inventory") or c.startswith("examine ")]
    answers = tuple(env.step(question).text for question in questions)
    board, state = env._board, env.state
    flags = (state.clean, state.hot, state.cool, state.sliced, state.toggled)
    switches = [board.thing_by_name[c[4:]] for c in now.admissible or () if c.startswith("use ")]
    return (
        now.admissible,
        answers,
        tuple(flag >> state.held & 1 for flag in flags) if state.held >= 0 else (),
        tuple(state.toggled >> t & 1 for t in switches),
    )


def walk(env: HouseholdEnv, steps: int, seed: int) -> list[State]:
    rng = random.Random(seed)
    observation = env.reset()
    states = [env.state]
    for _ in range(steps):
        # Half of the commands are go-to commands: without a thumb on the scale the hand would stay empty.
        verb = rng.choice(sorted({command.split()[0] for command in observation.admissible or ()}))
        observation = env.step(rng.choice([c for c in observation.admissible or () if c.split()[0] == verb]))
        states.append(env.state)
    return states


def test_is_an_environment() -> None:
    assert isinstance(HouseholdEnv(kitchen_game()), Environment)


def test_anchor_is_equal_if_and_only_if_the_view_is_equal() -> None:
    env = HouseholdEnv(kitchen_game())
    view_of: dict[bytes, object] = {}
    anchor_of: dict[object, bytes] = {}
    states = {state for seed in range(10) for state in walk(env, 1500, seed)}
    for state in states:
        anchor = env.restore(state).anchor
        seen = view(env)
        assert view_of.setdefault(anchor, seen) == seen, state
        assert anchor_of.setdefault(seen, anchor) == anchor, state
    # The property is empty unless many states look alike and many do not.
    assert len(states) > 2 * len(view_of) > 1000


@pytest.mark.parametrize("action", ["dance", "", "LOOK", "take apple 9 from countertop 1", "go to  countertop 1"])
def test_invalid_action_changes_nothing(action: str) -> None:
    env = HouseholdEnv(kitchen_game())
    before = play(env, "go to countertop 1", "take apple 2 from countertop 1")
    state = env.state
    after = env.step(action)
    assert after.text == NOTHING
    assert (after.anchor, after.admissible, after.reward, after.done) == (before.anchor, before.admissible, 0.0, False)
    assert env.state == state


@pytest.mark.parametrize("action", ["help", "inventory", "look", "examine countertop 1", "examine apple 2", " look\n"])
def test_asking_keeps_the_anchor(action: str) -> None:
    env = HouseholdEnv(kitchen_game())
    before = play(env, "go to countertop 1", "take apple 2 from countertop 1")
    after = env.step(action)
    assert after.text != NOTHING
    assert after.anchor == before.anchor


def test_anchor_forgets_what_is_out_of_sight_and_how_the_agent_came() -> None:
    env = HouseholdEnv(kitchen_game())
    here = play(env, "go to sinkbasin 1").anchor
    assert play(env, "go to fridge 1", "open fridge 1", "go to sinkbasin 1").anchor == here
    assert play(env, "go to countertop 1", "use desklamp 1", "go to sinkbasin 1").anchor == here
    assert play(env, "go to countertop 1", "take apple 2 from countertop 1", "go to sinkbasin 1").anchor != here


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 30))
def test_a_restored_state_goes_on_like_the_original(seed: int, steps: int) -> None:
    game = kitchen_game()
    first, second = HouseholdEnv(game), HouseholdEnv(game)
    state = walk(first, steps, seed)[-1]
    again = second.restore(pickle.loads(pickle.dumps(state)))
    assert again.anchor == first.restore(state).anchor
    rng = random.Random(seed)
    for _ in range(20):
        action = rng.choice(again.admissible or ())
        again = second.step(action)
        assert again == first.step(action)
        assert first.state == second.state


def test_pairs_start_equal() -> None:
    game = kitchen_game()
    first, second = HouseholdEnv(game), HouseholdEnv(game)
    assert first.reset() == second.reset()
    assert first.state == second.state
    play(first, "go to countertop 1")
    assert first.reset() == second.reset()


def test_game_parses_once_and_pickles() -> None:
    calls = []
    problem = kitchen_game().problem

    def parse() -> Problem:
        calls.append(1)
        return problem

    game = Game(id="x", task="t", task_type="pick_and_place_simple", walkthrough=["look"], problem=parse)
    assert not calls
    assert game.problem is game.problem is problem
    assert len(calls) == 1
    copy = pickle.loads(pickle.dumps(game))
    assert (copy.id, copy.task, copy.walkthrough, copy.problem) == ("x", "t", ("look",), problem)


GOALS = {
    ("pick_and_place_simple", "Apple", "SinkBasin"): """
        go to countertop 1; take apple 2 from countertop 1; go to sinkbasin 1; move apple 2 to sinkbasin 1""",
    ("look_at_obj_in_light", "Apple", "DeskLamp"): """
        go to countertop 1; take apple 2 from countertop 1; go to cabinet 1; use desklamp 2""",
    ("pick_clean_then_place_in_recep", "Mug", "StoveBurner"): """
        go to stoveburner 1; take mug 1 from stoveburner 1; go to sinkbasin 1; clean mug 1 with sinkbasin 1;
        go to stoveburner 1; move mug 1 to stoveburner 1""",
    ("pick_heat_then_place_in_recep", "Mug", "Microwave"): """
        go to stoveburner 1; take mug 1 from stoveburner 1; go to microwave 1; heat mug 1 with microwave 1;
        open microwave 1; move mug 1 to microwave 1""",
    ("pick_cool_then_place_in_recep", "Apple", "Cabinet"): """
        go to fridge 1; open fridge 1; take apple 1 from fridge 1; go to cabinet 2; move apple 1 to cabinet 2""",
    ("pick_two_obj_and_place", "Apple", "Microwave"): """
        go to fridge 1; open fridge 1; take apple 1 from fridge 1; go to microwave 1; open microwave 1;
        move apple 1 to microwave 1; go to countertop 1; take apple 2 from countertop 1; go to microwave 1;
        move apple 2 to microwave 1""",
}


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal[0])
def test_goal_is_met_by_the_last_action_and_by_no_earlier_one(goal: tuple[str, str, str]) -> None:
    plan = [action.strip() for action in GOALS[goal].split(";")]
    env = HouseholdEnv(kitchen_game(*goal))
    before = play(env, *plan[:-1])
    assert (before.reward, before.done, before.success) == (0.0, False, False)
    after = env.step(plan[-1])
    assert (after.reward, after.done, after.success) == (1.0, True, True)
    with pytest.raises(RuntimeError, match="after the end of the episode"):
        env.step("look")
    assert not env.reset().done


def test_two_things_must_share_one_receptacle() -> None:
    env = HouseholdEnv(kitchen_game("pick_two_obj_and_place", "Apple", "Cabinet"))
    take_both = ["go to fridge 1", "open fridge 1", "take apple 1 from fridge 1", "go to cabinet 1"]
    apart = [*take_both, "move apple 1 to cabinet 2", "open cabinet 1", "go to countertop 1"]
    apart += ["take apple 2 from countertop 1", "go to cabinet 1", "move apple 2 to cabinet 1"]
    assert not play(env, *apart).done


def test_heating_undoes_cooling_and_the_other_way_round() -> None:
    env = HouseholdEnv(kitchen_game())
    start = [
        "go to countertop 1",
        "take apple 2 from countertop 1",
        "go to microwave 1",
        "heat apple 2 with microwave 1",
    ]
    assert play(env, *start, "examine apple 2").text == "This is a hot apple 2."
    cold = [*start, "go to fridge 1", "cool apple 2 with fridge 1"]
    assert play(env, *cold, "examine apple 2").text == "This is a cold apple 2."
    clean = [*cold, "go to sinkbasin 1", "clean apple 2 with sinkbasin 1"]
    assert play(env, *clean, "examine apple 2").text == "This is a cool and clean apple 2."


def test_a_thing_in_two_receptacles_leaves_only_one() -> None:
    env = HouseholdEnv(kitchen_game())
    play(env, "go to countertop 1", "take knife 1 from countertop 1")
    assert "knife 1" in env.step("go to cabinet 2").text


def test_slicing_and_switching_reach_into_closed_receptacles() -> None:
    env = HouseholdEnv(kitchen_game())
    at_fridge = play(env, "go to countertop 1", "take knife 1 from countertop 1", "go to fridge 1")
    assert at_fridge.text == "You arrive at fridge 1. The fridge 1 is closed."
    assert "slice apple 1 with knife 1" in (at_fridge.admissible or ())
    assert env.step("slice apple 1 with knife 1").text == "You sliced the apple 1 with the knife 1."
    assert "use desklamp 2" in (env.step("go to cabinet 1").admissible or ())


def test_switching_twice_stays_on() -> None:
    env = HouseholdEnv(kitchen_game())
    once = play(env, "go to countertop 1", "use desklamp 1")
    twice = env.step("use desklamp 1")
    assert once.text == twice.text == "You turn on the desklamp 1."
    assert once.anchor == twice.anchor


def test_a_thing_moved_within_one_place_stands_next_to_it() -> None:
    env = HouseholdEnv(kitchen_game())
    look = "You are facing the countertop 1, and stoveburner 1. Next to it, you see {}."
    moved = ["go to countertop 1", "take apple 2 from countertop 1", "move apple 2 to stoveburner 1"]
    assert play(env, *moved, "look").text == look.format("a apple 2")
    back = [*moved, "take apple 2 from stoveburner 1", "move apple 2 to countertop 1"]
    assert play(env, *back, "look").text == look.format("a apple 2")
    assert play(env, "go to countertop 1", "look").text == look.format("nothing")


def test_only_what_is_held_can_be_examined() -> None:
    env = HouseholdEnv(kitchen_game())
    assert "examine mug 1" not in (play(env, "go to stoveburner 1").admissible or ())
    env.step("take mug 1 from stoveburner 1")
    assert env.step("examine mug 1").text == "This is a normal mug 1. In it, you see a spoon 1."


def test_containment_rules() -> None:
    env = HouseholdEnv(kitchen_game())
    play(env, "go to stoveburner 1", "take spoon 1 from stoveburner 1", "go to fridge 1", "open fridge 1")
    assert env.step("move spoon 1 to fridge 1").text == NOTHING
    env.step("go to microwave 1")
    assert env.step("move spoon 1 to microwave 1").text == NOTHING
    env.step("open microwave 1")
    assert env.step("move spoon 1 to microwave 1").text == "You move the spoon 1 to the microwave 1."


def test_introduction_names_the_furniture_and_look_does_not() -> None:
    env = HouseholdEnv(kitchen_game())
    assert env.reset().text == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see"
        " a cabinet 2, a cabinet 1, a countertop 1, a fridge 1, a microwave 1, a sinkbasin 1, and a stoveburner 1."
        "\n\nYour task is to: do it."
    )
    assert env.step("look").text == "You are in the middle of a room. Looking quickly around you, you see nothing."


def test_names_count_down_in_the_order_of_the_ids() -> None:
    names = display_names(["Mug_bar_b", "mug_bar_a", "Sink_bar_1", "Sink_bar_1_bar_SinkBasin", "Mug_bar_C"])
    assert names == {
        "mug_bar_a": "mug 3",
        "Mug_bar_b": "mug 2",
        "Mug_bar_C": "mug 1",
        "Sink_bar_1": "sink 1",
        "Sink_bar_1_bar_SinkBasin": "sinkbasin 1",
    }
    with pytest.raises(UserError, match=r"'Mug1'.*_bar_"):
        display_names(["Mug1"])


def test_listing() -> None:
    assert [listing(names) for names in ([], ["x 1"], ["x 1", "y 1"], ["x 1", "y 1", "z 1"])] == [
        "nothing",
        "a x 1",
        "a x 1, and a y 1",
        "a x 1, a y 1, and a z 1",
    ]
