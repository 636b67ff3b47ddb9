"""What verl-agent shows and reads, against recorded episodes of its own classes."""

from typing import Any

import pytest
from webshop_oracles import oracle, shop

from siri.envs.webshop.engine import WebShopEnv
from siri.envs.webshop.pages import SEARCH, official_actions
from siri.envs.webshop.wrapper import SUCCESS_REWARD, project, prompt, shown, task_of


def recorded() -> dict[str, Any]:
    wrapper: dict[str, Any] = oracle()["verl_agent_wrapper"]
    return wrapper


def test_answers_are_read_alike() -> None:
    for answer in recorded()["projection"]:
        assert project(answer["text"]) == (answer["action"], bool(answer["valid"])), answer


@pytest.mark.parametrize("number", range(9))
def test_an_episode(number: int) -> None:
    """Rankings are the recorded ones. Three prompts of the last episode would pass 13000 characters."""
    episode = recorded()["episodes"][number]
    catalogue = shop(seed=episode["worker_seed"], shuffle_seed=episode["worker_seed"])
    rankings = recorded()["rankings"]
    env = WebShopEnv(
        catalogue,
        catalogue.goals[episode["goal_index"]],
        reward="score",
        parity=True,
        search=lambda query: [catalogue.number[asin] for asin in rankings[query]],
    )
    first = env.reset()
    task = task_of(first.text)
    assert task == episode["task"] == env.task
    observations, actions = [shown(first.text, task)], list[str]()
    listed = first.admissible or ()
    assert observations[0] == episode["reset"]["anchor"]
    assert prompt(task, observations, actions, listed, episode["history_length"]) == episode["reset"]["prompt"]
    for step in episode["steps"]:
        action, valid = project(step["model_output"])
        assert (action, valid) == (step["projected_action"], bool(step["is_action_valid"]))
        after = env.step(action)
        actions.append(action)
        observations.append(shown(after.text, task))
        # verl-agent resets a finished environment at once, and lists what can be done in the new episode.
        listed = official_actions(SEARCH) if after.done else after.admissible or ()
        assert observations[-1] == step["anchor"]
        assert prompt(task, observations, actions, listed, episode["history_length"]) == step["prompt"]
        assert after.reward == step["task_score"]
        assert after.done == step["done"]
        assert after.success == step["won"]
        assert (SUCCESS_REWARD if after.success else 0.0) == step["reward"]


def test_without_records_the_prompt_is_that_of_a_first_step() -> None:
    first = prompt("buy", ["'Search'"], [], ["search[x]"], 2)
    assert prompt("buy", ["'a'", "'Search'"], ["search[y]"], ["search[x]"], 0) == first
    assert prompt("buy", ["'a'", "'Search'"], ["search[y]"], ["search[x]"], 1) != first


def test_what_an_agent_sees_is_the_wrapper_s_form() -> None:
    """Without parity the text is that form at once."""
    catalogue = shop()
    official = WebShopEnv(catalogue, catalogue.goals[0], parity=True)
    ours = WebShopEnv(catalogue, catalogue.goals[0])
    assert ours.reset().text == shown(official.reset().text, official.task)
    for action in ("search[short sleeve]", "click[next >]", "click[< prev]", "click[B09QQP3356]", "click[features]"):
        after = ours.step(action)
        assert after.action_valid
        assert after.text == shown(official.step(action).text, official.task)
