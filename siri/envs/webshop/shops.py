"""Invented shops by the name of their size, each made once a process."""

from functools import lru_cache
from typing import Literal

from siri.envs.webshop.catalogue import Catalogue
from siri.envs.webshop.procedural import procedural_catalogue

ShopSize = Literal["small", "full"]
NUM_PRODUCTS: dict[ShopSize, int] = {"small": 400, "full": 2000}
"""`small` has about ten products of a kind, one page of results; `full` has five pages, the most that are shown."""


@lru_cache(maxsize=32)  # a small one takes 0.1 s to make
def invented_shop(size: ShopSize, seed: int) -> Catalogue:
    return procedural_catalogue(NUM_PRODUCTS[size], seed)
