"""The shop's data, loaded once and shared by all environments of a process: products, goals, search, rendered pages."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from siri.engine.errors import UserError
from siri.envs.webshop.files import read_object, read_records
from siri.envs.webshop.goals import SHUFFLE_SEED, Goals, human_written_goals, synthetic_goals
from siri.envs.webshop.pages import Page, item_page, sub_page
from siri.envs.webshop.product import Product
from siri.envs.webshop.records import ProductRecords, Skipped
from siri.envs.webshop.reward import Nouns
from siri.envs.webshop.search import SearchIndex, build_index, index_text

# 4096 queries keep 50 hits each: 2 MB, more than the queries of an iteration of 256 episodes.
_CACHED_QUERIES, _LONGEST_CACHED_QUERY = 4096, 1000
# A page takes 4 to 12 kB.
_CACHED_PAGES = 1024
_WORD = re.compile(r"[^\W\d_]+")
# Words of titles that are no nouns, for catalogues without a table of nouns.
_FUNCTION_WORDS = """
a an and any are as at both by each for from fit free full good great has high in into is it its low more most new no
not of off on or our out over own per plus set small large long short soft than that the their them then this to ultra
under up very via we with without your you
"""
_NO_NOUNS = frozenset(_FUNCTION_WORDS.split())


class Catalogue:
    """Products and goals, read-only. Made by `load_catalogue`; safe to use from several threads."""

    def __init__(
        self,
        *,
        products: Sequence[Product],
        asins: Iterable[str],
        index: SearchIndex,
        goals: Goals,
        nouns: Nouns,
        skipped: Skipped,
    ) -> None:
        """`asins` are those of the products, and `index` finds these by their place."""
        self.products = products
        self.goals = goals
        self.nouns = nouns
        """Product name -> nouns, for the reward."""
        self.skipped = skipped
        self.index = index
        self.number = {asin: p for p, asin in enumerate(asins)}
        """ASIN -> place in `products`."""
        self._cached_search = lru_cache(maxsize=_CACHED_QUERIES)(self._search)
        self._cached_page = lru_cache(maxsize=_CACHED_PAGES)(self._page)

    def search(self, query: str) -> tuple[int, ...]:
        """Places of the best products for a query in lower case, best first, at most 50."""
        return self._cached_search(query) if len(query) <= _LONGEST_CACHED_QUERY else self._search(query)

    def page(self, product: int, name: str, *, show_attributes: bool = False) -> Page:
        """The page of the product at this place: "item", or one of `SUB_PAGES`."""
        return self._cached_page(product, name, show_attributes)

    def _search(self, query: str) -> tuple[int, ...]:
        return tuple(product for product, _ in self.index.search(query))

    def _page(self, product: int, name: str, show_attributes: bool) -> Page:
        it = self.products[product]
        return item_page(it, show_attributes=show_attributes) if name == "item" else sub_page(it, name)


def load_catalogue(
    products: str | Path | Iterable[Mapping[str, Any]],
    attributes: str | Path | Mapping[str, Mapping[str, Any]],
    human_goals: str | Path | Mapping[str, Any] | None = None,
    title_nouns: str | Path | Mapping[str, Sequence[str]] | Nouns | None = None,
    *,
    num_products: int | None = None,
    seed: int = 0,
    shuffle_seed: int = SHUFFLE_SEED,
    parity: bool = False,
) -> Catalogue:
    """Load a catalogue of the official format; each argument is a file or what it holds.

    Args:
        products: records, as in `items_shuffle.json`.
        attributes: asin -> attributes and synthetic instruction, as in `items_ins_v2.json`.
        human_goals: asin -> instructions, as in `items_human_ins.json`. Given, they replace the synthetic ones.
        title_nouns: product name -> nouns (a file may wrap it as `{"nouns": ...}`), or a function. Without it the
            nouns are guessed from the words of the name, which changes the reward for other products than the goal's.
        num_products: keep this many records from the start, before repeated ones are dropped.
        seed: of hidden prices and price limits; the official `random.seed(seed)` before loading gives the same.
        shuffle_seed: of the goal order.
        parity: raise at a malformed record, and at a product that the attributes file lacks, as the official loader
            does. Otherwise the former is skipped and counted in `skipped`, and the latter is loaded without a goal.

    Raises UserError for a file that cannot be read, and for data without a single product or goal.
    """
    records = read_records(products, "products") if isinstance(products, str | Path) else products
    notes = read_object(attributes, "attributes") if isinstance(attributes, str | Path) else attributes
    told = read_object(human_goals, "human_goals") if isinstance(human_goals, str | Path) else human_goals
    if num_products is not None and num_products < 1:
        raise UserError(f"num_products: {num_products}; it must be at least 1, or None for all")
    rng = Random(seed)
    reader = ProductRecords(records, notes, rng, limit=num_products, strict=parity, synthetic=told is None)
    found = tuple(reader)
    check_found(len(found), reader.skipped)
    nouns = nouns_of(title_nouns)
    check_nouns(nouns)
    if parity and title_nouns is None:
        raise UserError(
            "title_nouns: None; parity needs the nouns of every product name, as the official tagger has them"
        )
    if parity and isinstance(nouns, _NounTable):
        nouns.check_names(found)
    goals = (synthetic_goals(found, rng) if told is None else human_written_goals(found, told, rng)).shuffled(
        shuffle_seed
    )
    check_goals(len(goals), len(found), human=told is not None)
    return Catalogue(
        products=found,
        asins=[product.asin for product in found],
        index=build_index((product.asin, index_text(product)) for product in found),
        goals=goals,
        nouns=nouns,
        skipped=reader.skipped,
    )


def check_found(products: int, skipped: Skipped) -> None:
    """Raises UserError if no product was found."""
    if not products:
        raise UserError(
            f"products: none of the records is a product ({skipped.malformed} malformed, the first one:"
            f" {skipped.first_malformed or 'none'}); give a list of records of the official format"
        )


def check_goals(goals: int, products: int, *, human: bool = False) -> None:
    """Raises UserError if there is no goal. `human`: they were to come from the file of human instructions."""
    if not goals:
        field, file = ("human_goals", "file of human instructions") if human else ("attributes", "attributes file")
        raise UserError(
            f"{field}: none of the {products} products has an instruction, so there is nothing to shop for; give"
            f" the {file} that belongs to the products"
        )


def check_nouns(nouns: Nouns) -> None:
    """Raises UserError if they come from a table that has something else than a list of texts for a name."""
    if isinstance(nouns, _NounTable):
        nouns.check()


class _NounTable:
    def __init__(self, table: Mapping[str, Sequence[str]]) -> None:
        self._table = table

    def __call__(self, title: str) -> Sequence[str]:
        nouns = self._table.get(title)
        return guess_nouns(title) if nouns is None else nouns

    def check(self) -> None:
        for title, nouns in self._table.items():
            if not isinstance(nouns, list | tuple) or not all(isinstance(noun, str) for noun in nouns):
                raise UserError(
                    f"title_nouns: {title!r} has {nouns!r}; it must have a list of texts, as in"
                    ' {"nouns": {"Oak desk": ["oak", "desk"]}}'
                )

    def check_names(self, products: Iterable[Product]) -> None:
        missing = [product.title for product in products if product.title not in self._table]
        if missing:
            raise UserError(
                f"title_nouns: {len(missing)} product names are not in the table, such as {missing[0]!r}; parity needs"
                " the nouns of each, so make the table from the products that are loaded"
            )


def guess_nouns(title: str) -> tuple[str, ...]:
    """Words of a name that may be nouns: all of them but numbers, single letters and common function words."""
    words = (word.lower() for word in _WORD.findall(title))
    return tuple(word for word in words if len(word) > 1 and word not in _NO_NOUNS)


def nouns_of(given: str | Path | Mapping[str, Any] | Nouns | None) -> Nouns:
    """Product name -> nouns, from what `load_catalogue` takes as `title_nouns`."""
    if given is None:
        return guess_nouns
    if callable(given):
        return given
    table = read_object(given, "title_nouns") if isinstance(given, str | Path) else given
    return _NounTable(table["nouns"] if isinstance(table.get("nouns"), Mapping) else table)
