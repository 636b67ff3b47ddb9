"""Short form of the shop's pages, for the compact prompt style: lower case, and without the buttons that always stand.

A page of results is one line a product, `p22 norvik desk, solid wood $99.95`: what to click, what it is, what it costs.
The page of a product is one line of options and one of title and price. Its text does not tell the names of groups from
their values, so they stand in one row.
"""

import re

from siri.envs.webshop.pages import SEPARATOR

UNCHANGED = ("same page", "not possible")
"""What stands for a page that is shown again as it was: its action was accepted, as a chosen option is, or refused. The
text of the page tells neither, and two thirds of what a policy that often misses reads would be pages it has read."""

_BETWEEN = f"'{SEPARATOR}'"
_RESULTS = re.compile(r"Page (\d+) \(Total results: \d+\)")
_PRICE = "Price: "
_TAG = re.compile(r"\$\S+( to \$\S+)?")
_AFTER_PRICE = frozenset({"Rating: N.A.", "Description", "Features", "Reviews", "Attributes", "Buy Now"})


def brief(text: str) -> str:
    """The short form of one page in quoted pieces; text of any other form is returned as it is, on one line."""
    if len(text) < 2 or not (text.startswith("'") and text.endswith("'")):
        return _one_line(text).lower()
    return "\n".join(_lines([_one_line(piece) for piece in text[1:-1].split(_BETWEEN)])).lower()


def _lines(pieces: list[str]) -> list[str]:
    if pieces[0] == "Thank you for shopping with us!":
        # The last two labels with a value beside it; those between are hidden parts of the official page.
        asin, score = pieces[pieces.index("asin") + 1], pieces[pieces.index("Reward") + 2]
        return [f"bought {asin}, score {score}"]
    # A description may end with these words too.
    if pieces[-1] == "Buy Now" and any(piece.startswith(_PRICE) for piece in pieces):
        return _item(pieces[2:])
    if len(pieces) > 2 and (page := _RESULTS.fullmatch(pieces[1])):
        return _results(int(page[1]), pieces)
    if len(pieces) > 1:  # description, features, reviews or attributes
        return [piece for piece in pieces[2:] if piece] or ["nothing here"]
    return pieces


def _results(number: int, pieces: list[str]) -> list[str]:
    head = [f"page {number}"] if number > 1 else []
    # Up to its price: an empty title leaves no piece, and one that spells the separator leaves several.
    rows: list[str] = []
    row: list[str] = []
    for piece in pieces[4 if number > 1 else 3 :]:
        row.append(piece)
        if len(row) > 1 and _TAG.fullmatch(piece):
            rows.append(" ".join(row))
            row = []
    return [*head, *(rows or ["no results"])]


def _item(pieces: list[str]) -> list[str]:
    shown = list(pieces)
    while shown[-1] in _AFTER_PRICE:
        shown.pop()
    *options, title, price = shown if len(shown) > 1 else ["", *shown]  # an empty title leaves no piece
    row = [", ".join(filter(None, options))] if any(options) else []
    return [*row, f"{title} {price.removeprefix(_PRICE)}"]


def _one_line(text: str) -> str:
    # Blanks inside a line stay: a click has to spell the value that is clicked, `army\xa0green` too.
    return " ".join(line.strip() for line in text.splitlines())
