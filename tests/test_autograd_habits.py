"""What people do around the kernels: gradient penalties, buffers that are used again, inference mode, CUDA graphs."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from projections import Meter, naive
from test_distill_loss import DIVERGENCES
from test_linear_logprob import make
from torch import Tensor

from siri.kernels import (
    checks,
    exact_logits,
    linear_logprob,
    linear_policy_loss,
    masked_distill_loss,
    selective_logprob,
)

ONES = torch.ones(30)
OPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear_logprob": lambda x, w, y: linear_logprob(x, w, y).sum(),
    "linear_policy_loss": lambda x, w, y: linear_policy_loss(x, w, y, ONES, None, denominator=30)[0],
    "masked_distill_loss": lambda x, w, y: masked_distill_loss(x, w, y, ONES, denominator=30),
    "selective_logprob": lambda x, w, y: selective_logprob(x @ w.t(), y).sum(),
}


def leaves(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    x, w, y = make(30, 8, 90, dtype=dtype)
    return x.requires_grad_(), w.requires_grad_(), y


@pytest.mark.parametrize("name", OPS)
def test_a_gradient_penalty_is_an_error(name: str) -> None:
    """It had no effect, without a word: torch's `once_differentiable` lets the gradient of a sum pass."""
    x, w, y = leaves()
    (g,) = torch.autograd.grad(OPS[name](x, w, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        g.square().sum().backward()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("wanted", ["hidden", "weight", "beneath"])
def test_a_gradient_penalty_is_an_error_to_whoever_asks_for_some_gradients_only(name: str, wanted: str) -> None:
    """`autograd.grad` and `backward(inputs=...)` go only where one of these tensors lies."""
    x, w, y = leaves()
    scale = torch.ones(8, requires_grad=True)
    value = OPS[name](x * scale, w, y)
    (g,) = torch.autograd.grad(value, x, create_graph=True)
    asked = {"hidden": x, "weight": w, "beneath": scale}[wanted]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value + g.square().sum(), asked)
    value = OPS[name](x * scale, w, y)
    (g,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (value + g.square().sum()).backward(inputs=[asked])


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_checkpoints(name: str, create_graph: bool) -> None:
    """Without re-entry what is saved can be asked for once: a second time was an error with `create_graph`."""
    x, w, y = leaves()
    (expected,) = torch.autograd.grad(OPS[name](x.tanh(), w, y), x)
    value = torch.utils.checkpoint.checkpoint(lambda x: OPS[name](x.tanh(), w, y), x, use_reentrant=False)
    (found,) = torch.autograd.grad(value, x, create_graph=create_graph)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", OPS)
def test_create_graph_alone_changes_nothing(name: str) -> None:
    x, w, y = leaves()
    plain = torch.autograd.grad(OPS[name](x, w, y), (x, w))
    graphed = torch.autograd.grad(OPS[name](x, w, y), (x, w), create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, graphed, strict=True))


@pytest.mark.parametrize("temperature", [torch.full((30,), 0.5), torch.tensor(0.5)])
@pytest.mark.parametrize("name", ["linear_logprob", "selective_logprob"])
def test_a_temperature_that_changes_before_the_backward_pass_is_an_error(name: str, temperature: Tensor) -> None:
    """As one buffer for all micro-batches, or an annealed number, would: gradients were of no temperature at all."""
    x, w, y = leaves()
    temperature = temperature.clone()
    if name == "linear_logprob":
        value = linear_logprob(x, w, y, temperature=temperature)
    else:
        value = selective_logprob(x @ w.t(), y, temperature=temperature)
    temperature.fill_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


@pytest.mark.parametrize(
    ("dtype", "vocabulary", "target"),
    [
        (torch.uint8, 250, 156),
        pytest.param(torch.int16, 50000, 7, marks=pytest.mark.reference),
        (torch.uint16, 250, 156),
        (torch.int8, 250, 100),
    ],
)
def test_targets_of_narrow_dtypes(dtype: torch.dtype, vocabulary: int, target: int) -> None:
    """-100 is 156 in uint8, and 50000 is -15536 in int16: ids were skipped, or outside the vocabulary."""
    x, w, _ = make(30, 8, vocabulary)
    y = torch.full((30,), target)
    truth = naive(x, w, y)[0]
    narrow = y.to(dtype)
    assert (linear_logprob(x, w, narrow) - truth).abs().max() <= 2e-5
    stats = linear_policy_loss(x, w, narrow, ONES, None, denominator=30)[1]
    assert stats["num_tokens"] == 30
    assert (stats["logprob"] - truth).abs().max() <= 2e-5
    assert masked_distill_loss(x, w, narrow, ONES, denominator=30).item() == pytest.approx(
        -truth.mean().item(), rel=1e-5
    )
    assert (selective_logprob(x @ w.t(), narrow) - truth).abs().max() <= 2e-5


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_inference_mode(name: str, mode: Callable[[], Any]) -> None:
    x, w, y = leaves()
    expected = OPS[name](x, w, y)
    with mode():
        inside = OPS[name](x, w, y)
        own = OPS[name](x * 1, w * 1, y)  # inference tensors
    assert torch.equal(inside, expected)
    assert torch.equal(own, expected)
    assert not inside.requires_grad


@pytest.mark.parametrize("shape", [(3, 11, 90), (2, 3, 6, 90)])
def test_sliced_logits_are_not_copied(shape: tuple[int, ...]) -> None:
    """`logits[:, :-1]` stands before most calls. Nothing of its size is made but the gradient."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=g).requires_grad_()
    part = logits[:, :-1]
    y = torch.randint(0, 90, part.shape[:-1], generator=g)
    with pytest.MonkeyPatch.context() as patch, Meter() as meter:
        patch.setattr(importlib.import_module("siri.kernels.selective_logprob"), "BLOCK_ELEMENTS", 180)
        value, entropy = selective_logprob(part, y, return_entropy=True)
    assert meter.largest <= 2 * 180
    truth = torch.distributions.Categorical(logits=part.double())
    torch.testing.assert_close(value.double(), truth.log_prob(y), rtol=1e-6, atol=1e-6)
    upstream = torch.randn(y.shape, generator=g)
    (got,) = torch.autograd.grad((value * upstream + entropy).sum(), logits)
    (expected,) = torch.autograd.grad((truth.log_prob(y) * upstream + truth.entropy()).sum(), logits)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def as_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """A graph is captured, and nothing is looked for that products on a CPU alone have need of."""
    for module in (checks, exact_logits):
        patch.setattr(module, "capturing", lambda _: True)
    for name in ("linear_logprob", "token_loss"):
        patch.setattr(importlib.import_module(f"siri.kernels.{name}"), "late_columns", lambda *_: None)


def while_capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that depend on values would be an error on a GPU; here it is a call that must not be made."""
    as_on_a_gpu(monkeypatch)
    for name in ("nonzero", "item", "tolist", "__bool__"):
        monkeypatch.setattr(Tensor, name, lambda *_: pytest.fail("waits for the device"))


def masked(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Rows that are skipped hold what would spoil all others."""
    x, w, y = make(30, 8, 90, dtype=dtype)
    y[::4] = -100
    x[::4], temperature = torch.nan, torch.full((30,), 0.7)
    temperature[::4] = 0
    return {"hidden": x.requires_grad_(), "weight": w.requires_grad_(), "targets": y, "temperature": temperature}


def test_a_graph_is_captured_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = masked()
    upstream = torch.linspace(-1, 1, 30)

    def once() -> list[Tensor]:
        logprob, entropy = linear_logprob(**inputs, return_entropy=True)
        gradients = torch.autograd.grad(
            (logprob * upstream + 0.1 * entropy).sum(), (inputs["hidden"], inputs["weight"])
        )
        return [logprob, entropy, *gradients]

    expected = once()
    while_capturing(monkeypatch)
    found = once()
    monkeypatch.undo()
    for got, true in zip(found, expected, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["policy", *DIVERGENCES])
def test_losses_in_a_captured_graph(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = masked()
    weight = torch.linspace(0, 1, 30)  # the first is 0
    g = torch.Generator().manual_seed(1)
    advantage, old = torch.randn(30, generator=g), torch.randn(30, generator=g) - 4
    advantage[::4] = torch.nan
    teacher = {} if loss == "nll" else {"teacher_hidden": inputs["hidden"].detach().flip(1)}

    def once() -> list[Tensor]:
        stats: dict[str, Tensor] = {}
        if loss == "policy":
            value, stats = linear_policy_loss(
                **inputs, advantage=advantage, old_logprob=old, ref_logprob=old, kl_coef=0.1, entropy_coef=0.1,
                token_weight=weight, denominator=torch.tensor(20.0),
            )  # fmt: skip
        else:
            value = masked_distill_loss(
                **inputs, token_weight=weight, divergence=loss, denominator=torch.tensor(20.0), **teacher
            )
        return [value, *torch.autograd.grad(value, (inputs["hidden"], inputs["weight"])), *stats.values()]

    expected = once()
    assert expected[0].isfinite()
    with monkeypatch.context() as patch:
        as_on_a_gpu(patch)
        patch.setattr(Tensor, "nonzero", lambda *_: pytest.fail("the shape would depend on values"))
        found = once()
    for got, true in zip(found, expected, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher_bias": torch.zeros(90), "teacher_hidden": torch.zeros(30, 8)},
            "teacher_bias given without",
        ),
        ({"teacher_weight": torch.zeros(90, 8), "divergence": "nll"}, "given without teacher_hidden"),
        ({"softcap": float("inf")}, "softcap = inf must be > 0 and finite"),
        ({"token_weight": torch.tensor(1.0)}, r"token_weight \(\) must be \[T\] = \[30\]"),
    ],
)
def test_arguments_that_were_ignored_are_errors(change: dict[str, Any], message: str) -> None:
    x, w, y = leaves()
    divergence = "jsd" if "teacher_hidden" in change else "nll"
    given = {"token_weight": ONES, "divergence": divergence, "denominator": 30, **change}
    with pytest.raises(ValueError, match=message):
        masked_distill_loss(x, w, y, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dual_clip": float("nan")}, "dual_clip = nan must be above 1"),
        ({"importance_clip": float("nan")}, "importance_clip = nan must be at least 1"),
        ({"advantage": torch.tensor(1.0)}, r"advantage \(\) must be \[T\] = \[30\]"),
    ],
)
def test_arguments_of_the_policy_loss_that_are_no_numbers(change: dict[str, Any], message: str) -> None:
    x, w, y = leaves()
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(x, w, y, **{"advantage": ONES, "old_logprob": None, "denominator": 30, **change})


def test_an_empty_shard_and_an_empty_vocabulary() -> None:
    x, w, _ = make(0, 8, 90)
    assert linear_policy_loss(x, w[:0], torch.zeros(0, dtype=torch.long), torch.ones(0), None, denominator=1)[0] == 0
    assert selective_logprob(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long)).shape == (0,)
