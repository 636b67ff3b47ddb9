"""Environments for the worker tests; worker processes import this module."""

import os
import time

from siri.engine.environment import Observation


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
