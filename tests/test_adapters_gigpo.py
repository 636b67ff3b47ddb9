"""verl-agent's GiGPO functions in `siri.kernels.adapters`: its recorded runs, a brute-force reference, its faults."""

import difflib
import json
import random
import statistics
import uuid
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO, shared_path
from torch import Tensor

from siri.kernels.adapters import build_step_group, compute_gigpo_outcome_advantage

ORACLE = REPO.parent / "shared" / "oracles" / "gigpo.json"
CASES = json.loads(ORACLE.read_text())["cases"] if ORACLE.exists() else [None]


def on_tokens(scores: list[float], length: int = 3) -> tuple[Tensor, Tensor]:
    """(token_level_rewards, response_mask) [N, L]: the score on the last token of responses of 1 to L tokens."""
    lengths = torch.arange(len(scores)) % length + 1
    mask = (torch.arange(length) < lengths[:, None]).long()
    rewards = torch.zeros(len(scores), length)
    rewards[torch.arange(len(scores)), lengths - 1] = torch.tensor(scores, dtype=torch.float32)
    return rewards, mask


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"] if case else "absent")
def test_reproduces_recorded_case(case: dict[str, Any] | None) -> None:
    """Where the notes call a row degenerate, the exact answer is 0, and the original's rounding noise."""
    shared_path("oracles", "gigpo.json")
    assert case is not None
    config, inputs, outputs, notes = (case[name] for name in ("config", "inputs", "outputs", "notes"))
    live = [row for row, active in enumerate(inputs["active"]) if active]

    def column(name: str) -> list[Any]:
        return [(outputs if name in outputs else inputs)[name][row] for row in live]

    anchors = np.array([inputs["obs_table"][anchor] for anchor in column("anchor_idx")], dtype=object)
    index, traj_index = (np.array(column(name), dtype=object) for name in ("uid", "traj_uid"))
    similarity = (config["enable_similarity"], config["similarity_thresh"])
    assert build_step_group(anchors, index, *similarity) == column("step_group")

    rewards, mask = on_tokens(column("episode_score"))
    step_rewards = torch.tensor(column("step_score"), dtype=torch.float32)

    def advantage(weight: float) -> Tensor:
        one, two = compute_gigpo_outcome_advantage(
            rewards, step_rewards, mask, anchors, index, traj_index, config["epsilon"], weight, config["mode"],
            *similarity, compute_mean_std_cross_steps=config["compute_mean_std_cross_steps"],
        )  # fmt: skip
        assert torch.equal(one, two)
        assert one.dtype == torch.float32
        assert torch.equal(one, one[:, :1] * mask)
        return one[:, 0]

    weight = config["step_advantage_w"]
    fused, episode_only = advantage(weight), advantage(0.0)
    for position, row in enumerate(live):
        episode = 0.0 if row in notes["degenerate_rows_episode"] else outputs["episode_adv"][row]
        step = 0.0 if row in notes["degenerate_rows_step"] else outputs["step_adv"][row]
        assert episode_only[position].item() == pytest.approx(episode, rel=1e-4, abs=1e-4)
        assert fused[position].item() == pytest.approx(episode + weight * step, rel=1e-4, abs=1e-4)


def reference(
    scores: list[float], groups: list[Any], keys: list[Any], scale: bool, by_row: bool, lone_is_raw: bool
) -> list[float]:
    """The definition, as loops over Python floats; `keys` tell the trajectories apart."""
    counted = defaultdict(list)
    seen = set()
    for score, group, key in zip(scores, groups, keys, strict=True):
        if by_row or (group, key) not in seen:
            counted[group].append(score)
        seen.add((group, key))
    result = []
    for score, group in zip(scores, groups, strict=True):
        several = len(counted[group]) > 1
        mu = statistics.fmean(counted[group]) if several or not lone_is_raw else 0.0
        sigma = statistics.stdev(counted[group]) if several else 1.0
        result.append((score - mu) / (sigma + 1e-6) if scale else score - mu)
    return result


@pytest.mark.parametrize("mode", ["mean_norm", "mean_std_norm"])
@pytest.mark.parametrize("by_row", [True, False])
def test_equals_the_definition(mode: str, by_row: bool) -> None:
    """Rows in any order; labels as lists, tensors or arrays."""
    scale = mode == "mean_std_norm"
    for seed in range(20):
        draw = random.Random(seed)
        rows = draw.randrange(1, 40)
        index = [draw.randrange(3) for _ in range(rows)]
        traj = [draw.randrange(4) for _ in range(rows)]
        anchors = [draw.choice("abcd") for _ in range(rows)]
        scores, steps = ([draw.uniform(-2, 10) for _ in range(rows)] for _ in range(2))
        rewards, mask = on_tokens(scores)
        got, _ = compute_gigpo_outcome_advantage(
            rewards, torch.tensor(steps), mask.bool(), np.array(anchors), torch.tensor(index), np.array(traj),
            step_advantage_w=0.5, mode=mode, compute_mean_std_cross_steps=by_row,
        )  # fmt: skip
        episode = reference(scores, index, traj, scale, by_row, lone_is_raw=True)
        states = list(zip(index, anchors, strict=True))
        step = reference(steps, states, traj, scale, True, lone_is_raw=False)
        expected = torch.tensor(episode) + 0.5 * torch.tensor(step)
        torch.testing.assert_close(got, expected[:, None] * mask, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["mean_norm", "mean_std_norm"])
