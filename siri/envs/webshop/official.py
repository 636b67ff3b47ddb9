"""Parts of the official environment that only parity needs: split ranges, session sampling, special search words."""

import json
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from string import ascii_lowercase

from siri.envs.webshop.goals import NO_LIMIT, Goal, Goals
from siri.envs.webshop.product import Product

MAX_RANDOM = 50


def official_splits(num_goals: int) -> dict[str, range]:
    """Index ranges of the official baseline: test, eval and train."""
    bounds = {"test": (0, 500), "eval": (500, 1500), "train": (1500, num_goals)}
    return {name: range(min(start, num_goals), min(stop, num_goals)) for name, (start, stop) in bounds.items()}


def verl_agent_splits(num_goals: int) -> dict[str, range]:
    """Index ranges that verl-agent's workers use: valid and train."""
    return {"valid": range(min(500, num_goals)), "train": range(min(500, num_goals), num_goals)}


def goal_line(goal: Goal) -> str:
    """A goal as one line of JSON: two lists of goals are the same if these lines are."""
    upper = 1_000_000 if goal.price_upper == NO_LIMIT else goal.price_upper  # an integer, only there
    bare = [option for option in goal.options if isinstance(option, str)]
    options = bare or dict(option for option in goal.options if not isinstance(option, str))
    fields = [goal.asin, goal.instruction, list(goal.attributes), upper, options]
    return json.dumps(fields, ensure_ascii=False)


class OfficialSessions:
    """Draws sessions as `reset()` without arguments does, with its off-by-one.

    Goal 0 is never drawn, goal i with the weight of goal i - 1, and the last one with two weights.
    """

    def __init__(self, goals: Goals, rng: Random) -> None:
        self._last = len(goals) - 1
        self._bounds = [0.0, *accumulate(goals.weight(i) for i in range(len(goals)))]
        self._rng = rng

    def draw(self) -> tuple[str, int]:
        """Session id and goal index."""
        session = "".join(self._rng.choices(ascii_lowercase, k=10))
        place = bisect(self._bounds, self._rng.uniform(0, self._bounds[-1]))
        return session, min(place, self._last)


def special_search(query: str, products: Sequence[Product], rng: Random) -> list[int] | None:
    """Products for a query led by `<r>`, `<c>`, `<q>` or `<a>`; None for any other.

    Raises what the official engine raises: TypeError for `<a>`, IndexError for a bare `<c>`, ValueError for `<r>` with
    fewer than 50 products.
    """
    first, *words = query.split(" ")
    if first == "<r>":
        return rng.sample(range(len(products)), MAX_RANDOM)
    if first == "<a>":
        raise TypeError("'NoneType' object is not subscriptable")
    if first == "<c>":
        return [p for p, product in enumerate(products) if product.category == words[0].strip()]
    if first == "<q>":
        return [p for p, product in enumerate(products) if product.query == " ".join(words).strip()]
    return None
