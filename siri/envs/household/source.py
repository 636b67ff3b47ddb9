"""Households as task sources: procedural games without end, and the official games where they have been downloaded."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from siri.engine.environment import Environment
from siri.engine.errors import UserError
from siri.envs.household.engine import HouseholdEnv
from siri.envs.household.generator import VERSION, Size, game_from_id
from siri.envs.household.official import load_games
from siri.envs.household.pddl import format_problem
from siri.envs.household.problem import Game

Engine = Callable[[Game], Environment]
"""Makes an environment that plays a game."""

_OFFICIAL_SPLITS = ("train", "valid_seen", "valid_unseen")

# The environments of a group play one game: made once, its tables are shared. About 40 kB a game.
_cached_game = lru_cache(maxsize=1024)(game_from_id)


class ProceduralGames:
    """Generated games. The splits share no room-with-goal, so no game of `valid` occurs in `train`.

    A task id (`proc1/small/train/0/000123`: generator version, size, split, seed, index) is all it takes to make a game
    again, whatever the number of games of this source.
    """

    name = "household-procedural"

    def __init__(self, *, size: Size, num_train: int, num_valid: int, seed: int, engine: Engine = HouseholdEnv) -> None:
        """Raises UserError for an unknown size or an empty split."""
        if size not in ("small", "full"):
            raise UserError(f"size: '{size}' is not a size of household games; use 'small' or 'full'")
        for field, number in (("num_train", num_train), ("num_valid", num_valid)):
            if number < 1:
                raise UserError(f"{field}: {number} games; a split needs at least 1")
        self._engine = engine
        self._tasks = {
            split: tuple(f"proc{VERSION}/{size}/{split}/{seed}/{index:06}" for index in range(number))
            for split, number in (("train", num_train), ("valid", num_valid))
        }

    def splits(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def tasks(self, split: str) -> Sequence[str]:
        return self._tasks[_known(split, self._tasks)]

    def game(self, task_id: str) -> Game:
        """The game of a task. Raises UserError for an id that the generator does not make."""
        return _cached_game(task_id)

    def make(self, task_id: str) -> Environment:
        return self._engine(self.game(task_id))

    def task(self, task_id: str) -> str:
        """The task sentence."""
        return self.game(task_id).task

    def task_type(self, task_id: str) -> str:
        return self.game(task_id).task_type

    def check(self, split: str) -> None:
        """Generated games need none."""
        _known(split, self._tasks)

    def split_hash(self, split: str, limit: int | None = None) -> str:
        return _hash((task_id, self.game(task_id)) for task_id in self.tasks(split)[:limit])


class OfficialGames:
    """The official games found at a path, by split; a split is read when it is first asked for."""

    name = "household-official"

    def __init__(self, path: str | Path, *, engine: Engine = HouseholdEnv) -> None:
        """`path` is an `ALFWORLD_DATA` folder, its `json_2.1.1`, or a folder of archives such as `train.jsonl.xz`.

        Raises UserError where none of the official splits is there.
        """
        self._engine = engine
        self._sources = _find_splits(Path(path).expanduser())
        self._games: dict[str, dict[str, Game]] = {}

    def splits(self) -> tuple[str, ...]:
        return tuple(self._sources)

    def tasks(self, split: str) -> Sequence[str]:
        return tuple(self._load(_known(split, self._sources)))

    def check(self, split: str) -> None:
        """Parse every problem of a split (2 ms a game). Raises UserError for the first one that is malformed."""
        for game in self._load(split).values():
            _ = game.problem

    def game(self, task_id: str) -> Game:
        """The game of a task. Raises UserError for an id that is in none of the splits."""
        for split in sorted(self._sources, key=lambda split: split not in self._games):  # what is loaded comes first
            if game := self._load(split).get(task_id):
                return game
        raise UserError(f"task id '{task_id}': no such game in {', '.join(map(str, self._sources.values()))}")

    def make(self, task_id: str) -> Environment:
        return self._engine(self.game(task_id))

    def task(self, task_id: str) -> str:
        """The task sentence."""
        return self.game(task_id).task

    def task_type(self, task_id: str) -> str:
        return self.game(task_id).task_type

    def split_hash(self, split: str, limit: int | None = None) -> str:
        return _hash((task_id, self.game(task_id)) for task_id in self.tasks(split)[:limit])

    def _load(self, split: str) -> dict[str, Game]:
        if split not in self._games:
            self._games[split] = {game.id: game for game in load_games(self._sources[split])}
        return self._games[split]


def _hash(games: Iterable[tuple[str, Game]]) -> str:
    """Of (task id, game) in order, see `TaskSource.split_hash`."""
    digest = hashlib.sha256()
    for task_id, game in games:
        digest.update(f"{task_id}\n{game.task}\n{format_problem(game.problem)}".encode())
    return digest.hexdigest()


def _known(split: str, splits: dict[str, tuple[str, ...]] | dict[str, Path]) -> str:
    if split not in splits:
        raise UserError(f"split: '{split}' does not exist; this source has {', '.join(splits)}")
    return split


def _find_splits(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split in _OFFICIAL_SPLITS:
        for place in (root / f"{split}.jsonl.xz", root / "json_2.1.1" / split, root / split):
            if place.exists():
                found.setdefault(split, place)
    if not found:
        raise UserError(
            f"{root}: none of the splits {', '.join(_OFFICIAL_SPLITS)} is there, as SPLIT.jsonl.xz or as a folder;"
            " point to ALFWORLD_DATA (made by `alfworld-download`) or to a folder of such archives"
        )
    return found
