"""The shop as an environment: text in, text out."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Literal, cast

from siri.engine.environment import Observation
from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue
from siri.envs.webshop.goals import Goal
from siri.envs.webshop.official import special_search
from siri.envs.webshop.pages import (
    BACK,
    BUY,
    NEXT,
    PAGE_SIZE,
    PREVIOUS,
    SEARCH,
    SEARCH_BUTTON,
    SUB_PAGES,
    done_page,
    official_actions,
    plain_text,
    results_page,
    rich_text,
)
from siri.envs.webshop.product import Product
from siri.envs.webshop.reward import Score, score_purchase
from siri.envs.webshop.state import PageKind, State

RewardMode = Literal["success", "score"]
Search = Callable[[str], Sequence[int]]
"""Query in lower case -> places of products in the catalogue, best first."""

# Greedy, as the official one: up to the last bracket on both sides, no line breaks.
_OFFICIAL_ACTION = re.compile(r"(.+)\[(.+)\]")
# Up to the first bracket: a query may hold brackets of its own.
_ACTION = re.compile(r"\s*(search|click)\[(.*)\]", re.DOTALL)


class WebShopEnv:
    """One episode: shop for one goal.

    An action is `search[words]`, which works on every page, or `click[thing]` with a thing that can be clicked; any
    other changes nothing and shows the page again. Letter case does not matter inside the brackets, and neither does
    white space around the action or its argument. Buying ends the episode; the score of the purchase is between 0 and
    1, and the task is solved with a score of exactly 1.

    The text is the page without the instruction, each piece in quotes (`'Back to Search' [SEP] '< Prev' [SEP] ...`).
    Which option values are chosen is never shown, as in the original.

    The anchor is a key of all that can be seen and can still happen: the kind of page, the products found (whatever
    the query that found them), the page of the results, the product, and the chosen options. Keys of different goals
    are not comparable.

    With `parity`, everything is as in the official environment in mode `text`: the text with the instruction; actions
    read by its pattern, so that a query with a `[` does nothing; `<r>`, `<c>`, `<q>` and `<a>` as special first words
    of a query; and the shop stays open after a purchase.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        goal: Goal,
        *,
        reward: RewardMode = "success",
        parity: bool = False,
        show_attributes: bool = False,
        search: Search | None = None,
    ) -> None:
        """`reward` "success" pays 1.0 for a perfect purchase and nothing else, "score" pays the score. `search`
        replaces the catalogue's own. Raises UserError for an unknown reward mode."""
        if reward not in ("success", "score"):
            raise UserError(f"reward: '{reward}' is not a reward mode; use 'success' or 'score'")
        self.catalogue = catalogue
        self.goal = goal
        self.score: Score | None = None
        """Of the last purchase since `reset`."""
        self._reward = reward
        self._parity = parity
        self._show_attributes = show_attributes
        self._find = search or catalogue.search

    @property
    def task(self) -> str:
        return self.goal.instruction

    @property
    def state(self) -> State:
        """Where the session stands, to be given to `restore` of any environment of the same goal and catalogue."""
        return self._state

    @property
    def clickables(self) -> tuple[str, ...]:
        """What can be clicked now, in lower case."""
        return self._page.clickables

    @property
    def rich(self) -> str:
        """The page as the official mode `text_rich` shows it."""
        return rich_text(self._page, self._instruction(), self._state.options, self._state.visited)

    def reset(self) -> Observation:
        return self._open(State(), valid=None)

    def restore(self, state: State) -> Observation:
        """Continues from a state. Raises UserError for a product or an option that this catalogue does not have."""
        if state.asin is not None:
            if state.asin not in self.catalogue.number:
                raise UserError(f"state.asin: '{state.asin}' is not in this catalogue; load the one it was made with")
            groups = dict(self.catalogue.products[self.catalogue.number[state.asin]].options)
            for name, value in state.options.items():
                if value not in groups.get(name, ()):
                    raise UserError(f"state.options: '{state.asin}' has no option {name!r}: {value!r}")
        self._found = self._search(state)
        return self._open(state, valid=None)

    def step(self, action: str) -> Observation:
        """Acts. Raises RuntimeError after the end of the episode (with `parity`: goes on)."""
        before = self._state
        if before.kind == "done" and not self._parity:
            raise RuntimeError(f"step({action!r}) after the end of the episode: call reset() first")
        after = self._read(action)
        if after is None:
            return self._observe(0.0, valid=False)
        if after.kind == "results":
            self._found = self._search(after)
        return self._open(after, valid=True)

    def _read(self, action: str) -> State | None:
        """The state that an action leads to; None if it does nothing."""
        match = (_OFFICIAL_ACTION if self._parity else _ACTION).match(action)
        if match is None:
            return None
        name, argument = match[1], match[2].lower()
        if not self._parity and argument not in self._page.clickables:
            argument = argument.strip()
        if name == "search" and argument:
            return State(kind="results", query=argument, number=1, visited=self._state.visited)
        if name == "click" and argument in self._page.clickables and argument != SEARCH_BUTTON:
            return self._click(argument)
        return None

    def _click(self, thing: str) -> State:
        """Buttons go before products, and products before option values of the same name."""
        here = self._state
        if thing == BUY:
            return replace(here, kind="done")
        if thing == BACK:
            return State()
        if here.kind == "results":
            assert here.number is not None, "results have a page number"
            if thing in (NEXT, PREVIOUS):
                return replace(here, number=here.number + (1 if thing == NEXT else -1))
            asin = next(product.asin for product in self._on_page(here.number) if product.asin.lower() == thing)
            visited = tuple(sorted({*here.visited, asin})) if self._parity else ()
            return replace(here, kind="item", asin=asin, visited=visited)
        if thing == PREVIOUS:
            if here.kind in SUB_PAGES:
                return replace(here, kind="item")
            return replace(here, kind="results", asin=None, options={})
        if thing in SUB_PAGES:
            return replace(here, kind=cast(PageKind, thing))
        return replace(here, options={**here.options, self._page.group_of[thing]: thing})

    def _search(self, state: State) -> tuple[int, ...]:
        if state.query is None:
            return ()
        special = None
        if self._parity:
            # The official environment draws for `<r>` from the process's generator, anew for each page of results. A
            # seed of its own for each page keeps a session what its state says.
            rng = Random(f"{self.goal.index}/{state.number}")
            special = special_search(state.query, self.catalogue.products, rng)
        return tuple(self._find(state.query) if special is None else special)

    def _on_page(self, number: int) -> list[Product]:
        return [self.catalogue.products[p] for p in self._found[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]]

    def _open(self, state: State, *, valid: bool | None) -> Observation:
        """Shows the page of a state. Opening the last one scores the purchase, which an action pays for."""
        self._state = state
        paid = 0.0
        if state.kind == "search":
            self.score, self._found, self._page = None, (), SEARCH
        elif state.kind == "results":
            assert state.number is not None, "results have a page number"
            self._page = results_page(self._on_page(state.number), number=state.number, total=len(self._found))
        else:
            assert state.asin is not None, "a product is open"
            p = self.catalogue.number[state.asin]
            if state.kind == "done":
                product, chosen = self.catalogue.products[p], state.options
                self.score = score_purchase(
                    product, list(chosen.values()), self.goal, self.catalogue.nouns, price=product.price
                )
                self._page = done_page(product, chosen, self.score.reward)
                paid = self.score.reward if valid else 0.0
            else:
                self._page = self.catalogue.page(p, state.kind, show_attributes=self._show_attributes)
        return self._observe(paid, valid=valid)

    def _observe(self, score: float, *, valid: bool | None) -> Observation:
        """`score` is that of a purchase made just now, else 0.0."""
        state, page = self._state, self._page
        done = state.kind == "done" and valid is not False
        bought = self.score.reward if done and self.score is not None else 0.0
        text = plain_text(page, self._instruction()) if self._parity else page.quoted
        situation = (state.kind, self._found, state.number, state.asin, sorted(state.options.items()))
        return Observation(
            text=text,
            admissible=(official_actions(page) if self._parity else page.actions) if not done else (),
            anchor=ascii(situation).encode(),
            reward=score if self._reward == "score" else float(score == 1.0),
            done=done,
            success=bought == 1.0,
            score=bought,
            action_valid=valid,
        )

    def _instruction(self) -> str | None:
        return None if self._state.kind == "done" else self.goal.instruction
