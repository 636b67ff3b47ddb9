"""`gigpo_advantage` against recorded runs of verl-agent (parity) and a plain Python definition (default).

`test_triton_interpreter.py` runs this file again, with the Triton kernels in place of the reference.
"""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import shared_path
from hypothesis import given
from hypothesis import strategies as st

from siri.kernels import gigpo_advantage

ORACLE_CASES = 40
MODES = {"mean_norm": "mean", "mean_std_norm": "mean_std"}


def labels(values: Sequence[Any]) -> torch.Tensor:
    """Integers in order of first appearance."""
    index: dict[Any, int] = {}
    return torch.tensor([index.setdefault(value, len(index)) for value in values])


@pytest.mark.parametrize("index", range(ORACLE_CASES))
def test_parity_with_recorded_verl_agent(index: int) -> None:
    cases = json.loads(shared_path("oracles", "gigpo.json").read_text())["cases"]
    assert len(cases) == ORACLE_CASES
    config, inputs, outputs = (cases[index][key] for key in ("config", "inputs", "outputs"))
    active = [row for row, alive in enumerate(inputs["active"]) if alive]
    order = sorted(
        active, key=lambda row: inputs["traj_uid"].index(inputs["traj_uid"][row])
    )  # stable: step order stays

    def take(name: str) -> list[Any]:
        return [inputs[name][row] for row in order]

    parts = gigpo_advantage(
        torch.tensor(take("reward"), dtype=torch.float64),
        labels(list(zip(take("uid"), take("traj_uid"), strict=True))),
        labels(take("uid")),
        torch.tensor([outputs["step_group"][row] for row in order]),
        torch.tensor(take("is_action_valid"), dtype=torch.bool),
        gamma=config["gamma"],
        omega=config["step_advantage_w"],
        normalize=MODES[config["mode"]],
        episode_stats="row" if config["compute_mean_std_cross_steps"] else "trajectory",
        penalty=config["invalid_action_penalty_coef"] or 0.0,
        eps=config["epsilon"],
        parity="verl_agent",
        return_parts=True,
    )
    assert parts.advantage.dtype == torch.float32

    # Rows where the exact answer is 0 and verl-agent returned rounding noise of up to 0.65: ours is 0.
    notes = cases[index]["notes"]
    noisy = {
        "episode_adv": set(notes["degenerate_rows_episode"]),
        "step_adv": set(notes["degenerate_rows_step"]),
        "returns": set(),
    }
    noisy["advantage"] = noisy["episode_adv"] | noisy["step_adv"]
    recorded = {"advantage": "fused_adv", "returns": "step_return"}
    for name, exempt in noisy.items():
        got = getattr(parts, name).numpy()
        expected = np.array([outputs[recorded.get(name, name)][row] for row in order], dtype=np.float64)
        compared = np.array([row not in exempt or config["mode"] == "mean_norm" for row in order])
        np.testing.assert_allclose(got[compared], expected[compared], rtol=1e-4, atol=1e-4, err_msg=name)
        if name.endswith("_adv"):
            assert (got[~compared] == 0).all()


