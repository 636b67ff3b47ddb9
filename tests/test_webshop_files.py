"""Loading a shop from files and from data that are not what they should be."""

import json
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import shared_path
from webshop_oracles import edge_oracle

from siri.engine.errors import UserError
from siri.envs.webshop import Catalogue, WebShopEnv, load_catalogue
from siri.envs.webshop.catalogue import guess_nouns
from siri.envs.webshop.files import read_records
from siri.envs.webshop.folder import find_files
from siri.envs.webshop.goals import NO_LIMIT, draw_price_limit
from siri.envs.webshop.splits import winnable_goals
from siri.envs.webshop.stored import write_index

SHIRT: dict[str, Any] = {
    "asin": "A1",
    "name": "Plain Shirt",
    "full_description": "A shirt.",
    "small_description": ["It is plain."],
    "pricing": "$12.00",
    "customization_options": {"Color": [{"value": "Red"}, {"value": " Navy/White "}], "Size": None},
    "category": "fashion",
    "query": "Shirts ",
    "product_category": "Clothing › Shirts",  # noqa: RUF001 (what the official data have)
}
NOTES = {"A1": {"attributes": ["plain"], "instruction": "Find me a shirt", "instruction_attributes": ["plain"]}}


def load(*records: Any, notes: Any = NOTES, **settings: Any) -> Catalogue:
    return load_catalogue(list(records), notes, **settings)


def test_files_and_their_contents_load_alike(tmp_path: Path) -> None:
    data = edge_oracle()
    contents = {"products": data["products"], "attributes": data["attributes"], "nouns": {"nouns": data["nouns"]}}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    files = [tmp_path / f"{name}.json" for name in contents]
    read = load_catalogue(files[0], str(files[1]), None, files[2], seed=data["load_seed"], parity=True)
    given = load_catalogue(data["products"], data["attributes"], None, data["nouns"], seed=data["load_seed"])
    assert read.products == given.products
    assert list(read.goals) == list(given.goals)
    assert read.nouns("Oak desk") == given.nouns("Oak desk") == ["oak", "desk"]


def test_a_record_becomes_a_product() -> None:
    [product] = load(SHIRT).products
    assert product.options == (("color", ("red", "navy | white")),)
    assert (product.query, product.price, product.price_tag) == ("shirts", 12.0, "$12.0")


def test_num_products_counts_before_repeated_ones_are_dropped() -> None:
    others = [SHIRT, {**SHIRT, "asin": "A2"}]
    loaded = load(SHIRT, *others, num_products=2)
    assert [product.asin for product in loaded.products] == ["A1"]
    assert loaded.skipped.repeated == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name: None is not text"),
        ({"category": 3}, "category: 3 is not text"),
        ({"pricing": "12 dollars"}, "pricing: '12 dollars' has no amount"),
        ({"pricing": "$12 to $"}, "pricing: .* holds a '[$]' that no number follows"),
        ({"pricing": 12}, "pricing: 12 has no amount"),
        ({"small_description": [1]}, "small_description: it must be a text or a list of texts"),
        ({"customization_options": [1]}, "customization_options: list; it must map"),
        ({"customization_options": {"Size": [{"price": 1}]}}, "customization_options: group 'Size'"),
        ({"asin": 7}, "the record is no object with a text `asin`"),
    ],
)
def test_malformed_records_are_counted_or_with_parity_refused(change: dict[str, Any], message: str) -> None:
    broken = {**SHIRT, "asin": "A2", **change}
    loaded = load(broken, SHIRT)
    assert [product.asin for product in loaded.products] == ["A1"]
    assert loaded.skipped.malformed == 1
    assert loaded.skipped.first_malformed.startswith("products[0]: ")
    nouns = {"Plain Shirt": ["shirt"]}
    with pytest.raises(UserError, match=r"products\[0\]: " + message):
        load(broken, SHIRT, notes={**NOTES, "A2": {}}, title_nouns=nouns, parity=True)
    with pytest.raises(UserError, match="none of the records is a product"):
        load(broken)


def test_attributes_of_another_form() -> None:
    for entry in (["plain"], {"attributes": "plain"}, {"attributes": [1]}, {"instruction": 3}):
        loaded = load({**SHIRT, "asin": "A2"}, SHIRT, notes={**NOTES, "A2": entry})
        assert loaded.skipped.malformed == 1, entry


def test_names_that_are_skipped() -> None:
    loaded = load({**SHIRT, "asin": "nan"}, {**SHIRT, "asin": "LK_12345678"}, SHIRT)
    assert (loaded.skipped.nameless, loaded.skipped.malformed) == (2, 0)


