"""Random and adversarial actions, many of them: nothing raises, and a session put down anywhere goes on as before."""

import json
from collections import Counter
from random import Random

import pytest
from test_webshop_engine import AWKWARD, SHOP

from siri.engine.environment import Observation
from siri.envs.webshop import Catalogue, State, WebShopEnv

PIECES = (
    "[", "]", "[[", "]]", "search", "click", "Search", "buy now", "back to search", "< prev", "next >", "description",
    "<r>", "<a>", "<c>", "<q>", "\x00", "\x1b[2J", "\r\n", "\t", " ", "\u2028", "\u202e", "\ud800", "\ufeff", "ß", "İ",
    "ﬁ", "é", "の", "🙆🏽‍♀️", "★", "5'2", "x" * 300, "%s", "{}", "\\", "'", '"', " [SEP] ", "None", "-1", "1e9",
)  # fmt: skip


def noise(rng: Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(6)))


def adversarial(rng: Random, listed: tuple[str, ...]) -> str:
    """A listed action, one that was damaged, or none at all."""
    action = rng.choice(listed) if listed else ""
    kind = rng.random()
    if kind < 0.45:
        return action
    if kind < 0.6:
        cut = rng.randrange(len(action) + 1)
        return action[:cut] + noise(rng) + action[cut:]
    if kind < 0.8:
        return f"search[{noise(rng)} shirt {noise(rng)}]"
    if kind < 0.97:
        return rng.choice(("{}", "click[{}]", "search[{}", "search{}]", " click[ {} ] ")).format(noise(rng))
    return f"search[{(noise(rng) + 'ab ') * 3000}"[:10_000] + "]"


def told(page: Observation, env: WebShopEnv) -> tuple[Observation, State]:
    return page, env.state


def fuzz(goods: Catalogue, actions: int, seed: int) -> Counter[str]:
    """Plays so many actions, beside each session one that was restored from its JSON; how often each page was seen."""
    rng, seen = Random(seed), Counter[str]()
    left = actions
    while left > 0:
        goal = goods.goals[rng.randrange(len(goods.goals))]
        env, twin = (WebShopEnv(goods, goal, reward="score") for _ in range(2))
        page = env.reset()
        twin.reset()
        for _ in range(rng.randrange(1, 40)):
            if rng.random() < 0.3:
                state = State.from_dict(json.loads(json.dumps(env.state.as_dict())))
                assert state == env.state
                back = twin.restore(state)
                assert (back.text, back.anchor, back.admissible) == (page.text, page.anchor, page.admissible)
            action = adversarial(rng, page.admissible or ())
            page = env.step(action)
            assert told(page, env) == told(twin.step(action), twin), action
            assert 0.0 <= page.reward <= 1.0
            assert (page.reward == 0.0) or page.done
            assert page.text.encode("utf-8", "surrogatepass")
            seen[env.state.kind] += 1
            left -= 1
            if page.done:
                break
    return seen


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("goods", [SHOP, AWKWARD], ids=["invented", "awkward"])
def test_adversarial_actions(goods: Catalogue, seed: int) -> None:
    seen = fuzz(goods, 1_000, seed)
    assert {"search", "results", "item", "done"} <= set(seen)  # it gets about


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("goods", [SHOP, AWKWARD], ids=["invented", "awkward"])
def test_a_hundred_thousand_adversarial_actions(goods: Catalogue) -> None:
    seen = fuzz(goods, 100_000, seed=2)
    assert min(seen[kind] for kind in ("search", "results", "item", "description", "features", "reviews", "done")) > 100
