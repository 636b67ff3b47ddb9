"""Gradients of `linear_logprob` where nothing but the log-probability has an upstream gradient, as in policy losses.

The reference path then takes the scale of a row (upstream gradient over temperature) out of the `[T, V]` logits.
"""

from collections.abc import Callable

import pytest
import torch
from projections import gradients, naive, relative_error
from test_linear_logprob import GRAD_TOLERANCE, TOLERANCE, make, module
from torch import Tensor

from siri.kernels import linear_logprob


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_temperatures_and_upstream_gradients_scale_rows(
    dtype: torch.dtype, per_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKEN_BLOCK", 50)  # blocks that divide nothing
    monkeypatch.setattr(module, "VOCAB_BLOCK", 129)
    x, w, y = make(127, 33, 503, dtype=dtype, scale=4.0)
    g = torch.Generator().manual_seed(2)
    bias = torch.randn(503, generator=g).to(dtype)
    upstream = torch.randn(127, generator=g)
    temperature = torch.rand(127, generator=g) * 4.9 + 0.1 if per_token else 0.7
    leaves = [t.requires_grad_() for t in (x, w, bias)]
    got = linear_logprob(x, w, y, bias=bias, temperature=temperature)
    expected, _, _ = naive(x, w, y, bias=bias, temperature=temperature)
    assert (got - expected).abs().max() <= TOLERANCE[dtype]
    true_grads = gradients((upstream * expected).sum(), *leaves)
    for got_grad, true_grad in zip(gradients((upstream * got).sum(), *leaves), true_grads, strict=True):
        assert relative_error(got_grad, true_grad) <= GRAD_TOLERANCE[dtype]


def eager(x: Tensor, w: Tensor, y: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """(logprob, entropy) as trainers write it: logits in the dtype of the factors, float32 after them."""
    divisor = temperature[:, None] if isinstance(temperature, Tensor) else temperature
    log_p = torch.log_softmax((x @ w.t()).float() / divisor, -1)
    return log_p.gather(1, y[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def spread(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x, w, y


def peaked(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the weight that are rows of the hidden states, as in cut-cross-entropy's tests; a tenth of them, because
    in float64 too p is 0 where a logit at temperature 0.1 is 745 lower."""
    w[y[::2]] = x[::2] / 10
    return x, w, y


def shifted(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All logits 120 higher."""
    x[:, 0], w[:, 0] = 10.0, 12.0
    return x, w, y


def last_column(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x, w, torch.full_like(y, len(w) - 1)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("kind", [spread, peaked, shifted, last_column])
@pytest.mark.parametrize("shape", [(127, 72, 1000), (33, 577, 3001)])
def test_gradients_of_half_precision_factors_are_no_worse_than_those_of_eager_torch(
    shape: tuple[int, int, int], kind: Callable[..., tuple[Tensor, Tensor, Tensor]], per_token: bool
) -> None:
    x, w, y = kind(*make(*shape, dtype=torch.bfloat16, scale=3.0))
    g = torch.Generator().manual_seed(3)
    upstream = torch.randn(2, len(x), generator=g)
    temperature = torch.rand(len(x), generator=g) * 4.9 + 0.1 if per_token else 1.0
    leaves = [x.requires_grad_(), w.requires_grad_()]
    ours = linear_logprob(x, w, y, temperature=temperature, return_entropy=True)
    found = {}
    for name, value in (
        ("ours", ours),
        ("eager", eager(x, w, y, temperature)),
        ("truth", naive(x, w, y, temperature=temperature)[:2]),
    ):
        found[name] = gradients((upstream * torch.stack(list(value))).sum(), *leaves)
    for mine, rough, true in zip(found["ours"], found["eager"], found["truth"], strict=True):
        assert relative_error(mine, true) <= 1.5 * relative_error(rough, true)
