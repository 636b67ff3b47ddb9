"""The recorded oracles of the official WebShop, loaded once for all tests; tests that ask are skipped without them."""

import json
from functools import cache
from typing import Any

from conftest import shared_path

from siri.envs.webshop.catalogue import Catalogue, load_catalogue
from siri.envs.webshop.goals import NO_LIMIT, Goal


def oracle() -> dict[str, Any]:
    """Recorded over 394 real products."""
    return _json(str(shared_path("oracles", "webshop.json")))


def edge_oracle() -> dict[str, Any]:
    """Recorded over 18 invented records of awkward content."""
    return _json(str(shared_path("oracles", "webshop_edge.json")))


def shop(*, seed: int = 0, shuffle_seed: int = 233) -> Catalogue:
    """The catalogue of the first oracle."""
    names = ("products", "attributes", "title_nouns")
    return _shop(*(str(shared_path("data", "webshop", f"{name}.json")) for name in names), seed, shuffle_seed)


@cache
def edge_shop() -> Catalogue:
    data = edge_oracle()
    return load_catalogue(
        data["products"], data["attributes"], None, data["nouns"], seed=data["load_seed"], parity=True
    )


def official_limit(goal: Goal) -> float | int:
    """The official code has an integer where there is no limit."""
    return 1000000 if goal.price_upper == NO_LIMIT else goal.price_upper


@cache
def _json(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        data: dict[str, Any] = json.load(file)
    return data


@cache
def _shop(products: str, attributes: str, nouns: str, seed: int, shuffle_seed: int) -> Catalogue:
    return load_catalogue(products, attributes, None, nouns, seed=seed, shuffle_seed=shuffle_seed, parity=True)
