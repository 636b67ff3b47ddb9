"""Environment families: what a run asks of an environment beside its tasks, by `environment.name`."""

import os
from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from siri.config import EnvironmentConfig, RunConfig
from siri.engine.distributed import World, num_cores
from siri.engine.environment import TaskSource
from siri.engine.errors import UserError
from siri.engine.workers import EnvironmentWorkers
from siri.envs.household.brief import brief as household_brief
from siri.envs.household.engine import HouseholdEnv
from siri.envs.household.rooms import vocabulary as household_words
from siri.envs.household.source import Engine, OfficialGames, ProceduralGames
from siri.envs.household.textworld_oracle import TextWorldEnv, check_textworld
from siri.envs.webshop.brief import UNCHANGED
from siri.envs.webshop.brief import brief as shop_brief
from siri.envs.webshop.folder import load_folder
from siri.envs.webshop.shops import NUM_PRODUCTS
from siri.envs.webshop.shops import vocabulary as shop_words
from siri.envs.webshop.source import ProceduralShop, ShopTasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An environment, as far as a run must know it."""

    open_source: Callable[[RunConfig, World], AbstractContextManager[TaskSource]]
    """The tasks of a configuration, playable until the block ends. Raises UserError where they cannot be had."""
    shorten: Callable[[str], str]
    """An observation in its short form, for compact prompts and mining."""
    unchanged: tuple[str, str] | None = None
    """In compact prompts, what stands for an observation like the one before: of an action accepted, and refused."""
    vocabulary: Callable[[], Set[str]]
    """Words that a skill may be made of, beside English ones and those of the episode it was mined from."""


def family_of(config: EnvironmentConfig) -> Family:
    return FAMILIES[config.name]


@contextmanager
def open_games(config: RunConfig, world: World) -> Iterator[TaskSource]:
    """Household games, played by our engine, or by TextWorld in worker processes, which end with the block.

    Raises UserError where TextWorld is asked for and not installed, or official games are and not found.
    """
    if config.environment.engine == "siri":
        yield make_games(config.environment, HouseholdEnv)
        return
    check_textworld("environment.engine")
    # One a core: TextWorld only computes, and a worker holds 75 MB. They start when the first games are played.
    num_workers = max(1, min(num_cores() // world.local_size, config.rollout.max_concurrent))
    with EnvironmentWorkers(TextWorldEnv, num_workers=num_workers) as workers:
        yield make_games(config.environment, workers.make)


def make_games(config: EnvironmentConfig, engine: Engine) -> ProceduralGames | OfficialGames:
    """Household games, played by `engine`. Raises UserError where official games are asked for and not found."""
    if config.games == "procedural":
        return ProceduralGames(
            size=config.size, num_train=config.num_train, num_valid=config.num_valid, seed=0, engine=engine
        )
    path = config.path or os.environ.get("ALFWORLD_DATA")
    if path is None:
        raise UserError(
            "environment.path: official games need a folder, and neither this nor $ALFWORLD_DATA is set; "
            "run `alfworld-download` and set ALFWORLD_DATA, or set environment.games: procedural"
        )
    return OfficialGames(path, engine=engine)


@contextmanager
def open_shop(config: RunConfig, world: World) -> Iterator[TaskSource]:
    """Shopping goals: of the invented shop of seed 0, or of official data.

    Raises UserError where official data are asked for and not found.
    """
    yield make_shop(config.environment)


def make_shop(config: EnvironmentConfig) -> ShopTasks:
    """Raises UserError where official data are asked for and not found, or have too few goals for the splits."""
    if config.games == "procedural":
        return ProceduralShop(
            num_products=NUM_PRODUCTS[config.size],
            split_by=config.split_by,
            num_valid=config.num_valid,
            reward=config.reward,
        )
    path = config.path or os.environ.get("WEBSHOP_DATA")
    if path is None:
        raise UserError(
            "environment.path: official products need a folder, and neither this nor $WEBSHOP_DATA is set; "
            "download the data of WebShop and set WEBSHOP_DATA, or set environment.games: procedural"
        )
    return ShopTasks(load_folder(path), split_by=config.split_by, num_valid=config.num_valid, reward=config.reward)


FAMILIES = {
    "household": Family(open_source=open_games, shorten=household_brief, vocabulary=household_words),
    "webshop": Family(open_source=open_shop, shorten=shop_brief, unchanged=UNCHANGED, vocabulary=shop_words),
}