def test_equal_scores_give_exactly_zero(mode: str) -> None:
    """In float32 the mean of equal scores is an ulp off, sigma is that ulp, and eps is no larger."""
    noise = 0.0
    for value in (0.1, 1 / 3, 0.7, 10.0, 9.025):
        for rows in range(2, 40):
            rewards, mask = on_tokens([value] * rows)
            advantage, _ = compute_gigpo_outcome_advantage(
                rewards, rewards.sum(1), mask, ["s"] * rows, ["g"] * rows, range(rows), mode=mode
            )
            assert (advantage == 0).all()
            score = rewards.sum(1)
            noise = max(noise, ((score - score.mean()) / (score.std() + 1e-6)).abs().max().item())
    assert noise > 1e-3


@pytest.mark.parametrize("mode", ["mean_norm", "mean_std_norm"])
def test_scores_an_ulp_apart_are_equal(mode: str) -> None:
    """As 0.3 + 0.4 and 0.7 are in float32: what separates them is the order of a sum."""
    sum_of_two = (torch.tensor(0.3) + torch.tensor(0.4)).item()
    ten = torch.tensor(10.0).nextafter(torch.tensor(11.0)).item()
    for scores in ([0.7, sum_of_two, 0.7], [10.0, ten, 10.0]):
        rewards, mask = on_tokens(scores)
        assert len(rewards.sum(1).unique()) == 2
        advantage, _ = compute_gigpo_outcome_advantage(rewards, rewards.sum(1), mask, "sss", "ggg", "tuv", mode=mode)
        assert (advantage == 0).all()


def test_a_penalised_row_of_a_constant_group_keeps_its_penalty() -> None:
    """By trajectories, the one penalised row is not among those that are counted."""
    rewards, mask = on_tokens([1.0, 1.0, 0.9, 1.0], length=1)
    advantage, _ = compute_gigpo_outcome_advantage(
        rewards, torch.zeros(4), mask, "abcd", "gggg", [0, 0, 0, 1], compute_mean_std_cross_steps=False
    )
    torch.testing.assert_close(advantage[:, 0], torch.tensor([0.0, 0.0, -0.1, 0.0]))


def test_nothing_is_printed_and_labels_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    first = build_step_group(["b", "a", "b", "b"], ["x", "x", "y", "x"], summarize=True)
    assert first == [0, 1, 2, 0]
    assert first == build_step_group(["b", "a", "b", "b"], ["x", "x", "y", "x"])
    assert capsys.readouterr().out == ""


def test_observations_of_every_kind() -> None:
    picture = np.arange(6.0).reshape(2, 3)
    observations = np.empty(12, dtype=object)
    observations[:] = [
        "hall", b"hall", "hall", picture, picture.copy(), picture.reshape(3, 2), {"a": picture, "b": [1, (2,)]},
        {"b": (1, [2]), "a": picture.copy()}, 3, np.int64(3), None, picture + 1,
    ]  # fmt: skip
    assert build_step_group(observations, ["g"] * 12) == [0, 1, 0, 2, 2, 3, 4, 4, 5, 5, 6, 7]


A, B = uuid.uuid4(), uuid.uuid4()


@pytest.mark.parametrize(
    "ids",
    [
        list(torch.tensor([7, 7, 8, 7])),  # as from `[row["uid"] for row in batch]`
        [torch.tensor([7, 1]), torch.tensor([7, 1]), torch.tensor([1, 7]), torch.tensor([7, 1])],
        torch.tensor([[7], [7], [8], [7]]),
        np.array([[7], [7], [8], [7]]),
        [np.array(7), np.array(7), np.array(8), np.array(7)],
        [[7], [7], [8], [7]],
        [("a", 7), ["a", 7], ("b", 7), ("a", np.int64(7))],
        [{"task": 7}, {"task": 7}, {"task": 8}, {"task": 7}],
        [A, uuid.UUID(str(A)), B, A],
    ],
)
@pytest.mark.parametrize("similar", [False, True])
def test_labels_of_every_kind_are_compared_by_value(ids: Any, similar: bool) -> None:
    assert build_step_group(["s"] * 4, ids, similar) == [0, 0, 1, 0]
    rewards, mask = on_tokens([1.0, 2.0, 5.0, 6.0], length=1)
    rows = (rewards, torch.zeros(4), mask, "abcd")
    advantage, _ = compute_gigpo_outcome_advantage(*rows, ids, range(4))
    torch.testing.assert_close(advantage[:, 0], torch.tensor([-2.0, -1.0, 5.0, 3.0]))
    # Trajectories count once, by their first row: those of ids 7 and 8 have a mean of 3.
    advantage, _ = compute_gigpo_outcome_advantage(*rows, "gggg", ids, compute_mean_std_cross_steps=False)
    torch.testing.assert_close(advantage[:, 0], torch.tensor([-2.0, -1.0, 2.0, 3.0]))


