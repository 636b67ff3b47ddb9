"""The invented shop, the splits and the task source."""

from collections import Counter
from random import Random

import pytest
from webshop_oracles import shop

from siri.engine.environment import Environment, TaskSource
from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue, load_catalogue
from siri.envs.webshop.engine import WebShopEnv
from siri.envs.webshop.goals import Goal
from siri.envs.webshop.procedural import (
    ProceduralAttributes,
    procedural_catalogue,
    procedural_records,
    title_nouns,
)
from siri.envs.webshop.procedural_words import EXCLUSIVE, KINDS
from siri.envs.webshop.source import ProceduralShop, ShopTasks
from siri.envs.webshop.splits import SplitBy, split_goals, winnable_goals


@pytest.fixture(scope="module")
def invented() -> Catalogue:
    return procedural_catalogue(300, seed=3)


def read_and_buy(catalogue: Catalogue, goal: Goal) -> bool:
    """Shops by what a reader of the instruction and the pages knows; says whether that was right."""
    env = WebShopEnv(catalogue, goal)
    env.reset()
    wish = goal.instruction.split(" with ")[0]
    page = env.step(f"search[{wish}]")
    parts = [part[1:-1] for part in page.text.split(" [SEP] ")]
    kind = goal.query.removesuffix("s").split("'s ")[-1]
    for asin, title, tag in zip(parts[3::3], parts[4::3], parts[5::3], strict=True):
        shown = title.lower()
        cheap = float(tag.split("$")[1].split(" ")[0]) <= goal.price_upper
        if not cheap or kind not in shown or not all(quality in shown for quality in goal.attributes):
            continue
        env.step(f"click[{asin}]")
        clicks = [f"click[{value}]" for _, value in goal.options]
        if all(env.step(click).action_valid for click in clicks):
            return env.step("click[buy now]").success
        env.step("click[< prev]")
    return False


def test_goals_of_the_invented_shop_can_be_won(invented: Catalogue) -> None:
    everything = range(len(invented.goals))
    assert winnable_goals(invented, everything) == list(everything)
    goals = [invented.goals[i] for i in Random(0).sample(everything, 150)]
    # A limit inside a price range, a men's product for a women's wish: a reader as simple as this one errs at times.
    assert sum(read_and_buy(invented, goal) for goal in goals) >= 130


def test_buying_the_first_thing_does_not_win(invented: Catalogue) -> None:
    won = 0
    for goal in invented.goals[:100]:
        env = WebShopEnv(invented, goal)
        env.reset()
        page = env.step(f"search[{goal.query}]")
        first = next(action for action in page.admissible or () if action.startswith("click[p"))
        env.step(first)
        won += env.step("click[buy now]").success
    assert won == 0


def test_the_invented_shop_is_its_seed() -> None:
    one, same, more, other = (procedural_catalogue(n, seed=s) for n, s in ((50, 1), (50, 1), (80, 1), (50, 2)))
    assert one.products == same.products
    assert list(one.goals) == list(same.goals)
    assert more.products[:50] == one.products
    assert not set(other.products) & set(one.products)
    assert len({kind.query for kind in KINDS}) == len(KINDS) == 38


def test_qualities_do_not_contradict_each_other(invented: Catalogue) -> None:
    for product in invented.products:
        ends = Counter(quality.split()[-1] for quality in product.attributes)
        assert max(ends[word] for word in EXCLUSIVE) <= 1
        assert set(product.instruction_attributes) <= set(product.attributes)
        assert all(quality in product.title.lower() for quality in product.attributes)


def test_its_records_go_through_the_official_loader() -> None:
    loaded = load_catalogue(
        list(procedural_records(20)), dict(ProceduralAttributes(20)), title_nouns=title_nouns, parity=True
    )
    assert loaded.products == procedural_catalogue(20).products
    assert "P20" not in ProceduralAttributes(20)
    assert "P007" not in ProceduralAttributes(20)


def test_goals_that_cannot_be_won() -> None:
    """Numbers of an independent count: 438 goals of 10 products."""
    catalogue = shop()
    everything = range(len(catalogue.goals))
    lost = set(everything) - set(winnable_goals(catalogue, everything))
    assert len(lost) == 438
    by_product = Counter(catalogue.goals[index].asin for index in lost)
    assert len(by_product) == 10
    env = WebShopEnv(catalogue, catalogue.goals[min(lost)], reward="score")
    goal = env.goal
    env.reset()
    env.step(f"search[{goal.name}]")
    env.step(f"click[{goal.asin}]")
    for option in goal.options:
        assert not isinstance(option, str)
        env.step(f"click[{option[1]}]")
    bought = env.step("click[buy now]")
    assert 0.5 < bought.reward < 1.0
    assert not bought.success


@pytest.mark.parametrize("by", ["goal", "product", "official", "verl-agent"])
def test_splits_are_disjoint_and_fixed(by: SplitBy) -> None:
    catalogue = shop()
    splits = split_goals(catalogue, by=by, num_valid=300, num_test=200)
    assert splits == split_goals(catalogue, by=by, num_valid=300, num_test=200)
    members = Counter(index for goals in splits.values() for index in goals)
    assert max(members.values()) == 1
    assert all(list(goals) == sorted(goals) for goals in splits.values())
    expected = {
        "goal": {"test": 200, "valid": 300, "train": 5673},
        "official": {"test": 500, "eval": 1000, "train": 4673},
        "verl-agent": {"valid": 500, "train": 5673},
    }
    if by in expected:
        assert {name: len(goals) for name, goals in splits.items()} == expected[by]


