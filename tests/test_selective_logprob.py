"""`selective_logprob` against float64 log-softmax.

`test_triton_interpreter.py` runs this file again, with the Triton kernels in place of the reference.
"""

import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from projections import Meter, gradients, relative_error
from torch import Tensor

from siri.kernels import selective_logprob
from siri.kernels.selective_logprob import selective_logprob_ref

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def truth(logits: Tensor, targets: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    scale = temperature.double()[..., None] if isinstance(temperature, Tensor) else temperature
    distribution = torch.distributions.Categorical(logits=logits.double() / scale)
    return distribution.log_prob(targets), distribution.entropy()


# 1700 rows of 1291 take three blocks of 2^20 elements; the other shapes are leading dimensions of every kind.
@pytest.mark.parametrize("shape", [pytest.param((1700,), marks=pytest.mark.reference), (2, 3, 5), (), (0,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_token", [False, True])
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, per_token: bool) -> None:
    g = torch.Generator().manual_seed(0)
    logits = (torch.randn(*shape, 1291, generator=g) * 5).to(dtype).requires_grad_()
    targets = torch.randint(0, 1291, shape, generator=g)
    temperature = torch.rand(shape, generator=g) * 3 + 0.3 if per_token else 0.7
    u, v = torch.randn(2, *shape, generator=g)
    logprob, entropy = selective_logprob(logits, targets, temperature=temperature, return_entropy=True)
    assert logprob.shape == entropy.shape == shape
    assert logprob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if logits.numel() == 0:
        return
    true_logprob, true_entropy = truth(logits, targets, temperature)
    limit = 1e-12 if dtype == torch.float64 else 2e-5
    assert (logprob - true_logprob).abs().max() <= limit
    assert (entropy - true_entropy).abs().max() <= limit
    got = gradients((u * logprob + v * entropy).sum(), logits)[0]
    expected = gradients((u * true_logprob + v * true_entropy).sum(), logits)[0]
    rounding = 5e-3 if INTERPRETED else 2.5e-3  # the interpreter truncates where a GPU rounds
    assert relative_error(got, expected) <= {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: rounding}[dtype]


@given(st.integers(0, 2**31), st.floats(0.1, 5), st.sampled_from([-120.0, 0.0, 120.0]))
def test_probabilities_sum_to_one_at_any_offset(seed: int, temperature: float, offset: float) -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed)).double() * 8 + offset
    logprob, entropy = selective_logprob(
        logits.expand(30, 30), torch.arange(30), temperature=temperature, return_entropy=True
    )
    torch.testing.assert_close(logprob.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(entropy[0], -(logprob.exp() * logprob).sum(), rtol=1e-8, atol=1e-10)


def test_equal_logits_give_minus_log_v_exactly_and_input_is_untouched() -> None:
    logits = torch.full((4, 1000), -300.0)
    assert (selective_logprob(logits, torch.tensor([0, 5, 999, 3])) == -torch.tensor(1000.0).log()).all()
    assert (logits == -300).all()


@pytest.mark.parametrize("mask", [-torch.inf, -3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_ids_have_probability_0(mask: float, dtype: torch.dtype) -> None:
    """0 * inf is kept out of entropy and gradient, also where the temperature makes an infinity of a finite mask."""
    kept = (torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    targets = torch.tensor([0, 7, 49, 3, 3, 20])
    logits = torch.full((6, 80), mask, dtype=dtype)
    logits[:, 20:70] = kept
    logits.requires_grad_()
    true_logprob, true_entropy = truth(kept, targets, 0.3)
    for function in (selective_logprob, selective_logprob_ref):
        options = {"return_entropy": True} if function is selective_logprob else {}
        logprob, entropy = function(logits, targets + 20, temperature=0.3, **options)
        assert (logprob - true_logprob).abs().max() <= 2e-5
        assert (entropy - true_entropy).abs().max() <= 2e-5
        gradient = gradients((logprob + entropy).sum(), logits)[0]
        assert gradient.isfinite().all()
        assert (gradient[:, :20] == 0).all()
        assert (gradient[:, 70:] == 0).all()
        assert (gradient[:, 20:70] != 0).any(1).all()


def test_entropy_only_gradient_and_reference() -> None:
    logits = torch.randn(7, 40, dtype=torch.float64).requires_grad_()
    targets = torch.arange(7, dtype=torch.int32)
    got = selective_logprob(logits, targets, temperature=0.5, return_entropy=True)
    reference = selective_logprob_ref(logits, targets, 0.5)
    torch.testing.assert_close(got, reference)
    for a, b in zip(got, reference, strict=True):
        torch.testing.assert_close(gradients(a.sum(), logits), gradients(b.sum(), logits))
    assert torch.autograd.gradcheck(lambda z: selective_logprob(z, targets, return_entropy=True), logits)


@pytest.mark.parametrize(
    ("targets", "temperature", "message"),
    [
        (torch.tensor([[0, 1], [40, 2]]), 1.0, r"targets\[1, 0\] = 40 is outside the vocabulary \[0, 40\); clamp"),
        (torch.tensor([[0, 1], [2, -100]]), 1.0, r"targets\[1, 1\] = -100 is outside"),
        (torch.zeros(2, 3, dtype=torch.long), 1.0, r"targets \(2, 3\) must have the leading shape"),
        (torch.zeros(2, 2, dtype=torch.long), torch.ones(2), r"temperature \(2,\)"),
        (torch.zeros(2, 2, dtype=torch.long), -1.0, "temperature = -1.0 must be > 0"),
    ],
)
def test_wrong_input_is_named(targets: Tensor, temperature: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_logprob(torch.zeros(2, 2, 40), targets, temperature=temperature)


@pytest.mark.reference
def test_no_second_tensor_of_the_size_of_the_logits() -> None:
    """The forward pass makes blocks only; the backward pass makes the gradient."""
    logits = torch.randn(3000, 1000, requires_grad=True)
    with Meter() as meter:
        logprob, entropy = selective_logprob(logits, torch.zeros(3000, dtype=torch.long), return_entropy=True)
    assert meter.largest == 2**20 // 1000 * 1000
    with Meter() as meter:
        torch.autograd.grad(logprob.sum() + entropy.sum(), logits)
    assert meter.largest == logits.numel()