def definition(
    reward: Sequence[float], traj: Sequence[int], episode: Sequence[int], step: Sequence[int], valid: Sequence[bool],
    *, gamma: float, omega: float, normalize: str, episode_stats: str, penalty: float, min_sigma: float,
    eps: float = 1e-6,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """(episode, step) advantages by the formulas, one row at a time, in Python's own exact statistics."""
    n = len(reward)
    returns, totals = [0.0] * n, [0.0] * n
    for i in reversed(range(n)):
        follows = i + 1 < n and traj[i + 1] == traj[i]
        returns[i] = reward[i] + (gamma * returns[i + 1] if follows else 0.0)
    for i in range(n):
        totals[i] = sum(reward[j] for j in range(n) if traj[j] == traj[i])

    def level(score: Sequence[float], group: Sequence[int], counted: Sequence[int]) -> list[float]:
        members: dict[int, list[float]] = defaultdict(list)
        for i in counted:
            members[group[i]].append(score[i])
        out = []
        for i in range(n):
            values = members[group[i]]
            constant = max(values) - min(values) <= 1e-12
            sigma = 0.0 if len(values) == 1 else statistics.stdev(values)
            centred = 0.0 if constant else score[i] - statistics.fmean(values)
            charge = 0.0 if valid[i] else penalty
            if normalize == "mean":
                out.append(centred - charge)
            else:
                out.append(centred / (sigma + eps) - charge / (max(sigma, min_sigma) + eps))
        return out

    firsts = [i for i in range(n) if i == 0 or traj[i] != traj[i - 1]]
    episode_adv = level(totals, episode, firsts if episode_stats == "trajectory" else range(n))
    alone = [list(step).count(label) == 1 for label in step]
    step_adv = [0.0 if lone else a for lone, a in zip(alone, level(returns, step, range(n)), strict=True)]
    return episode_adv, step_adv


@st.composite
def batches(draw: st.DrawFn) -> dict[str, list[Any]]:
    """A few task groups of a few trajectories; rewards from a small set, so that groups are often constant."""
    rows: dict[str, list[Any]] = {"reward": [], "traj": [], "episode_group": [], "step_group": [], "valid": []}
    states: dict[tuple[int, int], int] = {}
    trajectory = draw(st.integers(-5, 5))
    for group in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 4))):
            trajectory += draw(st.integers(1, 1000))
            for _ in range(draw(st.integers(1, 7))):
                rows["reward"].append(draw(st.sampled_from([0.0, 0.0, 0.1, 0.3, 1.0, -0.5])))
                rows["traj"].append(trajectory)
                rows["episode_group"].append(10 * group - 7)
                state = (group, draw(st.integers(0, 4)))
                rows["step_group"].append(states.setdefault(state, len(states)))
                rows["valid"].append(draw(st.booleans()))
    return rows


