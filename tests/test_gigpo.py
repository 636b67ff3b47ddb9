"""Advantages from trajectories: recorded runs of verl-agent, and a brute-force reference."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import REPO, shared_path
from episodes import advantages, episode, first_appearance, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.config import GigpoConfig
from siri.engine.native import group_states
from siri.engine.trajectory import Ended, Trajectory
from siri.gigpo import gigpo_advantages, turn_table

ORACLE = REPO.parent / "shared" / "oracles" / "gigpo.json"
CASES = json.loads(ORACLE.read_text())["cases"] if ORACLE.exists() else [None]
ROW_ORDER_CASE = "shared_036"
"""Its rows are interleaved and its similarity clusters depend on that order (fault 5)."""


# --- recorded runs of the incumbent -----------------------------------------------------------------------------------


def recorded_trajectories(inputs: dict) -> tuple[list[Trajectory], list[list[int]]]:
    """Trajectories of a case (groups and members in order of first appearance) and the recorded row of each turn."""
    live = [row for row, active in enumerate(inputs["active"]) if active]
    groups = dict(zip(live, first_appearance([inputs["uid"][row] for row in live]), strict=True))
    rows: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row in sorted(live, key=groups.__getitem__):
        rows[groups[row], inputs["traj_uid"][row]].append(row)
    trajectories = []
    for member, ((group, _), turn_rows) in enumerate(rows.items()):
        turns = [
            turn(
                "the anchor is not used",
                reward=inputs["reward"][row],
                valid=bool(inputs["is_action_valid"][row]),
                observation=inputs["obs_table"][inputs["anchor_idx"][row]],
            )
            for row in turn_rows
        ]
        trajectories.append(episode(group, member, turns))
    return trajectories, list(rows.values())


def recorded_config(config: dict, omega: float) -> GigpoConfig:
    assert config["epsilon"] == 1e-6
    return GigpoConfig(
        parity="verl_agent",
        gamma=config["gamma"],
        omega=omega,
        normalize={"mean_norm": "mean", "mean_std_norm": "mean_std"}[config["mode"]],
        episode_stats="row" if config["compute_mean_std_cross_steps"] else "trajectory",
        penalty=config["invalid_action_penalty_coef"] or 0.0,
        grouping="similarity" if config["enable_similarity"] else "exact",
        similarity_threshold=config["similarity_thresh"],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"] if case else "absent")
def test_parity_reproduces_recorded_case(case: dict | None) -> None:
    shared_path("oracles", "gigpo.json")
    assert case is not None
    inputs, outputs, notes = case["inputs"], case["outputs"], case["notes"]
    omega = float(case["config"]["step_advantage_w"])
    config = recorded_config(case["config"], omega)
    trajectories, rows = recorded_trajectories(inputs)
    order = [row for turn_rows in rows for row in turn_rows]

    table = turn_table(trajectories, config)
    recorded_groups = [outputs["step_group"][row] for row in order]
    same_partition = first_appearance(table.step_group.tolist()) == first_appearance(recorded_groups)
    assert same_partition == (case["id"] != ROW_ORDER_CASE)
    table = replace(table, step_group=in_recorded_order(case, order))

    fused = np.concatenate(gigpo_advantages(trajectories, table, config))
    episode_only = recorded_config(case["config"], 0.0)
    episode_part = np.concatenate(gigpo_advantages(trajectories, table, episode_only))
    for index, row in enumerate(order):
        # Where the notes call a row degenerate the exact answer is 0, and what was recorded is noise up to a bound.
        expected_episode, noise = outputs["episode_adv"][row], 0.0
        if row in notes["degenerate_rows_episode"]:
            expected_episode, noise = 0.0, notes["max_abs_episode_adv_on_degenerate"]
        assert math.isclose(episode_part[index], expected_episode, rel_tol=1e-4, abs_tol=1e-4 + noise)
        expected_step = outputs["step_adv"][row]
        if row in notes["degenerate_rows_step"]:
            expected_step, noise = 0.0, noise + omega * notes["max_abs_step_adv_on_degenerate"]
        expected = expected_episode + omega * expected_step
        assert math.isclose(fused[index], expected, rel_tol=1e-4, abs_tol=1e-4 + noise)


def in_recorded_order(case: dict, order: Sequence[int]) -> np.ndarray:
    """Step groups of rows grouped as they were recorded, equal to the recorded labels, then put in our order."""
    inputs, config = case["inputs"], case["config"]
    live = [row for row, active in enumerate(inputs["active"]) if active]
    labels = group_states(
        [inputs["obs_table"][inputs["anchor_idx"][row]] for row in live],
        first_appearance([inputs["uid"][row] for row in live]),
        similarity=config["similarity_thresh"] if config["enable_similarity"] else None,
    )
    assert labels.tolist() == [case["outputs"]["step_group"][row] for row in live]
    of_row = dict(zip(live, labels.tolist(), strict=True))
    return np.array([of_row[row] for row in order])


# --- the default mode against a brute-force reference -----------------------------------------------------------------


def reference(trajectories: Sequence[Trajectory], config: GigpoConfig) -> list[list[float]]:
    """The formulas as loops over Python floats. Rewards are multiples of 0.5, gamma 0, 1/2 or 1: returns are exact."""
    returns, totals, penalties = [], [], []
    for one in trajectories:
        tail = [0.0]
        for step in reversed(one.turns):
            tail.append(step.reward + config.gamma * tail[-1])
        returns.append(tail[:0:-1])
        totals.append(sum(step.reward for step in one.turns))
        penalties.append([config.penalty * (not step.action_valid) for step in one.turns])

    def normalized(value: float, others: list[float], penalty: float) -> float:
        sigma = statistics.stdev(others) if len(others) > 1 else 0.0
        centred = 0.0 if max(others) == min(others) else value - statistics.mean(others)
        if config.normalize == "mean":
            return centred - penalty
        return centred / (sigma + 1e-6) - penalty / (max(sigma, config.min_sigma) + 1e-6)

    by_group, by_anchor = defaultdict(list), defaultdict(list)
    for t, one in enumerate(trajectories):
        counted = min(1, len(one.turns)) if config.episode_stats == "trajectory" else len(one.turns)
        by_group[one.group] += [totals[t]] * counted
        for step, value in zip(one.turns, returns[t], strict=True):
            by_anchor[one.group, step.anchor].append(value)
    result = []
    for t, one in enumerate(trajectories):
        rows = []
        for step, value, penalty in zip(one.turns, returns[t], penalties[t], strict=True):
            anchored = by_anchor[one.group, step.anchor]
            level = normalized(value, anchored, penalty) if len(anchored) > 1 else 0.0
            rows.append(normalized(totals[t], by_group[one.group], penalty) + config.omega * level)
        result.append(rows)
    return result


@st.composite
def iterations(draw: st.DrawFn) -> list[Trajectory]:
    """Trajectories of a few groups, shuffled."""
    turns = st.builds(
        turn, st.sampled_from("abc"), reward=st.sampled_from([0.0, 0.0, 1.0, -0.5, 10.0]), valid=st.booleans()
    )
    trajectories = [
        episode(group, member, draw(st.lists(turns, max_size=6)))
        for group in draw(st.sets(st.integers(0, 5), max_size=3))
        for member in range(draw(st.integers(1, 4)))
    ]
    return draw(st.permutations(trajectories))


CONFIGS = st.builds(
    GigpoConfig,
    gamma=st.sampled_from([0.0, 0.5, 1.0]),
    omega=st.sampled_from([0.0, 0.5, 1.0]),
    normalize=st.sampled_from(["mean_std", "mean"]),
    episode_stats=st.sampled_from(["trajectory", "row"]),
    penalty=st.sampled_from([0.0, 0.1]),
    min_sigma=st.sampled_from([0.1, 1.0]),
)


@settings(deadline=None)
@given(trajectories=iterations(), config=CONFIGS)
def test_default_mode_equals_the_formulas(trajectories: list[Trajectory], config: GigpoConfig) -> None:
    ours = advantages(trajectories, config)
    for one, expected in zip(ours, reference(trajectories, config), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(trajectories=iterations(), config=CONFIGS)
def test_omega_0_is_grpo(trajectories: list[Trajectory], config: GigpoConfig) -> None:
    """GRPO (arXiv 2402.03300): the return normalised inside the group, the same for every (valid) turn."""
    trajectories = [replace(t, turns=tuple(replace(one, action_valid=True) for one in t.turns)) for t in trajectories]
    config = config.model_copy(update={"omega": 0.0, "normalize": "mean_std", "episode_stats": "trajectory"})
    for one, ours in zip(trajectories, advantages(trajectories, config), strict=True):
        outcomes = [t.total_reward for t in trajectories if t.group == one.group and t.turns]
        sigma = float(np.std(outcomes, ddof=1)) if len(outcomes) > 1 else 0.0
        expected = 0.0 if sigma == 0 else (one.total_reward - np.mean(outcomes)) / (sigma + 1e-6)
        np.testing.assert_allclose(ours, np.full(len(one.turns), expected), rtol=1e-9, atol=1e-9)


# --- the table --------------------------------------------------------------------------------------------------------


def test_table_columns() -> None:
    trajectories = [
        episode(5, 1, [turn("hall", reward=1.0)]),
        episode(5, 0, [turn("hall"), turn("attic", valid=False)]),
        episode(2, 0, [turn("hall"), turn("hall", reward=2.0)]),
    ]
    table = turn_table(trajectories, GigpoConfig())
    assert table.trajectory.tolist() == [2, 2, 1, 1, 0]
    assert table.step.tolist() == [0, 1, 0, 1, 0]
    assert table.reward.tolist() == [0.0, 2.0, 0.0, 0.0, 1.0]
    assert table.valid.tolist() == [True, True, True, False, True]
    assert table.episode_group.tolist() == [0, 0, 1, 1, 1]
    assert table.step_group.tolist() == [0, 0, 1, 2, 1]


def test_failed_environments_leave_every_statistic() -> None:
    healthy = [episode(0, member, [turn("hall", reward=float(member))]) for member in range(3)]
    failed = episode(0, 3, [turn("hall", reward=-100.0)], ended=Ended.ENV_ERROR)
    too_long = episode(0, 4, [], ended=Ended.PROMPT_TOO_LONG)
    trajectories = [failed, *healthy, too_long]
    result = gigpo_advantages(trajectories, turn_table(trajectories, GigpoConfig()), GigpoConfig())
    assert result[0] is None
    assert result[4] is not None
    assert result[4].shape == (0,)
    assert [one.tolist() for one in result[1:4] if one is not None] == [
        one.tolist() for one in advantages(healthy, GigpoConfig())
    ]


def test_nothing_rolled_out() -> None:
    table = turn_table([], GigpoConfig())
    assert len(table.reward) == 0
    assert gigpo_advantages([], table, GigpoConfig()) == []


def test_halves_of_a_pair_share_statistics_or_keep_them_apart() -> None:
    plain = [episode(0, member, [turn("hall", reward=float(member))]) for member in range(2)]
    skilled = [episode(0, 2 + m, [turn("hall", reward=10.0 + m)], condition=("heat",)) for m in range(2)]
    together = turn_table([*plain, *skilled], GigpoConfig())
    apart = turn_table([*plain, *skilled], GigpoConfig(), statistics="branch")
    assert together.episode_group.tolist() == together.step_group.tolist() == [0, 0, 0, 0]
    assert apart.episode_group.tolist() == apart.step_group.tolist() == [0, 0, 1, 1]
