"""What only the Triton kernels of `gigpo_advantage` have, in the interpreter: run by `test_triton_interpreter.py`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from siri.kernels import gigpo_advantage
from siri.kernels import gigpo_advantage_triton as module
from siri.kernels.gigpo_advantage import Parts

OPTIONS: dict[str, Any] = {"gamma": 0.9, "omega": 0.7, "penalty": 0.1, "min_sigma": 0.3, "return_parts": True}


def make(lengths: list[int], groups: int = 3, states: int = 5) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    traj = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    episode = traj % groups
    return {
        "reward": torch.randint(-2, 4, (len(traj),), generator=g).double() / 7,
        "traj": traj,
        "episode_group": episode,
        "step_group": episode * states + torch.randint(0, states, (len(traj),), generator=g),
        "valid": torch.rand(len(traj), generator=g) > 0.2,
    }


def reference(rows: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, **options: Any) -> Parts:
    with monkeypatch.context() as patch:
        patch.setitem(gigpo_advantage.__wrapped__.__globals__, "use_triton", lambda *_: False)
        return gigpo_advantage(**rows, **{**OPTIONS, **options})


@pytest.mark.parametrize("episode_stats", ["trajectory", "row"])
@pytest.mark.parametrize("normalize", ["mean", "mean_std"])
def test_blocks_and_steps_that_divide_nothing(
    normalize: str, episode_stats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trajectories of one step of the walk, of a row less and more, and over several blocks of rows."""
    monkeypatch.setattr(module, "INTERPRETED_WALK", (16, 2, 1))
    monkeypatch.setattr(module, "ROWS_BLOCK", 32)
    rows = make([4, 3, 5, 1, 8, 41, 2, 13])
    options = {"normalize": normalize, "episode_stats": episode_stats}
    got, expected = gigpo_advantage(**rows, **OPTIONS, **options), reference(rows, monkeypatch, **options)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("place", [0, 2**64 - 1])
def test_labels_that_want_one_place(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All labels hash to the first or to the last place of the table: each goes on to the next that is free."""
    rows = make([3] * 12, groups=4)
    inverse = pow(module.HASH.value, -1, 2**64)

    def crowded(labels: Tensor) -> Tensor:
        hashes = [(place + label * (1 if place == 0 else -1)) * inverse % 2**64 for label in labels.tolist()]
        return torch.tensor([h - 2**64 if h >= 2**63 else h for h in hashes])

    moved = {name: crowded(rows[name]) if name.endswith(("group", "traj")) else rows[name] for name in rows}
    assert len(moved["step_group"].unique()) == len(rows["step_group"].unique())
    for a, b in zip(gigpo_advantage(**moved, **OPTIONS), gigpo_advantage(**rows, **OPTIONS), strict=True):
        assert torch.equal(a, b)


def test_labels_may_have_any_kind_and_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make([3, 4, 5])
    expected = gigpo_advantage(**rows, **OPTIONS)
    others = {
        "reward": torch.stack([rows["reward"], rows["reward"]], 1)[:, 1],
        "traj": rows["traj"].to(torch.int32),
        "episode_group": rows["episode_group"].to(torch.uint8),
        "step_group": torch.stack([rows["step_group"] - 2**62] * 2, 1)[:, 0],
        "valid": rows["valid"].float(),
    }
    for a, b in zip(gigpo_advantage(**others, **OPTIONS), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [1e-100, 1e100, -3.0])
def test_statistics_of_very_small_and_very_large_scores(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of a group's own spread: a group of tiny scores beside one of large ones loses nothing."""
    rows = make([3, 4, 5, 6, 2, 3])
    rows["reward"] = torch.where(rows["episode_group"] == 1, rows["reward"] * value, rows["reward"])
    options = {"eps": 1e-200, "penalty": 0.0}
    got, expected = gigpo_advantage(**rows, **{**OPTIONS, **options}), reference(rows, monkeypatch, **options)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=0)


def test_a_reward_that_is_not_a_number_stays_in_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make([3, 4, 5, 6, 2, 3])
    row = int((rows["traj"] == 1).nonzero()[-1])  # no later row has it in its return
    before = gigpo_advantage(**rows, **OPTIONS)
    for value in (float("nan"), -float("nan"), float("inf")):
        rows["reward"][row] = value
        after = gigpo_advantage(**rows, **OPTIONS)
        own = rows["episode_group"] == rows["episode_group"][row]
        assert after.episode_adv[own].isnan().all()
        assert after.advantage[own].isnan().all()
        assert torch.equal(after.advantage[~own], before.advantage[~own])


# (column, row, its new label, column of the groups that become NaN): rows of a trajectory that are not contiguous, a
# trajectory in two task groups, an anchor group in two of them.
@pytest.mark.parametrize(
    ("column", "row", "label", "poisoned"),
    [
        ("traj", 2, 0, "episode_group"), ("episode_group", 1, 1, "episode_group"), ("step_group", 0, 7, "step_group"),
    ],
)  # fmt: skip
def test_wrong_labels_are_nan_where_nobody_can_wait(
    column: str, row: int, label: int, poisoned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "reward": torch.tensor([1.0, 0.0, 0.5, 0.25, 0.0, 2.0]).double(),
        "traj": torch.tensor([0, 1, 2, 3, 4, 5]),
        "episode_group": torch.tensor([0, 0, 0, 0, 1, 1]),
        "step_group": torch.tensor([5, 5, 5, 5, 7, 7]),
        "valid": torch.ones(6, dtype=torch.bool),
    }
    good = gigpo_advantage(**rows, **OPTIONS)
    if column == "episode_group":
        rows["traj"][0] = 1
        rows["step_group"] = torch.arange(6)
    rows[column][row] = label
    monkeypatch.setattr(module, "capturing", lambda _: True)
    parts = gigpo_advantage(**rows, **OPTIONS)
    level = parts.episode_adv if poisoned == "episode_group" else parts.step_adv
    wrong = rows[poisoned] == rows[poisoned][row]
    if column == "episode_group":
        wrong |= rows["episode_group"] == 0  # both groups that the trajectory is in
    assert level[wrong].isnan().all()
    assert parts.advantage[wrong].isnan().all()
    assert not level[~wrong].isnan().any()
    if column == "traj":
        assert torch.equal(level[~wrong], good.episode_adv[~wrong])