def tensors(rows: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
    kinds = {"reward": torch.float64, "valid": torch.bool}
    return {name: torch.tensor(column, dtype=kinds.get(name, torch.int64)) for name, column in rows.items()}


@given(
    batches(), st.sampled_from([1.0, 0.95, 0.0]), st.sampled_from(["mean", "mean_std"]),
    st.sampled_from(["trajectory", "row"]), st.sampled_from([0.0, 0.1, 1.0]),
)  # fmt: skip
def test_default_mode_is_the_definition(
    rows: dict[str, list[Any]], gamma: float, normalize: str, episode_stats: str, penalty: float
) -> None:
    options: dict[str, Any] = {
        "gamma": gamma, "omega": 0.7, "normalize": normalize, "episode_stats": episode_stats, "penalty": penalty,
        "min_sigma": 0.25,
    }  # fmt: skip
    parts = gigpo_advantage(**tensors(rows), **options, return_parts=True)
    episode, step = definition(*rows.values(), **options)
    assert parts.advantage.dtype == torch.float64
    np.testing.assert_allclose(parts.episode_adv.numpy(), episode, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(parts.step_adv.numpy(), step, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(parts.advantage.numpy(), np.array(episode) + 0.7 * np.array(step), rtol=1e-9, atol=1e-9)


def one_group(
    reward: Sequence[float], lengths: Sequence[int], *, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """One task group, one anchor group; each trajectory gets its reward on its last row."""
    traj = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    column = torch.zeros(len(traj), dtype=dtype)
    column[torch.tensor(lengths).cumsum(0) - 1] = torch.tensor(reward, dtype=dtype)
    same = torch.zeros_like(traj)
    return {
        "reward": column, "traj": traj, "episode_group": same, "step_group": same.clone(),
        "valid": torch.ones_like(traj, dtype=torch.bool),
    }  # fmt: skip


# verl-agent's own case: values that float32 sums cannot represent make sigma one ulp, and noise becomes +-0.65.
@given(
    st.sampled_from([0.1, 1 / 3, 0.7, 10.0, 1e-3, 9.025]), st.integers(2, 60), st.integers(1, 9),
    st.sampled_from([torch.float64, torch.float32]),
)  # fmt: skip
def test_constant_groups_give_exactly_zero(value: float, members: int, length: int, dtype: torch.dtype) -> None:
    rows = one_group([value] * members, [length] * members, dtype=dtype)
    rows["step_group"] = torch.arange(length).repeat(members)  # equal futures
    parts = gigpo_advantage(**rows, gamma=0.95, omega=1.0, return_parts=True)
    assert (parts.episode_adv == 0).all()
    assert (parts.step_adv == 0).all()


def test_returns_equal_up_to_rounding_are_constant() -> None:
    """0.1 + 0.2 and 0.3 differ by an ulp in float64, and by their own rounding in float32: not an outcome."""
    for dtype in (torch.float64, torch.float32):
        rows = one_group([0.0, 0.0], [3, 3], dtype=dtype)
        rows["reward"] = torch.tensor([0.1, 0.2, 0.0, 0.0, 0.0, 0.3], dtype=dtype)
        advantage = gigpo_advantage(**rows, gamma=1.0, omega=0.0)
        assert (advantage == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rewards_in_half_precision_are_outcomes(dtype: torch.dtype) -> None:
    """64 units in the last place of bfloat16 are half of a value: 10 and 6 counted as equal."""
    half, exact = one_group([10.0, 6.0], [2, 2], dtype=dtype), one_group([10.0, 6.0], [2, 2])
    got, expected = (gigpo_advantage(**rows, gamma=1.0, omega=0.0) for rows in (half, exact))
    assert (expected != 0).all()
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("outcome", [0.0, 10.0])
def test_the_penalty_never_defines_sigma(outcome: float) -> None:
    """One invalid row among 400 of equal outcome: verl-agent gives it -19.9; here it costs c / min_sigma a level."""
    rows = one_group([outcome] * 8, [50] * 8)
    rows["valid"][123] = False
    ours = gigpo_advantage(**rows, gamma=1.0, omega=0.0)
    theirs = gigpo_advantage(**rows, gamma=1.0, omega=0.0, episode_stats="row", parity="verl_agent")
    assert theirs[123].item() == pytest.approx(-19.9, abs=0.1)
    assert ours[123].item() == pytest.approx(-0.1 / 0.25, rel=1e-4)
    assert (ours[rows["valid"]] == 0).all()


def test_a_penalised_row_moves_nobody_else() -> None:
    rows = one_group([1.0, 0.0, 0.0, 1.0], [3, 4, 5, 6])
    before = gigpo_advantage(**rows, gamma=0.9, omega=1.0)
    rows["valid"][5] = False
    after = gigpo_advantage(**rows, gamma=0.9, omega=1.0)
    others = torch.arange(18) != 5
    assert torch.equal(after[others], before[others])
    assert after[5] < before[5]


def test_long_failures_do_not_weigh_more() -> None:
    """`trajectory`: one success in two trajectories is +-1/sqrt(2) whatever their lengths; `row` is not."""
    rows = one_group([1.0, 0.0], [2, 30])
    advantage = gigpo_advantage(**rows, gamma=1.0, omega=0.0)
    torch.testing.assert_close(
        advantage[[0, -1]], torch.tensor([0.5**0.5, -(0.5**0.5)], dtype=torch.float64), rtol=1e-5, atol=0
    )
    by_row = gigpo_advantage(**rows, gamma=1.0, omega=0.0, episode_stats="row")
    assert by_row[0] > 3


@given(batches(), st.randoms(use_true_random=False))
def test_labels_and_the_order_of_trajectories_do_not_matter(rows: dict[str, list[Any]], random: Any) -> None:
    columns = tensors(rows)
    before = gigpo_advantage(**columns, gamma=0.95, omega=1.0)
    blocks = [torch.nonzero(columns["traj"] == t).squeeze(1) for t in columns["traj"].unique()]
    random.shuffle(blocks)
    order = torch.cat(blocks)
    moved = {name: column[order] for name, column in columns.items()}
    for name in ("traj", "episode_group", "step_group"):
        moved[name] = moved[name] * -977 + 2**40
    after = gigpo_advantage(**moved, gamma=0.95, omega=1.0)
    torch.testing.assert_close(after, before[order], rtol=1e-9, atol=1e-9)


# Interpreted kernels walk over 600 rows in 5 steps; over 4097 they take a minute, and GPUs have a test of that.
@pytest.mark.parametrize("length", [600, pytest.param(4097, marks=pytest.mark.reference)])
def test_returns_are_exact_over_long_trajectories(length: int) -> None:
    """Against the recursion, with neighbours that must not leak in."""
    g = torch.Generator().manual_seed(0)
    rows = one_group([0.0] * 3, [100, length, 1])
    N = length + 101
    rows["reward"] = torch.rand(N, generator=g, dtype=torch.float64)
    parts = gigpo_advantage(**rows, gamma=0.99, omega=1.0, return_parts=True)
    expected, follow = np.zeros(N), 0.0
    for i in reversed(range(N)):
        follow = rows["reward"][i].item() + (0.99 * follow if i not in (99, N - 2, N - 1) else 0.0)
        expected[i] = follow
    np.testing.assert_allclose(parts.returns.numpy(), expected, rtol=1e-12)


def test_no_rows_and_one_row() -> None:
    empty = {name: column[:0] for name, column in one_group([1.0], [1]).items()}
    assert gigpo_advantage(**empty, gamma=0.95, omega=1.0).shape == (0,)
    assert gigpo_advantage(**one_group([1.0], [1]), gamma=0.95, omega=1.0).tolist() == [0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"traj": torch.tensor([0, 1, 0])}, "traj: the rows of 0 are not contiguous"),
        ({"valid": torch.ones(2, dtype=torch.bool)}, r"valid \(2,\) and reward \(3,\)"),
        ({"normalize": "std"}, "normalize = 'std' must be one of 'mean_std', 'mean'"),
        ({"episode_stats": "step"}, "episode_stats = 'step'"),
        ({"parity": "verl"}, "parity = 'verl' must be one of None, 'verl_agent'"),
        ({"gamma": 1.5}, "gamma = 1.5"),
        ({"eps": 0.0}, "eps = 0.0 must be > 0"),
        ({"omega": float("nan")}, "omega = nan must be at least 0 and finite"),
        ({"penalty": -1.0}, "penalty = -1.0 must be at least 0"),
        ({"step_group": torch.tensor([0.5, 0.5, 1.0])}, "step_group has dtype torch.float32; labels must be integers"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    rows = one_group([1.0, 0.0], [2, 1])
    with pytest.raises(ValueError, match=message):
        gigpo_advantage(**{**rows, "gamma": 0.9, "omega": 1.0, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episode_group": [0, 3, 7], "step_group": [0, 1, 2]}, r"traj\[\d\] = 0 lies in task group . here and in"),
        (
            {"episode_group": [3, 3, 7], "step_group": [5, 6, 5]},
            r"step_group\[\d\] = 5 lies in task group . here and in",
        ),
    ],
)
def test_labels_that_span_task_groups_are_named(change: dict[str, list[int]], message: str) -> None:
    """A state that two tasks share is two anchor groups: their returns are not comparable."""
    rows = one_group([1.0, 0.0], [2, 1])
    with pytest.raises(ValueError, match=message):
        gigpo_advantage(**{**rows, **{k: torch.tensor(v) for k, v in change.items()}}, gamma=0.9, omega=1.0)


@pytest.mark.reference
def test_131072_rows_take_milliseconds() -> None:
    """CPU time, best of three, on a machine that may be busy; measured 35 ms on one busy Zen 4 core."""
    lengths = [32] * 4096
    rows = one_group([float(i % 3 == 0) for i in range(4096)], lengths)
    rows["episode_group"] = rows["traj"] // 8
    rows["step_group"] = rows["episode_group"] * 78 + torch.arange(131072) % 78
    seconds = []
    for _ in range(3):
        start = time.process_time()
        gigpo_advantage(**rows, gamma=0.95, omega=1.0)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5
