"""What the engine needs of a prompt style: the next prompt as tokens, and the action read back from drawn tokens."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from siri.engine.environment import Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAction:
    """What was read from the drawn tokens."""

    text: str
    """The action for the environment; where nothing parsed, whatever the style offers instead."""
    span: tuple[int, int]
    """Half-open range of the drawn tokens that spell the action; `(0, 0)` if nothing parsed."""
    parsed: bool
    """The tokens have the form the style asks for."""


class Dialogue(Protocol):
    """One episode as the policy sees it. Pure book-keeping: it neither samples nor steps anything."""

    stop_token_ids: tuple[int, ...]
    """Tokens that end an action."""

    def start(self, task: str, observation: Observation) -> None:
        """Begin with the task sentence and the observation of `reset`."""
        ...

    def prompt_ids(self) -> np.ndarray:
        """i32[P]: the prompt of the current turn."""
        ...

    def parse(self, action_ids: np.ndarray) -> ParsedAction:
        """Read the action from the drawn tokens i32[A], stop token included if one was drawn."""
        ...

    def advance(self, action_ids: np.ndarray, parsed: ParsedAction, observation: Observation) -> None:
        """Append a turn: what was drawn, and what the environment answered. Not called after an episode's last turn."""
        ...
