"""Gradients of `linear_logprob` where nothing but the log-probability has an upstream gradient, as in policy losses.

The reference path then takes the scale of a row (upstream gradient over temperature) out of the `[T, V]` logits.
"""

import pytest
import torch
from projections import gradients, naive, relative_error
from test_linear_logprob import GRAD_TOLERANCE, TOLERANCE, make, module

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
