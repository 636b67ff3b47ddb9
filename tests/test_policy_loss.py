"""`linear_policy_loss` against recorded values of verl and against a float64 definition written out token by token.

`test_triton_interpreter.py` runs this file again, with the Triton kernels in place of the reference.
"""

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import shared_path
from hypothesis import given
from hypothesis import strategies as st
from projections import Meter, gradients, naive, relative_error
from torch import Tensor

from siri.kernels import linear_policy_loss, token_loss

ORACLE_CASES = 12


def head_with_logprobs(logprob: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, weight, targets) in float64 whose log-probabilities are the given [T]: one-hot rows over two tokens."""
    hidden = torch.eye(len(logprob), dtype=torch.float64)
    odds = logprob - torch.log(-torch.expm1(logprob))
    return hidden, torch.stack([odds, torch.zeros_like(odds)]), torch.zeros(len(logprob), dtype=torch.long)


def oracle(index: int) -> dict[str, Any]:
    cases = json.loads(shared_path("oracles", "gigpo_extras.json").read_text())["policy_loss"]
    assert len(cases) == ORACLE_CASES
    return cases[index]


@pytest.mark.parametrize("index", range(ORACLE_CASES))
def test_recorded_verl_losses(index: int) -> None:
    """verl's aggregation modes are token weights and denominators here; its KL(low_var_kl) is our reference KL."""
    case = oracle(index)
    mask = torch.tensor(case["mask"], dtype=torch.float64)
    mode = case["loss_agg_mode"]
    weight = mask / mask.sum(1, keepdim=True) if mode == "seq-mean-token-mean" else mask
    denominator = {"token-mean": mask.sum().item(), "seq-mean-token-sum-norm": mask.shape[1]}.get(mode, mask.shape[0])
    flat = {
        # The loss knows differences only; the recorded random log-probs reach 2.9, a model's do not.
        key: torch.tensor(case[key], dtype=torch.float64).reshape(-1) - (0.0 if key == "advantages" else 3.0)
        for key in ("log_prob", "old_log_prob", "ref_log_prob", "advantages")
    }
    hidden, head, targets = head_with_logprobs(flat["log_prob"])

    def loss(advantage: Tensor, **options: Any) -> tuple[float, dict[str, Tensor]]:
        value, stats = linear_policy_loss(
            hidden, head, targets, advantage, flat["old_log_prob"],
            clip_low=case["clip_low"], clip_high=case["clip_high"], dual_clip=case["clip_c"],
            token_weight=weight.reshape(-1), denominator=denominator, **options,
        )  # fmt: skip
        return value.item(), stats

    value, stats = loss(flat["advantages"])
    tokens = mask.sum().item()
    assert value == pytest.approx(case["pg_loss"], rel=1e-5, abs=1e-6)
    assert stats["num_tokens"] == tokens
    clipped = (stats["clipped_low"] + stats["clipped_high"]).item() / tokens
    assert clipped == pytest.approx(case["pg_clipfrac"], abs=1e-6)
    assert stats["dual_clipped"].item() / tokens == pytest.approx(case["pg_clipfrac_lower"], abs=1e-6)
    kept = mask.reshape(-1) > 0
    ratio_log = (flat["log_prob"] - flat["old_log_prob"])[kept]
    assert -ratio_log.mean().item() == pytest.approx(case["ppo_kl"], rel=1e-4, abs=1e-6)  # the same tokens are compared
    assert stats["approx_kl"].item() == pytest.approx((ratio_log.exp() - ratio_log - 1).sum().item(), rel=1e-6)
    assert stats["ratio_max"].item() == pytest.approx(ratio_log.exp().max().item(), rel=1e-6)

    with_kl, stats = loss(torch.zeros_like(flat["advantages"]), kl_coef=1.0, ref_logprob=flat["ref_log_prob"])
    assert with_kl == pytest.approx(case["kl_loss"]["low_var_kl"], rel=1e-4, abs=1e-6)
    recorded_kl = torch.tensor(case["kl_token"]["low_var_kl"], dtype=torch.float64).reshape(-1)
    assert stats["kl_ref"].item() == pytest.approx(recorded_kl[kept].sum().item(), rel=1e-4, abs=1e-6)