def test_parity_wants_attributes_and_nouns_of_every_product() -> None:
    with pytest.raises(UserError, match=r"products\[1\]: attributes: no entry for 'A2'"):
        load(SHIRT, {**SHIRT, "asin": "A2"}, parity=True)
    with pytest.raises(UserError, match="title_nouns: 1 product names are not in the table, such as 'Plain Shirt'"):
        load(SHIRT, title_nouns={}, parity=True)
    with pytest.raises(UserError, match="title_nouns: None; parity needs the nouns"):
        load(SHIRT, parity=True)
    assert len(load(SHIRT, {**SHIRT, "asin": "A2"}).products) == 2


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({}, "attributes: none of the 1 products has an instruction"),
        ({"A1": {"instruction": "Buy"}}, "1 malformed, .* instruction_attributes: 'A1' has an instruction and none"),
        ({"A1": {"instruction": None}}, "attributes: none of the 1 products has an instruction"),
    ],
)
def test_nothing_to_shop_for(notes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(SHIRT, notes=notes)
    with pytest.raises(UserError, match="human_goals: none of the 1 products has an instruction"):
        load(SHIRT, notes=notes, human_goals={"A2": []})


def test_an_instruction_that_cannot_be_scored_costs_its_product_only() -> None:
    """Of 1.18 M one should not matter. Human goals do not look at it."""
    bare, notes = {**SHIRT, "asin": "A2"}, {**NOTES, "A2": {"instruction": "Buy", "instruction_attributes": []}}
    loaded = load(bare, SHIRT, notes=notes)
    assert [product.asin for product in loaded.products] == ["A1"]
    assert {goal.asin for goal in loaded.goals} == {"A1"}
    assert loaded.skipped.malformed == 1
    with pytest.raises(UserError, match=r"products\[0\]: instruction_attributes: 'A2'"):
        load(bare, SHIRT, notes=notes, title_nouns=lambda title: ["shirt"], parity=True)
    told = {"A2": [{"instruction": "a shirt", "instruction_attributes": ["plain"], "instruction_options": []}]}
    assert [goal.asin for goal in load(bare, SHIRT, notes=notes, human_goals=told).goals] == ["A2"]


def test_human_instructions() -> None:
    told = {"A1": [{"instruction": "a shirt.", "instruction_attributes": ["plain"], "instruction_options": ["red"]}]}
    goal = load(SHIRT, human_goals=told).goals[0]
    assert goal.instruction.startswith("a shirt, and price lower than ")
    assert goal.options == ("red",)
    for entry in ({"instruction": "a shirt."}, {**told["A1"][0], "instruction_options": "red"}, "a shirt"):
        with pytest.raises(UserError, match="human_goals: the entry of 'A1' must be a list of objects"):
            load(SHIRT, human_goals={"A1": [entry]})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    absent, broken, wrong = tmp_path / "absent.json", tmp_path / "broken.json", tmp_path / "wrong.json"
    broken.write_text("[1,", encoding="utf-8")
    wrong.write_text("{}", encoding="utf-8")
    for path, message in (
        (absent, "products: '.*absent.json' cannot be read"),
        (broken, "products: '.*broken.json' is not the JSON it must be"),
        (wrong, "products: '.*wrong.json' is not the JSON it must be [(]it begins with '{}'"),
    ):
        with pytest.raises(UserError, match=message):
            load_catalogue(path, NOTES)
    for path, message in (
        (absent, "attributes: '.*absent.json' cannot be read"),
        (broken, "attributes: '.*broken.json' is not the JSON it must be"),
        (tmp_path, "attributes: .* cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            load_catalogue([SHIRT], path)
    with pytest.raises(UserError, match="num_products: 0"):
        load(SHIRT, num_products=0)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "elements", [[], [SHIRT], [1, 12, "a,]", None, True, [], [[1]], {"a": [{}]}], [SHIRT, {"\u20ac": "\\"}] * 3]
)
def test_records_are_read_one_by_one(elements: list[Any], chunk: int, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    for indent in (None, 2):
        path.write_text(" \n" + json.dumps(elements, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
        assert list(read_records(path, "products", chunk)) == elements


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    for name, content in (("products", [SHIRT]), ("attributes", NOTES)):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8-sig")
    assert load_catalogue(tmp_path / "products", tmp_path / "attributes").products == load(SHIRT).products


@pytest.mark.parametrize("text", ["", "{}", "[", "[1", "[1,", "[1 2]", "[1,,2]", '["a]', "[{]", "[1;"])
def test_lists_that_are_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(text, encoding="utf-8")
    for chunk in (1, 1000):
        with pytest.raises(UserError, match=r"products: '.*list\.json' is not the JSON it must be"):
            list(read_records(path, "products", chunk))


def test_a_broken_list_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1, {broken " + "x" * 10_000 + ", 2]", encoding="utf-8")
    positions: list[int] = []
    records = read_records(path, "products", 100, positions.append, longest=500)
    assert next(records) == 1
    with pytest.raises(UserError, match=r"products: '.*list\.json' is not the JSON it must be"):
        next(records)
    # Text is decoded in blocks of 8192 bytes, so the file is read further than the chunks are.
    assert len(positions) < 8


def test_memory_of_a_thousand_products() -> None:
    """Under 60 MB with goals, search and full caches, reckoned from 394 real products."""
    names = ("products", "attributes", "title_nouns")
    products, attributes, nouns = (shared_path("data", "webshop", f"{name}.json") for name in names)
    tracemalloc.start()
    try:
        catalogue = load_catalogue(products, attributes, None, nouns)
        for product in catalogue.products:
            catalogue.search(product.title.lower())
            for name in ("item", "description", "features"):
                catalogue.page(catalogue.number[product.asin], name)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1e6 < taken < 60e6 * len(catalogue.products) / 1000


def test_nouns_without_a_table() -> None:
    assert guess_nouns("The Women's 2-Pack T-Shirt for Men, 100% Cotton") == ("women", "pack", "shirt", "men", "cotton")
    catalogue = load(SHIRT)
    env = WebShopEnv(catalogue, next(goal for goal in catalogue.goals if goal.options == (("color", "red"),)))
    env.reset()
    for action in ("search[shirt]", "click[a1]", "click[red]"):
        env.step(action)
    assert env.step("click[buy now]").success


@pytest.mark.parametrize("nouns", ["shirt", ["shirt", 3], None])
@pytest.mark.parametrize("wrapped", [False, True])
def test_nouns_of_another_form(nouns: Any, wrapped: bool, tmp_path: Path) -> None:
    """A text would be taken letter by letter, and score purchases by shared letters."""
    table: dict[str, Any] = {"Plain Shirt": nouns}
    given = {"nouns": table} if wrapped else table
    with pytest.raises(UserError, match=r"title_nouns: 'Plain Shirt' has .*; it must have a list of texts"):
        load(SHIRT, title_nouns=given)
    for name, content in (("products", [SHIRT]), ("attributes", NOTES), ("title_nouns", given)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"title_nouns: 'Plain Shirt' has"):
        write_index(find_files(tmp_path), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_price_limits() -> None:
    """Of the next four tens never the lowest: the others with 1, 2 and 3 of 6 pairs."""
    rng = Random(0)
    drawn = [draw_price_limit(20.0, rng) for _ in range(6000)]
    assert [round(drawn.count(limit) / 1000, 1) for limit in (30.0, 40.0, 50.0, 60.0)] == pytest.approx(
        [0.0, 1.0, 2.0, 3.0], abs=0.15
    )
    assert [draw_price_limit(price, rng) for price in (979.99, 980.0, 5000.0)] == [990.0, NO_LIMIT, NO_LIMIT]


def test_goals_lost_to_the_price_or_to_the_title() -> None:
    """Above the million that stands for no limit; and one of eleven nouns shared, which is less than a tenth."""

    def winnable(record: dict[str, Any], **settings: Any) -> list[int]:
        catalogue = load(record, **settings)
        return winnable_goals(catalogue, range(len(catalogue.goals)))

    assert winnable(SHIRT) == [0, 1]
    assert winnable({**SHIRT, "pricing": "$1000000"}) == [0, 1]
    assert winnable({**SHIRT, "pricing": "$1000001"}) == []
    assert winnable(SHIRT, title_nouns={"Plain Shirt": ["shirt"] * 10}) == [0, 1]
    assert winnable(SHIRT, title_nouns={"Plain Shirt": ["shirt"] * 11}) == []


def test_a_click_may_spell_the_blanks_of_an_asin() -> None:
    catalogue = load({**SHIRT, "asin": " A1"}, notes={" A1": NOTES["A1"]})
    env = WebShopEnv(catalogue, catalogue.goals[0])
    env.reset()
    shirt = next(action for action in env.step("search[shirt]").admissible or () if "a1" in action)
    assert shirt == "click[ a1]"
    assert env.step(shirt).action_valid


def test_options_that_a_click_cannot_choose() -> None:
    """A value with the name of a button, and one that belongs to a later group too, make goals that cannot be won."""
    record = {
        **SHIRT,
        "customization_options": {
            "One": [{"value": "Features"}, {"value": "green"}],
            "Two": [{"value": "green"}, {"value": "blue"}],
        },
    }
    catalogue = load(record)
    kept = {catalogue.goals[index].options for index in winnable_goals(catalogue, range(len(catalogue.goals)))}
    assert len(catalogue.goals) == 4
    # A wanted pair is compared by its value's colour, whatever the group: one green serves both.
    assert kept == {(("one", "green"), ("two", "green"))}
