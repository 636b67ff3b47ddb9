"""Invented shops by the name of their size, each made once a process, and the words that they use."""

import re
from functools import lru_cache
from typing import Literal

from siri.envs.webshop.catalogue import Catalogue
from siri.envs.webshop.pages import BACK, BUY, NEXT, PREVIOUS, SUB_PAGES
from siri.envs.webshop.procedural import procedural_catalogue
from siri.envs.webshop.procedural_words import BRANDS, KINDS, WISHES

ShopSize = Literal["small", "full"]
NUM_PRODUCTS: dict[ShopSize, int] = {"small": 100, "full": 1000}
"""A tiny policy learns to copy the code of a product one by one: of 400 it had learnt none after 10,000 episodes."""


@lru_cache(maxsize=32)  # a small one takes 0.1 s to make
def invented_shop(size: ShopSize, seed: int) -> Catalogue:
    return procedural_catalogue(NUM_PRODUCTS[size], seed)


def vocabulary() -> frozenset[str]:
    """Words of the invented shops in lower case: of pages, wishes, titles and options."""
    texts = [*BRANDS, *WISHES, *SUB_PAGES, BACK, BUY, NEXT, PREVIOUS, "click shop price lower dollars"]
    for kind in KINDS:
        texts += [kind.category, kind.product_category, kind.title, kind.query, *kind.qualities]
        texts += [text for name, values in kind.groups for text in (name, *values)]
    return frozenset(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