def definition(logprob: Tensor, entropy: Tensor, tokens: dict[str, Tensor], o: dict[str, float]) -> Tensor:
    """The loss, one token at a time, with Python's branches where the kernel has maxima and masks."""
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(logprob)):
        if tokens["token_weight"][t] == 0:
            continue
        a = tokens["advantage"][t].double()
        ratio = torch.exp((logprob[t] - tokens["old_logprob"][t].double()).clamp(-20, 20))
        low, high = 1 - o["clip_low"], 1 + o["clip_high"]
        if a >= 0:
            loss = -a * ratio if ratio <= high else -a * high + 0 * ratio
        elif ratio < low:
            loss = -a * low + 0 * ratio
        else:
            loss = -a * ratio if ratio <= o["dual_clip"] else -a * o["dual_clip"] + 0 * ratio
        x = (tokens["ref_logprob"][t].double() - logprob[t]).clamp(-20, 20)
        k3 = x.exp() - x - 1
        loss = loss + o["kl_coef"] * (k3 if k3 <= 10 else torch.tensor(10.0))
        loss = loss - o["entropy_coef"] * entropy[t]
        importance = min(math.exp(tokens["old_logprob"][t] - tokens["behavior_logprob"][t]), o["importance_clip"])
        total = total + tokens["token_weight"][t].double() * importance * loss
    return total / o["denominator"]


OPTIONS: dict[str, float] = {
    "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 2.5, "kl_coef": 0.07, "entropy_coef": 0.02, "importance_clip": 1.4,
    "denominator": 57.0,
}  # fmt: skip


