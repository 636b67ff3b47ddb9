"""The kernels under torch.compile: `linear_logprob` stays whole in the graph, the others run between its parts.

`test_triton_interpreter.py` runs this file again, with the Triton kernels in place of the reference.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from projections import gradients, naive, relative_error
from test_linear_logprob import make
from torch import Tensor

from siri.kernels import linear_logprob, linear_policy_loss, selective_logprob


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> None:
    torch.compiler.reset()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(function, backend="aot_eager", **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_token", [False, True])
def test_linear_logprob_is_one_operator_of_a_full_graph(dtype: torch.dtype, per_token: bool) -> None:
    """Everything switched on, ignored rows with NaN included; twice, with another number of tokens."""
    head = {"bias": torch.linspace(-1, 1, 301).to(dtype), "softcap": 6.0}

    def run(x: Tensor, w: Tensor, bias: Tensor, y: Tensor, t: Any) -> tuple[Tensor, ...]:
        x = 2 * x  # something for the graph to do around it
        outputs = linear_logprob(
            x, w, y, bias=bias, temperature=t, softcap=head["softcap"], return_entropy=True, return_lse=True
        )
        return tuple(o.sin() for o in outputs)

    whole = compiled(run, fullgraph=True, dynamic=True)
    for tokens in (20, 33):
        x, w, y = make(tokens, 16, 301, dtype=dtype, scale=2.0)
        y[::4] = -100
        x[::4] = torch.nan
        t = torch.linspace(0.3, 2, tokens) if per_token else 0.7
        leaves = [leaf.detach().requires_grad_() for leaf in (x, w, head["bias"])]
        clean = [x.nan_to_num().requires_grad_(), *leaves[1:]]
        got = whole(*leaves, y, t)
        truth = [o.sin() for o in naive(2 * clean[0], *clean[1:2], y, bias=clean[2], temperature=t, softcap=6.0)]
        assert all((a - b).abs().max() <= 2e-5 for a, b in zip(got, truth, strict=True))
        upstream = [torch.linspace(-1, 2, tokens).roll(i) for i in range(3)]
        sums = [sum((u * o).sum() for u, o in zip(upstream, outputs, strict=True)) for outputs in (got, truth)]
        found = torch.autograd.grad(sums[0], leaves)  # once: a compiled backward pass may give its memory away
        for a, b in zip(found, gradients(sums[1], *clean), strict=True):
            assert relative_error(a, b) <= (4e-3 if dtype == torch.bfloat16 else 5e-6)


@pytest.mark.parametrize("chosen", [0, 1])
def test_gradient_of_one_input_only(chosen: int) -> None:
    x, w, y = make(9, 8, 40)
    leaf = [x, w][chosen].requires_grad_()
    whole = compiled(lambda x, w: linear_logprob(x, w, y).sum(), fullgraph=True)
    assert relative_error(gradients(whole(x, w), leaf)[0], gradients(naive(x, w, y)[0].sum(), leaf)[0]) <= 5e-6


def test_a_bad_target_is_named_when_the_graph_runs() -> None:
    x, w, y = make(5, 8, 300)
    whole = compiled(linear_logprob, fullgraph=True)
    assert torch.equal(whole(x, w, y), linear_logprob(x, w, y))
    y[3] = 300
    with pytest.raises(ValueError, match=r"targets\[3\] = 300 is outside the vocabulary \[0, 300\)"):
        whole(x, w, y)


def test_the_registration_is_what_torch_expects() -> None:
    """Schema, fake tensors and autograd, as torch.library checks them."""
    from siri.kernels.linear_logprob_graph import linear_logprob_graph

    x, w, y = make(5, 8, 30)
    y[2] = -100
    leaves = [x.requires_grad_(), w.requires_grad_(), torch.zeros(30, requires_grad=True)]
    for temperature_T in (None, torch.linspace(0.5, 2, 5)):
        torch.library.opcheck(linear_logprob_graph, (*leaves, y, 0.8, temperature_T, 5.0, -100, True))


def test_the_other_kernels_run_between_parts_of_the_graph() -> None:
    x, w, y = make(9, 8, 40)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    advantage = torch.linspace(-1, 2, 9)

    def run(x: Tensor, w: Tensor) -> Tensor:
        loss, _ = linear_policy_loss(2 * x, w, y, advantage, None, denominator=9)
        return loss.exp() + selective_logprob(x @ w.t(), y).sum()

    got, expected = compiled(run)(*leaves), run(*leaves)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(got, leaves), gradients(expected, *leaves), strict=True):
        assert relative_error(a, b) <= 5e-6
