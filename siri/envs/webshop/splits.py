"""Which goals can be won at all, and which belong to training, validation and test."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Literal

from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue
from siri.envs.webshop.goals import SHUFFLE_SEED, Goal, WantedOption
from siri.envs.webshop.official import official_splits, verl_agent_splits
from siri.envs.webshop.pages import BACK, BUY, PREVIOUS, SEARCH_BUTTON, SUB_PAGES
from siri.envs.webshop.reward import option_matches, score_purchase

SplitBy = Literal["goal", "product", "official", "verl-agent"]
_WAYS: tuple[SplitBy, ...] = ("goal", "product", "official", "verl-agent")
# On the page of a product a click on one of these words never chooses an option.
_TAKEN = frozenset((SEARCH_BUTTON, BACK, PREVIOUS, BUY, *SUB_PAGES))
# Of the products with goals, each of the two small splits gets this share.
_PRODUCT_SHARE = 0.1


def winnable_goals(catalogue: Catalogue, indices: Iterable[int]) -> list[int]:
    """Those of the goals that some choice of options of their own product wins with a score of 1.0; 0.2 ms a goal.

    Of one sample of real data 438 of 6173 cannot be won: a colour named inside a value (`d01blue`) keeps the value from
    matching itself.
    """
    known: dict[tuple[WantedOption, str], bool] = {}
    kept = []
    for index in indices:
        goal = catalogue.goals[index]
        if _winnable(catalogue, goal, known):
            kept.append(index)
    return kept


def split_goals(
    catalogue: Catalogue,
    *,
    by: SplitBy = "goal",
    num_valid: int = 500,
    num_test: int = 500,
) -> dict[str, Sequence[int]]:
    """Split name -> goal indices, ascending; the splits are disjoint.

    Args:
        by: "goal": test, valid and train follow each other in the shuffled goal list, and share products.
            "product": a tenth of the products with goals is for test and a tenth for valid; each takes goals evenly
            from its products; no product behind a test or valid goal has a train goal.
            "official" (test, eval, train) and "verl-agent" (valid, train): their fixed index ranges.
        num_valid, num_test: goals of these splits; by "product" at most.

    Raises UserError for an unknown way, for a negative number, and where no goal is left for training.
    """
    for field, number in (("num_valid", num_valid), ("num_test", num_test)):
        if number < 0:
            raise UserError(f"{field}: {number}; it must be 0 or more")
    splits: Mapping[str, Sequence[int]]
    if by == "goal":
        splits = _by_goal(len(catalogue.goals), num_valid, num_test)
    elif by == "product":
        splits = _by_product(catalogue.goals.product.tolist(), num_valid, num_test)
    elif by in _WAYS:
        splits = (official_splits if by == "official" else verl_agent_splits)(len(catalogue.goals))
    else:
        raise UserError(f"split_by: '{by}'; it must be one of {', '.join(_WAYS)}")
    if not splits["train"]:
        total = len(catalogue.goals)
        if by == "goal":
            raise UserError(
                f"num_valid, num_test: {num_valid} and {num_test} leave none of {total} goals for training; ask for"
                " fewer, or load more products"
            )
        raise UserError(
            f"split_by: '{by}' leaves none of {total} goals for training, however many are asked for; load more"
            " products, or split by goal"
        )
    return dict(splits)


def _by_goal(total: int, num_valid: int, num_test: int) -> dict[str, Sequence[int]]:
    first, second = min(num_test, total), min(num_test + num_valid, total)
    return {"train": range(second, total), "valid": range(first, second), "test": range(first)}


def _by_product(product_of: Sequence[int], num_valid: int, num_test: int) -> dict[str, Sequence[int]]:
    products = sorted(set(product_of))
    Random(SHUFFLE_SEED).shuffle(products)
    share = max(1, round(_PRODUCT_SHARE * len(products)))
    belongs = dict.fromkeys(products, "train")
    belongs |= dict.fromkeys(products[:share], "test") | dict.fromkeys(products[share : 2 * share], "valid")
    goals: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for index, product in enumerate(product_of):
        goals[belongs[product]].append(index)
    return {
        "train": goals["train"],
        "valid": _evenly(goals["valid"], product_of, num_valid),
        "test": _evenly(goals["test"], product_of, num_test),
    }


def _evenly(goals: Sequence[int], product_of: Sequence[int], number: int) -> list[int]:
    """The first goal of each product, then the second of each, and so on: some have a thousand."""
    seen: Counter[int] = Counter()
    ranked = []
    for index in goals:
        ranked.append((seen[product_of[index]], index))
        seen[product_of[index]] += 1
    return sorted(index for _, index in sorted(ranked)[:number])


def _winnable(catalogue: Catalogue, goal: Goal, known: dict[tuple[WantedOption, str], bool]) -> bool:
    """`known` remembers which values match which wanted options, across goals."""

    def matches(wanted: WantedOption, value: str) -> bool:
        key = (wanted, value)
        if key not in known:
            known[key] = option_matches(wanted, value)
        return known[key]

    product = catalogue.products[goal.product]
    bare = score_purchase(product, (), goal, catalogue.nouns, price=product.price)
    if bare.r_type != 1.0 or not bare.r_price or bare.num_attribute_matches < bare.num_attributes:
        return False
    masks: dict[str, set[int]] = {}
    for value, group in catalogue.page(goal.product, "item").group_of.items():
        if value and value not in _TAKEN:
            # Bit i: the value satisfies the goal's option i.
            mask = sum(matches(wanted, value) << i for i, wanted in enumerate(goal.options))
            masks.setdefault(group, set()).add(mask)
    reached = {0}
    for choices in masks.values():
        reached |= {mask | before for mask in choices for before in reached}
    return (1 << len(goal.options)) - 1 in reached
