"""A catalogue indexed on disk: made once from the official files, opened in a moment, shared by all processes.

The index is a folder:

    index.json       format, the files it was made from (name, size, time of change), sizes of the files beside it
    products.jsonl   one product a line, its fields in order as a JSON list
    words.json       terms of the search, ASINs and, if the data have them, the nouns of titles
    *.npy            postings, goals, and where each line of the products begins

Arrays and products are mapped, not read: what no episode looks at is never loaded, and processes of one machine share
what is. It holds what a load with the default seeds gives. Nothing in it is executed when it is read.
"""

import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, overload

import numpy as np

from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue, check_found, check_goals, check_nouns, nouns_of
from siri.envs.webshop.files import read_object, read_records
from siri.envs.webshop.goals import SHUFFLE_SEED, Goals, synthetic_goals
from siri.envs.webshop.product import Product
from siri.envs.webshop.records import ProductRecords, Skipped
from siri.envs.webshop.search import SearchIndex, build_index, index_text

FORMAT = 1
"""Counted up whenever files of the same content would give another index than before."""
FOLDER_NAME = "siri-index"
HEADER = "index.json"
_PRODUCTS, _WORDS = "products.jsonl", "words.json"
_FIELDS = tuple(field.name for field in fields(Product))
# A product of the official data takes some 5 kB as an object.
_CACHED_PRODUCTS = 1 << 13


class StoredProducts(Sequence[Product]):
    """Products in a file of lines, read when asked for; safe to use from several threads."""

    def __init__(self, lines: mmap.mmap, begin: np.ndarray) -> None:
        """Line p of `lines` is between `begin` i64[P + 1] at p and the next."""
        self._lines = lines
        self._begin = begin
        self._cached = lru_cache(maxsize=_CACHED_PRODUCTS)(self._read)

    def __len__(self) -> int:
        return len(self._begin) - 1

    @overload
    def __getitem__(self, place: int) -> Product: ...

    @overload
    def __getitem__(self, place: slice) -> list[Product]: ...

    def __getitem__(self, place: int | slice) -> Product | list[Product]:
        if isinstance(place, slice):
            return [self._read(p) for p in range(*place.indices(len(self)))]
        return self._cached(range(len(self))[place])

    def __iter__(self) -> Iterator[Product]:
        return map(self._read, range(len(self)))  # who looks at all of them once needs no cache

    def _read(self, place: int) -> Product:
        values = json.loads(self._lines[self._begin[place] : self._begin[place + 1]])
        return Product(**{name: _frozen(value) for name, value in zip(_FIELDS, values, strict=True)})


def write_index(
    sources: Mapping[str, Path], index: Path, *, limit: int | None = None, watch: Callable[[int], None] | None = None
) -> Catalogue:
    """Indexes the official files into the folder `index`, whose former content is replaced at the end, and opens it.

    Products are written as they are read, so memory holds postings and goals only.

    Args:
        sources: "products", "attributes" and, if there is one, "title_nouns" -> file.
        limit: read this many records.
        watch: see `read_records`.

    Raises UserError as `load_catalogue` does, and where the folder cannot be written.
    """
    stamps = _stamps(sources)  # before reading: a file that changes meanwhile makes the index invalid
    index = index.resolve()  # `.` has no name of its own, which the draft beside it is called by
    try:
        _check_replaceable(index)  # before minutes of reading
        draft = index.with_name(f"{index.name}.{os.getpid()}.tmp")
        try:
            draft.mkdir(parents=True)
            _write(sources, draft, stamps, limit, watch)
            _replace(draft, index)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"index: '{index}' cannot be written ({error.strerror}); give a folder that can, with --out"
        ) from error
    return open_index(index)


def open_index(index: Path) -> Catalogue:
    """The catalogue of an index; `fault` tells before whether it can be opened."""
    header = _header(index)
    words = json.loads((index / _WORDS).read_bytes())
    with (index / _PRODUCTS).open("rb") as file:
        lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    products = StoredProducts(lines, _array(index, "begin"))
    search = SearchIndex(
        **{name: _array(index, name) for name in ("number", "start", "documents", "impact")},
        terms={term: t for t, term in enumerate(words["terms"])},
    )
    goals = Goals(
        products=products,
        product=_array(index, "goal_product"),
        choice=_array(index, "goal_choice"),
        limit=_array(index, "goal_limit"),
        weights=_array(index, "weights"),
    )
    return Catalogue(
        products=products,
        asins=words["asins"],
        index=search,
        goals=goals,
        nouns=nouns_of(words["nouns"]),
        skipped=Skipped(**header["skipped"]),
    )