def test_the_advantage_has_no_gradient() -> None:
    rewards, mask = on_tokens([1.0, 2.0, 6.0])
    advantage, returns = compute_gigpo_outcome_advantage(
        rewards.requires_grad_(), rewards.sum(1), mask, "aab", "ggg", "tuv"
    )
    assert not advantage.requires_grad
    assert not returns.requires_grad


def test_pictures_as_one_array() -> None:
    pixels = torch.tensor([[[1, 2], [3, 4]], [[1, 2], [3, 5]], [[1, 2], [3, 4]]])
    assert build_step_group(pixels, torch.tensor([0, 0, 0])) == [0, 1, 0]
    assert build_step_group(pixels.numpy(), np.array([0, 0, 1])) == [0, 1, 2]


def test_similar_texts_join_the_first_cluster_that_is_near() -> None:
    """Against `difflib` without short cuts; it ignores the frequent letters of a second text of 200 or more."""
    draw = random.Random(0)
    texts, groups = [], []
    for _ in range(60):
        text = draw.choice(["open the drawer " * 15, "go to desk 1", "abc"])
        place = draw.randrange(len(text))
        texts.append(text[:place] + draw.choice("xyz") + text[place + draw.randrange(2) :])
        groups.append(draw.choice("gh"))
    expected: list[int] = []
    firsts: list[tuple[str, str]] = []
    for text, group in zip(texts, groups, strict=True):
        near = (
            label for label, (other_group, first) in enumerate(firsts)
            if group == other_group and difflib.SequenceMatcher(None, text, first).ratio() >= 0.8
        )  # fmt: skip
        expected.append(next(near, len(firsts)))
        if expected[-1] == len(firsts):
            firsts.append((group, text))
    assert 4 < len(firsts) < 50
    assert build_step_group(texts, groups, True, 0.8) == expected
    # ratio("tide", "diet") is 0.25 and ratio("diet", "tide") 0.5: the new row comes first.
    assert build_step_group(["diet", "tide"], "gg", True, 0.4) == [0, 1]
    assert build_step_group(["tide", "diet"], "gg", True, 0.4) == [0, 0]


REWARDS, MASK = on_tokens([1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "std"}, "mode = 'std' must be one of 'mean_norm', 'mean_std_norm'"),
        ({"index": [0, 0]}, "index has 2 rows and token_level_rewards 3"),
        ({"traj_index": [0] * 4}, "traj_index has 4 rows"),
        ({"step_rewards": torch.zeros(2)}, "step_rewards has 2 rows"),
        ({"response_mask": MASK[:1]}, r"response_mask \(1, 3\) and token_level_rewards \(3, 3\) must both be \[N, L\]"),
        ({"response_mask": MASK[:, :2]}, r"response_mask \(3, 2\) and token_level_rewards \(3, 3\)"),
        ({"response_mask": torch.ones(3)}, r"response_mask \(3,\) and token_level_rewards \(3, 3\)"),
        ({"response_mask": torch.ones(3), "token_level_rewards": torch.ones(3)}, r"must both be \[N, L\]"),
        ({"index": [0, 0, object()]}, r"index\[2\]: a object cannot be compared; pass text"),
        ({"traj_index": [0, {1}, 2]}, r"traj_index\[1\]: a set cannot be compared; pass text"),
        ({"anchor_obs": ["a"]}, "anchor_obs has 1 rows and index 3"),
        ({"anchor_obs": ["a", object(), "b"]}, r"anchor_obs\[1\]: a object cannot be compared; pass text"),
        ({"anchor_obs": ["a", 3, "b"], "enable_similarity": True}, r"anchor_obs\[1\] is a int, and only text"),
        ({"enable_similarity": True, "similarity_thresh": 1.0}, r"similarity_thresh = 1.0 must lie in \(0, 1\)"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    rows: dict[str, Any] = {
        "token_level_rewards": REWARDS, "step_rewards": REWARDS.sum(1), "response_mask": MASK,
        "anchor_obs": ["a", "a", "b"], "index": [0, 0, 0], "traj_index": [0, 1, 2],
    }  # fmt: skip
    assert compute_gigpo_outcome_advantage(**rows)[0].shape == MASK.shape
    with pytest.raises(ValueError, match=message):
        compute_gigpo_outcome_advantage(**{**rows, **change})


def test_whole_rewards_give_fractions() -> None:
    """Advantages of 0.5 were cut to 0, because the rewards were integers."""
    rewards = torch.tensor([[0, 1], [0, 0], [0, 0], [0, 1]])
    got, exact = (
        compute_gigpo_outcome_advantage(r, r.sum(1), torch.ones(4, 2), "abca", "gggg", "tuvw")[0]
        for r in (rewards, rewards.float())
    )
    assert got.dtype == torch.float32
    assert torch.equal(got, exact)
    assert ((got != 0) & (got.abs() < 1)).any()
