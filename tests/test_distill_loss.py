"""`masked_distill_loss` against the definitions of the divergences in float64.

`test_triton_interpreter.py` runs this file again, with the Triton kernels in place of the reference.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from projections import Meter, gradients, naive_log_softmax, relative_error
from torch import Tensor

from siri.kernels import linear_logprob, masked_distill_loss, token_loss

DIVERGENCES = ("nll", "forward_kl", "reverse_kl", "jsd")


def truth(
    log_s: Tensor, log_t: Tensor | None, targets: Tensor, token_weight: Tensor, divergence: str, denominator: float
) -> Tensor:
    """The loss from float64 log-probabilities, with torch's own divergences where it has them."""
    kl = torch.nn.functional.kl_div  # kl_div(input, target) is KL(target || input)
    if log_t is None:
        d = torch.nn.functional.nll_loss(log_s, targets.long(), reduction="none")
    elif divergence == "forward_kl":
        d = kl(log_s, log_t, log_target=True, reduction="none").sum(1)
    elif divergence == "reverse_kl":
        d = kl(log_t, log_s, log_target=True, reduction="none").sum(1)
    else:
        log_m = torch.logsumexp(torch.stack([log_s, log_t]), 0) - math.log(2)
        d = 0.5 * kl(log_m, log_s, log_target=True, reduction="none").sum(1)
        d = d + 0.5 * kl(log_m, log_t, log_target=True, reduction="none").sum(1)
    return (token_weight.double() * d).sum() / denominator


def problem(tokens: int, *, seed: int = 0, vocabulary: int = 301, scale: float = 0.7) -> dict[str, Tensor]:
    """A student of width 16, a teacher of width 9."""
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(tokens, 16, generator=g),
        "weight": torch.randn(vocabulary, 16, generator=g) * scale,
        "bias": torch.randn(vocabulary, generator=g),
        "targets": torch.randint(0, vocabulary, (tokens,), generator=g),
        "token_weight": torch.rand(tokens, generator=g) * (torch.rand(tokens, generator=g) > 0.3),
        "teacher_hidden": torch.randn(tokens, 9, generator=g),
        "teacher_weight": torch.randn(vocabulary, 9, generator=g) * scale,
        "teacher_bias": torch.randn(vocabulary, generator=g),
    }


