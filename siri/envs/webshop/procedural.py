"""An invented shop of any size, so that everything runs without data.

The records have the official format and go through the official rules. What a goal asks for stands on the page of
results, all of it: the qualities are part of the titles, next to the price, and the options are those of the item page.
"""

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue, guess_nouns, load_catalogue
from siri.envs.webshop.procedural_words import BRANDS, BULLETS, EXCLUSIVE, KINDS, WISHES, Kind

VERSION = 1
"""Counted up whenever a seed gives another shop than before."""
# Of a hundred products, so many have a price range.
_RANGES = 15


_NOUNS = frozenset(word for text in (*BRANDS, *(kind.title for kind in KINDS)) for word in guess_nouns(text))


def procedural_catalogue(num_products: int, seed: int = 0) -> Catalogue:
    """The shop of a seed. A larger one has the same products and more, at the same prices; limits of goals differ.

    Raises UserError for less than one product.
    """
    if num_products < 1:
        raise UserError(f"num_products: {num_products}; a shop needs at least 1")
    return load_catalogue(
        procedural_records(num_products, seed),
        ProceduralAttributes(num_products, seed),
        title_nouns=title_nouns,
        seed=seed,
    )


def procedural_records(num_products: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Product records of the official format, made one by one."""
    return (_record(index, seed)[0] for index in range(num_products))


class ProceduralAttributes(Mapping[str, dict[str, Any]]):
    """The attributes file that belongs to the records, made again at each look: a million entries would take 1 GB."""

    def __init__(self, num_products: int, seed: int = 0) -> None:
        self._num_products = num_products
        self._seed = seed

    def __getitem__(self, asin: str) -> dict[str, Any]:
        index = int(asin[1:]) if asin[1:].isdecimal() else self._num_products
        if asin != _asin(index) or index >= self._num_products:
            raise KeyError(asin)
        return _record(index, self._seed)[1]

    def __iter__(self) -> Iterator[str]:
        return map(_asin, range(self._num_products))

    def __len__(self) -> int:
        return self._num_products


def title_nouns(title: str) -> tuple[str, ...]:
    """The nouns of one of our titles: its maker and what it names."""
    return tuple(word for word in guess_nouns(title) if word in _NOUNS)


def _asin(index: int) -> str:
    # Short, because a small model copies it letter by letter.
    return f"P{index}"


def _record(index: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A product record and its entry in the attributes file."""
    rng = Random(f"{VERSION}/{seed}/{index}")
    kind, brand = rng.choice(KINDS), rng.choice(BRANDS)
    qualities = _qualities(kind, rng)
    wanted = rng.sample(qualities, min(len(qualities), rng.choice((1, 2, 2))))
    said = ", ".join(qualities)
    record = {
        "asin": _asin(index),
        "name": f"{brand} {kind.title}, {said.title()}",
        "full_description": f"{kind.title} by {brand}. {rng.choice(BULLETS).format(qualities=said)}",
        "small_description": [rng.choice(BULLETS).format(qualities=said), f"{brand} has made {kind.query} for years."],
        "pricing": _pricing(kind, rng),
        "customization_options": {
            name: [{"value": value} for value in _some(values, rng)] for name, values in kind.groups
        },
        "category": kind.category,
        "query": kind.query,
        "product_category": kind.product_category,
    }
    wish = rng.choice(WISHES).format(qualities=", ".join(wanted), query=kind.query)
    return record, {"attributes": qualities, "instruction": wish, "instruction_attributes": wanted}


def _qualities(kind: Kind, rng: Random) -> list[str]:
    """Two to four of the kind's qualities, of those that exclude each other one."""
    chosen: dict[str, str] = {}
    for quality in rng.sample(kind.qualities, rng.randint(2, 4)):
        last = quality.split()[-1]
        chosen.setdefault(last if last in EXCLUSIVE else quality, quality)
    return list(chosen.values())


def _some(values: tuple[str, ...], rng: Random) -> list[str]:
    """Two to five of the values, in their own order."""
    kept = set(rng.sample(values, rng.randint(2, min(5, len(values)))))
    return [value for value in values if value in kept]


def _pricing(kind: Kind, rng: Random) -> str:
    price = rng.randint(kind.cheapest, kind.dearest) - rng.choice((0.01, 0.05, 0.5))
    if rng.randrange(100) < _RANGES:
        return f"${price:.2f} - ${price * rng.uniform(1.1, 1.6):.2f}"
    return f"${price:.2f}"
