"""Records of the official format to products: which are kept, and what was wrong with the others."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from siri.envs.webshop.product import MalformedRecord, Product, Shared, read_product

MAX_ASIN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Records that became no product."""

    nameless: int
    """The ASIN was `nan` or longer than ten characters."""
    repeated: int
    """The ASIN occurred before."""
    malformed: int
    first_malformed: str
    """What was wrong with the first one; "" if nothing was."""


class ProductRecords:
    """The products of some records, read in order and once; afterwards `skipped` says what became of the others.

    Draws the hidden prices from `rng` on the way. With `strict`, raises MalformedRecord where another reading skips a
    record. `synthetic`: goals are made from the instructions in `notes`, the attributes file, so one without attributes
    is malformed, and so is, with `strict`, a product without an entry.
    """

    def __init__(
        self,
        records: Iterable[Any],
        notes: Mapping[str, Any],
        rng: Random,
        *,
        limit: int | None = None,
        strict: bool = False,
        synthetic: bool = True,
    ) -> None:
        self._records = records
        self._notes = notes
        self._rng = rng
        self._limit = limit
        self._strict = strict
        self._synthetic = synthetic
        self._nameless = self._repeated = self._malformed = 0
        self._first_malformed = ""

    @property
    def skipped(self) -> Skipped:
        return Skipped(
            nameless=self._nameless,
            repeated=self._repeated,
            malformed=self._malformed,
            first_malformed=self._first_malformed,
        )

    def __iter__(self) -> Iterator[Product]:
        seen: set[str] = set()
        share = Shared()
        for place, record in enumerate(self._records):
            if place == self._limit:
                break
            try:
                product = self._read(record, seen, share)
            except MalformedRecord as error:
                message = f"products[{place}]: {error}"
                if self._strict:
                    raise MalformedRecord(message) from error
                self._malformed += 1
                self._first_malformed = self._first_malformed or message
                continue
            if product is not None:
                seen.add(product.asin)
                yield product

    def _read(self, record: Any, seen: set[str], share: Shared) -> Product | None:
        """The product of a record; None, counted, for one without a usable ASIN of its own."""
        asin = record.get("asin") if isinstance(record, Mapping) else None
        if not isinstance(asin, str):
            raise MalformedRecord("the record is no object with a text `asin`")
        if asin == "nan" or len(asin) > MAX_ASIN:
            self._nameless += 1
        elif asin in seen:
            self._repeated += 1
        else:
            if self._strict and self._synthetic and asin not in self._notes:
                raise MalformedRecord(f"attributes: no entry for '{asin}'; parity wants one for every product")
            product = read_product(record, self._notes.get(asin), self._rng, share)
            if self._synthetic and product.instruction is not None and not product.instruction_attributes:
                raise MalformedRecord(
                    f"instruction_attributes: '{asin}' has an instruction and none of these, so nothing could be scored"
                )
            return product
        return None
