"""GiGPO advantages of environment steps: episode level plus step level.

One row is one environment step i of trajectory tau(i), task group g(i) and anchor group a(i) (rows of one task group
that acted from the same state). With G_t = r_t + gamma G_{t+1} inside a trajectory (no bootstrap at a cut-off), R_tau
= sum_t r_t and c = `penalty`:

    A_i   = A^E_i + omega A^S_i
    A^E_i = (R_tau(i) - mu_g) / (sigma_g + eps) - c (1 - valid_i) / (max(sigma_g, min_sigma) + eps)
    A^S_i = (G_i      - mu_a) / (sigma_a + eps) - c (1 - valid_i) / (max(sigma_a, min_sigma) + eps)

A^S_i is 0 if i is alone in a(i). sigma is unbiased. `normalize="mean"` drops both divisions. mu_g and sigma_g count
each trajectory once (`episode_stats="trajectory"`, GiGPO Eq. 3) or each row once ("row"). Two rules keep noise out
of the signal:

* A constant group (its spread is rounding: 64 ulp of the rewards' dtype) contributes exactly 0 for valid rows.
* The penalty never enters mu or sigma. It is charged in reward units over the same sigma, floored at `min_sigma`,
  so that it cannot be blown up where outcomes (almost) agree.

`parity="verl_agent"` is what verl-agent computes: all in float32, penalised scores R - c (1 - valid) and G - c (1 -
valid) throughout, no floor and no guard, an episode list of one score passes through raw (mu 0, sigma 1),
"trajectory" takes the penalised score of each trajectory's first row.

Sources: GiGPO (arXiv 2505.10978); the two rules are ours. Legend: N rows, K groups.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from .checks import check_number, check_tensors
from .dispatch import untraced, use_triton

ROUNDING_ULP = 64
"""A return is a sum over log2(length) <= 20 levels, each rounded twice: a spread below 64 ulp is no outcome."""

FLOAT32_ULP = torch.finfo(torch.float32).eps
"""Half-precision rewards count as float32: 64 of their own ulp are half of a value."""


class Parts(NamedTuple):
    """`gigpo_advantage(..., return_parts=True)`; all [N]."""

    advantage: Tensor
    episode_adv: Tensor
    step_adv: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The choices of one call, checked; see `gigpo_advantage`."""

    gamma: float
    omega: float
    scale: bool
    """divide by sigma"""
    by_row: bool
    """episode statistics count rows, not trajectories"""
    min_sigma: float
    eps: float
    penalty: float
    parity: bool
    """with verl-agent"""
    ulp: float
    """spacing of the rewards' dtype at 1"""
    dtype: torch.dtype
    """of the result"""


class GroupStats(NamedTuple):
    """Per group [K], gathered back to rows [N] by the group's label."""

    size: Tensor
    mean: Tensor
    sigma: Tensor
    constant: Tensor


def discounted_returns(reward: Tensor, rows_left: Tensor, gamma: float) -> Tensor:
    """G [N]. `rows_left` i64[N] is the number of later rows of the same trajectory.

    Doubling: after k passes each row holds the first 2^k terms of its sum, so any length takes log2 of it passes over
    N. Equal futures give bit-equal returns, wherever they stand in the batch.
    """
    returns, reach, discount = reward.clone(), 1, gamma
    longest = int(rows_left.max()) if len(rows_left) else 0
    while reach <= longest:
        ahead = torch.where(rows_left[:-reach] >= reach, returns[reach:], 0)
        returns[:-reach] += discount * ahead
        reach, discount = 2 * reach, discount * discount
    return returns


def group_stats(score: Tensor, label: Tensor, groups: int, ulp: float) -> GroupStats:
    """Statistics of score[M] by label[M] in [0, groups)."""
    zeros = score.new_zeros(groups)
    low = zeros.scatter_reduce(0, label, score, "amin", include_self=False)
    high = zeros.scatter_reduce(0, label, score, "amax", include_self=False)
    count = zeros.index_add(0, label, torch.ones_like(score))
    offset = score - low[label]  # exactly 0 in a constant group
    mean = zeros.index_add(0, label, offset) / count.clamp(min=1)
    square = zeros.index_add(0, label, (offset - mean[label]).square())
    return GroupStats(
        size=count,
        mean=low + mean,
        sigma=(square / (count - 1).clamp(min=1)).sqrt(),
        constant=high - low <= ROUNDING_ULP * ulp * torch.maximum(low.abs(), high.abs()),
    )


def normalized(score: Tensor, charge: Tensor, stats: GroupStats, scale: bool, min_sigma: float, eps: float) -> Tensor:
    """Our rule: (score - mu) / (sigma + eps), 0 in constant groups, minus charge / floored sigma; all [N]."""
    centred = torch.where(stats.constant, 0, score - stats.mean)
    if not scale:
        return centred - charge
    return centred / (stats.sigma + eps) - charge / (stats.sigma.clamp(min=min_sigma) + eps)


