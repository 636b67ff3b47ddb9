"""Triton half of `gigpo_advantage`: three kernels, on what three sorts have put in order.

    returns_kernel    one program a trajectory, from its last row backwards: G and R_tau
    group_kernel      one program a group: size, mean, sigma, and whether it is constant
    advantage_kernel  each row: both levels and their sum

Every sum has a fixed order, so results repeat bit for bit (adding into groups with atomics, as `index_add` does on a
GPU, would not), and equal futures give bit-equal returns, because a trajectory is read from its end. The formulas are
those of `gigpo_advantage.py`, in float64, or float32 under parity.

Legend: N rows, K trajectories, G groups, M rows or trajectories that a level counts.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gigpo_advantage import ROUNDING_ULP, Parts, Rule, trajectory_layout

RETURNS_BLOCK, GROUP_BLOCK, ROWS_BLOCK = 64, 128, 256
"""Of one, one and four warps: trajectories have tens of rows, anchor groups rarely more than a hundred."""


@triton.jit
def then(decay_a, sum_a, decay_b, sum_b):
    """First a, then b: G becomes decay * G + sum."""
    return decay_a * decay_b, decay_b * sum_a + sum_b


@triton.jit
def returns_kernel(
    reward_ptr,  # [N]
    bounds_ptr,  # i64 [K + 1], first rows
    params_ptr,  # [5], see `parameters`
    returns_ptr,  # [N]
    total_ptr,  # [K]
    BLOCK: tl.constexpr,
):
    k = tl.program_id(0)
    start, stop = tl.load(bounds_ptr + k), tl.load(bounds_ptr + k + 1)
    gamma = tl.load(params_ptr)
    total = 0.0 * gamma
    follow = total  # G of the row after this block's last
    for done in range(0, stop - start, BLOCK):
        row = stop - 1 - done - tl.arange(0, BLOCK)
        reward = tl.load(reward_ptr + row, row >= start, 0.0)
        decay, partial = tl.associative_scan((gamma + tl.zeros_like(reward), reward), 0, then)
        returns = partial + decay * follow
        tl.store(returns_ptr + row, returns, row >= start)
        total += tl.sum(reward, 0)
        follow = tl.sum(tl.where(tl.arange(0, BLOCK) == BLOCK - 1, returns, 0.0), 0)
    tl.store(total_ptr + k, total)


@triton.jit(do_not_specialize=["G"])
def group_kernel(
    score_ptr,  # [N]
    member_ptr,  # i64 [M], rows, group after group
    bounds_ptr,  # i64 [G + 1], where each group begins among the members
    params_ptr,  # [5]
    stats_ptr,  # [4, G]: size, mean, sigma, constant (0 or 1)
    G,
    BLOCK: tl.constexpr,
):
    g = tl.program_id(0)
    start, stop = tl.load(bounds_ptr + g), tl.load(bounds_ptr + g + 1)
    low = tl.load(score_ptr + tl.load(member_ptr + start))
    high = low
    for at in range(start, stop, BLOCK):
        index = at + tl.arange(0, BLOCK)
        row = tl.load(member_ptr + index, index < stop, 0)
        score = tl.load(score_ptr + row, index < stop, 0.0)
        low = tl.minimum(low, tl.min(tl.where(index < stop, score, low), 0))
        high = tl.maximum(high, tl.max(tl.where(index < stop, score, high), 0))
    size = (stop - start).to(low.dtype)
    offset = low * 0.0  # mean above low: exactly 0 in a constant group
    for at in range(start, stop, BLOCK):
        index = at + tl.arange(0, BLOCK)
        row = tl.load(member_ptr + index, index < stop, 0)
        score = tl.load(score_ptr + row, index < stop, 0.0)
        offset += tl.sum(tl.where(index < stop, score - low, 0.0), 0)
    offset = offset / size
    square = low * 0.0
    for at in range(start, stop, BLOCK):
        index = at + tl.arange(0, BLOCK)
        row = tl.load(member_ptr + index, index < stop, 0)
        score = tl.load(score_ptr + row, index < stop, 0.0)
        distance = tl.where(index < stop, score - low - offset, 0.0)
        square += tl.sum(distance * distance, 0)
    within = tl.load(params_ptr + 4) * tl.maximum(tl.abs(low), tl.abs(high))
    stats_ptr += g
    tl.store(stats_ptr, size)
    tl.store(stats_ptr + G, low + offset)
    tl.store(stats_ptr + 2 * G, tl.sqrt(square / tl.maximum(size - 1.0, 1.0)))
    tl.store(stats_ptr + 3 * G, tl.where(high - low <= within, 1.0, 0.0))


@triton.jit
def level(score, charge, stats_ptr, groups, label, live, params_ptr, STEP: tl.constexpr, SCALE: tl.constexpr,
          PARITY: tl.constexpr):  # fmt: skip
    """The advantage of one level for a block of rows."""
    floor, eps = tl.load(params_ptr + 2), tl.load(params_ptr + 3)
    size = tl.load(stats_ptr + label, live, 1.0)
    mean = tl.load(stats_ptr + groups + label, live, 0.0)
    sigma = tl.load(stats_ptr + 2 * groups + label, live, 0.0)
    if PARITY:
        raw = (size == 1.0) & (not STEP)  # verl-agent: an episode list of one score passes through
        advantage = score - tl.where(raw, 0.0, mean)
        if SCALE:
            advantage = advantage / (tl.where(raw, 1.0, sigma) + eps)
    else:
        constant = tl.load(stats_ptr + 3 * groups + label, live, 0.0)
        advantage = tl.where(constant > 0.0, 0.0, score - mean)
        if SCALE:
            advantage = advantage / (sigma + eps)
            charge = charge / (tl.maximum(sigma, floor) + eps)
        advantage = advantage - charge
        if STEP:
            advantage = tl.where(size == 1.0, 0.0, advantage)
    return advantage


@triton.jit(do_not_specialize=["N", "episode_groups", "step_groups"])
def advantage_kernel(
    episode_score_ptr,  # [N], step_score too
    step_score_ptr,
    charge_ptr,  # [N]
    episode_stats_ptr,  # [4, G], step_stats too
    step_stats_ptr,
    episode_label_ptr,  # i64 [N], step_label too
    step_label_ptr,
    params_ptr,  # [5]
    out_ptr,  # [3, N]: advantage, episode level, step level
    N,
    episode_groups,
    step_groups,
    SCALE: tl.constexpr,
    PARITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < N
    charge = tl.load(charge_ptr + row, live, 0.0)
    episode = level(
        tl.load(episode_score_ptr + row, live, 0.0), charge, episode_stats_ptr, episode_groups,
        tl.load(episode_label_ptr + row, live, 0), live, params_ptr, False, SCALE, PARITY,
    )  # fmt: skip
    step = level(
        tl.load(step_score_ptr + row, live, 0.0), charge, step_stats_ptr, step_groups,
        tl.load(step_label_ptr + row, live, 0), live, params_ptr, True, SCALE, PARITY,
    )  # fmt: skip
    out_ptr += row
    tl.store(out_ptr, episode + tl.load(params_ptr + 1) * step, live)
    tl.store(out_ptr + N, episode, live)
    tl.store(out_ptr + 2 * tl.cast(N, tl.int64), step, live)


class Groups(NamedTuple):
    """Labels, put in order."""

    order: Tensor
    """i64 [M], positions by label, stable"""
    bounds: Tensor
    """i64 [G + 1], where each group begins in `order`"""
    label: Tensor
    """i64 [M] in [0, G)"""


def in_groups(labels: Tensor) -> Groups:
    """One stable sort and one wait for the number of groups; no atomics."""
    values, order = labels.sort(stable=True)
    begins = torch.ones_like(values, dtype=torch.bool)
    begins[1:] = values[1:] != values[:-1]
    bounds = torch.cat([begins.nonzero().squeeze(1), order.new_tensor([len(labels)])])
    label = torch.empty_like(order)
    label[order] = begins.cumsum(0) - 1
    return Groups(order=order, bounds=bounds, label=label)


def parameters(rule: Rule, like: Tensor) -> Tensor:
    """[5] on the device, in full precision: Triton passes Python's floats as float32."""
    values = (rule.gamma, rule.omega, rule.min_sigma, rule.eps, ROUNDING_ULP * rule.ulp)
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def gigpo_parts_triton(
    reward: Tensor, traj: Tensor, episode_group: Tensor, step_group: Tensor, charge: Tensor, rule: Rule
) -> Parts:
    """`gigpo_parts` on a GPU; all [N], float64 or (parity) float32."""
    N = len(reward)
    first, _, trajectory = trajectory_layout(traj)
    returns, total_K = torch.empty_like(reward), reward.new_empty(len(first))
    out = reward.new_empty(3, N)
    if N == 0:
        return Parts(out[0], out[1], out[2], returns)
    params = parameters(rule, reward)
    bounds = torch.cat([first, first.new_tensor([N])])
    with torch.cuda.device_of(reward):
        returns_kernel[(len(first),)](
            reward.contiguous(), bounds, params, returns, total_K, BLOCK=RETURNS_BLOCK, num_warps=1
        )
        scores = [total_K[trajectory], returns]
        if rule.parity:
            scores = [score - charge for score in scores]

        step = in_groups(step_group)
        episode = in_groups(episode_group if rule.by_row else episode_group[first])
        members = (episode.order if rule.by_row else first[episode.order], step.order)
        stats = []
        for score, member, groups in zip(scores, members, (episode, step), strict=True):
            G = len(groups.bounds) - 1
            stats.append(reward.new_empty(4, G))
            group_kernel[(G,)](score, member, groups.bounds, params, stats[-1], G, BLOCK=GROUP_BLOCK, num_warps=1)
        advantage_kernel[(triton.cdiv(N, ROWS_BLOCK),)](
            *scores, charge, *stats, episode.label if rule.by_row else episode.label[trajectory], step.label, params,
            out, N, stats[0].shape[1], stats[1].shape[1], SCALE=rule.scale, PARITY=rule.parity, BLOCK=ROWS_BLOCK,
            num_warps=4,
        )  # fmt: skip
    return Parts(out[0], out[1], out[2], returns)
