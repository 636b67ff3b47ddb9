"""Triton half of `gigpo_advantage`: three kernels in four launches, no sort, one wait after the last.

    score_kernel      each row: its trajectory is walked for G and R_tau; its groups are looked up in hash tables, and
                      their least and greatest score and size counted
    moment_kernel     each row: adds to the sums of its groups; run again, to their sums of squares
    advantage_kernel  each row: both levels and their sum

A group is named by a row of it, its owner: the first to reach the group's place in the table. Which one that is may
differ from run to run, and so may the order of atomic additions. Results do not: integers are added, shares of the
group's spread (high - low) of which all together fill 61 bits, so that no sum overflows, rounds or depends on order.

    u_i = (score_i - low) / spread        sum = sum_i floor(2^61 / n u_i)        mean = low + spread sum / 2^61
    squares = sum_i floor(2^61 / n (u_i - sum / 2^61)^2)        sigma = spread sqrt(squares / 2^61 n / (n - 1))

Returns are summed from each row on to the end of its trajectory, so equal futures give bit-equal returns. Statistics
are float64, under parity of scores that are rounded to float32.

Rows of wrong labels (see `gigpo_advantage`) raise a flag, and make their task or anchor group NaN: while a CUDA graph
is captured nobody can wait for the flag.

Legend: N rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import capturing, interpreting
from .gigpo_advantage import ROUNDING_ULP, Parts, Rule, label_error

ROWS_BLOCK, ROWS_WARPS = 128, 4
WALK_BLOCK, WALK_LOG_STEPS, WALK_WARPS = 32, 3, 1
"""Each row reads 8 of its trajectory, which has tens of rows, at once. One warp, because it goes on until the longest
trajectory among its rows has ended: more warps would wait for each other after each reading."""
INTERPRETED_WALK = (128, 7, 1)

INVERTED_LOW, HIGH, SIZE, SUM = (tl.constexpr(field) for field in range(4))
FIELDS = tl.constexpr(5)
"""Of a group: the greatest of its inverted keys and of its keys (see `key_of`), its size, its sum, its squares."""
WHOLE = tl.constexpr(2.0**61)
SIGN = tl.constexpr(-(2**63))
HASH = tl.constexpr(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: neighbours end up far apart."""


@triton.jit
def key_of(x):
    """u64 in the order of float64 x, above 0 for each number. NaN are below or above all others."""
    bits = x.to(tl.int64, bitcast=True)
    return tl.where(bits < 0, ~bits, bits | SIGN).to(tl.uint64, bitcast=True)


@triton.jit
def of_key(key):
    bits = key.to(tl.int64, bitcast=True)
    return tl.where(bits < 0, bits ^ SIGN, ~bits).to(tl.float64, bitcast=True)


@triton.jit
def any_of(flags):
    return tl.max(flags.to(tl.int32), 0) > 0


@triton.jit
def starts_of(traj_ptr, row, label, live):
    """Whether a trajectory begins in each row."""
    before = live & (row > 0)
    return live & ((row == 0) | (tl.load(traj_ptr + row - 1, before, 0) != label))


@triton.jit
def walk(reward_ptr, traj_ptr, task_ptr, row, label, task, live, N, gamma, SIGN: tl.constexpr, LOG_STEPS: tl.constexpr):
    """From `row` on (SIGN 1) or back (-1) to the end of the trajectory, `row` included.

    Returns:
        (sum_k gamma^k reward of the k-th row, their sum, how many of them lie in another task group)
    """
    k = tl.arange(0, 2**LOG_STEPS)
    power = tl.zeros((2**LOG_STEPS,), tl.float64) + 1.0
    leap = gamma
    for bit in tl.static_range(LOG_STEPS):
        power = tl.where(((k >> bit) & 1) == 1, power * leap, power)
        leap = leap * leap  # gamma^(2^LOG_STEPS) in the end
    factor = tl.zeros_like(row).to(tl.float64) + 1.0
    discounted = tl.zeros_like(factor)
    total = tl.zeros_like(factor)
    strays = tl.zeros_like(row)
    walking = live
    while any_of(walking):
        at = row[:, None] + SIGN * k[None, :]
        inside = walking[:, None] & (at >= 0) & (at < N)
        # Read before it is known whose they are: three loads wait at once.
        found = tl.load(traj_ptr + at, inside, 0)
        reward = tl.load(reward_ptr + at, inside, 0)
        other = tl.load(task_ptr + at, inside, 0) != task[:, None]
        same = inside & (found == label[:, None])
        reward = tl.where(same, reward.to(tl.float64), 0.0)
        discounted += factor * tl.sum(reward * power[None, :], 1)
        total += tl.sum(reward, 1)
        strays += tl.sum((same & other).to(tl.int64), 1)
        walking = tl.min(same.to(tl.int32), 1) > 0
        factor *= leap
        row += SIGN * 2**LOG_STEPS
    return discounted, total, strays


