"""Environment families: what `environment` may say, and the tasks that it stands for."""

import json
from pathlib import Path

import pytest
from conftest import shared_path

from siri.config import EnvironmentConfig, RunConfig
from siri.engine.config import load_config
from siri.engine.distributed import World
from siri.engine.environment import TaskSource
from siri.engine.errors import UserError
from siri.envs.webshop import procedural_catalogue
from siri.envs.webshop.procedural import ProceduralAttributes, procedural_records
from siri.families import FAMILIES, family_of, make_shop
from siri.given_skills import read_skills
from siri.guidance import screen_rules


def shop(**settings: object) -> EnvironmentConfig:
    return EnvironmentConfig.model_validate({"name": "webshop", "size": "small", **settings})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--environment.name webshop --environment.engine textworld",
            r"environment\.engine: textworld plays household",
        ),
        ("--environment.reward score", r"environment\.reward: score is for environment\.name: webshop, not household"),
        (
            "--environment.split_by goal",
            r"environment\.split_by: goal is for environment\.name: webshop, not household",
        ),
        ("--environment.name webshop --environment.path x", r"environment\.path: 'x' is for official games only"),
        ("--environment.name shop", r"environment\.name"),
        ("--environment.name webshop --environment.split_by official", r"environment\.split_by"),
    ],
)
def test_what_does_not_go_together_is_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(RunConfig, None, words.split())


def test_every_family_gives_a_source_of_its_tasks() -> None:
    for name, family in FAMILIES.items():
        config = RunConfig(environment=EnvironmentConfig(name=name, size="small", num_train=3, num_valid=2))  # type: ignore[arg-type]
        assert family_of(config.environment) is family
        with family.open_source(config, World()) as source:
            assert isinstance(source, TaskSource)
            assert source.name.startswith(name)
            for split in ("train", "valid"):
                source.check(split)
            assert len(source.tasks("valid")) == 2
            task = source.tasks("valid")[0]
            first = source.make(task).reset()
            assert family.shorten(first.text) == family.shorten(first.text).lower()
            assert (first.score is None) is (name == "household")
            assert {"buy" if name == "webshop" else "mug"} <= family.vocabulary()


def test_a_shop_has_the_size_and_the_splits_that_are_asked_for() -> None:
    small, full = make_shop(shop(num_valid=30)), make_shop(shop(size="full"))
    assert [len(source.catalogue.products) for source in (small, full)] == [100, 1000]
    assert [len(source.tasks("valid")) for source in (small, full)] == [30, 200]
    by_goal = make_shop(shop(split_by="goal"))

    def products(source, split: str) -> set[int]:
        return {source.goal(task).product for task in source.tasks(split)}

    assert not products(small, "train") & products(small, "valid")
    assert products(by_goal, "train") & products(by_goal, "valid")
    assert not set(by_goal.tasks("train")) & set(by_goal.tasks("valid"))


def half_right(source) -> tuple[float, float | None, bool]:
    """Reward, score and success of buying the goal's own product without its options."""
    task = source.tasks("train")[0]
    env, goal = source.make(task), source.goal(task)
    assert env.reset().score == 0.0
    env.step(f"search[{goal.name}]")
    assert env.step(f"click[{goal.asin}]").score == 0.0
    bought = env.step("click[buy now]")
    return bought.reward, bought.score, bought.success


def test_a_purchase_pays_its_success_or_its_score() -> None:
    reward, score, success = half_right(make_shop(shop()))
    assert (reward, success) == (0.0, False)
    assert 0 < (score or 0) < 1
    assert half_right(make_shop(shop(reward="score"))) == (score, score, False)


def write_products(folder: Path, products: str, attributes: str) -> None:
    folder.mkdir()
    (folder / products).write_text(json.dumps(list(procedural_records(40))))
    (folder / attributes).write_text(json.dumps(dict(ProceduralAttributes(40))))


@pytest.mark.parametrize(
    ("products", "attributes"),
    [("items_shuffle.json", "items_ins_v2.json"), ("items_shuffle_1000.json", "items_ins_v2_1000.json"),
     ("products.json", "attributes.json")],
)  # fmt: skip
def test_official_products_come_from_a_folder(
    products: str, attributes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_products(tmp_path / "data", products, attributes)
    given = make_shop(shop(games="official", path=str(tmp_path / "data"), num_valid=9))
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path / "data"))
    found = make_shop(shop(games="official", num_valid=9))
    assert given.catalogue.products == procedural_catalogue(40).products
    assert given.split_hash("valid") == found.split_hash("valid")
    assert len(found.tasks("valid")) == 9
    for reward in ("success", "score"):
        paid, score, _ = half_right(make_shop(shop(games="official", num_valid=9, reward=reward)))
        assert 0 < (score or 0) < 1
        assert paid == (score if reward == "score" else 0.0)


def test_official_products_that_are_not_there_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    with pytest.raises(UserError, match=r"environment\.path: official products need a folder, .*\$WEBSHOP_DATA"):
        make_shop(shop(games="official"))
    with pytest.raises(UserError, match=r"none of items_shuffle\.json, .* is there"):
        make_shop(shop(games="official", path=str(tmp_path)))
    write_products(tmp_path / "half", "products.json", "other.json")
    with pytest.raises(UserError, match=r"half: none of items_ins_v2\.json"):
        make_shop(shop(games="official", path=str(tmp_path / "half")))


def test_the_real_products_are_a_shop() -> None:
    folder = shared_path("data", "webshop")
    source = make_shop(shop(games="official", path=str(folder), split_by="goal", num_valid=100))
    assert (len(source.catalogue.products), len(source.catalogue.goals)) == (394, 6173)
    assert len(source.tasks("valid")) == 100


def test_skills_for_a_shop_are_written_in_its_words(tmp_path: Path) -> None:
    config = RunConfig(environment=shop())
    path = tmp_path / "skills.json"

    def read(condition: str, strategy: str) -> list[tuple[str, str]]:
        path.write_text(json.dumps([{"condition": condition, "strategy": strategy}]))
        words = family_of(config.environment).vocabulary()
        return read_skills(
            str(path), rules=screen_rules(config), max_size=9, count_tokens=lambda line: 1, vocabulary=words
        )

    skill = ("you shop for men's hoodies", "choose color, size")
    assert read(*skill) == [skill]
    with pytest.raises(UserError, match="number"):
        read("you shop for desks", "click p136")
