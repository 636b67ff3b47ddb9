"""What users pass to `siri.kernels` by mistake, and what they are told: argument, value, rule and remedy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_linear_logprob import make

from siri.kernels import gigpo_advantage, linear_logprob, linear_policy_loss, masked_distill_loss, selective_logprob

X, W, Y = make(4, 8, 30)
ONES = torch.ones(4)
ROW = torch.zeros(4, dtype=torch.int64)
LOGITS = torch.zeros(2, 3, 30)
TARGETS = torch.zeros(2, 3, dtype=torch.int64)
META = torch.ones(4, device="meta")


def logprob(**change: Any) -> Any:
    return linear_logprob(**{"hidden": X, "weight": W, "targets": Y, **change})


def policy(**change: Any) -> Any:
    given = {"hidden": X, "weight": W, "targets": Y, "advantage": ONES, "old_logprob": None, "denominator": 4}
    return linear_policy_loss(**{**given, **change})


def distill(**change: Any) -> Any:
    given = {"hidden": X, "weight": W, "targets": Y, "token_weight": ONES, "denominator": 4}
    return masked_distill_loss(**{**given, **change})


def selective(**change: Any) -> Any:
    return selective_logprob(**{"logits": LOGITS, "targets": TARGETS, **change})


def advantage(**change: Any) -> Any:
    labels = {"traj": ROW, "episode_group": ROW, "step_group": ROW}
    return gigpo_advantage(**{"reward": ONES, **labels, "valid": ROW == 0, "gamma": 0.9, "omega": 1.0, **change})


@pytest.mark.parametrize(
    ("call", "change", "message"),
    [
        (logprob, {"hidden": X.tolist()}, r"^hidden is a list; it must be a tensor: pass torch.as_tensor\(hidden\)$"),
        (logprob, {"weight": torch.nn.Linear(8, 30)}, r"^weight is a torch.nn.*Linear; .*: pass weight.weight$"),
        (logprob, {"targets": Y.numpy()}, r"^targets is a numpy.ndarray; it must be a tensor: pass torch.as_tensor"),
        (logprob, {"targets": None}, "^targets is a NoneType; it must be a tensor$"),
        (logprob, {"bias": 0.0}, "^bias is a float; it must be a tensor"),
        (logprob, {"hidden": X.long()}, "^hidden has dtype torch.int64; it must be floating-point$"),
        (logprob, {"hidden": X[None]}, r"with one H; flatten the tokens .*: hidden.flatten\(0, 1\)"),
        (logprob, {"weight": W.t()}, "with one H; weight seems to be transposed$"),
        (logprob, {"targets": Y.to("meta")}, r"^targets is on meta, hidden on cpu; pass targets.to\(hidden.device\)$"),
        (logprob, {"temperature": META}, "^temperature is on meta, hidden on cpu"),
        (logprob, {"temperature": None}, "^temperature = None must be a number > 0, or a tensor$"),
        (logprob, {"temperature": [1.0] * 4}, r"^temperature = \[1.0, .*\] must be a number > 0, or a tensor$"),
        (logprob, {"temperature": True}, "^temperature = True must be a number"),
        (logprob, {"softcap": "30"}, "^softcap = '30' must be a number > 0, or None$"),
        (logprob, {"ignore_index": None}, "^ignore_index = None must be an integer$"),
        (logprob, {"tp_group": 1}, "^tp_group = 1 must be a torch.distributed process group$"),
        (policy, {"advantage": [1.0] * 4}, "^advantage is a list"),
        (policy, {"old_logprob": 0.0}, "^old_logprob is a float"),
        (policy, {"token_weight": META}, "^token_weight is on meta"),
        (policy, {"dual_clip": None}, "^dual_clip = None must be a number$"),
        (policy, {"denominator": None}, "^denominator = None must be > 0; pass max"),
        (policy, {"denominator": torch.tensor(0.0)}, "^denominator = 0.0 must be > 0"),
        (policy, {"denominator": torch.tensor([5, 5])}, r"^denominator \(2,\) must be one number, 0-dim if a tensor"),
        (distill, {"token_weight": None}, "^token_weight is a NoneType"),
        (distill, {"denominator": torch.tensor(-5.0)}, "^denominator = -5.0 must be > 0"),
        (distill, {"divergence": "jsd", "teacher_hidden": X.numpy()}, "^teacher_hidden is a numpy.ndarray"),
        (selective, {"logits": LOGITS.numpy()}, "^logits is a numpy.ndarray"),
        (selective, {"logits": LOGITS.long()}, r"^logits \(2, 3, 30\) of torch.int64 must be floating-point"),
        (selective, {"targets": [[0] * 3] * 2}, "^targets is a list"),
        (selective, {"targets": TARGETS - 100}, r"^targets\[0, 0\] = -100 .*; clamp such ids and mask the result, or"),
        (selective, {"temperature": torch.ones(2, 3).index_fill(1, torch.tensor([2]), 0.0)},
         r"^temperature\[0, 2\] = 0.0 must be > 0"),
        (advantage, {"reward": [1.0]}, "^reward is a list"),
        (advantage, {"reward": ONES + 1j}, "^reward has dtype torch.complex64; it must be real$"),
        (advantage, {"step_group": np.zeros(4, np.int64)}, r"^step_group is a numpy.ndarray; .*: pass torch.as_tensor"),
        (advantage, {"valid": None}, "^valid is a NoneType"),
        (advantage, {"gamma": "0.9"}, "^gamma = '0.9' must be a number$"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(call: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**change)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor(0.5).double()])
def test_numbers_of_other_packages_are_numbers(number: Any) -> None:
    assert torch.equal(logprob(temperature=number), logprob(temperature=0.5))
    assert policy(denominator=number)[0] == policy(denominator=0.5)[0]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("padding", [-1, 30, -100])
def test_rows_of_weight_0_may_have_any_target(padding: int, backend: str) -> None:
    """As batches that are padded with some id and masked by weight."""
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    padded = torch.where(weight == 0, padding, Y)
    assert policy(targets=padded, token_weight=weight, backend=backend)[0] == policy(token_weight=weight)[0]
    assert distill(targets=padded, token_weight=weight, backend=backend) == distill(token_weight=weight)
    with pytest.raises(ValueError, match=r"^targets\[1\] = 30 is outside the vocabulary"):
        policy(targets=torch.where(weight == 0, 30, Y))


@pytest.mark.parametrize("mode", ["cuda", "Triton", ""])
def test_a_misspelt_choice_of_kernels_is_an_error_also_on_a_cpu(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIRI_KERNELS", mode)
    with pytest.raises(ValueError, match=f"SIRI_KERNELS = '{mode}' must be one of auto, reference, triton"):
        logprob()