@triton.jit
def owner_of(label_ptr, table_ptr, row, label, live, places, shift):
    """The row that owns the place of this label in the table: i32 [places], row + 1, or 0 where it is empty."""
    place = ((label.to(tl.uint64, bitcast=True) * HASH) >> shift).to(tl.int64)
    owner, mine = row, (row + 1).to(tl.int32)
    looking = live
    while any_of(looking):
        # -1 is in no place: rows that have found theirs change nothing.
        found = tl.atomic_cas(table_ptr + place, tl.where(looking, 0, -1), mine, sem="relaxed").to(tl.int64)
        other = tl.where(found == 0, row, found - 1)
        same = looking & (tl.load(label_ptr + other, looking, 0) == label)
        owner = tl.where(same, other, owner)
        looking &= ~same
        place = tl.where(looking, (place + 1) & (places - 1), place)
    return owner


@triton.jit
def count_score(stats_ptr, owner, score, counted, broken):
    """Extremes and size of the owner's group, whose greatest score becomes NaN where it is broken."""
    stats_ptr += owner * FIELDS
    key = key_of(score)
    tl.atomic_max(stats_ptr + INVERTED_LOW, ~key, counted, sem="relaxed")
    tl.atomic_max(stats_ptr + HIGH, key, counted, sem="relaxed")
    tl.atomic_add(stats_ptr + SIZE, tl.full(owner.shape, 1, tl.uint64), counted, sem="relaxed")
    tl.atomic_max(stats_ptr + HIGH, ~tl.zeros(owner.shape, tl.uint64), broken, sem="relaxed")


