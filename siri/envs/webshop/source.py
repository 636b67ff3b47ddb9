"""A shop as a task source: one task a goal, fixed splits, one catalogue for all environments of a process."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import overload

from siri.engine.environment import Environment
from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue
from siri.envs.webshop.engine import RewardMode, WebShopEnv
from siri.envs.webshop.goals import Goal
from siri.envs.webshop.procedural import VERSION, procedural_catalogue
from siri.envs.webshop.splits import SplitBy, split_goals, winnable_goals


class ShopTasks:
    """The goals of one catalogue. A task id is a prefix and the goal's index: `shop/000123`."""

    name = "webshop"

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        split_by: SplitBy = "goal",
        num_valid: int = 500,
        num_test: int = 500,
        winnable_only: bool = False,
        reward: RewardMode = "success",
        prefix: str = "shop",
    ) -> None:
        """See `split_goals` for the splits and `WebShopEnv` for the reward; raises UserError as they do.

        `winnable_only` takes the goals that cannot be won out of the splits.
        """
        self.catalogue = catalogue
        self._reward: RewardMode = reward
        self._prefix = prefix
        splits = split_goals(catalogue, by=split_by, num_valid=num_valid, num_test=num_test)
        self._splits = {
            name: winnable_goals(catalogue, goals) if winnable_only else goals for name, goals in splits.items()
        }
        self.left_out = {name: len(goals) - len(self._splits[name]) for name, goals in splits.items()}
        """Split -> goals that were taken out because they cannot be won."""

    def splits(self) -> tuple[str, ...]:
        return tuple(self._splits)

    def tasks(self, split: str) -> Sequence[str]:
        if split not in self._splits:
            raise UserError(f"split: '{split}' does not exist; this source has {', '.join(self._splits)}")
        return _Ids(self._prefix, self._splits[split])

    def goal(self, task_id: str) -> Goal:
        """The goal of a task. Raises UserError for an id that this catalogue does not have."""
        prefix, _, index = task_id.rpartition("/")
        known = prefix == self._prefix and index.isdecimal() and len(index) < 12
        if not known or int(index) >= len(self.catalogue.goals):
            last = _id(self._prefix, len(self.catalogue.goals) - 1)
            raise UserError(f"task id '{task_id}': no such goal; the ids of this shop end with '{last}'")
        return self.catalogue.goals[int(index)]

    def make(self, task_id: str) -> Environment:
        return WebShopEnv(self.catalogue, self.goal(task_id), reward=self._reward)

    def task(self, task_id: str) -> str:
        """The task sentence."""
        return self.goal(task_id).instruction

    def task_type(self, task_id: str) -> str:
        """The category of the goal's product, such as `fashion`."""
        return self.goal(task_id).category

    def check(self, split: str) -> None:
        """Nothing is left to be found malformed: goals are read when the catalogue is loaded."""
        self.tasks(split)

    def split_hash(self, split: str, limit: int | None = None) -> str:
        """See `TaskSource.split_hash`; over the whole catalogue too, because its other products are what is found."""
        digest = self._products_hash.copy()
        for task_id in self.tasks(split)[:limit]:
            digest.update(f"{task_id}\n{self.goal(task_id)}\n".encode(errors="backslashreplace"))
        return digest.hexdigest()

    @cached_property
    def _products_hash(self) -> "hashlib._Hash":
        # Kept, because a million stored products take a minute to read.
        digest = hashlib.sha256()
        for product in self.catalogue.products:
            digest.update(f"{product}\n".encode(errors="backslashreplace"))
        return digest


class ProceduralShop(ShopTasks):
    """The goals of an invented shop (`shop1/400/0/000123`: generator version, products, seed, index)."""

    name = "webshop-procedural"

    def __init__(
        self,
        *,
        num_products: int = 400,
        seed: int = 0,
        split_by: SplitBy = "product",
        num_valid: int = 500,
        num_test: int = 500,
        reward: RewardMode = "success",
    ) -> None:
        """Raises UserError for less than three products: each split has one at least."""
        if num_products < 3:
            raise UserError(f"num_products: {num_products}; a shop with three splits needs at least 3")
        super().__init__(
            procedural_catalogue(num_products, seed),
            split_by=split_by,
            num_valid=num_valid,
            num_test=num_test,
            reward=reward,
            prefix=f"shop{VERSION}/{num_products}/{seed}",
        )


class _Ids(Sequence[str]):
    """Task ids, spelled out when asked for: a large catalogue has millions."""

    def __init__(self, prefix: str, goals: Sequence[int]) -> None:
        self._prefix = prefix
        self._goals = goals

    def __len__(self) -> int:
        return len(self._goals)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [_id(self._prefix, goal) for goal in self._goals[index]]
        return _id(self._prefix, self._goals[index])


def _id(prefix: str, goal: int) -> str:
    return f"{prefix}/{goal:06}"
