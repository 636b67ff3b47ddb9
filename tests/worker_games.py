"""Environments for the worker tests; worker processes import this module."""

import os
import signal
import time
from typing import Literal

from siri.engine.environment import Observation
from siri.envs.household import Game, HouseholdEnv


class EchoGame:
    """Counts its steps. The action decides what happens: `win`, `raise`, `die`, `hang`, `spawn`, or nothing special."""

    def __init__(self, task_id: str) -> None:
        self.task = f"play {task_id}"
        self._steps = 0

    def reset(self) -> Observation:
        self._steps = 0
        return self._observation("start")

    def step(self, action: str) -> Observation:
        self._steps += 1
        if action == "raise":
            raise ValueError("the lamp broke")
        if action == "die":
            os._exit(3)
        if action == "hang":
            time.sleep(600)
        if action == "slow":
            time.sleep(0.3)
        return self._observation(action)

    def _observation(self, action: str) -> Observation:
        won = action == "win"
        text = f"{action} {self._steps} in {os.getpid()}"
        return Observation(text=text, admissible=None, anchor=text.encode(), reward=float(won), done=won, success=won)


def make_unless_cursed(task_id: str) -> EchoGame:
    if task_id == "cursed":
        raise RuntimeError("no such game")
    return EchoGame(task_id)


def household(game: Game, *, cursed: str = "", fate: Literal["raise", "kill"] = "raise") -> HouseholdEnv:
    """Our own engine; the game with the id `cursed` meets its fate."""
    return CursedHousehold(game, fate) if game.id == cursed else HouseholdEnv(game)


class CursedHousehold(HouseholdEnv):
    """Its second step raises, or kills the process that plays it."""

    def __init__(self, game: Game, fate: Literal["raise", "kill"]) -> None:
        super().__init__(game)
        self._fate = fate
        self._steps = 0

    def step(self, action: str) -> Observation:
        self._steps += 1
        if self._steps == 2 and self._fate == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._steps == 2:
            raise ValueError("the lamp broke")
        return super().step(action)
