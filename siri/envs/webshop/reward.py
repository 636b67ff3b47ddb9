"""What a purchase is worth: the official score from 0 to 1, and its parts.

score = r_type * (matched attributes + matched options + (price within the limit)) / (attributes + options + 1)
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz.fuzz import token_set_ratio

from siri.envs.webshop.goals import Goal, WantedOption
from siri.envs.webshop.product import Product

Nouns = Callable[[str], Sequence[str]]
"""Product name -> its nouns in lower case, repetitions included."""

# A value counts as a colour's if the colour's name occurs anywhere in it; the first of the list wins.
_COLOUR_WORDS = """
alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo
caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream crystal
dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather indigo ivory
ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom
mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal rust sand sapphire
seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut wheat white
wine yellow
"""
_COLOURS = _COLOUR_WORDS.split()
_LATIN_1 = re.compile("[\x80-\xff]")
_NOT_WORD = re.compile(r"\W")
# thefuzz rounds the ratio to whole percents before it is compared, so 85.5 passes.
_THRESHOLD = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The value of a purchase and where it comes from. The names are the official ones."""

    reward: float
    """0 to 1."""
    r_type: float
    query_match: bool
    category_match: bool
    title_score: float
    num_attribute_matches: int
    num_attributes: int
    num_option_matches: int
    num_options: int
    r_price: bool

    def as_info(self) -> dict[str, float | bool]:
        """The official verbose record; without the option fields where the goal wants none."""
        total = self.num_attributes + self.num_options + 1
        info: dict[str, float | bool] = {
            "r_type": self.r_type,
            "r_att": self.num_attribute_matches / self.num_attributes,
            "w_att": self.num_attributes / total,
            "query_match": self.query_match,
            "category_match": self.category_match,
            "title_score": self.title_score,
            "r_price": self.r_price,
            "w_price": 1 / total,
        }
        if self.num_options:
            info["r_option"] = self.num_option_matches / self.num_options
            info["w_option"] = self.num_options / total
        return info


def score_purchase(product: Product, chosen: Sequence[str], goal: Goal, nouns: Nouns, *, price: float) -> Score:
    """The score of buying `product` for `price` dollars with the option values `chosen`."""
    query_match = product.query == goal.query
    category_match = len(_levels(product.product_category) & _levels(goal.product_category)) >= 2
    title_score = _title_score(nouns(product.title), nouns(goal.name))
    r_type = _type_reward(query_match or category_match, title_score)
    attributes = sum(attribute_matches(attribute, product) for attribute in goal.attributes)
    options = sum(any(option_matches(wanted, value) for value in chosen) for wanted in goal.options)
    within = price <= goal.price_upper
    total = len(goal.attributes) + len(goal.options) + 1
    return Score(
        reward=(attributes + options + within) / total * r_type,
        r_type=r_type,
        query_match=query_match,
        category_match=category_match,
        title_score=title_score,
        num_attribute_matches=attributes,
        num_attributes=len(goal.attributes),
        num_option_matches=options,
        num_options=len(goal.options),
        r_price=within,
    )


def attribute_matches(attribute: str, product: Product) -> bool:
    """The product has a similar attribute, or its texts spell this one."""
    return (
        any(_similar(known, attribute) for known in product.attributes)
        or attribute in product.title.lower()
        or attribute in " ".join(product.bullets).lower()
        or attribute in product.description.lower()
    )


def option_matches(wanted: WantedOption, value: str) -> bool:
    """The chosen `value` is similar to the wanted one.

    A wanted (group, value) pair is compared as Python prints the tuple, so the group's name is part of the text, and
    it is reduced to a colour only where group or value is exactly its name; a bare value as the chosen one is.
    """
    return _similar(_colour(value), _colour(wanted))


@lru_cache(maxsize=1 << 14)
def _colour(option: WantedOption) -> str:
    """The first colour word in the option, or the option itself."""
    return next((colour for colour in _COLOURS if colour in option), str(option))


def _similar(a: str, b: str) -> bool:
    a, b = _words(a), _words(b)
    return bool(a and b) and round(token_set_ratio(a, b)) > _THRESHOLD


@lru_cache(maxsize=1 << 14)
def _words(text: str) -> str:
    return _NOT_WORD.sub(" ", _LATIN_1.sub("", text)).lower().strip()


def _levels(product_category: str) -> set[str]:
    return {level.strip() for level in product_category.split("\u203a")}


def _title_score(bought: Sequence[str], wanted: Sequence[str]) -> float:
    """Shared nouns over all wanted ones, repetitions counted: below 1 even for the product itself if a noun repeats."""
    return len(set(bought) & set(wanted)) / len(wanted) if wanted else 0.2


def _type_reward(related: bool, title_score: float) -> float:
    if title_score == 0.0:
        return 0.0
    if title_score < 0.1:
        return 0.1
    return 1.0 if related or title_score > 0.2 else 0.5
