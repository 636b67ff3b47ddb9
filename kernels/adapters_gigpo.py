"""verl-agent's GiGPO functions; `siri.kernels.adapters` has them with the others.

Observations are grouped by Python equality here. `siri.engine.native.group_states` gives the same labels of texts and
bytes in C++, several times faster for equal states and dozens of times for similar ones
(benchmarks/results/anchors.json).

Legend: N rows (environment steps), L response tokens.
"""

from collections.abc import Hashable, Iterable
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor

from .gigpo_advantage import ROUNDING_ULP, GroupStats, check_choice, group_stats, verl_agent_normalized


def build_step_group(
    anchor_obs: Any,
    index: Any,
    enable_similarity: bool = False,
    similarity_thresh: float = 0.95,
    summarize: bool = False,
) -> list[int]:
    """verl-agent, `gigpo.core_gigpo.build_step_group` (fork xlan156/verl-agent, commit 8ca3a46): labels of N rows.

    Differs: labels are integers in order of first appearance, the same in each run (there: random UUIDs in an array),
    nothing is printed, bytes are observations too, and arrays of different shapes are never equal.

    Args:
        anchor_obs: N observations: text, bytes, numbers, arrays, or lists, tuples and dicts of them.
        index: N labels of the task group, of the kinds that observations may have. Rows of different task groups never
            share a step group.
        enable_similarity: group texts that are similar, not equal; the order of the rows then matters.
        similarity_thresh: least `difflib` ratio, in (0, 1).
        summarize: not used; count the labels for a summary.

    Raises:
        ValueError: columns of different lengths, an observation or a label that cannot be compared, or a threshold
            outside (0, 1).
    """
    observations, groups = entries(anchor_obs), keys("index", index)
    if len(observations) != len(groups):
        raise ValueError(f"anchor_obs has {len(observations)} rows and index {len(groups)}; both need one entry a row")
    if enable_similarity:
        return similar_groups(observations, groups, similarity_thresh)
    return exact_groups(observations, groups)


@torch.no_grad()
def compute_gigpo_outcome_advantage(
    token_level_rewards: Tensor,
    step_rewards: Tensor,
    response_mask: Tensor,
    anchor_obs: Any,
    index: Any,
    traj_index: Any,
    epsilon: float = 1e-6,
    step_advantage_w: float = 1.0,
    mode: str = "mean_norm",
    enable_similarity: bool = False,
    similarity_thresh: float = 0.95,
    *,
    compute_mean_std_cross_steps: bool = True,
) -> tuple[Tensor, Tensor]:
    """verl-agent, `gigpo.core_gigpo.compute_gigpo_outcome_advantage` (fork xlan156/verl-agent, commit 8ca3a46).

    Differs: a group of scores that are equal up to float32 rounding gives exactly 0 (there: noise over a sigma of one
    ulp, up to 0.65); statistics are float64. Kept, because scores come in with the penalty inside: where outcomes
    agree, the penalty alone defines sigma. Kept too: a lone row of a task group passes raw. Neither is so in
    `siri.kernels.gigpo_advantage`.

    Args:
        token_level_rewards: [N, L]; their sum over L is the score of the row's episode.
        step_rewards: [N], discounted return of the step.
        response_mask: [N, L].
        anchor_obs, index, enable_similarity, similarity_thresh: see `build_step_group`.
        traj_index: N labels of the trajectory, as in `index`.
        epsilon: added to sigma.
        step_advantage_w: weight of the step level.
        mode: "mean_norm", or "mean_std_norm" to divide by sigma.
        compute_mean_std_cross_steps: the argument of the original's `episode_norm_reward`: episode statistics count
            rows, else each trajectory once, by its first row.

    Returns:
        advantages [N, L], 0 where the mask is, without a gradient, and the same tensor again.

    Raises:
        ValueError: shapes that do not fit, columns of different lengths, an unknown mode, and what `build_step_group`
            refuses.
    """
    check_choice("mode", mode, ("mean_norm", "mean_std_norm"))
    if token_level_rewards.ndim != 2 or response_mask.shape != token_level_rewards.shape:
        raise ValueError(
            f"response_mask {tuple(response_mask.shape)} and token_level_rewards {tuple(token_level_rewards.shape)} "
            "must both be [N, L]"
        )
    groups, trajectories = keys("index", index), keys("traj_index", traj_index)
    rows = len(token_level_rewards)
    lengths = {"step_rewards": len(step_rewards), "index": len(groups), "traj_index": len(trajectories)}
    for name, length in lengths.items():
        if length != rows:
            raise ValueError(f"{name} has {length} rows and token_level_rewards {rows}; both need one entry a row")
    steps = build_step_group(anchor_obs, groups, enable_similarity, similarity_thresh)
    counted = list(range(rows))
    if not compute_mean_std_cross_steps:
        first: dict[Hashable, int] = {}
        for row, member in enumerate(zip(groups, trajectories, strict=True)):
            first.setdefault(member, row)
        counted = list(first.values())

    scale = mode == "mean_std_norm"
    episode = level_advantage(
        token_level_rewards.double().sum(-1), first_appearance(groups), counted, scale, epsilon, lone_is_raw=True
    )
    step = level_advantage(step_rewards.double(), steps, list(range(rows)), scale, epsilon, lone_is_raw=False)
    dtype = token_level_rewards.dtype if token_level_rewards.is_floating_point() else torch.float32
    advantage = (episode + step_advantage_w * step).to(dtype).unsqueeze(-1) * response_mask
    return advantage, advantage