@triton.jit(
    do_not_specialize=["N", "places", "shift"], do_not_specialize_on_alignment=["returns_ptr"]
)  # a row of a [4, N] of any N
def score_kernel(
    reward_ptr,  # [N]
    traj_ptr,  # [N], integers
    task_ptr,  # [N], integers: episode_group
    step_ptr,  # [N], integers: step_group
    valid_ptr,  # [N]
    tables_ptr,  # i32 [3, places] of 0: trajectories, task groups, anchor groups
    stats_ptr,  # u64 [2, N, FIELDS] of 0, and one more: the flag
    score_ptr,  # f64 [2, N]: episode level, step level
    owner_ptr,  # i32 [2, N]
    returns_ptr,  # [N]
    N: tl.int64,
    places: tl.int64,
    shift,  # 64 - log2 places
    gamma: tl.float64,
    penalty: tl.float64,
    BY_ROW: tl.constexpr,
    PARITY: tl.constexpr,
    BLOCK: tl.constexpr,
    LOG_STEPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < N
    trajectory = tl.load(traj_ptr + row, live, 0)
    task = tl.load(task_ptr + row, live, 0)
    step = tl.load(step_ptr + row, live, 0)

    gamma += tl.zeros((1,), tl.float64)  # the interpreter would hand a number on as float32
    returns, total, strays = walk(reward_ptr, traj_ptr, task_ptr, row, trajectory, task, live, N, gamma, 1, LOG_STEPS)
    _, before, back = walk(reward_ptr, traj_ptr, task_ptr, row - 1, trajectory, task, live, N, gamma, -1, LOG_STEPS)
    total += before
    strays += back
    tl.store(returns_ptr + row, returns.to(returns_ptr.dtype.element_ty), live)
    if PARITY:
        charge = tl.where(tl.load(valid_ptr + row, live, 1) != 0, 0.0, penalty).to(tl.float32)
        total = (total.to(tl.float32) - charge).to(tl.float64)
        returns = (returns.to(tl.float32) - charge).to(tl.float64)
    tl.store(score_ptr + row, total, live)
    tl.store(score_ptr + N + row, returns, live)

    starts = starts_of(traj_ptr, row, trajectory, live)
    again = starts & (owner_of(traj_ptr, tables_ptr, row, trajectory.to(tl.int64), starts, places, shift) != row)
    task_owner = owner_of(task_ptr, tables_ptr + places, row, task.to(tl.int64), live, places, shift)
    step_owner = owner_of(step_ptr, tables_ptr + 2 * places, row, step.to(tl.int64), live, places, shift)
    tl.store(owner_ptr + row, task_owner.to(tl.int32), live)
    tl.store(owner_ptr + N + row, step_owner.to(tl.int32), live)

    task_broken = again | (live & (strays > 0))
    step_broken = live & (tl.load(task_ptr + step_owner, live, 0) != task)
    count_score(stats_ptr, task_owner, total, live if BY_ROW else starts, task_broken)
    count_score(stats_ptr + FIELDS * N, step_owner, returns, live, step_broken)
    tl.atomic_max(
        stats_ptr + 2 * FIELDS * N + tl.zeros_like(row), tl.full(row.shape, 1, tl.uint64), task_broken | step_broken,
        sem="relaxed",
    )  # fmt: skip


@triton.jit
def spread_of(group_ptr, live):
    """(low, high, size) of a group."""
    low = of_key(~tl.load(group_ptr + INVERTED_LOW, live, 0))
    high = of_key(tl.load(group_ptr + HIGH, live, 0))
    return low, high, tl.load(group_ptr + SIZE, live, 1).to(tl.float64)


@triton.jit(do_not_specialize=["N"])
def moment_kernel(
    traj_ptr,  # [N]
    score_ptr,  # f64 [2, N]
    owner_ptr,  # i32 [2, N]
    stats_ptr,  # u64 [2, N, FIELDS]
    N: tl.int64,
    SQUARES: tl.constexpr,
    BY_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < N
    for level in tl.static_range(2):
        counted = live
        if level == 0 and not BY_ROW:
            counted = starts_of(traj_ptr, row, tl.load(traj_ptr + row, live, 0), live)
        group_ptr = stats_ptr + tl.load(owner_ptr + row, counted, 0).to(tl.int64) * FIELDS
        low, high, size = spread_of(group_ptr, counted)
        part = (tl.load(score_ptr + row, counted, 0.0) - low) / (high - low)
        if SQUARES:
            part -= tl.load(group_ptr + SUM, counted, 0).to(tl.float64) / WHOLE
            part *= part
        # A spread of 0 or NaN: every score is low, or none is of use.
        part = tl.where(high > low, part, 0.0)
        share = (part * (WHOLE / size)).to(tl.int64).to(tl.uint64, bitcast=True)
        tl.atomic_add(group_ptr + SUM + SQUARES, share, counted, sem="relaxed")
        score_ptr += N
        owner_ptr += N
        stats_ptr += FIELDS * N


@triton.jit
def level_advantage(score_ptr, owner_ptr, stats_ptr, row, live, charge, min_sigma, eps, within,
                    STEP: tl.constexpr, SCALE: tl.constexpr, PARITY: tl.constexpr):  # fmt: skip
    """The advantage of one level for a block of rows."""
    score = tl.load(score_ptr + row, live, 0.0)
    group_ptr = stats_ptr + tl.load(owner_ptr + row, live, 0).to(tl.int64) * FIELDS
    low, high, size = spread_of(group_ptr, live)
    spread = high - low
    mean = low + spread * (tl.load(group_ptr + SUM, live, 0).to(tl.float64) / WHOLE)
    square = tl.load(group_ptr + SUM + 1, live, 0).to(tl.float64) / WHOLE
    sigma = spread * tl.sqrt(square * (size / tl.where(size > 1.0, size - 1.0, 1.0)))
    if PARITY:
        raw = (size == 1.0) & (not STEP)  # verl-agent: an episode list of one score passes through
        advantage = score - tl.where(raw, 0.0, mean)
        if SCALE:
            advantage = advantage / (tl.where(raw, 1.0, sigma) + eps)
    else:
        constant = spread <= within * tl.maximum(tl.abs(low), tl.abs(high))
        advantage = tl.where(constant, 0.0, score - mean)
        if SCALE:
            advantage = advantage / (sigma + eps)
            charge = charge / (tl.where(sigma < min_sigma, min_sigma, sigma) + eps)
        advantage = advantage - charge
        if STEP:
            advantage = tl.where(size == 1.0, 0.0, advantage)
    return advantage


@triton.jit(do_not_specialize=["N"])
def advantage_kernel(
    valid_ptr,  # [N]
    score_ptr,  # f64 [2, N]
    owner_ptr,  # i32 [2, N]
    stats_ptr,  # u64 [2, N, FIELDS]
    out_ptr,  # [3, N]: advantage, episode level, step level
    N: tl.int64,
    penalty: tl.float64,
    omega: tl.float64,
    min_sigma: tl.float64,
    eps: tl.float64,
    within: tl.float64,
    SCALE: tl.constexpr,
    PARITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < N
    exact = tl.zeros((1,), tl.float64)  # see score_kernel
    charge = tl.where(tl.load(valid_ptr + row, live, 1) != 0, 0.0, penalty + exact)
    min_sigma, eps, within = min_sigma + exact, eps + exact, within + exact
    episode = level_advantage(
        score_ptr, owner_ptr, stats_ptr, row, live, charge, min_sigma, eps, within, False, SCALE, PARITY
    )
    step = level_advantage(
        score_ptr + N, owner_ptr + N, stats_ptr + FIELDS * N, row, live, charge, min_sigma, eps, within, True, SCALE,
        PARITY,
    )  # fmt: skip
    out_ptr += row
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr, (episode + omega * step).to(kind), live)
    tl.store(out_ptr + N, episode.to(kind), live)
    tl.store(out_ptr + 2 * N, step.to(kind), live)


def gigpo_parts_triton(
    reward: Tensor, traj: Tensor, episode_group: Tensor, step_group: Tensor, valid: Tensor, rule: Rule
) -> Parts:
    """`gigpo_parts` on a GPU; all [N] in the rule's dtype. Waits once, for the flag, unless a graph is captured."""
    N, device = len(reward), reward.device
    out = torch.empty(4, N, dtype=rule.dtype, device=device)
    parts = Parts(*out)
    if N == 0:
        return parts
    reward, traj, episode_group, step_group, valid = (
        column.contiguous() for column in (reward, traj, episode_group, step_group, valid)
    )
    bits = max(6, (2 * N - 1).bit_length())  # at least twice as many places as there can be groups
    zeros = torch.zeros((3 << bits) // 2 + 2 * FIELDS.value * N + 1, dtype=torch.int64, device=device)
    tables, stats = zeros[: (3 << bits) // 2].view(torch.int32), zeros[(3 << bits) // 2 :].view(torch.uint64)
    scores = torch.empty(2, N, dtype=torch.float64, device=device)
    owners = torch.empty(2, N, dtype=torch.int32, device=device)
    block, log_steps, warps = INTERPRETED_WALK if interpreting() else (WALK_BLOCK, WALK_LOG_STEPS, WALK_WARPS)
    rows: dict[str, Any] = {"BLOCK": ROWS_BLOCK, "num_warps": ROWS_WARPS}
    with torch.cuda.device_of(reward):
        score_kernel[(triton.cdiv(N, block),)](
            reward, traj, episode_group, step_group, valid, tables, stats, scores, owners, parts.returns, N, 1 << bits,
            64 - bits, rule.gamma, rule.penalty, BY_ROW=rule.by_row, PARITY=rule.parity, BLOCK=block,
            LOG_STEPS=log_steps, num_warps=warps,
        )  # fmt: skip
        grid = (triton.cdiv(N, ROWS_BLOCK),)
        for squares in (False, True):
            moment_kernel[grid](traj, scores, owners, stats, N, SQUARES=squares, BY_ROW=rule.by_row, **rows)
        advantage_kernel[grid](
            valid, scores, owners, stats, out, N, rule.penalty, rule.omega, rule.min_sigma, rule.eps,
            ROUNDING_ULP * rule.ulp, SCALE=rule.scale, PARITY=rule.parity, **rows,
        )  # fmt: skip
    if not capturing(reward) and zeros[-1].item():
        raise label_error(traj, episode_group, step_group)
    return parts
