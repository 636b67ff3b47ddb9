"""What only the Triton kernels have, in the interpreter: run by `test_triton_interpreter.py`."""

import contextvars
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from projections import gradients, naive, relative_error
from torch import Tensor

from siri.kernels import (
    dispatch,
    distill_loss,
    distill_loss_triton,
    linear_logprob,
    linear_policy_loss,
    masked_distill_loss,
    projection,
    selective_logprob,
    softmax_triton,
)
from siri.kernels import linear_logprob_triton as module


def make(tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, hidden, generator=g)
    w = torch.randn(vocabulary, hidden, generator=g) * (3 / math.sqrt(hidden))
    return x.to(dtype), w.to(dtype), torch.randint(0, vocabulary, (tokens,), generator=g)


def test_triton_is_what_runs() -> None:
    assert dispatch.explain() == "triton (SIRI_KERNELS=triton under TRITON_INTERPRET=1)"
    x, w, _ = make(2, 8, 30)
    assert dispatch.use_triton(x, w, None)
    assert not dispatch.use_triton(x.double(), w)


# The persistent kernel with descriptors, which dispatch keeps for Hopper and Blackwell: tiles that divide nothing, more
# tiles than programs, a tail of one column.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("tokens", "width", "vocabulary"), [(1, 8, 129), (70, 40, 200)])
def test_descriptor_kernel(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, y = make(tokens, width, vocabulary, dtype)
    head: dict[str, Any] = {"bias": torch.linspace(-1, 1, vocabulary), "temperature": 0.7, "softcap": 5.0}
    launch = module.Launch(block_t=32, block_v=64, block_h=16, warps=4, stages=2, descriptors=True)
    monkeypatch.setattr(module, "choose_launch", lambda *_: launch)
    got = linear_logprob(x, w, y, **head, return_entropy=True, return_lse=True)
    for value, truth in zip(got, naive(x, w, y, **head), strict=True):
        assert (value - truth).abs().max() <= 1e-5


def test_descriptors_need_aligned_rows_that_do_not_overlap() -> None:
    x = torch.zeros(4, 16)
    assert module.describable(x)
    assert not module.describable(x[:1].expand(4, 16))
    assert not module.describable(torch.zeros(65)[1:].view(4, 16))
    assert not module.describable(torch.zeros(4, 17))
    assert not module.describable(x.t())


@pytest.mark.parametrize(
    ("capability", "version", "launch"),
    [
        ((8, 0), "3.9.0", "POINTER_HALF"), ((9, 0), "3.6.0", "TMA_SM90"), ((10, 0), "3.9.0", "TMA_SM100"),
        ((10, 3), "3.10.0+git", "TMA_SM100"), ((10, 0), "3.6.0", "POINTER_HALF"), ((12, 0), "3.9.0", "POINTER_HALF"),
    ],
)  # fmt: skip
def test_each_gpu_gets_a_kernel_that_compiles_for_it(
    capability: tuple[int, int], version: str, launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Triton 3.6, the first call on an sm_100 was a failed compilation."""
    monkeypatch.setattr(module, "interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(triton, "__version__", version)
    x, w, _ = make(4, 16, 100, torch.float16)
    assert module.choose_launch(x, w) is getattr(module, launch)
    assert module.choose_launch(x[:, ::2], w[:, ::2]) is module.POINTER_HALF
    assert module.choose_launch(x.float(), w) is module.POINTER_FLOAT


def test_the_allocator_of_descriptors_is_gone_after_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stayed, and the caller's other kernels got their memory from it, on the device of our last call."""
    launch = module.Launch(block_t=32, block_v=64, block_h=16, warps=4, stages=2, descriptors=True)
    monkeypatch.setattr(module, "choose_launch", lambda *_: launch)
    sizes: list[tuple[int, torch.device]] = []

    def theirs(size: int, alignment: int, stream: int | None) -> Tensor:
        raise AssertionError("the caller's allocator served our kernel")

    def ask() -> None:
        """What a launch on a GPU does; the interpreter needs no memory for descriptors."""
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", lambda size, dtype, device: sizes.append((size, torch.device(device))))
            current_allocator()(128, 64, None)

    monkeypatch.setattr(module, "_with_scratch", lambda run, real=module._with_scratch: real(lambda: (ask(), run())))
    context = contextvars.copy_context()
    context.run(triton.set_allocator, theirs)
    x, w, y = make(4, 16, 100)
    got = context.run(linear_logprob, x, w, y)
    assert (got - naive(x, w, y)[0]).abs().max() <= 1e-5
    assert sizes == [(128, torch.device("cuda"))]
    assert context.run(current_allocator) is theirs


def current_allocator() -> Any:
    from triton.runtime import _allocation  # triton has a setter only

    return _allocation._allocator.get()


def far_apart(matrix: Tensor, row_stride: int, step: int, folder: Path) -> Tensor:
    """The same matrix with its elements so far apart; a sparse file takes room for what is written only."""
    extent = (len(matrix) - 1) * row_stride + (matrix.shape[1] - 1) * step + 1
    path = folder / f"{row_stride}-{step}"
    file = torch.from_file(str(path), shared=True, size=extent, dtype=matrix.dtype)
    path.unlink()
    return file.as_strided(matrix.shape, (row_stride, step)).copy_(matrix)


FAR = 2**29 + 8
"""Fits in 32 bits; four of them do not."""


@pytest.mark.parametrize(("row_stride", "step"), [(FAR, 1), (1, 2**25 + 8)])  # 6 rows, 70 columns
@pytest.mark.parametrize("far", ["hidden", "weight"])
def test_offsets_that_32_bits_do_not_hold(far: str, row_stride: int, step: int, tmp_path: Path) -> None:
    x, w, y = make(6, 70, 9)
    near = linear_logprob(x, w, y, return_entropy=True)
    spread = {"hidden": x, "weight": w}
    spread[far] = far_apart(spread[far], row_stride, step, tmp_path)
    got = linear_logprob(**spread, targets=y, return_entropy=True)
    assert all(torch.equal(a, b) for a, b in zip(got, near, strict=True))


def test_rows_of_logits_whose_offsets_32_bits_do_not_hold(tmp_path: Path) -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) * 50
    leaves = [logits.requires_grad_(), far_apart(logits.detach(), FAR, 1, tmp_path).requires_grad_()]
    near, far = ([*v, *gradients(v[0].sum() - v[1].sum(), leaf)] for v, leaf in (
        (selective_logprob(leaf, y, return_entropy=True), leaf) for leaf in leaves
    ))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


def test_slabs_and_partial_results_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward in three launches of 32 tokens, backward in two slabs: the same as in one, and the definition."""
    x, w, y = make(70, 16, 1100)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    whole = linear_logprob(x, w, y, return_entropy=True)
    monkeypatch.setattr(module, "PARTIALS", 1)
    monkeypatch.setattr(module, "SLAB", 1)  # at least 1024 columns
    parts = linear_logprob(x, w, y, return_entropy=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    got, expected = (gradients(v[0].sum() - v[1].sum(), *leaves) for v in (parts, naive(x, w, y)))
    assert all(relative_error(a, b) <= 2e-6 for a, b in zip(got, expected, strict=True))


def test_float16_gradients_survive_a_large_denominator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 100,000 tokens most dz are near 3e-8, and float16 knows multiples of 6e-8: they are scaled up and back."""
    x, w, y = make(40, 16, 300, torch.float16)
    leaves = [x.requires_grad_(), w.float().requires_grad_()]
    monkeypatch.setattr(module, "factor_dtype", lambda *_: torch.float16)  # a float32 gradient to look at
    got = torch.autograd.grad(linear_logprob(*leaves, y).sum() / 1e5, leaves)[1]
    truth = gradients(naive(*leaves, y)[0].sum() / 1e5, *leaves)[1]
    assert relative_error(got, truth) <= 5e-4
    monkeypatch.setattr(softmax_triton.TritonLogits, "scale", lambda *_: None)
    unscaled = torch.autograd.grad(linear_logprob(*leaves, y).sum() / 1e5, leaves)[1]
    assert relative_error(unscaled, truth) > 1e-2


def test_half_and_float_meet_in_float() -> None:
    x, w, y = make(40, 16, 300)
    leaves = [x.half().requires_grad_(), w.requires_grad_()]
    value = linear_logprob(*leaves, y)
    truth = naive(*leaves, y)[0]
    assert (value - truth).abs().max() <= 1e-5
    for got, expected, tolerance in zip(
        gradients(value.sum(), *leaves), gradients(truth.sum(), *leaves), (4e-4, 2e-6), strict=True
    ):
        assert relative_error(got, expected) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("divergence", ["nll", "forward_kl", "reverse_kl", "jsd"])
def test_gradients_take_the_place_of_logits(
    divergence: distill_loss.Divergence, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 19 blocks: a float16 gradient ends up in the front half of the float32 row, two blocks in one's place."""
    monkeypatch.setattr(softmax_triton, "GRAD_BLOCK", 16)
    monkeypatch.setattr(distill_loss_triton, "BLOCK", 16)
    x, w, y = make(9, 16, 300, dtype)
    teacher = None if divergence == "nll" else x.flip(0)
    row_weight = torch.linspace(0.5, 2, 9)

    def gradients_in(dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_(), w.detach().to(dtype).requires_grad_()]
        frozen = None if teacher is None else teacher.to(dtype)
        loss = masked_distill_loss(*leaves, y, row_weight, divergence=divergence, teacher_hidden=frozen, denominator=9)
        return gradients(loss, *leaves)

    tolerance = 2e-3 if dtype == torch.float16 else 2e-6
    for got, expected in zip(gradients_in(dtype), gradients_in(torch.float64), strict=True):
        assert relative_error(got, expected) <= tolerance


@pytest.mark.parametrize("head", [{}, {"softcap": 200.0, "temperature": 0.9}], ids=["plain", "softcap"])
def test_a_dominating_peak_is_found_wherever_it_is(head: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """141 tiles of the fused pass, 128 of which are looked at together, and many blocks of a row in memory."""
    monkeypatch.setattr(softmax_triton, "STATS_BLOCK", 2048)
    x, w, y = make(6, 24, 9001)
    columns = torch.tensor([0, 63, 64, 8191, 8192, 9000])
    w[columns] = x * (150 / x.square().sum(1, keepdim=True))
    y[:] = 5000
    logit_map = projection.LogitMap(temperature=head.get("temperature", 1.0), softcap=head.get("softcap"))
    stats = projection.SoftmaxStats(*module.shard_stats_triton(x, w, None, y, logit_map))
    z = logit_map.ref((x.double() * w.double()[columns]).sum(1)[:, None]).squeeze(1)
    rounding = 2e-5 if "softcap" in head else 1e-6  # a cap is applied in float32, like the target's
    assert (stats.peak + stats.error.double() - z).abs().max() <= rounding
    assert (stats.error != 0).any()
    _, policy = linear_policy_loss(x, w, y, torch.ones(6), None, denominator=6, **head)
    truth = naive(x, w, y, **head)[0]
    for logprob in (stats.logprob, policy["logprob"]):
        assert (logprob - truth).abs().max() <= 2e-5


def test_logits_of_somebody_else_are_left_alone() -> None:
    logits = torch.linspace(-2, 2, 120).view(4, 30).requires_grad_()
    before = logits.detach().clone()
    selective_logprob(logits, torch.arange(4)).sum().backward()
    assert torch.equal(logits, before)


def test_vectors_of_any_stride() -> None:
    x, w, _ = make(40, 16, 300)
    wide = torch.arange(80) % 300
    bias = torch.linspace(-1, 1, 600)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    value = linear_logprob(*leaves, wide[::2], bias=bias[::2], temperature=torch.linspace(0.5, 2, 80)[::2])
    truth = naive(*leaves, wide[::2], bias=bias[::2], temperature=torch.linspace(0.5, 2, 80)[::2])[0]
    assert (value - truth).abs().max() <= 1e-5
    for got, expected in zip(gradients(value.sum(), *leaves), gradients(truth.sum(), *leaves), strict=True):
        assert relative_error(got, expected) <= 2e-6
