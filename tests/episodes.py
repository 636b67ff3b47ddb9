"""Small hand-made episodes for the tests of advantages and packing."""

from collections.abc import Sequence

import numpy as np

from siri.config import GigpoConfig
from siri.engine.trajectory import Ended, Trajectory, Turn
from siri.gigpo import gigpo_advantages, turn_table


def turn(
    state: str = "hall",
    *,
    reward: float = 0.0,
    valid: bool = True,
    observation: str | None = None,
    prompt: Sequence[int] = (1, 2),
    action: Sequence[int] = (3,),
) -> Turn:
    """A turn whose anchor is `state`, and so is its observation unless given; log-probabilities are -1."""
    return Turn(
        prompt_ids=np.array(prompt, dtype=np.int32),
        action_ids=np.array(action, dtype=np.int32),
        behavior_logprob=np.full(len(action), -1.0, dtype=np.float32),
        action_span=(0, len(action)),
        observation=state if observation is None else observation,
        action="look",
        anchor=state.encode(),
        reward=reward,
        action_valid=valid,
        policy_version=0,
    )


def episode(
    group: int, member: int, turns: Sequence[Turn], ended: Ended = Ended.DONE, condition: tuple[str, ...] = ()
) -> Trajectory:
    return Trajectory(
        group=group,
        member=member,
        task_id="",
        task_type="",
        task="",
        condition=condition,
        turns=tuple(turns),
        success=False,
        ended=ended,
    )


def advantages(trajectories: Sequence[Trajectory], config: GigpoConfig) -> list[np.ndarray]:
    """GiGPO advantages of trajectories that all have some."""
    result = gigpo_advantages(trajectories, turn_table(trajectories, config), config)
    assert all(one is not None for one in result)
    return [one for one in result if one is not None]


def first_appearance(labels: Sequence[object]) -> list[int]:
    """The same partition with labels 0, 1, ... in order of first appearance."""
    seen: dict[object, int] = {}
    return [seen.setdefault(label, len(seen)) for label in labels]
