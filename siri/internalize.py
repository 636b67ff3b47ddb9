"""Internalisation: what the skill-guided episodes did well, as training rows under the plain prompt (arXiv 2606.02355).

    m_t   = 1[the skill block was in the prompt] 1[the gate is open] 1[t is a token of a valid action]
            (without a gate: 1[the skill block was in the prompt] 1[t is a token of an action])
    w_t   = m_t clip(A_i, 0, c_adv),  A_i the advantage of the turn
    L_int = - sum_t w_t log pi(a_t | plain prompt of turn i, a_<t) / max(1, sum_t m_t)  over the global batch

The plain prompt of a skill-guided turn is the turn's twin prompt: `engine.rollout` keeps it in step with the episode.
This file decides which tokens and how much; `engine.batch` makes the rows, `siri.update` adds the loss.

An action token is a token of the span that was parsed as the action. The tags around it and the end-of-turn token are
none. A refused action changed nothing, so it helped with nothing: behind a gate it is never distilled, though in a
successful episode its advantage is above 0, penalty and all. That is ours: L_int has nothing to push such tokens down
again. Without a gate, in the control arm, every action of a skill-guided episode counts, refused ones too.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from siri.engine.batch import make_twin_rows
from siri.engine.trajectory import TrainRow, Trajectory

Gate = Literal["bank", "group", "both", "none"]


def lambda_at(step: int, *, lambda_max: float, lambda_warmup: int) -> float:
    """Weight of L_int in internalisation step `step` (0-based): 0 in the first, `lambda_max` from `lambda_warmup`."""
    return lambda_max if step >= lambda_warmup else lambda_max * step / lambda_warmup


def is_beneficial(
    trajectory: Trajectory, *, gate: Gate, utility: Mapping[str, float], delta: Mapping[int, float]
) -> bool:
    """Whether an episode that was shown skills may be distilled; never for a plain one.

    Args:
        trajectory: `condition` and `group` are read.
        gate: bank: the mean utility of the skills shown is > 0. group: Delta of the episode's own task group is > 0.
            both: both. none: always (the control arm without a gate).
        utility: mean utility by skill id; a skill that was never evaluated counts 0.
        delta: Delta_g by task group, mean return of the skill half minus that of the plain half. A group without one
            (a half of it was lost) has shown no benefit.
    """
    if not trajectory.condition:
        return False
    by_bank = float(np.mean([utility.get(skill, 0.0) for skill in trajectory.condition])) > 0
    by_group = delta.get(trajectory.group, 0.0) > 0
    return {"bank": by_bank, "group": by_group, "both": by_bank and by_group, "none": True}[gate]


def distill_spans(trajectory: Trajectory, *, gate: Gate, distill_reasoning: bool) -> list[tuple[int, int]]:
    """Half-open range of each turn's `action_ids` with m_t = 1, if the gate is open; empty where nothing parsed, and
    where the action was refused, unless the gate is `none`.

    With `distill_reasoning`, all that was drawn before the action is part of it (tags too), in turns with an action.
    """
    spans = [turn.action_span if turn.action_valid or gate == "none" else (0, 0) for turn in trajectory.turns]
    return [(0 if distill_reasoning else start, stop) for start, stop in spans]


def distill_weights(advantages: np.ndarray, *, c_adv: float) -> np.ndarray:
    """f64[number of turns]: w_t of a turn's tokens with m_t = 1, from the turns' advantages."""
    return np.clip(advantages, 0.0, c_adv)


def rerendered_rows(
    trajectories: Sequence[Trajectory],
    advantages: Sequence[np.ndarray | None],
    *,
    gate: Gate,
    utility: Mapping[str, float],
    delta: Mapping[int, float],
    c_adv: float,
    distill_reasoning: bool,
    with_teacher: bool,
) -> dict[int, list[TrainRow]]:
    """Rows of L_int by task group, in (member, step) order, to be planned together with the policy's rows.

    They carry no sampler log-prob: it belongs to another prompt. Where lambda is 0 they would cost forward passes for
    nothing, so there the caller leaves them out.

    Args:
        trajectories: those that were shown skills have twin prompts, the plain ones.
        advantages: one [number of turns] a trajectory, None for one that must not be trained on.
        gate, utility, delta: see `is_beneficial`, and `distill_spans` for the gate.
        c_adv: most that a token's weight can be, > 0.
        distill_reasoning: see `distill_spans`.
        with_teacher: rows for a divergence from the policy under the skill prompt; False for `nll`.
    """
    rows: defaultdict[int, list[TrainRow]] = defaultdict(list)
    pairs = zip(trajectories, advantages, strict=True)
    for trajectory, advantage in sorted(pairs, key=lambda pair: (pair[0].group, pair[0].member)):
        if advantage is not None and is_beneficial(trajectory, gate=gate, utility=utility, delta=delta):
            rows[trajectory.group] += make_twin_rows(
                trajectory,
                distill_spans(trajectory, gate=gate, distill_reasoning=distill_reasoning),
                distill_weights(advantage, c_adv=c_adv),
                with_teacher=with_teacher,
            )
    return dict(rows)
