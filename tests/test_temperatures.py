"""Temperatures of single tokens that divide by 0 or turn logits around: refused by every op, with the row's name."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from siri.kernels import linear_logprob, linear_policy_loss, masked_distill_loss, selective_logprob

X, W = torch.ones(4, 3), torch.ones(5, 3)
Y = torch.tensor([0, -100, 2, 3])
ONES = torch.ones(4)

OPS: dict[str, Callable[[Tensor], object]] = {
    "linear_logprob": lambda t: linear_logprob(X, W, Y, temperature=t),
    "linear_logprob, reference": lambda t: linear_logprob(X, W, Y, temperature=t, backend="reference"),
    "linear_policy_loss": lambda t: linear_policy_loss(X, W, Y, ONES, ONES, denominator=4, temperature=t),
    "masked_distill_loss": lambda t: masked_distill_loss(X, W, Y, ONES, denominator=4, temperature=t),
    "selective_logprob": lambda t: selective_logprob(X @ W.T, Y.clamp(min=0), temperature=t),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("value", [0.0, -0.5, math.nan])
def test_a_temperature_that_is_not_positive_is_named(op: str, value: float) -> None:
    temperature = torch.tensor([1.0, 0.5, value, value])
    with pytest.raises(ValueError, match=rf"temperature\[2\] = {value} must be > 0"):
        OPS[op](temperature)
    with pytest.raises(ValueError, match=rf"temperature = {value} must be > 0"):
        OPS[op](torch.tensor(value))


@pytest.mark.parametrize("op", [name for name in OPS if name != "selective_logprob"])
def test_ignored_rows_may_have_any_temperature(op: str) -> None:
    OPS[op](torch.tensor([1.0, 0.0, 2.0, 3.0]))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_ignored_row_of_temperature_0_breaks_no_gradient(backend: Literal["auto", "reference"]) -> None:
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    logprob = linear_logprob(x, w, Y, temperature=torch.tensor([1.0, 0.0, 2.0, 3.0]), backend=backend)
    dx, dw = torch.autograd.grad(logprob.sum(), (x, w))
    assert dx.isfinite().all()
    assert dw.isfinite().all()
    assert (dx[1] == 0).all()