def level_advantage(
    score: Tensor, labels: list[int], counted: list[int], scale: bool, eps: float, *, lone_is_raw: bool
) -> Tensor:
    """Scores [N] normalised inside their groups, whose statistics are those of the rows `counted`."""
    label = torch.tensor(labels, dtype=torch.long, device=score.device)
    rows = torch.tensor(counted, dtype=torch.long, device=score.device)
    ulp = torch.finfo(torch.float32).eps  # verl-agent keeps scores in float32: 0.3 + 0.4 and 0.7 are an ulp apart
    stats = group_stats(score[rows], label[rows], max(labels, default=-1) + 1, ulp)
    stats = GroupStats(*(field[label] for field in stats))
    noise = (score - stats.mean).abs() <= ROUNDING_ULP * ulp * score.abs()
    advantage = verl_agent_normalized(score, stats, scale, eps, lone_is_raw)
    return torch.where(stats.constant & (stats.size > 1) & noise, 0, advantage)


def first_appearance(keys: Iterable[Hashable]) -> list[int]:
    """A label for each key: equal keys share one, and labels count up in the order in which keys first appear."""
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def entries(column: Any) -> list[Any]:
    """The rows of a list, an array or a tensor as Python objects."""
    return column.tolist() if hasattr(column, "tolist") else list(column)


def keys(name: str, column: Any) -> list[Hashable]:
    """`as_key` of each row: as a key itself, a tensor is equal to itself only."""
    found = []
    for row, entry in enumerate(entries(column)):
        try:
            found.append(as_key(entry))
        except TypeError as error:
            raise ValueError(f"{name}[{row}]: {error}") from error
    return found


def exact_groups(observations: list[Any], groups: list[Hashable]) -> list[int]:
    """Labels of the rows that have an equal observation and an equal group."""
    return first_appearance(zip(groups, keys("anchor_obs", observations), strict=True))


def as_key(observation: Any) -> Hashable:
    """Equal for equal observations. Arrays keep their shape: the same pixels in two rows or three are two pictures."""
    if observation is None or isinstance(observation, str | bytes | int | float):
        return observation
    if hasattr(observation, "tolist"):
        return as_key(observation.tolist())
    if isinstance(observation, list | tuple):
        return tuple(map(as_key, observation))
    if isinstance(observation, dict):
        return frozenset((key, as_key(value)) for key, value in observation.items())
    if type(observation).__hash__ not in (None, object.__hash__):
        return observation  # has an equality of its own: a uuid.UUID, a date, a frozenset
    raise TypeError(
        f"a {type(observation).__name__} cannot be compared; pass text, bytes, numbers, arrays, or lists, tuples and "
        "dicts of them"
    )


def similar_groups(texts: list[Any], groups: list[Hashable], threshold: float) -> list[int]:
    """Labels of clusters inside each group. A row joins the first cluster whose first member it is similar to.

    Similar is `SequenceMatcher(None, row, first).ratio() >= threshold`, which is not symmetric and depends on the order
    of the rows.
    """
    if not 0 < threshold < 1:
        raise ValueError(
            f"similarity_thresh = {threshold} must lie in (0, 1); to group equal texts, pass enable_similarity=False"
        )
    clusters: dict[Hashable, list[tuple[int, SequenceMatcher[str]]]] = {}
    label_of: dict[tuple[Hashable, str], int] = {}  # a text seen before meets the same clusters and joins the same one
    labels = 0
    for row, (text, group) in enumerate(zip(texts, groups, strict=True)):
        if not isinstance(text, str):
            raise ValueError(
                f"anchor_obs[{row}] is a {type(text).__name__}, and only text can be similar; pass "
                "enable_similarity=False"
            )
        if (group, text) in label_of:
            continue
        ours = clusters.setdefault(group, [])
        joined = next((label for label, first in ours if is_similar(text, first, threshold)), None)
        if joined is None:
            joined = labels
            labels += 1
            ours.append((joined, SequenceMatcher(None, b=text)))
        label_of[group, text] = joined
    return [label_of[key] for key in zip(groups, texts, strict=True)]


def is_similar(text: str, first: SequenceMatcher[str], threshold: float) -> bool:
    """Whether the ratio reaches the threshold; the quick ratios are upper bounds of it."""
    first.set_seq1(text)
    return all(ratio() >= threshold for ratio in (first.real_quick_ratio, first.quick_ratio, first.ratio))