def fault(index: Path, sources: Mapping[str, Path] | None = None) -> str | None:
    """Why an index cannot stand for these files; None if it can.

    `sources` None: for the files that it was made from, as far as they are still where they were.
    """
    try:
        header = _header(index)
        if header.get("format") != FORMAT:
            return f"it has format {header.get('format')}, this version reads {FORMAT}"
        if sources is not None and header["limit"] is not None:
            return f"it holds the first {header['limit']} records only"
        if sources is None:
            made_from = {kind: Path(header["folder"], stamp[0]) for kind, stamp in header["sources"].items()}
            sources = made_from if all(file.is_file() for file in made_from.values()) else None
        if sources is not None and header["sources"] != _stamps(sources):
            return "the files that it was made from have changed"
        for name, size in header["files"].items():
            if (index / name).stat().st_size != size:
                return f"its file {name} does not have the size that was written"
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        return f"it is damaged ({error})"
    return None


def _write(sources: Mapping[str, Path], draft: Path, stamps: dict[str, Any], limit: int | None, watch: Any) -> None:
    rng = Random(0)
    records = read_records(sources["products"], "products", watch=watch)
    reader = ProductRecords(records, read_object(sources["attributes"], "attributes"), rng, limit=limit)
    asins: list[str] = []
    begin = [0]

    def stored() -> Iterator[tuple[str, str]]:
        with (draft / _PRODUCTS).open("wb") as file:
            for product in reader:
                line = json.dumps([getattr(product, name) for name in _FIELDS]) + "\n"
                begin.append(begin[-1] + file.write(line.encode()))
                asins.append(product.asin)
                yield product.asin, index_text(product)

    search = build_index(stored())
    check_found(len(asins), reader.skipped)
    np.save(draft / "begin.npy", np.array(begin, np.int64))
    with (draft / _PRODUCTS).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
        goals = synthetic_goals(StoredProducts(lines, np.array(begin, np.int64)), rng).shuffled(SHUFFLE_SEED)
    check_goals(len(goals), len(asins))
    arrays = {name: getattr(search, name) for name in ("number", "start", "documents", "impact")}
    arrays |= {"goal_product": goals.product, "goal_choice": goals.choice, "goal_limit": goals.limit}
    for name, array in (arrays | {"weights": goals.weights}).items():
        np.save(draft / f"{name}.npy", array)
    nouns = read_object(sources["title_nouns"], "title_nouns") if "title_nouns" in sources else None
    check_nouns(nouns_of(nouns))
    words = {"terms": list(search.terms), "asins": asins, "nouns": nouns}
    (draft / _WORDS).write_text(json.dumps(words))
    folder = str(sources["products"].resolve().parent)
    header = {"format": FORMAT, "folder": folder, "sources": stamps, "limit": limit, "skipped": asdict(reader.skipped)}
    header["files"] = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
    (draft / HEADER).write_text(json.dumps(header, indent=1) + "\n")


def _check_replaceable(index: Path) -> None:
    """A folder of something else than an index stays as it is."""
    if index.exists() and index.name != FOLDER_NAME and not (index / HEADER).is_file() and any(index.iterdir()):
        raise UserError(f"index: '{index}' holds other files and no {HEADER}; give a new folder with --out")


def _replace(draft: Path, index: Path) -> None:
    if index.exists():
        old = draft.with_suffix(".old")
        index.rename(old)
        draft.rename(index)
        shutil.rmtree(old)
    else:
        draft.rename(index)


def _stamps(sources: Mapping[str, Path]) -> dict[str, Any]:
    stats = {kind: (path, path.stat()) for kind, path in sources.items()}
    return {kind: [path.name, stat.st_size, stat.st_mtime_ns] for kind, (path, stat) in sorted(stats.items())}


def _header(index: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads((index / HEADER).read_bytes())
    return header


def _array(index: Path, name: str) -> np.ndarray:
    # As a plain array: a slice of numpy's memmap class costs microseconds more, at every term of a search.
    return np.asarray(np.load(index / f"{name}.npy", mmap_mode="r", allow_pickle=False))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