def run(divergence: str, tensors: dict[str, Tensor], **options: Any) -> Tensor:
    given = {name: t for name, t in tensors.items() if divergence != "nll" or not name.startswith("teacher")}
    return masked_distill_loss(**given, divergence=divergence, **options)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_loss_and_gradients_in_several_chunks(divergence: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", 1)  # the least chunk: 64 rows
    monkeypatch.setattr(token_loss, "GPU_CHUNK_ELEMENTS", 1)  # 128 rows
    t = problem(150)
    temperature = torch.linspace(0.5, 3, 150)
    leaves = [t[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    loss = run(divergence, t, denominator=31.0, temperature=temperature, softcap=9.0, backend=backend)
    log_s, _ = naive_log_softmax(t["hidden"], t["weight"], t["bias"], temperature, 9.0)
    log_t, _ = naive_log_softmax(t["teacher_hidden"], t["teacher_weight"], t["teacher_bias"], temperature, 9.0)
    teacher = None if divergence == "nll" else log_t
    expected = truth(log_s, teacher, t["targets"], t["token_weight"], divergence, 31.0)
    assert loss.item() == pytest.approx(expected.item(), rel=3e-6)
    for got, true_grad in zip(gradients(2 * loss, *leaves), gradients(2 * expected, *leaves), strict=True):
        assert relative_error(got, true_grad) <= 5e-6


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck(divergence: str) -> None:
    t = {name: v.double() if v.is_floating_point() else v for name, v in problem(5, vocabulary=12).items()}
    leaves = tuple(t[name].requires_grad_() for name in ("hidden", "weight", "bias"))

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return run(divergence, {**t, "hidden": hidden, "weight": weight, "bias": bias}, denominator=3.0, softcap=4.0)

    assert torch.autograd.gradcheck(loss, leaves)


def test_nll_is_the_weighted_log_probability() -> None:
    t = problem(80)
    loss = run("nll", t, denominator=17.0)
    logprob = linear_logprob(t["hidden"], t["weight"], t["targets"], bias=t["bias"])
    assert loss.item() == pytest.approx(-(t["token_weight"] * logprob).sum().item() / 17, rel=2e-6)


@given(st.integers(0, 2**31), st.sampled_from(["forward_kl", "reverse_kl", "jsd"]), st.floats(0.1, 20))
def test_divergences_vanish_only_at_the_teacher(seed: int, divergence: str, scale: float) -> None:
    """0 with zero gradient where the teacher is the student; positive elsewhere; jsd at most log 2, symmetric."""
    t = {name: v.double() if v.is_floating_point() else v for name, v in problem(6, seed=seed, scale=scale).items()}
    t["token_weight"] = torch.ones(6, dtype=torch.float64)
    t["weight"].requires_grad_()
    own: dict[str, Any] = {"hidden": t["hidden"], "weight": t["weight"], "bias": t["bias"], "targets": t["targets"]}
    same = masked_distill_loss(
        **own, token_weight=t["token_weight"], divergence=divergence, teacher_hidden=t["hidden"], denominator=6
    )
    assert abs(same.item()) <= 1e-12
    assert torch.autograd.grad(same, t["weight"])[0].abs().max() <= 1e-12
    apart = run(divergence, t, denominator=6).item()
    assert apart > 0
    if divergence == "jsd":
        assert apart <= math.log(2) + 1e-12
        turned = masked_distill_loss(
            t["teacher_hidden"], t["teacher_weight"], t["targets"], t["token_weight"], bias=t["teacher_bias"],
            teacher_hidden=t["hidden"], teacher_weight=t["weight"], teacher_bias=t["bias"],
            divergence="jsd", denominator=6,
        )  # fmt: skip
        assert turned.item() == pytest.approx(apart, rel=1e-9)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_distributions_without_overlap_stay_finite(divergence: str, backend: str) -> None:
    """Probabilities that underflow to 0 on either side (log-probabilities near -300): all stays finite."""
    t = problem(40, scale=30.0)
    leaves = [t[name].requires_grad_() for name in ("hidden", "weight")]
    loss = run(divergence, t, denominator=40, backend=backend)
    log_s, _ = naive_log_softmax(t["hidden"], t["weight"], t["bias"])
    log_t, _ = naive_log_softmax(t["teacher_hidden"], t["teacher_weight"], t["teacher_bias"])
    assert log_s.min() < -200
    expected = truth(log_s, log_t, t["targets"], t["token_weight"], divergence, 40)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, true_grad in zip(gradients(loss, *leaves), gradients(expected, *leaves), strict=True):
        assert (got - true_grad).norm() <= 1e-4 * true_grad.norm() + 1e-6  # jsd is flat out there


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_skipped_rows_may_hold_anything_and_teachers_get_no_gradient(divergence: str, backend: str) -> None:
    t = problem(70)
    t["token_weight"][:] = 1.0
    expected = run(divergence, {name: v[::2] if len(v) == 70 else v for name, v in t.items()}, denominator=35)
    t["token_weight"][1::2] = 0.0
    t["targets"][1], t["token_weight"][1] = -100, 1.0
    for name in ("hidden", "teacher_hidden"):
        t[name][1::2] = float("nan")
    leaves = [t[name].requires_grad_() for name in ("hidden", "weight", "teacher_hidden", "teacher_weight")]
    loss = run(divergence, t, denominator=35, backend=backend)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    dx, dw, *teacher = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert teacher == [None, None]
    assert (dx[1::2] == 0).all()
    assert torch.isfinite(dx).all()
    assert torch.isfinite(dw).all()


@pytest.mark.parametrize("tokens", [0, 5])
def test_no_kept_row_gives_a_connected_zero(tokens: int) -> None:
    t = problem(tokens)
    t["token_weight"] = torch.zeros(tokens)
    leaves = [t[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    loss = run("jsd", t, denominator=1)
    assert loss == 0
    for grad, leaf in zip(torch.autograd.grad(loss, leaves), leaves, strict=True):
        assert grad.shape == leaf.shape
        assert (grad == 0).all()


@pytest.mark.parametrize(
    ("divergence", "change", "message"),
    [
        ("hellinger", {}, "divergence = 'hellinger' must be one of nll, forward_kl"),
        ("jsd", {"teacher_hidden": None}, "pass teacher_hidden"),
        ("nll", {"teacher_hidden": torch.zeros(8, 9)}, "drop teacher_hidden"),
        ("jsd", {"teacher_hidden": torch.zeros(8, 5)}, r"teacher_hidden \(8, 5\) and teacher_weight \(301, 9\)"),
        ("jsd", {"teacher_weight": torch.zeros(300, 9), "teacher_bias": None}, "T = 8 and V = 301"),
        ("nll", {"denominator": -1.0}, "denominator = -1.0 must be > 0"),
        ("nll", {"token_weight": torch.zeros(3)}, r"token_weight \(3,\)"),
    ],
)
def test_wrong_input_is_named(divergence: str, change: dict[str, Any], message: str) -> None:
    t = problem(8)
    if divergence == "nll":
        t = {name: v for name, v in t.items() if not name.startswith("teacher")}
    with pytest.raises(ValueError, match=message):
        masked_distill_loss(**{**t, "denominator": 1.0, "divergence": divergence, **change})


@pytest.mark.reference
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_logits_are_never_held(divergence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", 1)
    t = problem(300, vocabulary=700)
    t["token_weight"] = torch.ones(300)
    leaves = [t[name].requires_grad_() for name in ("hidden", "weight")]
    with Meter() as meter:
        torch.autograd.grad(run(divergence, t, denominator=300), leaves)
    assert meter.largest == 64 * 700
