"""The reference implementation behind our interface: TextWorld's PDDL environment, through the `alfworld` package.

An optional extra, some thousand times slower than `HouseholdEnv`; tests and benchmarks hold the two against each other,
and `environment.engine: textworld` trains on it.
"""

import importlib
import importlib.util
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from siri.engine.environment import Observation
from siri.engine.errors import UserError
from siri.envs.household.board import Board
from siri.envs.household.engine import board_of
from siri.envs.household.official_format import DOMAIN, GRAMMAR, game_file
from siri.envs.household.problem import Game
from siri.envs.household.rules import State, survey

_REMEDY = 'pip install "siri[alfworld]" (needs cmake and a C++ compiler)'

# TextWorld's environments whose game nobody holds any more, to be used again: each has loaded a planner library of its
# own, a copy of 33 MB in the temporary folder that is never given back, and unloading it ends the process with SIGSEGV.
_spare: list[Any] = []


class TextWorldEnv:
    """One episode of one game, played by TextWorld. `domain` and `grammar` default to ours.

    Text, admissible commands and the outcome are TextWorld's; the anchor is computed from TextWorld's facts.
    """

    def __init__(self, game: Game, *, domain: str = DOMAIN, grammar: str = GRAMMAR) -> None:
        self.game = game
        self._domain = domain
        self._grammar = grammar
        self._env: Any = None

    @property
    def task(self) -> str:
        return self.game.task

    @property
    def state(self) -> State:
        """The world now, read from TextWorld's facts."""
        return _state(board_of(self.game), self._facts)

    def reset(self) -> Observation:
        """Raises UserError where `alfworld` or `textworld` is not installed."""
        with _sys_argv_kept():
            if self._env is None:
                self._env = open_textworld(game_file(self.game, domain=self._domain, grammar=self._grammar))
                weakref.finalize(self, _spare.append, self._env).atexit = False
            return self._observe(self._env.reset(), reward=0.0)

    def step(self, action: str) -> Observation:
        """Acts. Raises RuntimeError after the end of the episode."""
        if self._done:
            raise RuntimeError(f"step({action!r}) after the end of the episode: call reset() first")
        game_state, _, _ = self._env.step(action)
        return self._observe(game_state, reward=1.0)

    def _observe(self, game_state: Any, *, reward: float) -> Observation:
        self._facts = game_state["_facts"]
        self._done = bool(game_state["won"])
        return Observation(
            text=game_state["feedback"],
            admissible=tuple(game_state["admissible_commands"]),
            anchor=survey(board_of(self.game), self.state)[1],
            reward=reward if self._done else 0.0,
            done=self._done,
            success=self._done,
        )


@contextmanager
def _sys_argv_kept() -> Iterator[None]:
    """Fast Downward's translator overwrites `sys.argv` whenever it runs."""
    argv = sys.argv
    try:
        yield
    finally:
        sys.argv = argv


def check_textworld(setting: str) -> None:
    """Raises UserError, which names the setting that asks for TextWorld, where it is not installed. Imports nothing."""
    absent = [name for name in ("alfworld", "textworld", "fast_downward") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"{setting}: 'textworld' needs Python packages that are not installed ({', '.join(absent)}): {_REMEDY}, "
            f"or set {setting}: siri"
        )


def open_textworld(file: dict[str, Any]) -> Any:
    """A TextWorld environment, named by ALFWorld, that plays the content of a `game.tw-pddl` file.

    Raises UserError where `alfworld` or `textworld` is not installed.
    """
    try:
        textworld = importlib.import_module("textworld")
        pddl = importlib.import_module("textworld.envs.pddl")
        alfworld = importlib.import_module("alfworld.agents.environment.alfred_tw_env")
    except ImportError as error:
        raise UserError(
            f"engine 'textworld' needs the packages alfworld and textworld ({error}): {_REMEDY}, "
            "or play with HouseholdEnv"
        ) from error
    if _spare:
        env = _spare.pop()
    else:
        infos = textworld.EnvInfos(admissible_commands=True, won=True)
        env = alfworld.AlfredDemangler(pddl.PddlEnv(infos), shuffle=False)
    env.load(file)
    return env


def _state(board: Board, facts: Iterable[Any]) -> State:
    number = {id.lower(): i for ids in (board.spot_id, board.receptacle_id, board.thing_id) for i, id in enumerate(ids)}
    spot, held = board.start, -1
    bits = dict.fromkeys(("opened", "isclean", "ishot", "iscool", "issliced", "istoggled"), 0)
    contents: list[set[int]] = [set() for _ in board.receptacle_id]
    left: list[set[int]] = [set() for _ in board.receptacle_id]
    things_at: list[set[int]] = [set() for _ in board.spot_id]
    for fact in facts:
        names = [argument.name for argument in fact.arguments]
        if fact.name in bits:
            bits[fact.name] |= 1 << number[names[0]]
        elif fact.name == "inreceptacle":
            contents[number[names[1]]].add(number[names[0]])
        elif fact.name == "not_inreceptacle":
            left[number[names[1]]].add(number[names[0]])
        elif fact.name == "objectatlocation" and names[1] in number:  # Places out of everyone's reach have no number.
            things_at[number[names[1]]].add(number[names[0]])
        elif fact.name == "atlocation":
            spot = number[names[1]]
        elif fact.name == "holds":
            held = number[names[1]]
    return State(
        spot=spot,
        held=held,
        opened=bits["opened"],
        clean=bits["isclean"],
        hot=bits["ishot"],
        cool=bits["iscool"],
        sliced=bits["issliced"],
        toggled=bits["istoggled"],
        contents=tuple(tuple(sorted(things)) for things in contents),
        things_at=tuple(tuple(sorted(things)) for things in things_at),
        left=tuple(tuple(sorted(things)) for things in left),
    )