def verl_agent_normalized(score: Tensor, stats: GroupStats, scale: bool, eps: float, lone_is_raw: bool) -> Tensor:
    """Their rule: (score - mu) / (sigma + eps) of penalised scores; a lone one passes raw (episode) or gives 0."""
    alone = (stats.size == 1) & lone_is_raw
    centred = score - torch.where(alone, 0, stats.mean)
    return centred / (torch.where(alone, 1, stats.sigma) + eps) if scale else centred


@overload
def gigpo_advantage(
    reward: Tensor, traj: Tensor, episode_group: Tensor, step_group: Tensor, valid: Tensor, *, gamma: float,
    omega: float, normalize: Literal["mean_std", "mean"] = "mean_std",
    episode_stats: Literal["trajectory", "row"] = "trajectory", penalty: float = 0.1, min_sigma: float = 0.25,
    eps: float = 1e-6, parity: Literal["verl_agent"] | None = None, return_parts: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def gigpo_advantage(
    reward: Tensor, traj: Tensor, episode_group: Tensor, step_group: Tensor, valid: Tensor, *, gamma: float,
    omega: float, normalize: Literal["mean_std", "mean"] = "mean_std",
    episode_stats: Literal["trajectory", "row"] = "trajectory", penalty: float = 0.1, min_sigma: float = 0.25,
    eps: float = 1e-6, parity: Literal["verl_agent"] | None = None, return_parts: Literal[True],
) -> Parts: ...  # fmt: skip
@untraced
def gigpo_advantage(
    reward: Tensor,
    traj: Tensor,
    episode_group: Tensor,
    step_group: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    omega: float,
    normalize: Literal["mean_std", "mean"] = "mean_std",
    episode_stats: Literal["trajectory", "row"] = "trajectory",
    penalty: float = 0.1,
    min_sigma: float = 0.25,
    eps: float = 1e-6,
    parity: Literal["verl_agent"] | None = None,
    return_parts: bool = False,
) -> Tensor | Parts:
    """Advantage of each environment step. Statistics in float64 (float32 under parity); no loop over rows.

    Args:
        reward: [N], reward of the step; best given in float64, or integers.
        traj: i64 [N], label of the trajectory. The rows of one trajectory are contiguous and in step order.
        episode_group: i64 [N], label of the task group.
        step_group: i64 [N], label of the anchor group, which lies inside one task group.
        valid: bool [N], the action was valid.
        gamma: discount of the step returns, in [0, 1].
        omega: weight of the step level.
        normalize: "mean_std" divides the distance from the group's mean by its sigma (sample standard deviation) +
            eps, "mean" does not. A group without spread gives exactly 0, and so does a step alone in its anchor group.
        episode_stats: whether the statistics of a task group are over its trajectories, or over rows, of which a long
            trajectory has more.
        penalty: c, in reward units.
        min_sigma: floor of the sigma that the penalty is divided by, in reward units. The default fits rewards of 0
            and 1: one success among n has sigma 1 / sqrt(n) >= 0.25 up to n = 16, so the floor acts only where outcomes
            (almost) agree, and there an invalid action costs 0.4 a level. For rewards of 0 and 10 the same reasoning
            gives 2.5.
        eps: added to sigma.
        parity: "verl_agent" reproduces the incumbent (which counts rows: also pass episode_stats="row"); min_sigma is
            then unused.
        return_parts: return `Parts` instead of the advantage alone.

    Returns:
        advantage [N], float64 for float64 rewards, else float32; float32 under parity. Labels may be any integers.

    Raises:
        ValueError: shapes that differ, rows of a trajectory that are not contiguous, a trajectory or an anchor group in
            two task groups, an unknown choice, or gamma outside [0, 1]. To know of the labels, a GPU is waited for
            once; while a CUDA graph is captured it is not, and the task or anchor groups of such rows are NaN.
    """
    check_rows(reward, traj=traj, episode_group=episode_group, step_group=step_group, valid=valid)
    check_choice("normalize", normalize, ("mean_std", "mean"))
    check_choice("episode_stats", episode_stats, ("trajectory", "row"))
    check_choice("parity", parity, (None, "verl_agent"))
    check_numbers(gamma, omega, penalty, min_sigma, eps)
    rule = Rule(
        gamma=gamma,
        omega=omega,
        scale=normalize == "mean_std",
        by_row=episode_stats == "row",
        min_sigma=min_sigma,
        eps=eps,
        penalty=penalty,
        parity=parity is not None,
        ulp=min(torch.finfo(reward.dtype if reward.is_floating_point() else torch.float64).eps, FLOAT32_ULP),
        dtype=torch.float64 if reward.dtype == torch.float64 and parity is None else torch.float32,
    )
    if use_triton(traj, episode_group, step_group):
        from .gigpo_advantage_triton import gigpo_parts_triton  # here: triton is not everywhere

        parts = gigpo_parts_triton(reward, traj, episode_group, step_group, valid, rule)
    else:
        parts = gigpo_parts_ref(reward, traj, episode_group, step_group, valid, rule)
    return parts if return_parts else parts.advantage


def gigpo_parts_ref(
    reward: Tensor, traj: Tensor, episode_group: Tensor, step_group: Tensor, valid: Tensor, rule: Rule
) -> Parts:
    """All [N] in the rule's dtype."""
    reward = reward.to(torch.float32 if rule.parity else torch.float64)
    charge = rule.penalty * (~valid.bool()).to(reward.dtype)
    first, rows_left, trajectory = trajectory_layout(traj)
    returns = discounted_returns(reward, rows_left, rule.gamma)
    totals = reward.new_zeros(len(first)).index_add(0, trajectory, reward)[trajectory]
    check_nested("traj", traj, trajectory, len(first), episode_group)
    scores = (totals - charge, returns - charge) if rule.parity else (totals, returns)
    counted = (slice(None) if rule.by_row else first, slice(None))

    levels = []
    for level, (score, rows, group) in enumerate(zip(scores, counted, (episode_group, step_group), strict=True)):
        label = group.unique(return_inverse=True)[1]
        groups = int(label.max()) + 1 if len(label) else 0
        if level == 1:
            check_nested("step_group", step_group, label, groups, episode_group)
        stats = GroupStats(*(field[label] for field in group_stats(score[rows], label[rows], groups, rule.ulp)))
        if rule.parity:
            levels.append(verl_agent_normalized(score, stats, rule.scale, rule.eps, lone_is_raw=level == 0))
        else:
            a = normalized(score, charge, stats, rule.scale, rule.min_sigma, rule.eps)
            levels.append(a if level == 0 else torch.where(stats.size == 1, 0, a))
    episode_adv, step_adv = levels
    parts = (episode_adv + rule.omega * step_adv, episode_adv, step_adv, returns)
    return Parts(*(part.to(rule.dtype) for part in parts))


def trajectory_layout(traj: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(first row of each trajectory [K], number of later rows of the same one [N], trajectory of each row [N])."""
    starts = torch.ones_like(traj, dtype=torch.bool)
    starts[1:] = traj[1:] != traj[:-1]
    first = starts.nonzero().squeeze(1)
    segment = starts.cumsum(0) - 1
    if len(traj[first].unique()) != len(first):
        labels, counts = traj[first].unique(return_counts=True)
        label = labels[counts > 1][0].item()
        raise ValueError(f"traj: the rows of {label} are not contiguous; sort rows by (trajectory, step)")
    ends = torch.cat([first[1:], first.new_tensor([len(traj)])])[: len(first)]
    return first, ends[segment] - 1 - torch.arange(len(traj), device=traj.device), segment


def check_nested(name: str, labels: Tensor, label: Tensor, groups: int, episode_group: Tensor) -> None:
    """Raises ValueError if rows of one label[N] in [0, groups) lie in two task groups; `labels` are the caller's."""
    owner = episode_group.new_zeros(groups).scatter_(0, label, episode_group)
    strays = owner[label] != episode_group
    if strays.any():
        row = int(strays.nonzero()[0])
        raise ValueError(
            f"{name}[{row}] = {labels[row].item()} lies in task group {episode_group[row].item()} here and in "
            f"{owner[label[row]].item()} elsewhere; labels must differ where episode_group does"
        )


def label_error(traj: Tensor, episode_group: Tensor, step_group: Tensor) -> ValueError:
    """What is wrong with labels that are known to be wrong."""
    try:
        first, _, trajectory = trajectory_layout(traj)
        check_nested("traj", traj, trajectory, len(first), episode_group)
        groups, label = step_group.unique(return_inverse=True)
        check_nested("step_group", step_group, label, len(groups), episode_group)
    except ValueError as error:
        return error
    raise AssertionError("the flag of wrong labels was raised for right ones")


def check_rows(reward: Tensor, **columns: Tensor) -> None:
    """Raises ValueError unless every column has the shape [N] of reward, and labels are integers."""
    check_tensors(reward=reward, **columns)
    if reward.is_complex():
        raise ValueError(f"reward has dtype {reward.dtype}; it must be real")
    for name, column in columns.items():
        if reward.ndim != 1 or column.shape != reward.shape:
            raise ValueError(f"{name} {tuple(column.shape)} and reward {tuple(reward.shape)} must both be [N]")
        if name != "valid" and (column.is_floating_point() or column.is_complex()):
            raise ValueError(f"{name} has dtype {column.dtype}; labels must be integers: number the groups")


def check_numbers(gamma: float, omega: float, penalty: float, min_sigma: float, eps: float) -> None:
    """Raises ValueError naming the number and its range."""
    for name, value in (
        ("gamma", gamma),
        ("omega", omega),
        ("penalty", penalty),
        ("min_sigma", min_sigma),
        ("eps", eps),
    ):
        check_number(name, value)
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma = {gamma} must lie in [0, 1]")
    if not 0.0 < eps < math.inf:
        raise ValueError(f"eps = {eps} must be > 0: it keeps constant groups from dividing 0 by 0 (1e-6 is usual)")
    for name, value in (("omega", omega), ("penalty", penalty), ("min_sigma", min_sigma)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} = {value} must be at least 0 and finite")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises ValueError naming the choices."""
    if value not in choices:
        raise ValueError(f"{name} = {value!r} must be one of {', '.join(map(repr, choices))}")
