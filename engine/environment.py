"""What an environment is to the engine: text in, text out, one state key a step.

The engine steps environments and never looks inside. A `TaskSource` names the tasks of each split (fixed, disjoint,
enumerable) and makes a fresh environment for one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the agent sees after `reset` or `step`."""

    text: str
    """Observation text, the task sentence not included unless the environment itself repeats it."""
    admissible: tuple[str, ...] | None
    """Actions the environment would accept now, in its own order; None where it cannot list them."""
    anchor: bytes
    """Canonical key of the observable state: equal if and only if the observable situation is equal."""
    reward: float
    """Reward of the step that led here (0.0 after `reset`)."""
    done: bool
    """The episode is over; further steps are a caller's bug."""
    success: bool
    """The task is solved (implies `done` for the environments shipped here)."""
    action_valid: bool | None = None
    """Whether the environment accepted the action that led here; None: whether it was admissible says it. For actions
    that no list can hold, such as a search for any words."""
    score: float | None = None
    """How well the task is done so far, from 0 to 1, where an environment grades it; None where it does not."""


@runtime_checkable
class Environment(Protocol):
    """One episode's world. `reset` starts (or restarts) it, `step` acts."""

    @property
    def task(self) -> str:
        """The task sentence shown to the agent."""
        ...

    def reset(self) -> Observation: ...

    def step(self, action: str) -> Observation: ...


@runtime_checkable
class TaskSource(Protocol):
    """A family of tasks with fixed, disjoint splits."""

    name: str

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, e.g. `("train", "valid")`."""
        ...

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of every task of a split, in a fixed order. Raises UserError for an unknown split."""
        ...

    def make(self, task_id: str) -> Environment:
        """A fresh environment for one task. Two calls with one id give equal initial states."""
        ...

    def task(self, task_id: str) -> str:
        """The task sentence, as its environment gives it."""
        ...

    def task_type(self, task_id: str) -> str:
        """The class a task is reported under, e.g. `pick_and_place_simple`."""
        ...

    def check(self, split: str) -> None:
        """Look at every task of a split that could be malformed. Raises UserError for the first one that is."""
        ...

    def split_hash(self, split: str, limit: int | None = None) -> str:
        """SHA-256 (hex) over the ids and the whole contents of the first `limit` (default: all) tasks of a split, in
        order: equal only for equal evaluation sets."""
        ...
