"""Statistics and gradients of logits that are worked on in pieces: the whole, also where a chunk has many of them."""

import importlib
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from siri.kernels import linear_logprob, linear_policy_loss, masked_distill_loss, selective_logprob
from siri.kernels.dispatch import use_triton
from siri.kernels.distill_loss import Divergence

projection: Any = importlib.import_module("siri.kernels.projection")

pytestmark = pytest.mark.skipif(use_triton(torch.zeros(1)), reason="the Triton kernels have blocks of their own")

T, H, V = 9, 5, 47
G = torch.Generator().manual_seed(0)
X, TEACHER, W = (torch.randn(n, H, generator=G, dtype=torch.float64) * 2 for n in (T, T, V))
Y = torch.randint(0, V, (T,), generator=G)
ROW = torch.randn(T, generator=G, dtype=torch.float64)


def policy(x: Tensor, w: Tensor, **backend: Any) -> Tensor:
    return linear_policy_loss(x, w, Y, ROW, None, denominator=T, entropy_coef=0.3, softcap=6.0, **backend)[0]


def logprob_and_entropy(x: Tensor, w: Tensor, **backend: Any) -> Tensor:
    return (torch.stack(linear_logprob(x, w, Y, return_entropy=True, **backend)) * ROW).sum()


def distill(divergence: Divergence) -> Callable[..., Tensor]:
    teacher = None if divergence == "nll" else TEACHER
    return lambda x, w, **backend: masked_distill_loss(
        x, w, Y, ROW.abs(), divergence=divergence, teacher_hidden=teacher, denominator=T, **backend
    )


def selective(x: Tensor, w: Tensor, backend: str = "auto") -> Tensor:
    z = x @ w.T
    if backend == "auto":
        outputs = selective_logprob(z, Y, return_entropy=True)
    else:
        log_p = torch.log_softmax(z, 1)
        outputs = log_p[torch.arange(T), Y], -(log_p.exp() * log_p).sum(1)
    return (torch.stack(outputs) * ROW).sum()


LOSSES = {"policy": policy, "logprob and entropy": logprob_and_entropy, "selective": selective}
LOSSES |= {divergence: distill(divergence) for divergence in get_args(Divergence)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("columns", [1, 4, 46])
def test_pieces_make_the_whole(loss: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "CACHED_LOGITS", columns * T)
    assert len(list(projection.column_pieces(torch.zeros(T, V)))) == -(-V // columns)
    found = []
    for backend in ("auto", "reference"):
        leaves = [t.clone().requires_grad_() for t in (X, W)]
        value = LOSSES[loss](*leaves, backend=backend)
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for got, truth in zip(*found, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-12)
