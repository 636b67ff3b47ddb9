"""The default mode: what is accepted, what is paid, keys and states, and that nothing breaks it."""

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webshop_oracles import edge_shop, shop

from siri.engine.environment import Environment, Observation
from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue, load_catalogue
from siri.envs.webshop.engine import WebShopEnv
from siri.envs.webshop.procedural import procedural_catalogue
from siri.envs.webshop.state import State

SHOP = procedural_catalogue(60, seed=1)
GOAL = SHOP.goals[0]


def awkward() -> Catalogue:
    """Texts as odd as JSON allows, in every place that is shown."""
    odd = [
        "",
        " ",
        "\n",
        "a [SEP] b",
        "click[x]",
        "\x00\x1f",
        "\ud800",
        "ﬀİ",
        "< prev",
        "next >",
        "buy now",
        "search",
        "features",
    ]
    records = [
        {
            "asin": f"x{i}İ"[:10],
            "name": text,
            "full_description": text,
            "small_description": odd,
            "pricing": "$5 - $3" if i % 2 else None,
            "customization_options": {text: [{"value": value} for value in odd], "other": [{"value": text}]},
            "category": text,
            "query": text,
            "product_category": text,
        }
        for i, text in enumerate(odd)
    ]
    notes = {
        str(record["asin"]): {"attributes": odd, "instruction": record["name"], "instruction_attributes": odd[:3]}
        for record in records
    }
    return load_catalogue(records, notes)


AWKWARD = awkward()


def opened(catalogue: Catalogue = SHOP, **settings: Any) -> WebShopEnv:
    env = WebShopEnv(catalogue, catalogue.goals[0], **settings)
    assert isinstance(env, Environment)
    env.reset()
    return env


def perfect_purchase(env: WebShopEnv) -> Observation:
    env.step(f"search[{env.goal.name}]")
    env.step(f"click[{env.goal.asin}]")
    for option in env.goal.options:
        assert not isinstance(option, str)
        env.step(f"click[{option[1]}]")
    return env.step("click[buy now]")


def test_the_start() -> None:
    env = WebShopEnv(SHOP, GOAL)
    first = env.reset()
    assert env.task == GOAL.instruction
    assert first.text == "'Search'"
    assert first.admissible == ("search[<your query>]",)
    assert (first.reward, first.done, first.success, first.action_valid) == (0.0, False, False, None)


@pytest.mark.parametrize("reward", ["success", "score"])
def test_a_perfect_purchase(reward: str) -> None:
    last = perfect_purchase(opened(reward=reward))
    assert (last.reward, last.done, last.success, last.action_valid) == (1.0, True, True, True)
    assert last.admissible == ()


def test_a_purchase_without_options_is_paid_by_its_mode() -> None:
    paid = {}
    for reward in ("success", "score"):
        env = opened(reward=reward)
        env.step(f"search[{GOAL.name}]")
        env.step(f"click[{GOAL.asin}]")
        last = env.step("click[buy now]")
        assert (last.done, last.success) == (True, False)
        assert env.score is not None
        paid[reward] = last.reward
        attributes, options = len(GOAL.attributes), len(GOAL.options)
        assert env.score.reward == pytest.approx((attributes + 1) / (attributes + options + 1))
    assert paid == {"success": 0.0, "score": env.score.reward}


def test_a_restored_purchase_is_not_paid_again() -> None:
    env = opened(reward="score")
    bought = perfect_purchase(env)
    back = WebShopEnv(SHOP, GOAL, reward="score").restore(env.state)
    assert (bought.reward, back.reward, back.score, back.done, back.success) == (1.0, 0.0, 1.0, True, True)
    env.reset()
    assert env.score is None


def test_after_the_end() -> None:
    env = opened()
    perfect_purchase(env)
    with pytest.raises(RuntimeError, match=r"step\('search\[x\]'\) after the end of the episode"):
        env.step("search[x]")
    assert env.reset().text == "'Search'"


@pytest.mark.parametrize(
    "action",
    ["", "buy", "search", "search[]", "search[  ]", "click[]", "click[search]", "click[buy now]", "Click[next >]",
     "find[shoes]", "search shoes", "click", "[x]", "search[x", "click[p1]"],
)  # fmt: skip
def test_actions_that_do_nothing(action: str) -> None:
    env = WebShopEnv(SHOP, GOAL)
    first = env.reset()
    after = env.step(action)
    assert after.action_valid is False
    assert (after.text, after.anchor, after.reward, after.done) == (first.text, first.anchor, 0.0, False)
    assert env.state == State()


