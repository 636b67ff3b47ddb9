"""Advantages: the turns of many trajectories as columns, and GiGPO over them (arXiv 2505.10978).

GRPO, the control algorithm, is GiGPO with `omega = 0`: what is left is each trajectory's return normalised inside its
task group, with the same treatment of constant groups and invalid actions, so it has no code of its own.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from siri.config import GigpoConfig
from siri.engine.native import group_states
from siri.engine.trajectory import Ended, Trajectory, Turn, TurnTable
from siri.kernels import gigpo_advantage


def turn_table(
    trajectories: Sequence[Trajectory], config: GigpoConfig, *, statistics: Literal["pair", "branch"] = "pair"
) -> TurnTable:
    """The columns that advantages are computed from.

    Rows are in (group, member, step) order whatever the order of the input, so no statistic and no cluster depends on
    it; as groups stay on one rank, none depends on the number of ranks either. A trajectory that ended as ENV_ERROR has
    no rows, nor has one whose first prompt was too long.

    Args:
        trajectories: (group, member) is unique.
        config: `grouping`, `similarity_threshold` and `parity` are read. Under `parity: verl_agent` a state is the
            observation text instead of the environment's anchor.
        statistics: `pair` compares plain and skill-augmented trajectories of a task group with each other, `branch`
            each half with itself only (`Trajectory.condition` tells them apart).
    """
    kept = [index for index, trajectory in enumerate(trajectories) if trajectory.ended is not Ended.ENV_ERROR]
    kept.sort(key=lambda index: (trajectories[index].group, trajectories[index].member))
    ordered = [trajectories[index] for index in kept]
    assert len({(t.group, t.member) for t in ordered}) == len(ordered), "two trajectories with one (group, member)"

    lengths = [len(trajectory.turns) for trajectory in ordered]
    turns = [turn for trajectory in ordered for turn in trajectory.turns]
    halves = [(t.group, statistics == "branch" and bool(t.condition)) for t in ordered]
    half_label = {half: label for label, half in enumerate(dict.fromkeys(halves))}
    episode_group = np.repeat(np.array([half_label[half] for half in halves], dtype=np.int64), lengths)
    return TurnTable(
        reward=np.array([turn.reward for turn in turns], dtype=np.float64),
        valid=np.array([turn.action_valid for turn in turns], dtype=np.bool_),
        trajectory=np.repeat(np.array(kept, dtype=np.int64), lengths),
        episode_group=episode_group,
        step_group=_step_groups(turns, episode_group, config),
        step=np.array([step for length in lengths for step in range(length)], dtype=np.int64),
    )


def _step_groups(turns: Sequence[Turn], episode_group: np.ndarray, config: GigpoConfig) -> np.ndarray:
    similarity = config.similarity_threshold if config.grouping == "similarity" else None
    if config.parity == "verl_agent":
        return group_states([turn.observation for turn in turns], episode_group, similarity=similarity)
    if similarity is None:
        return group_states([turn.anchor for turn in turns], episode_group)
    # Similarity is one of characters; surrogateescape keeps anchors that are not UTF-8 distinct.
    texts = [turn.anchor.decode("utf-8", "surrogateescape") for turn in turns]
    return group_states(texts, episode_group, similarity=similarity)


def gigpo_advantages(
    trajectories: Sequence[Trajectory], table: TurnTable, config: GigpoConfig, *, device: torch.device | str = "cpu"
) -> list[np.ndarray | None]:
    """One advantage a turn, for every token of the turn's action.

    Args:
        trajectories: those `table` was made from, in the same order.
        table: `turn_table(trajectories, config)`.
        config: every field but the grouping; see `siri.kernels.gigpo_advantage` for the formulas.
        device: where it is computed.

    Returns:
        One f64[number of turns] a trajectory; None for ENV_ERROR: it must not be trained on, not even with advantage 0.
    """
    columns = (table.reward, table.trajectory, table.episode_group, table.step_group, table.valid)
    advantage = gigpo_advantage(
        *(torch.from_numpy(column).to(device) for column in columns),
        gamma=config.gamma,
        omega=config.omega,
        normalize=config.normalize,
        episode_stats=config.episode_stats,
        penalty=config.penalty,
        min_sigma=config.min_sigma,
        parity=None if config.parity == "none" else config.parity,
    )
    assert isinstance(advantage, torch.Tensor)
    per_row = advantage.cpu().numpy().astype(np.float64)
    return [
        None if trajectory.ended is Ended.ENV_ERROR else per_row[table.trajectory == index]
        for index, trajectory in enumerate(trajectories)
    ]
