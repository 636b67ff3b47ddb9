"""What an iteration's episodes were like, as flat numbers over all ranks."""

from collections.abc import Sequence

import numpy as np

from siri.engine.distributed import World, all_reduce_sum
from siri.engine.trajectory import Ended, Trajectory

_ENDS = tuple(Ended)


def rollout_metrics(
    trajectories: Sequence[Trajectory], advantages: Sequence[np.ndarray | None], world: World
) -> dict[str, float]:
    """Means over episodes or turns of all ranks. Episodes lost to their environment count only as such.

    `rollout/groups_with_signal` is the share of task groups in which any advantage is not zero,
    `rollout/nonfinite_logprobs` the number of tokens whose sampler log-probability is NaN or infinite: they are not
    trained on. `rollout/score` is there where the environment gives scores.
    """
    kept = [(t, a) for t, a in zip(trajectories, advantages, strict=True) if a is not None]
    turns = [turn for trajectory, _ in kept for turn in trajectory.turns]
    groups = {trajectory.group for trajectory, _ in kept}
    with_signal = {trajectory.group for trajectory, advantage in kept if np.any(advantage != 0)}
    sums = {
        "episodes": len(kept),
        "turns": len(turns),
        "successes": sum(trajectory.success for trajectory, _ in kept),
        "guided": sum(bool(trajectory.condition) for trajectory, _ in kept),
        "guided_successes": sum(trajectory.success for trajectory, _ in kept if trajectory.condition),
        "reward": sum(trajectory.total_reward for trajectory, _ in kept),
        "scored": sum(trajectory.score is not None for trajectory, _ in kept),
        "score": sum(trajectory.score or 0.0 for trajectory, _ in kept),
        "invalid": sum(not turn.action_valid for turn in turns),
        "action_tokens": sum(len(turn.action_ids) for turn in turns),
        "nonfinite": sum(int(np.count_nonzero(~np.isfinite(turn.behavior_logprob))) for turn in turns),
        "groups": len(groups),
        "with_signal": len(with_signal),
        "abs_advantage": sum(float(np.abs(advantage).sum()) for _, advantage in kept),
        **{f"ended_{end.value}": sum(t.ended is end for t in trajectories) for end in _ENDS},
    }
    total = dict(zip(sums, all_reduce_sum(world, np.array(list(sums.values()), dtype=np.float64)), strict=True))
    episodes, steps = max(1.0, total["episodes"]), max(1.0, total["turns"])
    plain, plain_successes = total["episodes"] - total["guided"], total["successes"] - total["guided_successes"]
    guided = {"rollout/guided_success_rate": total["guided_successes"] / total["guided"]} if total["guided"] else {}
    score = {"rollout/score": total["score"] / total["scored"]} if total["scored"] else {}
    return {
        **guided,
        **score,
        "rollout/plain_success_rate": plain_successes / max(1.0, plain),
        "rollout/success_rate": total["successes"] / episodes,
        "rollout/return": total["reward"] / episodes,
        "rollout/episodes": total["episodes"],
        "rollout/turns": total["turns"] / episodes,
        "rollout/env_steps": total["turns"],
        "rollout/invalid_actions": total["invalid"] / steps,
        "rollout/action_tokens": total["action_tokens"],
        "rollout/nonfinite_logprobs": total["nonfinite"],
        "rollout/groups_with_signal": total["with_signal"] / max(1.0, total["groups"]),
        "rollout/abs_advantage": total["abs_advantage"] / steps,
        **{f"ended/{end.value}": total[f"ended_{end.value}"] for end in _ENDS},
    }
