"""Products, prices, goals and sessions against what the official loader made of the same files."""

import hashlib
import json
from random import Random
from typing import Any

import pytest
from webshop_oracles import edge_oracle, edge_shop, official_limit, oracle, shop

from siri.envs.webshop.catalogue import Catalogue
from siri.envs.webshop.goals import Goal, Goals, human_written_goals
from siri.envs.webshop.official import OfficialSessions, official_splits, verl_agent_splits


def as_official(goal: Goal, *, human: bool = False) -> dict[str, Any]:
    return {
        "asin": goal.asin,
        "category": goal.category,
        "query": goal.query,
        "name": goal.name,
        "product_category": goal.product_category,
        "instruction_text": goal.instruction,
        "attributes": list(goal.attributes),
        "price_upper": official_limit(goal),
        "goal_options": list(goal.options) if human else dict(goal.options),
        "weight": pytest.approx(goal.weight, rel=1e-12),
    }


def goals_hash(goals: Goals) -> str:
    fields = ("asin", "instruction_text", "attributes", "price_upper", "goal_options")
    lines = (json.dumps([as_official(goal)[field] for field in fields], ensure_ascii=False) for goal in goals)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def prices(catalogue: Catalogue) -> dict[str, float]:
    return {product.asin: product.price for product in catalogue.products}


def test_hidden_prices() -> None:
    assert prices(shop()) == oracle()["product_prices"]
    assert prices(edge_shop()) == edge_oracle()["product_prices"]


def test_goals_their_order_and_their_limits() -> None:
    recorded = oracle()["goals"]
    goals = shop().goals
    assert len(goals) == recorded["n_goals"] == 6173
    assert goals_hash(goals) == recorded["sha256"]
    for index, goal in recorded["sample"].items():
        assert as_official(goals[int(index)]) == goal


def test_awkward_goals() -> None:
    assert [as_official(goal) for goal in edge_shop().goals] == edge_oracle()["goals"]


def test_goals_of_other_worker_seeds() -> None:
    """verl-agent's workers load with a seed of their own, which moves prices, limits and order."""
    for table in oracle()["verl_agent_wrapper"]["goal_tables"]:
        seed = table["worker_seed"]
        goals = shop(seed=seed, shuffle_seed=seed).goals
        assert goals_hash(goals) == table["sha256"]


def test_human_goals() -> None:
    recorded = oracle()["human_goals"]
    told, written = recorded["items_human_ins"], recorded["goals"]
    goals = human_written_goals(shop().products, told, Random(recorded["seed"]))
    assert [as_official(goal, human=True) for goal in goals] == written
    shuffled = goals.shuffled(oracle()["shuffle_seed"])
    assert [as_official(goal, human=True) for goal in shuffled] == [written[i] for i in recorded["order_after_shuffle"]]


def test_records_become_products() -> None:
    recorded = edge_oracle()
    products = {product.asin: product for product in edge_shop().products}
    assert list(products) == recorded["loaded_asins"]
    for asin, loaded in recorded["loaded"].items():
        product = products[asin]
        assert product.title == loaded["Title"]
        assert product.description == loaded["Description"]
        assert list(product.bullets) == loaded["BulletPoints"]
        assert product.price_tag == loaded["Price"]
        assert [(name, list(values)) for name, values in product.options] == list(loaded["options"].items())
        assert list(product.attributes) == loaded["Attributes"]
        assert product.query == loaded["query"]


def test_session_sampling_with_its_off_by_one() -> None:
    for recorded in oracle()["session_sampling"]:
        sessions = OfficialSessions(shop().goals, Random(recorded["random_seed"]))
        drawn = [sessions.draw() for _ in recorded["draws"]]
        assert drawn == [(draw["session"], draw["goal_index"]) for draw in recorded["draws"]]


def test_official_ranges() -> None:
    splits = official_splits(6173)
    assert [(name, r.start, r.stop) for name, r in splits.items()] == [
        ("test", 0, 500),
        ("eval", 500, 1500),
        ("train", 1500, 6173),
    ]
    assert [len(r) for r in official_splits(600).values()] == [500, 100, 0]
    assert verl_agent_splits(6173) == {"valid": range(500), "train": range(500, 6173)}
    assert [len(r) for r in verl_agent_splits(400).values()] == [400, 0]
