"""Shopping in both prompt styles: what is shown stands on the page, and what is listed can be answered."""

from random import Random

import numpy as np
import pytest
from test_prompts import renderer
from test_webshop_engine import AWKWARD, SHOP

from siri.envs.webshop import Catalogue, WebShopEnv
from siri.envs.webshop.brief import brief

MAX_TURNS = 15


def showable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("goods", [SHOP, AWKWARD], ids=["invented", "awkward"])
@pytest.mark.parametrize("style", ["compact", "tagged"])
def test_listed_actions_are_read_back_and_accepted(style: str, goods: Catalogue) -> None:
    rng, r = Random(0), renderer(style, shorten=brief)
    kinds = set[str]()
    for number in range(6):
        env = WebShopEnv(goods, goods.goals[number])
        dialogue, seen = r.dialogue(["when you shop: choose size"]), env.reset()
        dialogue.start(env.task, seen)
        for _ in range(MAX_TURNS):
            prompt = r.decode(dialogue.prompt_ids())
            assert showable(env.task) in prompt
            assert "Hint: when you shop: choose size" in prompt
            assert showable(brief(seen.text) if style == "compact" else seen.text) in prompt
            listed = [action for action in seen.admissible or () if showable(action) == action and "\n" not in action]
            action = rng.choice(listed)
            if action.startswith("search"):
                action = f"search[{rng.choice(('jeans', 'search', 'a [2 pack]'))}]"
            assert style == "compact" or f"'{showable(action)}'" in prompt or action.startswith("search")
            answer = action if style == "compact" else f"<think>so</think><action> {action} </action>"
            ids = np.array([*r.literal(answer), r.after_action[0]], np.int32)
            parsed = dialogue.parse(ids)
            assert (parsed.parsed, parsed.text) == (True, action)
            seen = env.step(parsed.text)
            assert seen.action_valid
            kinds.add(env.state.kind)
            dialogue.advance(ids, parsed, seen)
            if seen.done:
                break
    assert kinds >= {"search", "results", "item", "done"}
