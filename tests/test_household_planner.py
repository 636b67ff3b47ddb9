"""Shortest plans against Fast Downward's optimal ones and against exhaustive search in the engine."""

from dataclasses import replace

import pytest
from conftest import shared_path
from household_kitchen import RECEPTACLES, kitchen

from siri.envs.household import Game, HouseholdEnv, load_games
from siri.envs.household.board import build_board
from siri.envs.household.generator import generate_game
from siri.envs.household.planner import shortest_plan
from siri.envs.household.problem import TASK_TYPES, Goal, Problem, Receptacle, Thing
from siri.envs.household.rules import act, initial_state, survey, won


def assert_as_short_as_official(games: list[Game]) -> None:
    for game in games:
        plan = shortest_plan(game.problem)
        assert plan is not None, game.id
        # The official walkthroughs are optimal plans of Fast Downward: neither longer nor shorter is right.
        assert len(plan) == len(game.walkthrough), game.id
        env = HouseholdEnv(game)
        env.reset()
        assert [env.step(action).success for action in plan] == [False] * (len(plan) - 1) + [True], game.id


@pytest.mark.parametrize(("split", "every"), [("valid_seen", 1), ("train", 25)])
def test_official_games(split: str, every: int) -> None:
    assert_as_short_as_official(load_games(shared_path("data", "alfworld", f"{split}.jsonl.xz"))[::every])


@pytest.mark.slow  # 20 s alone on a core, minutes beside other work.
@pytest.mark.timeout(900)
def test_every_official_train_game() -> None:
    games = load_games(shared_path("data", "alfworld", "train.jsonl.xz"))
    assert len(games) == 3553
    assert_as_short_as_official(games)


def fewest_actions(problem: Problem, limit: int) -> int | None:
    """By breadth-first search over the engine's states; None if more than `limit` actions are needed."""
    board = build_board(problem)
    frontier = [initial_state(board)]
    seen = set(frontier)
    for depth in range(limit + 1):
        if any(won(board, state) for state in frontier):
            return depth
        following = []
        for state in frontier if depth < limit else ():
            for command in survey(board, state)[0]:
                if not command.startswith(("examine", "look", "inventory", "help", "close", "slice")):
                    after, _ = act(board, state, command)
                    if after not in seen:
                        seen.add(after)
                        following.append(after)
        frontier = following
    return None


def bare(problem: Problem) -> Problem:
    """Without the things that have nothing to do with the goal, so that a search through all states stays small."""
    goal = problem.goal
    return replace(problem, things=tuple(t for t in problem.things if t.type in (goal.object_type, goal.target_type)))


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_no_shorter_solution_exists(task_type: str) -> None:
    games = (generate_game(f"shortest-{i}", size="small") for i in range(200))
    for game in [game for game in games if game.task_type == task_type][:6]:
        plan = shortest_plan(bare(game.problem))
        assert plan is not None
        assert plan == game.walkthrough
        assert fewest_actions(bare(game.problem), limit=len(plan)) == len(plan), game.id


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize("object_type", ["Apple", "Knife", "Mug", "Spoon"])
def test_every_goal_of_the_quirky_kitchen(task_type: str, object_type: str) -> None:
    targets = ["DeskLamp"] if task_type == "look_at_obj_in_light" else sorted({r.type for r in RECEPTACLES})
    for target in targets:
        problem = bare(kitchen(Goal(task_type=task_type, object_type=object_type, target_type=target)))
        plan = shortest_plan(problem)
        assert fewest_actions(problem, limit=10) == (None if plan is None else len(plan)), (target, plan)


def problem_of(
    goal: tuple[str, str, str],
    receptacles: tuple[Receptacle, ...],
    things: tuple[Thing, ...],
    holds: str = "Desk Drawer",
) -> Problem:
    return Problem(
        name="hand_made",
        start="loc_bar_0",
        locations=("loc_bar_0", "loc_bar_1", "loc_bar_2"),
        receptacles=receptacles,
        things=things,
        can_contain=frozenset((kind, "Mug") for kind in holds.split()),
        goal=Goal(task_type=goal[0], object_type=goal[1], target_type=goal[2]),
    )


DESK = Receptacle(id="Desk_bar_1", type="Desk", location="loc_bar_1")
DRAWER = Receptacle(id="Drawer_bar_1", type="Drawer", location="loc_bar_1", openable=True)
FRIDGE = Receptacle(id="Fridge_bar_1", type="Fridge", location="loc_bar_2", openable=True)
PLACE = ("pick_and_place_simple", "Mug", "Drawer")
TWO = ("pick_two_obj_and_place", "Mug", "Drawer")
COOL = ("pick_cool_then_place_in_recep", "Mug", "Desk")


def mug(number: int, *receptacles: str, **flags: bool) -> Thing:
    return Thing(id=f"Mug_bar_{number}", type="Mug", receptacles=receptacles, pickupable=True, coolable=True, **flags)


@pytest.mark.parametrize(
    ("goal", "things", "plan"),
    [
        # Two receptacles of one place: no walk between them.
        (
            PLACE,
            [mug(1, "Desk_bar_1")],
            ["go to desk 1", "take mug 1 from desk 1", "open drawer 1", "move mug 1 to drawer 1"],
        ),
        # The nearer of two, opened once for two things out of it.
        (
            ("pick_two_obj_and_place", "Mug", "Desk"),
            [mug(1, "Drawer_bar_1"), mug(2, "Drawer_bar_1"), mug(3, "Fridge_bar_1")],
            [
                "go to drawer 1",
                "open drawer 1",
                "take mug 3 from drawer 1",
                "move mug 3 to desk 1",
                "take mug 2 from drawer 1",
                "move mug 2 to desk 1",
            ],
        ),
        # One of two is where it should be.
        (
            TWO,
            [mug(1, "Drawer_bar_1"), mug(2, "Desk_bar_1")],
            ["go to desk 1", "take mug 1 from desk 1", "open drawer 1", "move mug 1 to drawer 1"],
        ),
        # Cool already: carried only.
        (
            COOL,
            [mug(1, "Fridge_bar_1", cool=True), mug(2, "Fridge_bar_1")],
            [
                "go to fridge 1",
                "open fridge 1",
                "take mug 2 from fridge 1",
                "go to desk 1",
                "move mug 2 to desk 1",
            ],
        ),
        # Listed in two receptacles, as some official things are: taken from one it still counts as being in the other.
        (
            COOL,
            [mug(1, "Drawer_bar_1", "Desk_bar_1")],
            [
                "go to drawer 1",
                "open drawer 1",
                "take mug 1 from drawer 1",
                "go to fridge 1",
                "cool mug 1 with fridge 1",
            ],
        ),
        (PLACE, [mug(1, "Drawer_bar_1")], []),
        (COOL, [mug(1, "Desk_bar_1", cool=True)], []),
        (TWO, [mug(1, "Desk_bar_1")], None),
        (("pick_heat_then_place_in_recep", "Mug", "Desk"), [mug(1, "Drawer_bar_1")], None),
        (("look_at_obj_in_light", "Mug", "DeskLamp"), [mug(1, "Drawer_bar_1")], None),
        (("pick_and_place_simple", "Mug", "Fridge"), [mug(1, "Drawer_bar_1")], None),
    ],
)
def test_hand_made(goal: tuple[str, str, str], things: list[Thing], plan: list[str] | None) -> None:
    problem = problem_of(goal, (DESK, DRAWER, FRIDGE), tuple(things))
    found = shortest_plan(problem)
    assert (found if found is None else list(found)) == plan
    assert fewest_actions(problem, limit=6) == (None if plan is None else len(plan))
