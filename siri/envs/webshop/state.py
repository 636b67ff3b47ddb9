"""Where a shopping session stands, in plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal, get_args

from siri.engine.errors import UserError

PageKind = Literal["search", "results", "item", "description", "features", "reviews", "attributes", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a session is, beside its catalogue and goal."""

    kind: PageKind = "search"
    """The page that is open."""
    query: str | None = None
    """Of the last search; None on the search page."""
    number: int | None = None
    """Page of the results, from 1; None on the search page."""
    asin: str | None = None
    """The product that is open, or was bought; None on the search page and among results."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Group -> chosen value, in the order of choice."""
    visited: tuple[str, ...] = ()
    """Products opened since the search page, sorted, which `text_rich` marks; empty without parity."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back."""
        return {
            "kind": self.kind,
            "query": self.query,
            "number": self.number,
            "asin": self.asin,
            "options": dict(self.options),
            "visited": list(self.visited),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "State":
        """Raises UserError for anything that `as_dict` does not make."""
        kinds = get_args(PageKind)
        try:
            state = cls(**{**data, "visited": tuple(data.get("visited", ())), "options": dict(data.get("options", {}))})
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"state: {data!r} is no WebShop state ({error}); give what `as_dict` made") from error
        if state.kind not in kinds:
            raise UserError(f"state.kind: {state.kind!r}; it must be one of {', '.join(kinds)}")
        searched, opened = state.kind != "search", state.kind not in ("search", "results")
        for name, value, kind, wanted in (
            ("query", state.query, str, searched),
            ("number", state.number, int, searched),
            ("asin", state.asin, str, opened),
        ):
            if not isinstance(value, kind if wanted else NoneType):
                rule = f"must be {'a text' if kind is str else 'an integer'}" if wanted else "must be None"
                raise UserError(f"state.{name}: {value!r}; on a page '{state.kind}' it {rule}")
        if state.number is not None and state.number < 1:
            raise UserError(f"state.number: {state.number}; pages of results count from 1")
        if state.options and not opened:
            raise UserError(f"state.options: {dict(state.options)!r}; on a page '{state.kind}' none can be chosen")
        if not all(isinstance(asin, str) for asin in state.visited) or (state.visited and not searched):
            raise UserError(f"state.visited: {state.visited!r}; it must be ASINs, and none on the search page")
        return state