@pytest.mark.parametrize(
    ("action", "query"),
    [
        ("search[Red Shoes]", "red shoes"),
        ("  search[ red shoes ]\n", "red shoes"),
        ("search[shoes [2 pack]]", "shoes [2 pack]"),
        ("search[[2 pack] shoes]", "[2 pack] shoes"),
        ("search[red\nshoes]", "red\nshoes"),
        ("search[<a> shoes]", "<a> shoes"),
        ("search[<r>]", "<r>"),
        ("search[<c>]", "<c>"),
        ("search[item_page]", "item_page"),
        ("search[red shoes] please", "red shoes"),
    ],
)
def test_searches_that_the_official_environment_loses_or_dies_of(action: str, query: str) -> None:
    env = opened()
    after = env.step(action)
    assert after.action_valid
    assert env.state == State(kind="results", query=query, number=1)
    assert "Page 1 (Total results: " in after.text


def test_special_words_are_plain_text() -> None:
    env, plain = opened(), opened()
    assert env.step("search[<c> sneakers]").text == plain.step("search[c sneakers]").text


def test_listed_actions_all_work() -> None:
    for start in ("search[jeans]", "search[nothing like it]"):
        env = opened()
        queue, seen = [env.step(start)], set[bytes]()
        states = [env.state]
        while queue and len(seen) < 60:
            page, state = queue.pop(0), states.pop(0)
            seen.add(page.anchor)
            for action in page.admissible or ():
                env.restore(state)
                after = env.step(action)
                assert after.action_valid, (action, page.text)
                if not after.done and after.anchor not in seen:
                    queue.append(after)
                    states.append(env.state)


def test_padding_and_case_of_clicks() -> None:
    env = opened()
    env.step(f"search[{GOAL.name}]")
    for action in (f"click[ {GOAL.asin.lower()} ]", "click[< Prev]", f" click[{GOAL.asin}] "):
        assert env.step(action).action_valid


def test_keys_tell_situations_apart() -> None:
    """Equal where all that is seen and can follow is equal, though the way there differs."""
    env = opened()
    asin, (_, first), (_, second) = GOAL.asin, *GOAL.options[:2]

    def key(*actions: str) -> bytes:
        env.reset()
        return [env.step(action).anchor for action in actions][-1]

    find, item = f"search[{GOAL.name}]", f"click[{asin}]"
    here = key(find, item)
    assert here == key(find, "click[next >]", "click[< prev]", item, "click[features]", "click[< prev]")
    assert here == key(find, item, f"click[{first}]", "click[< prev]", item)  # leaving forgets the options
    assert here == key(f"search[{GOAL.name} zzzzz]", item)  # the same products, found by another query
    both = key(find, item, f"click[{first}]", f"click[{second}]")
    assert both == key(find, item, f"click[{second}]", f"click[{first}]")
    keys = [
        env.reset().anchor,
        key(find),
        key("search[zzzzz]"),
        key(find, "click[next >]"),
        here,
        key(find, item, "click[features]"),
        key(find, item, "click[description]"),
        key(find, item, f"click[{first}]"),
        key(find, item, f"click[{second}]"),
        both,
        key(find, item, f"click[{first}]", "click[features]"),
    ]
    assert len(set(keys)) == len(keys)


def wander(env: WebShopEnv, rng: Random, steps: int) -> list[tuple[str, Observation, State]]:
    page, path = env.reset(), []
    words = ["red", "jeans", "long sleeve", "women's", "tea", "x]", "zzzz", "sep"]
    for _ in range(steps):
        action = rng.choice(page.admissible or ("",))
        if action.startswith("search"):
            action = f"search[{' '.join(rng.sample(words, 2))}]"
        page = env.step(action)
        path.append((action, page, env.state))
        if page.done:
            break
    return path


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("catalogue", ["invented", "real", "edge", "awkward"])
def test_a_restored_session_goes_on_alike(catalogue: str, parity: bool) -> None:
    shops = {"invented": lambda: SHOP, "real": shop, "edge": edge_shop, "awkward": lambda: AWKWARD}
    goods = shops[catalogue]()
    rng = Random(0)
    for _ in range(40):
        env = WebShopEnv(goods, goods.goals[rng.randrange(len(goods.goals))], reward="score", parity=parity)
        path = wander(env, rng, 15)
        cut = rng.randrange(len(path))
        state = State.from_dict(json.loads(json.dumps(path[cut][2].as_dict())))
        assert state == path[cut][2]
        again = WebShopEnv(goods, env.goal, reward="score", parity=parity)
        back = again.restore(state)
        assert (back.text, back.anchor, back.admissible) == (
            path[cut][1].text,
            path[cut][1].anchor,
            path[cut][1].admissible,
        )
        assert [again.step(action) for action, _, _ in path[cut + 1 :]] == [page for _, page, _ in path[cut + 1 :]]
        assert again.score == env.score


