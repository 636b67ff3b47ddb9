"""`linear_logprob` at the sizes of real heads, on awkward memory, and on values that are no numbers.

`test_triton_interpreter.py` runs this file again, with the Triton kernels in place of the reference.
"""

import math
from typing import Any

import pytest
import torch
from projections import gradients, naive, relative_error
from test_linear_logprob import INTERPRETED
from torch import Tensor

from siri.kernels import linear_logprob, linear_policy_loss, masked_distill_loss


def make(tokens: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, weight, targets), the last target in the last column; logits of spread 3."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=g)
    w = torch.randn(vocabulary, width, generator=g) * (3 / math.sqrt(width))
    y = torch.randint(0, vocabulary, (tokens,), generator=g)
    y[-1] = vocabulary - 1
    return x, w, y


def check(x: Tensor, w: Tensor, y: Tensor) -> None:
    leaves = [x.requires_grad_(), w.requires_grad_()]
    got, truth = linear_logprob(x, w, y, return_entropy=True), naive(x, w, y)[:2]
    for value, expected in zip(got, truth, strict=True):
        assert (value - expected).abs().max() <= 2e-5
    both = [gradients(logprob.sum() - 0.1 * entropy.sum(), *leaves) for logprob, entropy in (got, truth)]
    for value, expected in zip(*both, strict=True):
        assert relative_error(value, expected) <= 3e-6


@pytest.mark.parametrize("width", [576, 896, 960, 1536, 3584])
def test_widths(width: int) -> None:
    check(*make(3, width, 200 if INTERPRETED else 1000))


LARGE = [pytest.param(size, marks=pytest.mark.reference) for size in (50257, 151936, 152064, 262144)]


@pytest.mark.parametrize("vocabulary", [5003 if INTERPRETED else 32003, *LARGE])
def test_vocabularies(vocabulary: int) -> None:
    """16 x 64, not less: for 3 x 8 MKL sums all columns one after the other, which alone is 1.6e-4 off in float32."""
    check(*make(16, 64, vocabulary))


@pytest.mark.reference
def test_hidden_states_with_columns_that_stand_out() -> None:
    """As language models have them: logits from one float32 chain over all 576 columns make errors of 3.1e-5."""
    g = torch.Generator().manual_seed(2)
    x, w = torch.randn(128, 576, generator=g), torch.randn(4096, 576, generator=g) * 0.1
    x[:, ::64] *= 30
    check(x, w, torch.randint(0, 4096, (128,), generator=g))


@pytest.mark.parametrize("tokens", [129, pytest.param(4097, marks=pytest.mark.reference)])
def test_numbers_of_tokens(tokens: int) -> None:
    check(*make(tokens, 8, 70))


@pytest.mark.slow
@pytest.mark.reference
def test_more_logits_than_int32_counts() -> None:
    """8320 x 262144 = 2.18e9: the last rows, and the last column, are where an index would wrap."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(8320, 4, generator=g).requires_grad_(), torch.randn(262144, 4, generator=g).requires_grad_()
    y = torch.randint(0, 262144, (8320,), generator=g)
    y[-1] = 262143
    logprob = linear_logprob(x, w, y)
    last = x.detach()[-8:].requires_grad_()
    truth = naive(last, w.detach(), y[-8:])[0]
    assert (logprob[-8:] - truth).abs().max() <= 2e-5
    upstream = torch.full((8320,), 1e-3)  # no row is skipped
    upstream[-8:] = 1.0
    (dx,) = torch.autograd.grad(logprob, x, upstream)
    assert relative_error(dx[-8:], gradients(truth.sum(), last)[0]) <= 2e-4  # 262144 terms in float32


def test_memory_that_is_not_aligned_and_rows_that_are_one() -> None:
    """4 bytes past a multiple of 16; and `expand`, whose rows have stride 0."""
    x, w, y = make(5, 24, 300)
    shifted = [torch.empty(t.numel() + 1)[1:].view(t.shape).copy_(t) for t in (x, w)]
    assert all(t.data_ptr() % 16 for t in shifted)
    assert torch.equal(linear_logprob(*shifted, y), linear_logprob(x, w, y))
    same = x[:1].expand(5, 24)
    assert torch.equal(linear_logprob(same, w, y), linear_logprob(same.contiguous(), w, y))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_row_spoils_itself_only(value: float) -> None:
    x, w, y = make(40, 16, 300)
    clean = linear_logprob(x, w, y)
    x[7, 3] = value
    leaves = [x.requires_grad_(), w.requires_grad_()]
    logprob = linear_logprob(x, w, y)
    others = torch.arange(40) != 7
    assert not logprob[7].isfinite()
    assert torch.equal(logprob[others], clean[others])
    dx, dw = gradients(logprob[others].sum(), *leaves)
    assert (dx[7] == 0).all()
    assert dw.isfinite().all()


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_a_masked_entry_has_no_probability(softcap: float | None, temperature: float) -> None:
    """Soft-capped it would be -softcap, which is a probability. Without its column everything is the same."""
    x, w, y = make(6, 16, 200)
    w /= 3  # else a target of probability 1 leaves rounding for a gradient
    y, seen = y.clamp(max=149), torch.arange(200) % 4 != 3
    y = y // 4 * 4  # no target is masked
    place = seen.cumsum(0) - 1
    bias = torch.where(seen, torch.linspace(-1, 1, 200), -math.inf)
    options: dict[str, Any] = {"softcap": softcap, "temperature": temperature}
    advantage, weight = torch.linspace(-1, 2, 6), torch.linspace(0.5, 1, 6)

    def losses(x: Tensor, w: Tensor, y: Tensor, bias: Tensor, backend: str) -> list[Tensor]:
        logprob, entropy = linear_logprob(x, w, y, bias=bias, return_entropy=True, backend=backend, **options)
        policy, _ = linear_policy_loss(
            x, w, y, advantage, None, denominator=6, entropy_coef=0.1, bias=bias, backend=backend, **options
        )
        distill = [
            masked_distill_loss(
                x, w, y, weight, denominator=6, divergence=kind, bias=bias, backend=backend,
                teacher_hidden=None if kind == "nll" else x.detach().flip(0), **options,
            )
            for kind in ("nll", "forward_kl", "reverse_kl", "jsd")
        ]  # fmt: skip
        return [logprob.sum(), entropy.sum(), policy, *distill]

    leaves = [x.requires_grad_(), w.requires_grad_()]
    small = [x.detach().double().requires_grad_(), w.detach()[seen].double().requires_grad_()]
    truth = losses(*small, place[y], bias[seen].double(), "reference")
    for backend in ("auto", "reference"):
        for got, expected in zip(losses(*leaves, y, bias, backend), truth, strict=True):
            assert got.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
            (dx, dw), (true_dx, true_dw) = gradients(got, *leaves), gradients(expected, *small)
            assert relative_error(dx, true_dx) <= 1e-5
            assert relative_error(dw[seen], true_dw) <= 1e-5
            assert (dw[~seen] == 0).all()
