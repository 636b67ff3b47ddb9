"""The incumbent's faults, numbered as in ALGORITHM 2.1: each test shows that its assertion tells ours from theirs.

Fault 7 is in test_batch.py; 6, 8 and 9 belong to rollouts and splits.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from episodes import advantages, episode, first_appearance, turn

from siri.config import GigpoConfig
from siri.engine.batch import plan_minibatches, rows_by_group
from siri.engine.native import group_states
from siri.engine.trajectory import Trajectory, TurnTable
from siri.gigpo import turn_table


def incumbent_normalized(scores: Sequence[float], groups: Sequence[object]) -> np.ndarray:
    """verl-agent's normalisation, from its description: float32 (penalised) scores, unbiased deviation + 1e-6."""
    score = torch.tensor(scores, dtype=torch.float32)
    label = torch.tensor(first_appearance(groups))
    out = torch.zeros_like(score)
    for group in label.unique():
        rows = label == group
        if rows.sum() > 1:
            out[rows] = (score[rows] - score[rows].mean()) / (score[rows].std() + 1e-6)
    return out.numpy()


def test_fault_1_constant_groups_give_exactly_0() -> None:
    """Every member succeeds after the same steps through the same states; gamma 0.95 makes the returns inexact."""
    noise = 0.0
    for members in range(2, 30):
        turns = [turn(state) for state in "abcdefgh"]
        turns[-1] = replace(turns[-1], reward=0.3)
        ours = advantages([episode(0, m, turns) for m in range(members)], GigpoConfig())
        assert not np.concatenate(ours).any()
        for step in range(8):
            returns = [0.3 * 0.95 ** (7 - step)] * members
            noise = max(noise, float(np.abs(incumbent_normalized(returns, [0] * members)).max()))
    assert noise > 1e-3


def test_fault_2_penalty_never_defines_sigma() -> None:
    """20 successes of 20 steps, and one invalid action in the 400."""
    trajectories = [
        episode(0, m, [turn(f"{m}-{s}", valid=(m, s) != (3, 4), reward=float(s == 19)) for s in range(20)])
        for m in range(20)
    ]
    penalised = [1.0 - 0.1 * (row == 64) for row in range(400)]
    assert incumbent_normalized(penalised, [0] * 400)[64] < -19.0

    ours = np.concatenate(advantages(trajectories, GigpoConfig(penalty=0.1, min_sigma=0.1)))
    assert ours[64] == pytest.approx(-1.0, abs=1e-4)
    assert not np.delete(ours, 64).any()


def test_fault_3_padding_enters_nothing() -> None:
    """7 rows for 2 ranks: the incumbent repeats a random row before the statistics, we hand out an empty batch."""
    lengths = {0: [1, 3], 1: [3]}
    trajectories = [
        episode(group, member, [turn(f"{s}", reward=float(member)) for s in range(length)])
        for group, members in lengths.items()
        for member, length in enumerate(members)
    ]
    scores, groups = [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0, 0, 0, 0, 1, 1, 1]
    padded = incumbent_normalized([*scores, scores[0]], [*groups, groups[0]])
    assert np.abs(padded[:7] - incumbent_normalized(scores, groups)).max() > 0.1

    whole = advantages(trajectories, GigpoConfig())
    trained, batches = 0, set()
    for rank in range(2):
        mine = [t for t in trajectories if t.group == rank]
        own = advantages(mine, GigpoConfig())
        together = [one for t, one in zip(trajectories, whole, strict=True) if t.group == rank]
        assert [one.tolist() for one in own] == [one.tolist() for one in together]
        [step] = plan_minibatches(
            rows_by_group(mine, own),
            num_minibatches=1,
            max_tokens=3,  # one row a batch: 4 on rank 0, 3 and an empty one on rank 1
            seed=(0,),
            reduce_max=lambda counts: np.maximum(counts, 4),
        )
        batches.add(len(step.batches))
        trained += sum(batch.num_trained for batch in step.batches)
    assert trained == 7
    assert batches == {4}


def test_fault_4_the_environment_tells_states_apart() -> None:
    """One text in two rooms is two states; a refused action leaves the state, and so its anchor, as it was."""
    nothing = "Nothing happens."
    trajectories = [
        episode(0, 0, [turn("kitchen"), turn("kitchen", observation=nothing, reward=1.0)]),
        episode(0, 1, [turn("kitchen"), turn("cellar", observation=nothing)]),
    ]
    table = turn_table(trajectories, GigpoConfig())
    observed = group_states([t.observation for one in trajectories for t in one.turns])
    assert observed[1] == observed[3] != observed[0], "the incumbent compares kitchen with cellar, and not with itself"
    assert table.step_group.tolist() == [0, 0, 0, 1]
    assert advantages(trajectories, GigpoConfig(omega=1.0))[1][1] == pytest.approx(
        advantages(trajectories, GigpoConfig(omega=0.0))[1][1]
    )


def partition(trajectories: Sequence[Trajectory], table: TurnTable) -> set[frozenset[tuple[int, int, int]]]:
    """Step groups as sets of (group, member, step)."""
    groups = defaultdict(set)
    for t, step, label in zip(table.trajectory, table.step, table.step_group, strict=True):
        groups[label].add((trajectories[t].group, trajectories[t].member, int(step)))
    return {frozenset(one) for one in groups.values()}


def test_fault_5_clusters_do_not_depend_on_row_order_or_ranks() -> None:
    """`abcd` is near `abce` and `abzd`, which are not near each other: who comes first decides."""
    config = GigpoConfig(grouping="similarity", similarity_threshold=0.7)
    trajectories = [
        episode(group, member, [turn(state), turn("far off")])
        for group in range(2)
        for member, state in enumerate(["abce", "abzd", "abcd", "abzd"])
    ]
    expected = partition(trajectories, turn_table(trajectories, config))
    shuffler = random.Random(0)
    incumbent = set()
    for _ in range(20):
        shuffled = shuffler.sample(trajectories, len(trajectories))
        assert partition(shuffled, turn_table(shuffled, config)) == expected
        labels = group_states([t.turns[0].observation for t in shuffled], [t.group for t in shuffled], similarity=0.7)
        in_order = sorted(range(len(shuffled)), key=lambda i: (shuffled[i].group, shuffled[i].member))
        incumbent.add(tuple(first_appearance([labels[i] for i in in_order])))
    assert len(incumbent) > 1

    ranks = [[t for t in trajectories if t.group == rank] for rank in range(2)]
    assert set().union(*(partition(mine, turn_table(mine, config)) for mine in ranks)) == expected