def test_goals_that_cannot_be_won_are_left_out_and_counted() -> None:
    catalogue = shop()
    kept, whole = ShopTasks(catalogue, winnable_only=True), ShopTasks(catalogue)
    assert sum(kept.left_out.values()) == 438
    assert sum(whole.left_out.values()) == 0
    for split in whole.splits():
        assert len(kept.tasks(split)) == len(whole.tasks(split)) - kept.left_out[split]
        assert set(kept.tasks(split)) < set(whole.tasks(split))


def test_products_of_valid_and_test_are_not_in_train() -> None:
    catalogue = shop()

    def products(by: SplitBy) -> dict[str, set[int]]:
        splits = split_goals(catalogue, by=by)
        return {name: {catalogue.goals[i].product for i in goals} for name, goals in splits.items()}

    apart, shared = products("product"), products("official")
    order = sorted({goal.product for goal in catalogue.goals})
    Random(233).shuffle(order)  # the seed of the official goal order
    assert (apart["test"], apart["valid"]) == (set(order[:22]), set(order[22:44]))
    assert not apart["train"] & (apart["valid"] | apart["test"])
    assert not apart["valid"] & apart["test"]
    assert [len(apart[name]) for name in ("train", "valid", "test")] == [172, 22, 22]
    # What the split by product is for; the numbers are those of an independent count.
    assert len(shared["test"]) == 95
    assert len(shared["test"] & shared["train"]) == 89


def test_source_keeps_the_protocol(invented: Catalogue) -> None:
    source = ShopTasks(invented, num_valid=20, num_test=10)
    assert isinstance(source, TaskSource)
    assert source.splits() == ("train", "valid", "test")
    assert [len(source.tasks(split)) for split in source.splits()] == [len(invented.goals) - 30, 20, 10]
    task = source.tasks("valid")[0]
    assert task == "shop/000010"
    assert source.tasks("valid")[-2:] == ["shop/000028", "shop/000029"]
    first, second = source.make(task), source.make(task)
    assert isinstance(first, Environment)
    assert first is not second
    assert first.reset() == second.reset()
    assert source.task(task) == first.task == invented.goals[10].instruction
    assert source.task_type(task) == invented.goals[10].category


def test_procedural_source() -> None:
    source = ProceduralShop(num_products=40, seed=5, num_valid=8, num_test=4)
    assert [len(source.tasks(split)) for split in ("valid", "test")] == [8, 4]
    assert source.tasks("train")[0].startswith("shop1/40/5/00")
    assert len({source.goal(task).product for task in source.tasks("valid")}) == 4  # a tenth of 40, two goals of each


def test_split_hash_tells_contents_apart() -> None:
    recorded = ProceduralShop(num_products=40).split_hash("valid")
    others = [
        ProceduralShop(num_products=41).split_hash("valid"),
        ProceduralShop(num_products=40, seed=1).split_hash("valid"),
        ProceduralShop(num_products=40).split_hash("test"),
        ProceduralShop(num_products=40).split_hash("valid", 3),
    ]
    assert ProceduralShop(num_products=40).split_hash("valid") == recorded
    assert len({recorded, *others}) == 5


def test_split_hash_sees_goals_and_products_behind_equal_ids() -> None:
    records, notes = list(procedural_records(40)), ProceduralAttributes(40)
    for record in records:
        record["pricing"] = "$20.00"  # without ranges no hidden price is drawn

    def digest(seed: int = 0) -> str:
        return ShopTasks(load_catalogue(records, notes, seed=seed), split_by="product").split_hash("valid")

    recorded = digest()
    assert digest() == recorded
    assert digest(seed=1) != recorded  # other price limits
    source = ShopTasks(load_catalogue(records, notes), split_by="product")
    held_out = {source.goal(task).asin for task in source.tasks("valid")}
    other = next(record for record in records if record["asin"] not in held_out)
    other["full_description"] += " New."
    assert digest() != recorded


def test_bad_arguments_are_named(invented: Catalogue) -> None:
    source = ShopTasks(invented, num_valid=20, num_test=10)
    for call, message in (
        (lambda: source.tasks("eval"), "split: 'eval' does not exist; this source has train, valid, test"),
        (lambda: source.make("shop/999999"), "task id 'shop/999999': no such goal"),
        (lambda: source.make("x"), "task id 'x': no such goal"),
        (lambda: split_goals(invented, num_valid=-1), "num_valid: -1"),
        (lambda: split_goals(invented, num_valid=9999), "leave none of"),
        (lambda: split_goals(invented, by="asin"), "split_by: 'asin'"),  # type: ignore[arg-type]
        (lambda: split_goals(procedural_catalogue(2), by="product"), "split_by: 'product' leaves none of"),
        (lambda: split_goals(procedural_catalogue(9), by="official"), "split_by: 'official' leaves none of"),
        (lambda: source.make("shop/" + "9" * 5000), "no such goal"),
        (lambda: procedural_catalogue(0), "num_products: 0"),
        (lambda: ProceduralShop(num_products=2), "num_products: 2"),
        (lambda: WebShopEnv(invented, invented.goals[0], reward="all"), "reward: 'all'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=message):
            call()
