"""Searching experts: they win, they search without repeating themselves, and they know only what was printed."""

from dataclasses import replace
from random import Random

import pytest
from conftest import shared_path
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.engine.environment import Observation
from siri.engine.errors import UserError
from siri.envs.household import Game, HouseholdEnv, load_games
from siri.envs.household.board import display_names
from siri.envs.household.experts import Order, SearchingExpert, likelihood
from siri.envs.household.generator import generate_game
from siri.envs.household.problem import Problem
from siri.envs.household.rooms import BY_ROOM, OPENABLE
from siri.envs.household.tasks import read_sentence

ORDERS: tuple[Order, ...] = ("uniform", "informed")


def play(game: Game, expert: SearchingExpert, steps: int = 200) -> tuple[list[Observation], list[str]]:
    """Observations, the first one included, and the actions between them."""
    env = HouseholdEnv(game)
    seen, actions = [env.reset()], []
    while not seen[-1].done and len(actions) < steps:
        actions.append(expert.act(seen[-1]))
        seen.append(env.step(actions[-1]))
    return seen, actions


def steps_to_win(games: list[Game], *, order: Order, noise: float = 0.0) -> list[int]:
    found = []
    for game in games:
        seen, actions = play(game, SearchingExpert(game.task, seed=game.id, order=order, noise=noise))
        assert seen[-1].success, (game.id, actions)
        found.append(len(actions))
    return found


def share_within(limit: int, steps: list[int]) -> float:
    return sum(n <= limit for n in steps) / len(steps)


