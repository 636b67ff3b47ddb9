"""The short form of the shop's pages, against the contents that the pages were made from."""

from random import Random

import pytest
from test_webshop_engine import AWKWARD
from webshop_oracles import edge_shop, shop

from siri.envs.webshop import Catalogue, State, WebShopEnv, procedural_catalogue
from siri.envs.webshop.brief import brief
from siri.envs.webshop.pages import SUB_PAGES

BUTTONS = ("back to search", "< prev", "next >", "buy now", "rating: n.a.", "[sep]")
CATALOGUES = {"invented": lambda: procedural_catalogue(60, seed=2), "official": shop, "awkward": edge_shop}


@pytest.fixture(scope="module", params=CATALOGUES)
def catalogue(request: pytest.FixtureRequest) -> Catalogue:
    return CATALOGUES[request.param]()


def flat(text: str) -> str:
    return " ".join(text.lower().split())


def test_pages_of_results_are_a_line_a_product(catalogue: Catalogue) -> None:
    env = WebShopEnv(catalogue, catalogue.goals[0])
    env.reset()
    queries = Random(0).sample([product.title for product in catalogue.products], min(30, len(catalogue.products)))
    for query in queries:
        observation = env.step(f"search[{query}]")
        found = [catalogue.products[p] for p in catalogue.search(query.lower())]
        for page in range(1, 4):
            here = found[10 * (page - 1) : 10 * page]
            lines = brief(observation.text).split("\n")
            if page > 1:
                assert lines.pop(0) == f"page {page}"
            expected = [flat(f"{product.asin} {product.title} {product.price_tag}") for product in here]
            assert [flat(line) for line in lines] == (expected or ["no results"])
            observation = env.step("click[next >]")


def test_the_page_of_a_product_is_its_options_title_and_price(catalogue: Catalogue) -> None:
    env = WebShopEnv(catalogue, catalogue.goals[0])
    with_options = 0
    for product in catalogue.products:
        env.reset()
        env.step(f"search[{product.title}]")
        while not env.step(f"click[{product.asin}]").action_valid:
            env.step("click[next >]")
        observation = env.step("click[features]")
        shown = brief(observation.text)
        assert flat(shown) == (flat(" ".join(product.bullets)) or "nothing here")
        page = env.step("click[< prev]")
        shown = brief(page.text)
        *options, last = shown.split("\n")
        assert flat(last) == flat(f"{product.title} {product.price_tag}")
        named = [text.strip() for name, values in product.options for text in (name, *values) if text.strip()]
        assert len(options) == bool(named)
        # What can be clicked is spelled as a click has to spell it.
        assert not options or options[0] == ", ".join(named)
        assert shown == brief(env.step("click[no such thing]").text)
        with_options += bool(options)
    assert with_options >= 5


def test_products_without_a_title_keep_their_line() -> None:
    """The official parser leaves no trace of an empty title, so a product may have two pieces in place of three."""
    env = WebShopEnv(AWKWARD, AWKWARD.goals[0])
    env.reset()
    found = [AWKWARD.products[p] for p in AWKWARD.search("search")]
    assert {"", "\n", " "} <= {product.title for product in found}
    assert len(found) > 10
    for page in (env.step("search[search]"), env.step("click[next >]")):
        here, found = found[:10], found[10:]
        lines = [line for line in brief(page.text).split("\n") if not line.startswith("page ")]
        assert list(map(flat, lines)) == [flat(f"{it.asin} {it.title} {it.price_tag}") for it in here]


def test_the_page_of_a_product_that_spells_buttons() -> None:
    """Every page of a shop with odd texts has a short form; one that ends with `Buy Now` is still a description."""
    env = WebShopEnv(AWKWARD, AWKWARD.goals[0], show_attributes=True)
    for product in AWKWARD.products:
        for kind in ("item", *SUB_PAGES):
            state = State.from_dict({"kind": kind, "query": "search", "number": 1, "asin": product.asin})
            shown = brief(env.restore(state).text)
            assert kind != "item" or flat(shown).endswith(flat(product.price_tag))
    assert brief("'Back to Search' [SEP] '< Prev' [SEP] 'Buy Now'") == "buy now"
    bare = "'Back to Search' [SEP] '< Prev' [SEP] 'Price: $5.0' [SEP] 'Rating: N.A.' [SEP] 'Buy Now'"
    assert brief(bare) == " $5.0"


def test_the_first_and_the_last_page() -> None:
    catalogue = procedural_catalogue(30)
    goal = catalogue.goals[0]
    env = WebShopEnv(catalogue, goal)
    assert brief(env.reset().text) == "search"
    env.step(f"search[{goal.name}]")
    env.step(f"click[{goal.asin}]")
    assert brief(env.step("click[reviews]").text) == "nothing here"
    env.step("click[< prev]")
    for _, value in goal.options:
        env.step(f"click[{value}]")
    assert brief(env.step("click[buy now]").text) == f"bought {goal.asin.lower()}, score 1.0"


def test_it_is_short_and_says_nothing_twice() -> None:
    catalogue = procedural_catalogue(400)
    env = WebShopEnv(catalogue, catalogue.goals[0])
    env.reset()
    text = env.step("search[women's jeans]").text
    assert len(brief(text)) < 0.85 * len(text)
    assert brief(text).count("p") >= 10
    assert not any(button in brief(text) for button in BUTTONS)


@pytest.mark.parametrize("text", ["", "'", "plain  Text\nof two lines", "'Instruction:", "''", "'' [SEP] ''"])
def test_any_text_has_a_short_form(text: str) -> None:
    assert "\n" not in brief(text)
    assert brief(text) == brief(text).lower()
