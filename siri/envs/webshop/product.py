"""One product as the shop shows it, read from a record of the official format.

A record is a JSON object of `items_shuffle*.json`; the keys used are asin, name, full_description, small_description,
pricing, customization_options, category, query and product_category.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from random import Random
from typing import Any

from siri.engine.errors import UserError

_NOT_NUMBER = re.compile(r"[^\d.]")
DEFAULT_PRICE = 100.0
"""Price of a product whose record names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What pages, search and reward know of a product."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    price_tag: str
    """As printed: `$19.99`, or `$10.0 to $12.5` (official data hold reversed ranges too)."""
    price: float
    """Dollars the reward goes by: for a range, one draw from it that no page shows."""
    options: tuple[tuple[str, tuple[str, ...]], ...]
    """Groups (name, values), lower case, in page order; values may repeat."""
    attributes: tuple[str, ...]
    """What the reward compares with a goal's attributes; pages hide them."""
    query: str
    category: str
    product_category: str
    """Levels separated by U+203A, the single angle quotation mark."""
    instruction: str | None
    """The synthetic instruction without options and price; None if the product is no goal."""
    instruction_attributes: tuple[str, ...]


class MalformedRecord(UserError):
    """A record that cannot become a product: names the field, its value and the rule."""


def read_product(record: Mapping[str, Any], notes: Mapping[str, Any] | None, rng: Random, share: "Shared") -> Product:
    """The product of a record and of its entry `notes` in the attributes file (None: it has none).

    Draws from `rng` if and only if the price is a range. Raises MalformedRecord.
    """
    price_tag, prices = _read_price(record.get("pricing"))
    notes = {} if notes is None else notes
    if not isinstance(notes, Mapping):
        raise MalformedRecord(f"attributes: the entry of the product is a {type(notes).__name__}, not an object")
    instruction = notes.get("instruction")
    if instruction is not None and not isinstance(instruction, str):
        raise MalformedRecord(f"instruction: {instruction!r} is not text")
    return Product(
        asin=_text(record, "asin"),
        title=_text(record, "name"),
        description=_text(record, "full_description", default=""),
        bullets=_bullets(record.get("small_description")),
        options=tuple(_options(record.get("customization_options"), share).items()),
        attributes=share.texts(_texts(notes, "attributes", ["DUMMY_ATTR"])),
        query=share.text(_text(record, "query").lower().strip()),
        category=share.text(_text(record, "category")),
        product_category=share.text(_text(record, "product_category")),
        instruction=instruction,
        instruction_attributes=share.texts(_texts(notes, "instruction_attributes", [])),
        price_tag=price_tag,
        price=prices[0] if len(prices) == 1 else rng.uniform(*prices),
    )


class Shared:
    """Equal texts become one object: colours, sizes and categories repeat thousands of times in a catalogue."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def text(self, text: str) -> str:
        known: str = self._known.setdefault(text, text)
        return known

    def texts(self, texts: list[str]) -> tuple[str, ...]:
        one = tuple(map(self.text, texts))
        known: tuple[str, ...] = self._known.setdefault(one, one)
        return known


def _read_price(pricing: Any) -> tuple[str, list[float]]:
    if not pricing:
        return f"${DEFAULT_PRICE}", [DEFAULT_PRICE]
    if not isinstance(pricing, str) or "$" not in pricing:
        raise MalformedRecord(f"pricing: {pricing!r} has no amount; it must read like '$9.99' or '$9.99 to $19.99'")
    try:
        prices = [float(Decimal(_NOT_NUMBER.sub("", piece))) for piece in pricing.split("$")[1:]][:2]
    except InvalidOperation as error:
        raise MalformedRecord(f"pricing: {pricing!r} holds a '$' that no number follows") from error
    return " to ".join(f"${price}" for price in prices), prices


def _options(groups: Any, share: Shared) -> dict[str, tuple[str, ...]]:
    """Name to values. Of two groups with one name in lower case the later list stays, at the place of the former."""
    if not groups:
        return {}
    if not isinstance(groups, Mapping):
        raise MalformedRecord(f"customization_options: {type(groups).__name__}; it must map group names to lists")
    options = {}
    for name, contents in groups.items():
        if contents is None:
            continue
        try:
            values = [content["value"].strip().replace("/", " | ").lower() for content in contents]
        except (TypeError, KeyError, AttributeError) as error:
            raise MalformedRecord(
                f"customization_options: group '{name}' must be a list of objects with a text `value`"
            ) from error
        options[share.text(name.lower())] = share.texts(values)
    return options


def _bullets(small: Any) -> tuple[str, ...]:
    bullets = small if isinstance(small, list) else [small or ""]
    if not all(isinstance(bullet, str) for bullet in bullets):
        raise MalformedRecord("small_description: it must be a text or a list of texts")
    return tuple(bullets)


def _text(record: Mapping[str, Any], field: str, default: str | None = None) -> str:
    value = record.get(field, default)
    if not isinstance(value, str):
        raise MalformedRecord(f"{field}: {value!r} is not text")
    return value


def _texts(notes: Mapping[str, Any], field: str, default: list[str]) -> list[str]:
    value = notes.get(field)
    if value is None:
        return default
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise MalformedRecord(f"{field}: {value!r} is not a list of texts")
    return value
