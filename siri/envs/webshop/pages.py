"""The pages of the shop: what stands on each, and its text forms.

A page is a list of nodes, the visible pieces of the official HTML page in order. The instruction, which every page but
the last one repeats, is put in front by the text forms, so that a page is rendered once for all goals.

plain:  every node stripped, joined by ` [SEP] `: the official mode `text`
rich:   one node a line, buttons and chosen options marked: the official mode `text_rich`
quoted: as plain, without the instruction, every node in single quotes: what verl-agent shows
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from siri.envs.webshop.product import Product

SEPARATOR = " [SEP] "
PAGE_SIZE = 10
SEARCH_BUTTON = "search"
SUB_PAGES = ("description", "features", "reviews", "attributes")
BUY, BACK, NEXT, PREVIOUS = "buy now", "back to search", "next >", "< prev"
SEARCH_FORM = "search[<your query>]"
"""How a list of actions shows that any query may be searched for."""

NodeKind = Literal["text", "button", "link", "option"]
_BLANK = " \n\t\f\r"
_ESCAPED = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&'"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page, without the instruction."""

    nodes: tuple[tuple[NodeKind, str], ...]
    """Visible pieces in order, not stripped."""
    quoted: str
    clickables: tuple[str, ...]
    """Lower case: buttons, then products, then option values; each once."""
    actions: tuple[str, ...]
    """What can be done here: a search, and a click on each of the clickables that does something."""
    group_of: Mapping[str, str]
    """Option value -> the group a click on it chooses in: the last one that has it."""


def make_page(nodes: Iterable[tuple[NodeKind, str]]) -> Page:
    """The page of some pieces, by the rules of the official HTML parser.

    An empty piece leaves no trace, and neither does one of blanks with a line break; other blanks leave an empty node.
    """
    kept: list[tuple[NodeKind, str]] = []
    group_of: dict[str, str] = {}
    clicks: dict[NodeKind, list[str]] = {"button": [], "link": [], "option": []}
    heading = ""
    for kind, text in nodes:
        if kind == "option":
            group_of[text] = heading
        elif kind == "text":
            heading = text
        if kind != "text":
            clicks[kind].append(text.lower())
        if text.strip(_BLANK):
            kept.append((kind, text))
        elif text and "\n" not in text:
            kept.append((kind, " "))
    clickables = tuple(dict.fromkeys(clicks["button"] + clicks["link"] + clicks["option"]))
    return Page(
        nodes=tuple(kept),
        quoted=SEPARATOR.join(f"'{text.strip()}'" for _, text in kept),
        clickables=clickables,
        actions=(SEARCH_FORM, *(f"click[{thing}]" for thing in clickables if thing != SEARCH_BUTTON)),
        group_of=group_of,
    )


def official_actions(page: Page) -> tuple[str, ...]:
    """What verl-agent lists: a search on the search page only, and every clickable."""
    search = (SEARCH_FORM,) if page.clickables == SEARCH.clickables else ()
    return (*search, *(f"click[{thing}]" for thing in page.clickables))


def plain_text(page: Page, instruction: str | None) -> str:
    """`instruction` None: the page does not show it."""
    return SEPARATOR.join(text.strip() for _, text in (*_lead(page, instruction), *page.nodes))


def rich_text(page: Page, instruction: str | None, chosen: Mapping[str, str], visited: Collection[str]) -> str:
    """`chosen` maps option groups to values. A value is marked if the JSON form of `chosen` spells it in quotes, and a
    product if its ASIN is among the `visited`."""
    spelled = json.dumps(dict(chosen))
    lines, clicked = [], []
    for kind, text in (*_lead(page, instruction), *page.nodes):
        if kind == "text":
            lines.append(f"{text}\n")
            continue
        marked = (kind == "option" and f'"{text}"' in spelled) or (kind == "link" and text in visited)
        button = "clicked button" if marked else "button"
        lines.append({"button": "", "link": "\n", "option": "  "}[kind] + f"[{button}] {text} [{button}_]\n")
        if marked and kind == "option":
            clicked.append(f"You have clicked {text}.\n")
    return "".join([*reversed(clicked), *lines])


SEARCH = make_page([("button", "Search")])
"""The page that every session starts on."""


def results_page(products: Sequence[Product], *, number: int, total: int) -> Page:
    """Page `number` (from 1) of a search with `total` hits; `products` are those on it."""
    nodes: list[tuple[NodeKind, str]] = [
        ("button", "Back to Search"),
        ("text", f"Page {number} (Total results: {total})"),
    ]
    if number > 1:
        nodes.append(("button", "< Prev"))
    nodes.append(("button", "Next >"))
    for product in products:
        nodes += [("link", product.asin), ("text", product.title), ("text", product.price_tag)]
    return make_page(nodes)


def item_page(product: Product, *, show_attributes: bool = False) -> Page:
    nodes: list[tuple[NodeKind, str]] = [("button", "Back to Search"), ("button", "< Prev")]
    for name, values in product.options:
        nodes += [("text", name), *(("option", value) for value in values)]
    nodes += [("text", product.title), ("text", f"Price: {product.price_tag}"), ("text", "Rating: N.A.")]
    shown = SUB_PAGES if show_attributes else SUB_PAGES[:-1]
    return make_page([*nodes, *(("button", name.capitalize()) for name in shown), ("button", "Buy Now")])


def sub_page(product: Product, name: str) -> Page:
    """The page `name` of `SUB_PAGES`. There are no reviews in the official data."""
    # The official templates put a space before bullet points and attributes, so that empty ones leave a node.
    texts = {
        "description": [product.description],
        "features": [f" {bullet}" for bullet in product.bullets],
        "reviews": [],
        "attributes": [
            *(f" {attribute}" for attribute in product.attributes),
            product.category,
            product.query,
            product.product_category,
        ],
    }[name]
    return make_page([("button", "Back to Search"), ("button", "< Prev"), *(("text", text) for text in texts)])


def done_page(product: Product, chosen: Mapping[str, str], reward: float) -> Page:
    """The official last page, its misspelling included: hidden parts show too, mostly as `None`."""
    options = json.dumps(dict(chosen), sort_keys=True).translate(_ESCAPED)
    texts = ["Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)"]
    texts += ["Purchased", "asin", product.asin, "options", options]
    for name in ("attrs", "category", "query", "product category"):
        texts += [name, "None"]
    texts += ["Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category"]
    texts += ["query", "Goal ", "None", "Reward", "Your score (min 0.0, max 1.0)", str(reward)]
    return make_page([("text", text) for text in [*texts, "Reward Details ", "None"]])


def _lead(page: Page, instruction: str | None) -> tuple[tuple[NodeKind, str], ...]:
    """What stands in front of the page's own nodes."""
    if instruction is None:
        return ()
    title: list[tuple[NodeKind, str]] = [("text", "WebShop"), ("text", "Instruction: ")]
    heading = title if page.clickables == SEARCH.clickables else [("text", "Instruction:")]
    return make_page([*heading, ("text", instruction)]).nodes
