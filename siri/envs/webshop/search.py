"""BM25 as Lucene computes it: the ranking that the official search engine gives.

One byte holds a document's length (exact to 39, four significant bits above), scores are float32, and products of equal
score stand in the order of their ASINs. Postings lie in two flat arrays, 8 bytes each: 1.18 M products of 100 different
terms would take 0.94 GB (an estimate).
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from math import log

import numpy as np

from siri.envs.webshop.analyzer import analyze
from siri.envs.webshop.product import Product

K1, B = 0.9, 0.4
MAX_HITS = 50


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
    """An inverted index. Documents are numbered in the order of their keys, so that ties need no second look."""

    def __init__(self, keys: Sequence[str], texts: Iterable[str]) -> None:
        """`texts[i]` is searched and found under number `i`; equal scores are ranked by `keys[i]`, ascending."""
        rank = np.empty(len(keys), np.int32)
        self._number = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int32)
        rank[self._number] = np.arange(len(keys), dtype=np.int32)
        self._terms: dict[str, int] = {}
        term_of, doc_of, count_of, lengths = array("i"), array("i"), array("i"), np.zeros(len(keys), np.int64)
        for document, text in enumerate(texts):
            counts = Counter(analyze(text))
            lengths[rank[document]] = counts.total()
            for term, count in counts.items():
                term_of.append(self._terms.setdefault(term, len(self._terms)))
                doc_of.append(rank[document])
                count_of.append(count)
        terms = np.frombuffer(term_of, np.int32) if term_of else np.empty(0, np.int32)
        order = np.argsort(terms, kind="stable")
        self._documents = np.array(doc_of, np.int32)[order]
        frequency = np.bincount(terms, minlength=len(self._terms))
        self._start = np.concatenate([[0], np.cumsum(frequency)])
        self._impact = _impacts(np.array(count_of, np.float32)[order], self._documents, frequency, lengths)

    def __len__(self) -> int:
        return len(self._number)

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes; the table of terms comes on top."""
        return self._documents.nbytes + self._impact.nbytes + self._start.nbytes + self._number.nbytes

    def search(self, query: str) -> list[tuple[int, float]]:
        """The best documents, at most `MAX_HITS`, and their scores, best first; none for a query without terms."""
        scores = np.zeros(len(self._number))
        found = False
        for term, count in Counter(analyze(query)).items():
            if (number := self._terms.get(term)) is not None:
                here = slice(self._start[number], self._start[number + 1])
                scores[self._documents[here]] += self._impact[here] * np.float32(count)
                found = True
        if not found:
            return []
        rounded = scores.astype(np.float32)
        hits = np.flatnonzero(rounded)
        if len(hits) > MAX_HITS:
            worst = np.partition(rounded[hits], -MAX_HITS)[-MAX_HITS]
            hits = hits[rounded[hits] >= worst]
        best = hits[np.argsort(-rounded[hits], kind="stable")][:MAX_HITS]
        return [(int(self._number[hit]), float(rounded[hit])) for hit in best]


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
