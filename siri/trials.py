"""Paired rollouts: a task group is played with skills in one half and without in the other (ALGORITHM section 1.1).

The halves start from the same state and draw with the same seeds, member by member, so that as much as possible of
what differs in the outcome is the skills' doing.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from siri.engine.trajectory import Ended, Trajectory
from siri.skills import Trial


def halves(group_size: int) -> tuple[range, range]:
    """Members of the plain half and of the skill half. `group_size` is even."""
    return range(group_size // 2), range(group_size // 2, group_size)


def trials_of(trajectories: Sequence[Trajectory], *, iteration: int) -> list[Trial]:
    """One trial for each task group that was played in both ways, in group order.

    Episodes lost to their environment are left out; a group of which a half was lost altogether is no trial.
    """
    groups: defaultdict[int, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        if trajectory.ended is not Ended.ENV_ERROR:
            groups[trajectory.group].append(trajectory)
    trials = []
    for group, members in sorted(groups.items()):
        plain = [trajectory.total_reward for trajectory in members if not trajectory.condition]
        guided = [trajectory for trajectory in members if trajectory.condition]
        if plain and guided:
            assert len({trajectory.condition for trajectory in guided}) == 1, "one set of skills a group"
            trial = Trial(
                iteration=iteration,
                group=group,
                task_id=guided[0].task_id,
                skills=guided[0].condition,
                skill_mean=sum(trajectory.total_reward for trajectory in guided) / len(guided),
                plain_mean=sum(plain) / len(plain),
            )
            trials.append(trial)
    return trials


def solved_both_ways(trajectories: Sequence[Trajectory], trials: Sequence[Trial]) -> np.ndarray:
    """i64[2, 2] over the groups of `trials`, plain halves first: episodes solved, and played to an end of their own."""
    groups = {trial.group for trial in trials}
    counts = np.zeros((2, 2), np.int64)
    for trajectory in trajectories:
        if trajectory.group in groups and trajectory.ended is not Ended.ENV_ERROR:
            counts[int(bool(trajectory.condition))] += (trajectory.success, 1)
    return counts
