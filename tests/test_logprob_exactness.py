"""Where float32 loses most: logits that are large together, and tokens that are almost certain.

`test_triton_interpreter.py` runs this file again, with the Triton kernels in place of the reference.
"""

import pytest
import torch
from projections import gradients, naive, relative_error
from test_linear_logprob import INTERPRETED, make

from siri.kernels import linear_logprob, linear_policy_loss, masked_distill_loss, selective_logprob


@pytest.mark.parametrize("offset", [-120.0, 120.0])
@pytest.mark.parametrize("width", [16, 576, pytest.param(1536, marks=pytest.mark.reference)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_common_offset_of_all_logits(offset: float, width: int, dtype: torch.dtype) -> None:
    """A running maximum that starts at 0 underflows every exponential at -120 and returns inf.

    A float32 product is off by 7e-5 there, which shows at the target alone: its logit is summed in float64.
    """
    rows, columns, seeds = (33, 129, 1) if INTERPRETED else (60, 1300, 3)
    for seed in range(seeds):
        x, w, y = make(rows, width, columns, seed=seed)
        x[:, 0], w[:, 0] = offset, 1.0
        x, w = x.to(dtype), w.to(dtype)
        got = linear_logprob(x, w, y, return_entropy=True, return_lse=True)
        for value, truth in zip(got, naive(x, w, y), strict=True):
            assert (value - truth).abs().max() <= 2e-5


def test_peaked_rows() -> None:
    """Targets of probability almost 1 beside targets of log-probability -150, as trained policies have them."""
    x, w, y = make(200, 32, 400)
    w[:200] = 4 * x  # row t points at token t
    y[:100] = torch.arange(100)
    logprob, entropy = linear_logprob(x, w, y, return_entropy=True)
    truth, true_entropy, lse = naive(x, w, y)
    assert truth[:100].max() > -1e-6
    assert truth.min() < -150
    assert (logprob - truth)[:100].abs().max() <= 1e-6
    # Where another token is certain, lse is its logit, up to 200 and from a float32 product.
    assert ((logprob - truth).abs() <= 3e-7 * lse.abs().clamp(min=1) + 2e-5).all()
    assert (logprob <= 0).all()
    assert (entropy - true_entropy).abs().max() <= 2e-5
    assert (entropy >= -1e-6).all()


@pytest.mark.parametrize("offset", [0.0, 60.0])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradients_of_rows_that_are_almost_certain(with_entropy: bool, offset: float) -> None:
    """p - 1, what is left of the gradient at the target, is 5e-5 in the median here. Taken from a rounded lse, of 118
    with the offset, gradients were off by 1.6%, eager's are by 0.4%."""
    x, w, _ = make(60, 64, 900)
    y = torch.randperm(900, generator=torch.Generator().manual_seed(1))[:60]
    w[y] = x * (11 / x.square().sum(1, keepdim=True))
    x[:, 0], w[:, 0] = offset, 1.0
    leaves = [x.requires_grad_(), w.requires_grad_()]
    got = linear_logprob(*leaves, y, temperature=0.6, return_entropy=True)
    truth = naive(*leaves, y, temperature=0.6)
    assert -1e-4 < truth[0].median() < -1e-5
    parts = [value[0].sum() + (0.1 * value[1].sum() if with_entropy else 0) for value in (got, truth)]
    ours, expected = (gradients(part, *leaves) for part in parts)
    eager = torch.log_softmax((x @ w.t()) / 0.6, -1)
    rough_value = eager.gather(1, y[:, None]).sum() - (0.1 * (eager.exp() * eager).sum() if with_entropy else 0)
    rough = gradients(rough_value, *leaves)
    for mine, theirs, true in zip(ours, rough, expected, strict=True):
        assert relative_error(mine, true) <= max(1e-5, 1.5 * relative_error(theirs, true))


def test_losses_of_rows_with_a_common_offset() -> None:
    """The same holds where the log-prob is part of a loss, and for a bias in place of the product."""
    x, w, y = make(40, 64, 300)
    bias = torch.full((300,), 120.0)
    ones = torch.ones(40)
    truth = naive(x, w, y, bias=bias)[0]
    stats = linear_policy_loss(x, w, y, ones, None, denominator=1, bias=bias)[1]
    assert (stats["logprob"] - truth).abs().max() <= 2e-5
    nll = masked_distill_loss(x, w, y, ones, denominator=40, bias=bias)
    assert nll.item() == pytest.approx(-truth.mean().item(), abs=1e-5)


def test_selective_logprob_of_rows_that_are_almost_certain() -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) + 60
    y = torch.arange(50)
    logits[y, y] += 14
    leaf = logits.requires_grad_()
    truth = torch.log_softmax(leaf.double(), -1)[y, y]
    assert -1e-2 < truth.median() < -1e-5
    expected = gradients(truth.sum(), leaf)[0]
    assert relative_error(gradients(selective_logprob(leaf, y).sum(), leaf)[0], expected) <= 1e-3


@pytest.mark.parametrize("temperature", [1e-2, 1e-6])
def test_masked_entries_at_low_temperatures(temperature: float) -> None:
    """A block of masked ids alone is a drop to the floor, 1e36 at this temperature: times a total it was infinite."""
    x, w, y = make(9, 16, 1300)
    bias = torch.zeros(1300)
    bias[:700] = -torch.inf
    y = y // 2 + 650
    y[y < 700] = 800
    leaves = [x.requires_grad_(), w.requires_grad_()]
    got = linear_logprob(*leaves, y, bias=bias, temperature=temperature, return_entropy=True)
    truth = naive(x.detach(), w.detach()[700:], y - 700, temperature=temperature)
    assert (got[1] - truth[1]).abs().max() <= 1e-4
    assert (got[0] - truth[0]).abs().max() <= 1e-5 / temperature
    assert all(g.isfinite().all() for g in gradients(got[0].sum() + got[1].sum(), *leaves))