def problem(
    tokens: int, *, seed: int = 0, width: int = 16, vocabulary: int = 301
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """(hidden, weight, bias, targets) and vectors of a token batch that reaches every branch of the loss."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(tokens, width, generator=g), torch.randn(vocabulary, width, generator=g) * 0.7
    bias, targets = torch.randn(vocabulary, generator=g), torch.randint(0, vocabulary, (tokens,), generator=g)
    logprob = naive(hidden, weight, targets, bias=bias, temperature=0.8)[0].float()
    old = logprob + torch.randn(tokens, generator=g) * 0.8
    columns = {
        "advantage": torch.randn(tokens, generator=g),
        "old_logprob": old,
        "ref_logprob": logprob + torch.randn(tokens, generator=g) * 2,
        "behavior_logprob": old + torch.randn(tokens, generator=g) * 0.4,
        "token_weight": torch.rand(tokens, generator=g) * (torch.rand(tokens, generator=g) > 0.3),
    }
    return [hidden, weight, bias, targets], columns


@pytest.mark.parametrize("tokens", [1, 64, 201])
def test_loss_and_gradients_in_several_chunks(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", 1)  # the least chunk: 64 rows
    monkeypatch.setattr(token_loss, "GPU_CHUNK_ELEMENTS", 1)  # 128 rows
    (hidden, weight, bias, targets), columns = problem(tokens)
    if tokens == 1:
        columns["token_weight"] = torch.ones(1)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    loss, stats = linear_policy_loss(hidden, weight, targets, **columns, **OPTIONS, bias=bias, temperature=0.8)
    logprob, entropy, _ = naive(hidden, weight, targets, bias=bias, temperature=0.8)
    truth = definition(logprob, entropy, columns, OPTIONS)
    assert loss.item() == pytest.approx(truth.item(), rel=2e-6, abs=2e-7)  # log-probs of 22 are multiples of 1.9e-6
    for got, true_grad in zip(gradients(3 * loss, *leaves), gradients(3 * truth, *leaves), strict=True):
        assert relative_error(got, true_grad) <= 2e-6

    kept = columns["token_weight"] > 0
    ratio = (logprob - columns["old_logprob"])[kept].exp()
    a = columns["advantage"][kept]
    assert stats["num_tokens"] == kept.sum()
    assert stats["clipped_low"] == ((a < 0) & (ratio < 0.8)).sum()
    assert stats["clipped_high"] == ((a > 0) & (ratio > 1.28)).sum()
    assert stats["dual_clipped"] == ((a < 0) & (ratio > 2.5)).sum()
    assert stats["entropy"].item() == pytest.approx(entropy[kept].sum().item(), rel=1e-6)
    assert stats["ratio_max"].item() == pytest.approx(ratio.max().item(), rel=1e-5)
    assert (stats["logprob"][kept] - logprob[kept]).abs().max() <= 1e-5
    assert (stats["logprob"][~kept] == 0).all()
    if tokens == 201:
        counts = [stats[name].item() for name in ("clipped_low", "clipped_high", "dual_clipped")]
        assert min(counts) >= 5  # every branch was reached


def test_on_policy_gradient_is_the_advantage_times_the_score() -> None:
    """Without old_logprob: value -A, gradient -A d logprob, nothing clipped; importance weights use logprob itself."""
    (hidden, weight, bias, targets), columns = problem(90)
    leaves = [t.requires_grad_() for t in (hidden, weight)]
    loss, stats = linear_policy_loss(hidden, weight, targets, columns["advantage"], None, denominator=90, bias=bias)
    logprob = naive(hidden, weight, targets, bias=bias)[0]
    assert loss.item() == pytest.approx(-columns["advantage"].mean().item(), rel=1e-5, abs=1e-7)
    assert stats["clipped_low"] + stats["clipped_high"] + stats["dual_clipped"] + stats["approx_kl"] == 0
    assert stats["ratio_max"] == 1
    truth = gradients(-(columns["advantage"] * logprob).sum() / 90, *leaves)
    for got, true_grad in zip(gradients(loss, *leaves), truth, strict=True):
        assert relative_error(got, true_grad) <= 2e-6

    behavior = logprob.detach().float() - torch.linspace(-1, 1, 90)
    loss, _ = linear_policy_loss(
        hidden, weight, targets, columns["advantage"], None, denominator=90, bias=bias,
        behavior_logprob=behavior, importance_clip=1.5,
    )  # fmt: skip
    importance = (logprob.detach() - behavior).exp().clamp(max=1.5)
    truth = gradients(-(importance * columns["advantage"] * logprob).sum() / 90, *leaves)
    for got, true_grad in zip(gradients(loss, *leaves), truth, strict=True):
        assert relative_error(got, true_grad) <= 2e-6


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_sum_of_micro_batches_is_the_whole(seed: int, parts: int) -> None:
    """With a global denominator, loss, gradient and stats do not depend on how the tokens are split."""
    (hidden, weight, bias, targets), columns = problem(40, seed=seed, width=4, vocabulary=20)
    hidden, weight, bias = (t.double().requires_grad_() for t in (hidden, weight, bias))

    def run(rows: slice) -> tuple[list[Tensor], dict[str, Tensor]]:
        vectors = {name: value[rows] for name, value in columns.items()}
        loss, stats = linear_policy_loss(hidden[rows], weight, targets[rows], **vectors, **OPTIONS, bias=bias)
        return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight, bias))], stats

    whole, whole_stats = run(slice(None))
    edges = torch.linspace(0, 40, parts + 1).long().tolist()
    pieces = [run(slice(a, b)) for a, b in pairwise(edges)]
    for i, value in enumerate(whole):
        torch.testing.assert_close(sum(piece[0][i] for piece in pieces), value, rtol=1e-10, atol=1e-12)
    for name, value in whole_stats.items():
        found = [piece[1][name] for piece in pieces]
        merged = torch.cat(found) if name == "logprob" else max(found) if name == "ratio_max" else sum(found)
        torch.testing.assert_close(merged, value, rtol=1e-10, atol=1e-12)


def test_extreme_log_ratios_stay_finite() -> None:
    """Ratios of e^+-100 and a reference that is far off: clamped, and then without gradient, never inf * 0."""
    (hidden, weight, bias, targets), columns = problem(6)
    logprob = naive(hidden, weight, targets, bias=bias)[0].float()
    columns["old_logprob"] = logprob + torch.tensor([-100.0, -100.0, 100.0, 100.0, 0.0, 0.0])
    columns["ref_logprob"] = logprob + torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0, -100.0])
    columns["advantage"] = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, 0.0])
    columns["token_weight"] = torch.ones(6)
    columns.pop("behavior_logprob")
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss, stats = linear_policy_loss(
        hidden, weight, targets, **columns, kl_coef=1.0, denominator=1, bias=bias, clip_high=0.2, dual_clip=3.0
    )
    # pg: -1.2, +3 (dual clip), -e^-20, +0.8; KL: 10 (value clamped), and k3(-20) = e^-20 + 19 clamped to 10
    assert loss.item() == pytest.approx(-1.2 + 3 - math.exp(-20) + 0.8 + 20, abs=1e-5)
    assert stats["kl_ref"].item() == pytest.approx(20.0, abs=1e-4)
    assert stats["ratio_max"].item() == pytest.approx(math.exp(20), rel=1e-4)
    # What is left is k3 at the rounding of logprob - ref in the rows where the two agree.
    assert all(g.abs().max() <= 1e-5 for g in torch.autograd.grad(loss, leaves))


def test_skipped_rows_may_hold_anything() -> None:
    """Weight 0 or an ignored target: NaN in the row reaches neither loss nor gradient nor stats."""
    (hidden, weight, bias, targets), columns = problem(70)
    columns["token_weight"][:] = 1.0
    even = {name: value[::2] for name, value in columns.items()}
    clean, clean_stats = linear_policy_loss(hidden[::2], weight, targets[::2], **even, **OPTIONS, bias=bias)
    hidden[1::2] = float("nan")
    for name, value in columns.items():
        value[1::2] = 0.0 if name == "token_weight" else float("nan")
    targets[1], columns["token_weight"][1] = -100, 1.0
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss, stats = linear_policy_loss(hidden, weight, targets, **columns, **OPTIONS, bias=bias)
    assert loss.item() == pytest.approx(clean.item(), rel=1e-6)
    assert stats["num_tokens"] == clean_stats["num_tokens"] == 35
    dx, dw = torch.autograd.grad(loss, leaves)
    assert (dx[1::2] == 0).all()
    assert torch.isfinite(dx).all()
    assert torch.isfinite(dw).all()


@pytest.mark.parametrize("tokens", [0, 5])
def test_no_kept_row_gives_a_connected_zero(tokens: int) -> None:
    (hidden, weight, bias, targets), columns = problem(tokens)
    columns["token_weight"] = torch.zeros(tokens)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    loss, stats = linear_policy_loss(hidden, weight, targets, **columns, **OPTIONS, bias=bias)
    assert loss == 0
    assert all((value == 0).all() for value in stats.values())
    for grad, leaf in zip(torch.autograd.grad(loss, leaves), leaves, strict=True):
        assert grad.shape == leaf.shape
        assert (grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype: torch.dtype) -> None:
    """The loss is that of the rounded inputs to float32 accuracy; only the returned gradients are rounded."""
    (hidden, weight, bias, targets), columns = problem(150)
    hidden, weight, bias = (t.to(dtype).requires_grad_() for t in (hidden, weight, bias))
    loss, _ = linear_policy_loss(hidden, weight, targets, **columns, **OPTIONS, bias=bias, softcap=20.0)
    logprob, entropy, _ = naive(hidden, weight, targets, bias=bias, softcap=20.0)
    truth = definition(logprob, entropy, columns, OPTIONS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(truth.item(), rel=5e-6)
    leaves = (hidden, weight, bias)
    for got, true_grad in zip(gradients(loss, *leaves), gradients(truth, *leaves), strict=True):
        # 2^-9 and 2^-12 at most; tensor cores take dz in float16 too: as much again
        assert relative_error(got, true_grad) <= {torch.bfloat16: 2.5e-3, torch.float16: 8e-4}[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_factor_of_a_loss_is_not_rounded_to_the_dtype_of_its_gradients(dtype: torch.dtype) -> None:
    """0.04993 lies between two numbers of bfloat16, 0.24% from the nearer."""
    (hidden, weight, _, targets), columns = problem(30)
    leaves = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
    loss, _ = linear_policy_loss(*leaves, targets, **columns, **{**OPTIONS, "denominator": 1.0})
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    for got, unscaled in zip(torch.autograd.grad(0.04993 * loss, leaves), plain, strict=True):
        assert got.dtype == dtype
        step = torch.finfo(dtype).eps  # each is rounded once more or less
        assert (
            (got.double() - 0.04993 * unscaled.double()).abs() <= 0.05 * step * unscaled.double().abs() + 1e-7
        ).all()
        ratio = (got.double() * unscaled.double()).sum() / unscaled.double().square().sum()
        assert ratio.item() == pytest.approx(0.04993, rel=6e-4)


def test_loss_scaling_rescues_float16_gradients() -> None:
    """Over 1e7 tokens gradients are near 1e-8, and float16 knows multiples of 6e-8."""
    (hidden, weight, _, targets), columns = problem(30)
    leaves = [hidden.half().requires_grad_(), weight.half().requires_grad_()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    losses = [linear_policy_loss(*pair, targets, **{**columns, "denominator": 1e7})[0] for pair in (leaves, exact)]
    got, truth = (gradients(65536 * loss, *pair) for loss, pair in zip(losses, (leaves, exact), strict=True))
    for value, expected in zip(got, truth, strict=True):
        assert relative_error(value, expected) <= 2e-3


def test_backward_twice_and_without_autograd() -> None:
    (hidden, weight, bias, targets), columns = problem(30)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss, _ = linear_policy_loss(hidden, weight, targets, **columns, **OPTIONS, bias=bias)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    halves = torch.autograd.grad(0.5 * loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    for a, b, c in zip(first, halves, second, strict=True):
        assert torch.equal(a, 2 * b)
        assert torch.equal(a, c)
    with torch.no_grad():
        again, _ = linear_policy_loss(hidden, weight, targets, **columns, **OPTIONS, bias=bias)
    assert torch.equal(again, loss.detach())
    assert not again.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"denominator": 0}, r"denominator = 0 must be > 0; pass max\(1,"),
        ({"clip_low": -0.2}, "clip_low = -0.2 must be at least 0"),
        ({"clip_high": -0.2}, "clip_high = -0.2 must be at least 0"),
        ({"dual_clip": 1.0}, "dual_clip = 1.0 must be above 1"),
        ({"importance_clip": 0.5}, "importance_clip = 0.5"),
        ({"ref_logprob": None}, "kl_coef = 0.07 needs ref_logprob"),
        ({"advantage": torch.zeros(3)}, r"advantage \(3,\) must be \[T\] = \[8\]"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    (hidden, weight, _, targets), columns = problem(8)
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(**{"hidden": hidden, "weight": weight, "targets": targets, **columns, **OPTIONS, **change})


@pytest.mark.reference
def test_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", 1)
    (hidden, weight, bias, targets), columns = problem(300, vocabulary=700)
    columns["token_weight"] = torch.ones(300)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    with Meter() as meter:
        loss, _ = linear_policy_loss(hidden, weight, targets, **columns, **OPTIONS, bias=bias)
        torch.autograd.grad(loss, leaves)
    assert meter.largest == 64 * 700
