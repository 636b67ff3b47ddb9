"""BM25 as Lucene computes it: the ranking that the official search engine gives.

One byte holds a document's length (exact to 39, four significant bits above), scores are float32, and products of equal
score stand in the order of their ASINs. Postings lie in two flat arrays, 8 bytes each: 1.18 M products of 100 different
terms would take 0.94 GB (an estimate).
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import repeat
from math import log

import numpy as np

from siri.envs.webshop.analyzer import analyze
from siri.envs.webshop.product import Product

K1, B = 0.9, 0.4
MAX_HITS = 50
_BLOCK = 1024


def index_text(product: Product) -> str:
    """What is searched of a product: title, description, first bullet point and options."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options)
    bullet = product.bullets[0] if product.bullets else ""
    return f"{product.title} {product.description} {bullet} {options}".lower()


def stored_length(length: int) -> int:
    """A document length after Lucene's one byte: exact to 39; above, what exceeds 24 keeps four significant bits."""
    if length < 24:
        return length
    shift = max(0, (length - 24).bit_length() - 4)
    return 24 + ((length - 24) >> shift << shift)


class SearchIndex:
    """An inverted index over D documents, T terms and P postings. Documents are numbered in the order of their keys, so
    that ties need no second look."""

    def __init__(
        self,
        *,
        number: np.ndarray,
        start: np.ndarray,
        documents: np.ndarray,
        impact: np.ndarray,
        terms: Mapping[str, int],
    ) -> None:
        """`number` i32[D] is the place of a document in the order they were given; `terms` maps a term to t, whose
        postings are `documents` i32[P] and `impact` f32[P] (its part of a score) from `start` i64[T + 1] at t to
        the next."""
        self.number = number
        self.start = start
        self.documents = documents
        self.impact = impact
        self.terms = terms

    def __len__(self) -> int:
        return len(self.number)

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes; the table of terms comes on top."""
        return self.documents.nbytes + self.impact.nbytes + self.start.nbytes + self.number.nbytes

    def search(self, query: str) -> list[tuple[int, float]]:
        """The best documents, at most `MAX_HITS`, and their scores, best first; none for a query without terms."""
        scores = np.zeros(len(self.number))
        found = False
        for term, count in Counter(analyze(query)).items():
            if (number := self.terms.get(term)) is not None:
                here = slice(self.start[number], self.start[number + 1])
                scores[self.documents[here]] += self.impact[here] * np.float32(count)
                found = True
        if not found:
            return []
        best = _best(scores.astype(np.float32))
        return [(int(self.number[hit]), float(score)) for hit, score in best]


def _best(scores: np.ndarray) -> list[tuple[int, np.float32]]:
    """The places and values of the largest of f32[D], at most `MAX_HITS`, without zeros; of equal ones the first."""
    # That many blocks hold a score of at least `bound` each, so nothing below it can be among the best. Of 1.18 M
    # scores this leaves some hundreds to be sorted: 1.5 ms where all hits took 13 (ten terms with 1.2 M postings).
    tops = np.maximum.reduceat(scores, np.arange(0, len(scores), _BLOCK))
    bound = np.partition(tops, -MAX_HITS)[-MAX_HITS] if len(tops) > MAX_HITS else 0
    hits = np.flatnonzero(scores >= bound) if bound else np.flatnonzero(scores)
    if len(hits) > MAX_HITS:
        worst = np.partition(scores[hits], -MAX_HITS)[-MAX_HITS]
        hits = hits[scores[hits] >= worst]
    best = hits[np.argsort(-scores[hits], kind="stable")][:MAX_HITS]
    return [(int(hit), scores[hit]) for hit in best]


def build_index(documents: Iterable[tuple[str, str]]) -> SearchIndex:
    """The index of (key, text) pairs: what is searched is found under its place among them, and equal scores are ranked
    by key, ascending."""
    keys: list[str] = []
    terms: dict[str, int] = {}
    term_of, place_of, count_of, lengths = array("i"), array("i"), array("i"), array("q")
    for place, (key, text) in enumerate(documents):
        counts = Counter(analyze(text))
        keys.append(key)
        lengths.append(counts.total())
        term_of.extend([terms.setdefault(term, len(terms)) for term in counts])
        place_of.extend(repeat(place, len(counts)))
        count_of.extend(counts.values())
    number = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int32)
    rank = np.empty(len(keys), np.int32)
    rank[number] = np.arange(len(keys), dtype=np.int32)
    order, frequency = _by_term(term_of, len(terms))
    del term_of
    place = np.array(place_of, np.int32)[order]
    del place_of
    count = np.array(count_of, np.float32)[order]
    del count_of, order
    return SearchIndex(
        number=number,
        start=np.concatenate([[0], np.cumsum(frequency)]),
        documents=rank[place],
        impact=_impacts(count, place, frequency, np.array(lengths, np.int64)),
        terms=terms,
    )


def _by_term(term_of: array, num_terms: int) -> tuple[np.ndarray, np.ndarray]:
    """The order that sorts postings by term, and how many each term has."""
    terms = np.frombuffer(term_of, np.int32) if term_of else np.empty(0, np.int32)
    return np.argsort(terms, kind="stable"), np.bincount(terms, minlength=num_terms)


def _impacts(count: np.ndarray, document: np.ndarray, frequency: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """f32[P]: each posting's part of a score, rounded where Lucene rounds. `frequency` is by term, in posting order."""
    if not len(count):
        return np.empty(0, np.float32)
    n = len(lengths)
    mean = np.float32(lengths.sum() / n)
    idf = np.array([log(1 + (n - df + 0.5) / (df + 0.5)) for df in frequency.tolist()], np.float32)
    stored = np.array([stored_length(length) for length in range(int(lengths.max()) + 1)], np.float32)
    k1, b, one = np.float32(K1), np.float32(B), np.float32(1)
    inverse = (one / (k1 * ((one - b) + b * stored / mean)))[lengths]
    weight = np.repeat(idf, frequency)
    impact: np.ndarray = weight - weight / (one + count * inverse[document])
    return impact