def test_random_products_are_those_of_the_state() -> None:
    """The official `<r>` draws 50 products for each page of results."""
    env = opened(parity=True)
    pages = [env.step(action) for action in ("search[<r>]", "click[next >]", "click[< prev]")]
    assert all("(Total results: 50)" in page.text for page in pages)
    assert pages[0].text == pages[2].text != pages[1].text
    item = env.step(f"click[{env.clickables[-1]}]")
    again = WebShopEnv(SHOP, GOAL, parity=True)
    assert again.restore(env.state).anchor == item.anchor
    assert again.step("click[< prev]") == env.step("click[< prev]")


ODD = st.one_of(
    st.text(max_size=40),
    st.text(max_size=40).map(lambda text: f"search[{text}]"),
    st.text(max_size=40).map(lambda text: f"click[{text}]"),
    st.sampled_from(
        ["search[" + "ab[] " * 2000 + "]", "search[\ud800]", "click[\x00]", "search[\x1b[2J]", "search[🙆🏽‍♀️]"]
    ),
    st.integers(0, 40),
)


@settings(max_examples=150)
@given(actions=st.lists(ODD, max_size=12), parity=st.booleans(), number=st.integers(0, 30))
def test_no_action_breaks_it(actions: list[str | int], parity: bool, number: int) -> None:
    """Numbers stand for the listed actions. With parity `<r>` and its like do raise, as recorded: they are left out."""
    for goods in (SHOP, AWKWARD):
        env = WebShopEnv(goods, goods.goals[number], parity=parity, reward="score")
        page = env.reset()
        for action in actions:
            listed = page.admissible or ("",)
            chosen = listed[action % len(listed)] if isinstance(action, int) else action
            if page.done or (parity and "<" in chosen):
                break
            page = env.step(chosen)
            assert 0.0 <= page.reward <= 1.0
            assert page.success == (page.reward == 1.0)
            assert State.from_dict(json.loads(json.dumps(env.state.as_dict()))) == env.state


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "cart"}, "state.kind: 'cart'; it must be one of search, results, item"),
        ({"page": 1}, "is no WebShop state"),
        ({"kind": "results"}, "state.query: None; on a page 'results' it must be a text"),
        ({"kind": "results", "query": "x", "number": "1"}, "state.number: '1'; on a page 'results' it must be an int"),
        ({"kind": "item", "query": "x", "number": 1}, "state.asin: None; on a page 'item' it must be a text"),
        ({"kind": "search", "query": "x", "number": 1}, "state.query: 'x'; on a page 'search' it must be None"),
        ({"options": ["red"]}, "is no WebShop state"),
        ({"kind": "results", "query": "x", "number": 0}, "state.number: 0"),
        ({"options": {"color": "red"}}, r"state.options: {'color': 'red'}; on a page 'search' none can be chosen"),
        ({"kind": "results", "query": "x", "number": 1, "options": {"a": "b"}}, "on a page 'results' none can be"),
        ({"visited": ["A1"]}, r"state.visited: \('A1',\); it must be ASINs, and none on the search page"),
        ({"kind": "results", "query": "x", "number": 1, "visited": [1]}, r"state.visited: \(1,\); it must be ASINs"),
    ],
)
def test_states_that_are_none(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        State.from_dict(data)


def test_states_of_other_catalogues() -> None:
    env = opened()
    state = State(kind="item", query="x", number=1, asin="B000000000")
    with pytest.raises(UserError, match=r"state\.asin: 'B000000000' is not in this catalogue"):
        env.restore(state)
    with pytest.raises(UserError, match=r"has no option 'colour': 'red'"):
        env.restore(State(kind="item", query="x", number=1, asin=GOAL.asin, options={"colour": "red"}))
