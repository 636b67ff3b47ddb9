"""Every step of the recorded sessions, replayed: text, rich text, clickables, state, reward, end.

The ranking of each search is the recorded one, so that this is about pages and rules; search has its own tests.
"""

from typing import Any

import pytest
from webshop_oracles import edge_oracle, edge_shop, oracle, shop

from siri.engine.environment import Environment, Observation
from siri.envs.webshop.catalogue import Catalogue
from siri.envs.webshop.engine import WebShopEnv
from siri.envs.webshop.pages import make_page
from siri.envs.webshop.state import State


class Replayed:
    """The recorded rankings of one trace, step by step."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.step: dict[str, Any] = {}

    def __call__(self, query: str) -> list[int]:
        recorded = self.step["search"]
        assert query == recorded["query"]
        return [self.catalogue.number[asin] for asin in recorded["ranking"]]


def as_official(state: State) -> dict[str, Any]:
    return {
        "asin": state.asin,
        "page": state.number,
        "keywords": None if state.query is None else state.query.split(" "),
        "options": dict(state.options),
    }


def compare(env: WebShopEnv, observation: Observation, step: dict[str, Any]) -> None:
    assert observation.text == step["obs"]
    assert env.rich == step.get("obs_rich", env.rich)
    assert list(env.clickables) == step["clickables"]
    assert ("search[<your query>]" in (observation.admissible or ())) == step["has_search_bar"]
    assert as_official(env.state) == step["state"]
    assert observation.reward == step.get("reward", 0.0)
    assert observation.done == step.get("done", False)
    if step.get("done"):
        assert env.score is not None
        assert env.score.as_info() == step["reward_info"]
        assert observation.success == (step["reward"] == 1.0)


def replay(catalogue: Catalogue, trace: dict[str, Any]) -> int:
    """Plays a trace and compares every step; returns their number."""
    ranking = Replayed(catalogue)

    def start(goal: int) -> WebShopEnv:
        return WebShopEnv(
            catalogue,
            catalogue.goals[goal],
            reward="score",
            parity=True,
            show_attributes=trace["show_attrs"],
            search=ranking,
        )

    env = start(trace["goal_index"])
    assert isinstance(env, Environment)
    compare(env, env.reset(), trace["reset"])
    for step in trace["steps"]:
        ranking.step = step
        if "raises" in step:
            with pytest.raises((TypeError, IndexError, ValueError)) as caught:
                env.step(step["action"])
            assert type(caught.value).__name__ == step["raises"]
        elif step["action"] == "__reset__":
            env = start(step["session"])
            compare(env, env.reset(), step)
        else:
            compare(env, env.step(step["action"]), step)
    return len(trace["steps"])


def test_every_step_among_real_products() -> None:
    assert sum(replay(shop(), trace) for trace in oracle()["traces"]) == 319


def test_every_step_among_awkward_products() -> None:
    assert sum(replay(edge_shop(), trace) for trace in edge_oracle()["traces"]) == 125


def test_pieces_that_leave_a_node() -> None:
    """The parser's rules: nothing of an empty piece, nothing of blanks with a line break, an empty node of others."""
    pieces = ["a", "", " ", "\t ", " \n ", "\r\n", "\u00a0", "\u00a0 \n", "  b\n c ", "\x0b"]
    page = make_page([("text", piece) for piece in pieces])
    assert page.quoted == "'a' [SEP] '' [SEP] '' [SEP] '' [SEP] '' [SEP] 'b\n c' [SEP] ''"