# Measured on 200 games each (benchmarks/results/household_experts.json); floors leave three standard deviations.
@pytest.mark.parametrize(("size", "uniform", "informed"), [("small", 0.82, 0.87), ("full", 0.37, 0.87)])
def test_success_within_fifteen_steps(size: str, uniform: float, informed: float) -> None:
    games = [generate_game(f"floor-{i}", size="small" if size == "small" else "full") for i in range(100)]
    slow, fast = (steps_to_win(games, order=order) for order in ORDERS)
    assert share_within(15, slow) >= uniform
    assert share_within(15, fast) >= informed
    assert sum(fast) < 0.9 * sum(slow)
    assert all(len(game.walkthrough) <= n for game, n in zip(games, fast, strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_every_official_validation_game_is_won(order: Order) -> None:
    games = load_games(shared_path("data", "alfworld", "valid_seen.jsonl.xz"))
    steps = steps_to_win(games, order=order)
    assert share_within(50, steps) >= (0.9 if order == "uniform" else 0.98)


@pytest.mark.parametrize("order", ORDERS)
def test_recovers_from_random_actions(order: Order) -> None:
    games = [generate_game(f"noise-{i}", size="small") for i in range(100)]
    # Two random actions in five: every fourth game still ends within 15 steps, all within 200.
    assert share_within(15, steps_to_win(games, order=order, noise=0.4)) >= 0.25


def test_random_actions_are_marked_and_as_many_as_asked_for() -> None:
    marked = total = 0
    for i in range(200):
        game = generate_game(f"marked-{i}", size="small")
        expert = SearchingExpert(game.task, seed=i, noise=0.2)
        env = HouseholdEnv(game)
        observation = env.reset()
        while not observation.done:
            action = expert.act(observation)
            assert not expert.noisy or action in (observation.admissible or ())
            marked, total = marked + expert.noisy, total + 1
            observation = env.step(action)
    assert marked / total == pytest.approx(0.2, abs=0.03)  # 2500 draws: three standard deviations are 0.024.


@pytest.mark.parametrize("order", ORDERS)
def test_asks_nothing_twice_while_searching(order: Order) -> None:
    for i in range(150):
        game = generate_game(f"search-{i}", size="small" if i % 2 else "full")
        _, actions = play(game, SearchingExpert(game.task, seed=i, order=order))
        search = actions[: next(n for n, action in enumerate(actions) if action.startswith("take "))]
        assert len(set(search)) == len(search), (game.id, search)
        assert all(action.split()[0] in ("go", "open", "examine") for action in search), (game.id, search)


def test_seed_alone_decides_the_order() -> None:
    game = generate_game("order", size="full")
    runs = [play(game, SearchingExpert(game.task, seed=seed))[1] for seed in (1, 1, 2, 3, 4)]
    assert runs[0] == runs[1]
    assert len({actions[0] for actions in runs}) > 1


def test_a_hint_is_followed_first() -> None:
    for i in range(50):
        game = generate_game(f"hint-{i}")
        kinds = sorted({r.type.lower() for r in game.problem.receptacles})[:2]
        hints = {read_sentence(game.task).thing: ["no such place", *kinds[::-1]], "another": ["sinkbasin"]}
        _, actions = play(game, SearchingExpert(game.task, seed=i, hints=hints))
        assert actions[0].startswith(f"go to {kinds[1]} ")
        _, unaware = play(game, SearchingExpert(game.task, seed=i))
        assert play(game, SearchingExpert(game.task, seed=i, hints={"another": kinds}))[1] == unaware


def test_a_hint_about_the_lamp_is_followed_once_the_thing_is_in_hand() -> None:
    tried = 0
    for i in range(300):
        game = generate_game(f"lamp-{i}")
        errand = read_sentence(game.task)
        if errand.task_type != "look_at_obj_in_light":
            continue
        kinds = sorted({r.type.lower() for r in game.problem.receptacles})
        _, actions = play(game, SearchingExpert(game.task, seed=i, hints={errand.target: kinds[:1]}))
        taken = next(n for n, action in enumerate(actions) if action.startswith(f"take {errand.thing} "))
        gone = [action for action in actions[taken + 1 :] if action.startswith("go to ")]
        seen = [action for action in actions[:taken] if action.startswith("go to ")]
        searched = [action for action in gone if action not in seen]
        there = [
            f"go to {name}"
            for name in display_names(r.id for r in game.problem.receptacles).values()
            if name.startswith(f"{kinds[0]} ")
        ]
        if len(searched) > 1 and {*there} - {*seen}:  # one may be the way back to a lamp seen before
            assert searched[0].startswith(f"go to {kinds[0]} ")
            tried += 1
    assert tried >= 5


def reshuffled(problem: Problem, places: set[str], rng: Random) -> Problem:
    """The same problem, but what is not at one of `places` is somewhere else that is not, nor of the target type."""
    free = [r for r in problem.receptacles if r.location not in places and r.type != problem.goal.target_type]
    things = list(problem.things)
    for i, thing in enumerate(things):
        if free and thing.location not in places:
            home = rng.choice(free)
            things[i] = replace(thing, location=home.location, receptacles=(home.id,))
    return replace(problem, things=tuple(things))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 12),
    noise=st.sampled_from([0.0, 0.2]),
    order=st.sampled_from(ORDERS),
)
def test_what_was_not_seen_changes_nothing(seed: int, steps: int, noise: float, order: Order) -> None:
    """Two games that differ only where the agent has not been: the same actions until it goes there."""
    game = generate_game(seed, size="small" if seed % 2 else "full")
    seen, actions = play(game, SearchingExpert(game.task, seed=seed, order=order, noise=noise), steps)
    name_of = display_names([*(r.id for r in game.problem.receptacles), *(t.id for t in game.problem.things)])
    been = {r.location for r in game.problem.receptacles if f"go to {name_of[r.id]}" in actions[:-1]}
    problem = reshuffled(game.problem, been, Random(seed))
    other = Game(id=game.id, task=game.task, task_type=game.task_type, walkthrough=(), problem=problem)
    seen_there, actions_there = play(other, SearchingExpert(game.task, seed=seed, order=order, noise=noise), steps)
    assert seen_there[: len(actions)] == seen[: len(actions)]
    assert actions_there[: len(actions)] == actions


def test_texts_suffice() -> None:
    """The list of admissible commands plays no part in what the expert decides."""
    for i in range(100):
        game = generate_game(f"text-{i}")
        env = HouseholdEnv(game)
        with_list, without = (SearchingExpert(game.task, seed=i) for _ in range(2))
        observation = env.reset()
        while not observation.done:
            action = with_list.act(observation)
            assert without.act(replace(observation, admissible=None)) == action
            observation = env.step(action)


def test_likelihood_follows_the_tables() -> None:
    receptacles = ["fridge 1", "cabinet 1", "cabinet 2", "countertop 1", "toaster 1"]
    places = BY_ROOM["kitchen"].things["Apple"].places
    assert OPENABLE["Fridge"] == 1.0
    expected = [places["Fridge"] / 2, 0, 0, places["CounterTop"], 0]
    assert list(likelihood("apple", receptacles).values()) == expected
    bowl = likelihood("bowl", receptacles)
    assert bowl["cabinet 1"] == bowl["cabinet 2"] == BY_ROOM["kitchen"].things["Bowl"].places["Cabinet"] / 4
    assert set(likelihood("unicorn", receptacles).values()) == {0}


def test_refuses_a_sentence_it_cannot_read() -> None:
    with pytest.raises(UserError, match=r"task sentence 'dance\.'"):
        SearchingExpert("dance.", seed=0)
