"""Purchases against the rewards that the official code gave for them, part by part."""

import pytest
from webshop_oracles import oracle, shop

from siri.envs.webshop.goals import Goal
from siri.envs.webshop.product import Product
from siri.envs.webshop.reward import score_purchase


def wanted(record: dict) -> Goal:
    options = record["goal_options"]
    return Goal(
        index=0,
        product=0,
        asin="",
        query=record["query"],
        category="",
        name=record["name"],
        product_category=record["product_category"],
        instruction="",
        attributes=tuple(record["attributes"]),
        price_upper=record["price_upper"],
        options=tuple(options.items()) if isinstance(options, dict) else tuple(options),
        weight=1.0,
    )


def bought(record: dict) -> Product:
    if "asin" in record:
        catalogue = shop()
        return catalogue.products[catalogue.number[record["asin"]]]
    inline = record["inline"]
    return Product(
        asin="",
        title=inline["Title"],
        description=inline["Description"],
        bullets=tuple(inline["BulletPoints"]),
        price_tag="",
        price=0.0,
        options=(),
        attributes=tuple(inline["Attributes"]),
        query=inline["query"],
        category="",
        product_category=inline["product_category"],
        instruction=None,
        instruction_attributes=(),
    )


def test_every_recorded_purchase() -> None:
    rows = oracle()["reward_rows"]
    assert len(rows) == 300
    for row in rows:
        product, goal, nouns = bought(row["purchased"]), wanted(row["goal"]), shop().nouns
        if table := row.get("nouns"):
            nouns = dict(zip([product.title, goal.name], [table["purchased"], table["goal"]], strict=True)).__getitem__
        score = score_purchase(product, list(row["options"].values()), goal, nouns, price=row["price"])
        assert score.reward == row["reward"], row["id"]
        assert score.num_attribute_matches == row["num_attr_matches"], row["id"]
        assert score.num_option_matches == row["num_option_matches"], row["id"]
        assert score.as_info() == pytest.approx(row["info"], rel=0, abs=0), row["id"]
