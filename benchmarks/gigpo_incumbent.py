"""verl-agent's GiGPO advantages, written anew from their description (`ALGORITHM.md`, 2 and 2.0), and a careful one.

`incumbent` does what the incumbent does, the way it does it: every row of N scans all N for its trajectory, and scores
are normalised one row at a time, as 0-dim tensors. `careful` is the same arithmetic by a Python programmer who looks
at each row a few times, in float64: the truth that results are compared with, and a fairer opponent.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GAMMA, OMEGA, PENALTY, EPS, MIN_SIGMA = 0.95, 1.0, 0.1, 1e-6, 0.25
CONSTANT = 1e-4
"""Groups whose scores differ by less are constant: in float32 the incumbent then divides rounding by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Environment steps as training has them, sorted by (trajectory, step); vectors [N] on one device."""

    reward: Tensor
    """f32, 1 in the last step of a trajectory that succeeds."""
    traj: Tensor
    episode_group: Tensor
    step_group: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> "Rows":
        return Rows(**{name: getattr(self, name).to(device) for name in self.__slots__})


def make_rows(count: int) -> Rows:
    """Trajectories of 5 to 50 steps, 8 to a task group, whose states are some of 40; a third of them succeeds."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 51, size=count // 5 + 1)
    lengths = lengths[: np.searchsorted(lengths.cumsum(), count) + 1]
    lengths[-1] -= lengths.sum() - count
    traj = np.repeat(np.arange(len(lengths)), lengths)
    last = lengths.cumsum() - 1
    reward = np.zeros(count, dtype=np.float32)
    reward[last] = rng.random(len(last)) < 1 / 3
    # States near the start are met by most members of the group, later ones by few.
    state = np.minimum(rng.exponential(12, size=count).astype(np.int64), 39)
    group = traj // 8
    columns = {"traj": traj, "episode_group": group, "step_group": group * 40 + state}
    return Rows(
        reward=torch.from_numpy(reward),
        valid=torch.from_numpy(rng.random(count) < 0.9),
        **{name: torch.from_numpy(column) for name, column in columns.items()},
    )


def incumbent(rows: Rows) -> Tensor:
    """Advantage f32[N]."""
    names = np.array([f"{label:032x}" for label in rows.traj.tolist()], dtype=object)  # theirs are UUIDs
    totals: dict[str, float] = defaultdict(float)
    for name, reward in zip(names, rows.reward.tolist(), strict=True):
        totals[name] += reward
    charge = PENALTY * (~rows.valid).float()
    score = torch.tensor([totals[name] for name in names]) - charge
    returns = _returns_by_scan(rows.reward.numpy(), names) - charge
    episode = _normalised_by_row(score, rows.episode_group.tolist(), lone_is_raw=True)
    step = _normalised_by_row(returns, rows.step_group.tolist(), lone_is_raw=False)
    return episode + OMEGA * step


def _returns_by_scan(reward: np.ndarray, names: np.ndarray) -> Tensor:
    returns = np.zeros_like(reward)
    for row, name in enumerate(names):
        own = np.where(names == name)[0]
        later = own[own >= row]
        returns[row] = (reward[later] * GAMMA ** np.arange(len(later))).sum()
    return torch.from_numpy(returns)


def _normalised_by_row(score: Tensor, labels: list[int], *, lone_is_raw: bool) -> Tensor:
    found: dict[int, list[Tensor]] = defaultdict(list)
    for row, label in enumerate(labels):
        found[label].append(score[row])
    mean, sigma = {}, {}
    for label, values in found.items():
        together = torch.stack(values)
        alone = len(values) == 1
        mean[label] = torch.tensor(0.0) if alone and lone_is_raw else together.mean()
        sigma[label] = torch.tensor(1.0) if alone else together.std()
    out = torch.empty_like(score)
    for row, label in enumerate(labels):
        out[row] = (score[row] - mean[label]) / (sigma[label] + EPS)
    return out


def careful(rows: Rows, *, own_rule: bool) -> Tensor:
    """Advantage f64[N]; NaN where the incumbent's is rounding noise. `own_rule`: what `gigpo_advantage` does alone."""
    reward, traj = rows.reward.tolist(), rows.traj.tolist()
    charge = PENALTY * (~rows.valid).double().numpy()
    total = dict.fromkeys(traj, 0.0)
    returns = list(reward)
    for row in range(len(reward) - 1, -1, -1):
        total[traj[row]] += reward[row]
        if row + 1 < len(reward) and traj[row + 1] == traj[row]:
            returns[row] += GAMMA * returns[row + 1]
    first = [row == 0 or traj[row] != traj[row - 1] for row in range(len(traj))]
    score = np.array([total[name] for name in traj])
    episode = _level(score, charge, rows.episode_group.tolist(), np.array(first), own_rule, lone_is_raw=True)
    everyone = np.ones(len(traj), dtype=bool)
    step = _level(np.array(returns), charge, rows.step_group.tolist(), everyone, own_rule, lone_is_raw=False)
    return torch.from_numpy(episode + OMEGA * step)


def _level(
    score: np.ndarray, charge: np.ndarray, labels: list[int], counted: np.ndarray, own_rule: bool, *, lone_is_raw: bool
) -> np.ndarray:
    """One level; under our rule only `counted` rows enter the statistics, and only unpenalised scores."""
    out = np.zeros(len(score))
    for group in _groups(labels):
        members = score[group] if own_rule else score[group] - charge[group]
        seen = members[counted[group]] if own_rule else members
        constant = np.ptp(seen) < CONSTANT
        sigma = seen.std(ddof=1) if len(seen) > 1 else 0.0
        if own_rule:
            centred = np.zeros(len(group)) if constant else (members - seen.mean()) / (sigma + EPS)
            out[group] = centred - charge[group] / (max(sigma, MIN_SIGMA) + EPS)
            if not lone_is_raw and len(group) == 1:
                out[group] = 0.0
        elif len(group) == 1:
            out[group] = members if lone_is_raw else 0.0
        else:
            out[group] = np.nan if constant else (members - seen.mean()) / (sigma + EPS)
    return out


def _groups(labels: list[int]) -> Iterable[list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        found[label].append(row)
    return found.values()
