"""Shopping goals: the official instructions with their price limits, as a compact shuffled list.

A catalogue has many more goals than products (6173 for 95 products of one sample: one for each combination of option
values), so a goal is stored as three numbers, 12 bytes, and spelled out when asked for.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from random import Random
from typing import Any, overload

import numpy as np

from siri.engine.errors import UserError
from siri.envs.webshop.product import Product

NO_LIMIT = 1_000_000.0
"""Price limit of a goal without one, in dollars."""
SHUFFLE_SEED = 233
"""Seed of the official goal order."""
WantedOption = tuple[str, str] | str
"""A wanted option value: with its group, or bare."""
_GRID = [10.0 * i for i in range(1, 100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the customer wants, and from which product the wish was made."""

    index: int
    """Place in the shuffled list."""
    product: int
    """Place of its product in the catalogue."""
    asin: str
    query: str
    category: str
    name: str
    product_category: str
    instruction: str
    """The whole text shown to the agent."""
    attributes: tuple[str, ...]
    price_upper: float
    """Dollars; `NO_LIMIT` where the text names no limit."""
    options: tuple[WantedOption, ...]
    """Pairs of a synthetic goal, bare values of a human one."""
    weight: float
    """Weight in the official session sampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanInstruction:
    """One instruction that a person wrote about a product."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


def draw_price_limit(price: float, rng: Random) -> float:
    """The larger of two of the next four multiples of ten above `price`; `NO_LIMIT`, drawing nothing, from 980 on."""
    above = [limit for limit in _GRID if limit > price][:4]
    return max(rng.sample(above, 2)) if len(above) >= 2 else NO_LIMIT


class Goals(Sequence[Goal]):
    """All goals of a catalogue in their shuffled order."""

    def __init__(
        self,
        *,
        products: Sequence[Product],
        product: np.ndarray,
        choice: np.ndarray,
        limit: np.ndarray,
        human: Mapping[int, Sequence[HumanInstruction]] | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        """`product` i32[G], `choice` i32[G] (number of the option combination, or of the human instruction) and `limit`
        f32[G] in dollars, all in goal order; `human` maps products to their instructions (None: synthetic goals);
        `weights` f64 by product (None: to be computed)."""
        self.product = product
        self.choice = choice
        self.limit = limit
        self._products = products
        self._human = human
        if weights is None:
            weights = np.ones(len(products)) if human is not None else _weights(products, product)
        self.weights = weights

    def __len__(self) -> int:
        return len(self.product)

    @overload
    def __getitem__(self, index: int) -> Goal: ...

    @overload
    def __getitem__(self, index: slice) -> list[Goal]: ...

    def __getitem__(self, index: int | slice) -> Goal | list[Goal]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # raises IndexError, and counts negative ones from the end
        product = self._products[self.product[index]]
        limit, choice = float(self.limit[index]), int(self.choice[index])
        options: tuple[WantedOption, ...]
        if self._human is None:
            attributes, text = product.instruction_attributes, product.instruction or ""
            options = pairs = _combination(product, choice)
            if pairs:
                text += " with " + ", and ".join(f"{name}: {value}" for name, value in pairs)
        else:
            said = self._human[int(self.product[index])][choice]
            attributes, options, text = said.attributes, said.options, said.text.strip(".")
        if limit != NO_LIMIT:
            text += f", and price lower than {limit:.2f} dollars"
        return Goal(
            index=index,
            product=int(self.product[index]),
            asin=product.asin,
            query=product.query,
            category=product.category,
            name=product.title,
            product_category=product.product_category,
            instruction=text,
            attributes=attributes,
            price_upper=limit,
            options=options,
            weight=self.weight(index),
        )

    def weight(self, index: int) -> float:
        return float(self.weights[self.product[index]])

    def shuffled(self, seed: int) -> "Goals":
        """The same goals in the order that Python's `random.seed(seed); random.shuffle(goals)` gives them."""
        order = list(range(len(self)))
        Random(seed).shuffle(order)
        return Goals(
            products=self._products,
            product=self.product[order],
            choice=self.choice[order],
            limit=self.limit[order],
            human=self._human,
            weights=self.weights,
        )


def synthetic_goals(products: Sequence[Product], rng: Random) -> Goals:
    """One goal for each combination of option values of each product with an instruction, in product order.

    Draws one price limit a product. An instruction has attributes: `ProductRecords` sees to it.
    """
    wanted: list[int] = []
    limits: list[float] = []
    sizes: list[int] = []
    for p, product in enumerate(products):  # once: those of an index are read at each look
        if product.instruction is None:
            continue
        wanted.append(p)
        limits.append(draw_price_limit(product.price, rng))
        sizes.append(prod(len(values) for _, values in product.options))
    return Goals(
        products=products,
        product=np.repeat(np.array(wanted, np.int32), sizes),
        choice=_counted(sizes),
        limit=np.repeat(np.array(limits, np.float32), sizes),
    )


def human_written_goals(products: Sequence[Product], told: Mapping[str, Any], rng: Random) -> Goals:
    """One goal for each human instruction with attributes (asin -> list of instructions), in product order.

    Draws one price limit an instruction. Raises UserError for entries of another form.
    """
    said = {
        p: _read_human(product.asin, told[product.asin]) for p, product in enumerate(products) if product.asin in told
    }
    sizes = [len(instructions) for instructions in said.values()]
    product = np.repeat(np.array(list(said), np.int32), sizes)
    limits = [draw_price_limit(products[p].price, rng) for p in product.tolist()]
    return Goals(
        products=products, product=product, choice=_counted(sizes), limit=np.array(limits, np.float32), human=said
    )


def _read_human(asin: str, entries: Any) -> tuple[HumanInstruction, ...]:
    try:
        return tuple(
            HumanInstruction(
                text=_texts([entry["instruction"]])[0],
                attributes=_texts(entry["instruction_attributes"]),
                options=_texts(entry["instruction_options"]),
            )
            for entry in entries
            if entry["instruction_attributes"]
        )
    except (TypeError, KeyError) as error:
        raise UserError(
            f"human_goals: the entry of '{asin}' must be a list of objects with `instruction`, `instruction_attributes`"
            f" and `instruction_options`; {error!r}"
        ) from error


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{values!r} is no list of texts")
    return tuple(values)


def _counted(sizes: Iterable[int]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(map(range, sizes)), np.int32)


def _combination(product: Product, number: int) -> tuple[tuple[str, str], ...]:
    """Combination `number` of the option values: groups sorted by name, the last one counting fastest."""
    chosen: list[tuple[str, str]] = []
    for name, values in sorted(product.options, reverse=True):
        number, place = divmod(number, len(values))
        chosen.append((name, values[place]))
    return tuple(reversed(chosen))


def _weights(products: Sequence[Product], product: np.ndarray) -> np.ndarray:
    """f64 by product: the mean over its goals' attributes of 1 / (goals that ask for the attribute)."""
    goals = np.bincount(product, minlength=len(products))
    wanted = {int(p): products[p].instruction_attributes for p in np.flatnonzero(goals)}
    asked: Counter[str] = Counter()
    for p, attributes in wanted.items():
        for attribute in attributes:
            asked[attribute] += int(goals[p])
    weights = np.zeros(len(products))
    for p, attributes in wanted.items():
        weights[p] = sum(1.0 / asked[attribute] for attribute in attributes) / len(attributes)
    return weights
