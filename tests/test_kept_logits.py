"""Logits that are kept for the backward pass: how many, that raw ones change no bit, and what roots may change.

About the path without Triton; `linear_logprob` has one case of it on a CPU, whatever the number of tokens.
"""

import importlib
import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from torch import Tensor

from siri.kernels import kept_logits, linear_logprob
from siri.kernels.dispatch import use_triton
from siri.kernels.kept_logits import KeptLogits
from siri.kernels.projection import Normaliser

module: Any = importlib.import_module("siri.kernels.linear_logprob")  # the package attribute is the function

pytestmark = pytest.mark.skipif(
    use_triton(torch.zeros(1)), reason="the Triton kernels recompute the logits in chunks of their own"
)

TOKENS_A_BLOCK, COLUMNS_A_BLOCK = 5, 7


def count_blocks(patch: pytest.MonkeyPatch) -> list[int]:
    """Makes blocks small; the list gets an entry for each block of logits that is made."""
    made: list[int] = []
    raw_logits = module.raw_logits
    patch.setattr(module, "TOKEN_BLOCK", TOKENS_A_BLOCK)
    patch.setattr(module, "VOCAB_BLOCK", COLUMNS_A_BLOCK)
    patch.setattr(module, "raw_logits", lambda *a: made.append(1) or raw_logits(*a))
    return made


def run(x: Tensor, w: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch, *, keep: bool) -> tuple[int, list[Tensor]]:
    """(blocks of logits made, [logprob, entropy, gradients of x and w])."""
    with monkeypatch.context() as patch:
        made = count_blocks(patch)
        if not keep:
            patch.setattr(module, "_room_for_logits", lambda *_, **__: None)
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        logprob, entropy = linear_logprob(*leaves, y, return_entropy=True, temperature=0.7, softcap=4.0)
        upstream = torch.linspace(1, 2, len(y))  # 0 in no row: such rows make the backward pass start anew
        gradients = torch.autograd.grad((upstream * (logprob - 0.3 * entropy)).sum(), leaves)
    return len(made), [logprob.detach(), entropy.detach(), *gradients]


@given(tokens=st.integers(0, 23), width=st.integers(1, 17), vocabulary=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_kept_logits_change_no_bit(tokens: int, width: int, vocabulary: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(tokens, width, generator=g), torch.randn(vocabulary, width, generator=g)
    y = torch.randint(-1, vocabulary, (tokens,), generator=g)
    y[y < 0] = -100  # such a row takes no room
    with pytest.MonkeyPatch.context() as patch:
        made, kept = run(x, w, y, patch, keep=True)
        made_anew, recomputed = run(x, w, y, patch, keep=False)
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))

    rows = int((y >= 0).sum())
    starts = range(0, vocabulary, COLUMNS_A_BLOCK)
    token_blocks = math.ceil(rows / TOKENS_A_BLOCK)
    assert made_anew == 2 * token_blocks * len(starts)
    assert made == made_anew - token_blocks * blocks_with_room(rows, width, vocabulary, bytes_a_logit=4)
    if rows <= width:
        assert made == token_blocks * len(starts)


def blocks_with_room(rows: int, width: int, vocabulary: int, *, bytes_a_logit: int) -> int:
    """Block by block from the front: as long as the bytes of the float32 gradient last, then a tenth of the logits."""
    spare, count = int(0.1 * 4 * rows * vocabulary), 0
    for start in range(0, vocabulary, COLUMNS_A_BLOCK):
        size = bytes_a_logit * rows * min(COLUMNS_A_BLOCK, vocabulary - start)
        if start * max(bytes_a_logit * rows, 4 * width) + size > 4 * vocabulary * width:
            if size > spare:
                break
            spare -= size
        count += 1
    return count


def gradients(
    x: Tensor, w: Tensor, bias: Tensor, y: Tensor, upstream: Tensor, temperature: Tensor, **options: Any
) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (x, w, bias)]
    logprob = linear_logprob(leaves[0], leaves[1], y, bias=leaves[2], temperature=temperature, **options)
    return list(torch.autograd.grad(logprob, leaves, upstream))


@given(rows=st.integers(2, 9), columns=st.integers(1, 30), seed=st.integers(0, 99), spread=st.floats(0.01, 60))
@settings(max_examples=100, deadline=None)
def test_a_probability_is_off_by_what_a_root_is_rounded_by(rows: int, columns: int, seed: int, spread: float) -> None:
    g = torch.Generator().manual_seed(seed)
    kept = KeptLogits(rows, torch.zeros(columns, (rows + 1) // 2), torch.float32, columns, roots=True)
    z = torch.randn(rows, columns, generator=g) * spread
    peak = z.amax(1)
    total = (torch.rand(rows, generator=g) * 8).exp()  # other blocks hold the rest
    lse = peak.double() + total.double().log()
    whole = slice(0, columns), slice(0, rows)
    kept.put_roots(*whole, (z - peak[:, None]).exp(), peak)
    p = kept.probabilities(*whole, Normaliser(peak, total))
    assert p is not None
    truth, p_peak = (z.double() - lse[:, None]).exp(), (peak - lse).exp()[:, None]
    assert ((p - truth).abs() <= (truth * p_peak).sqrt() / 65535 + 1e-6 * truth + 1e-9 * p_peak).all()
    assert ((p - p_peak).abs() / p_peak).amin(1).max() <= 1e-6  # a peak is exact


@given(
    tokens=st.integers(6, 40), width=st.integers(1, 6), vocabulary=st.integers(8, 60), seed=st.integers(0, 99),
    peaked=st.sampled_from([0.1, 1.0, 6.0, 40.0]), idle=st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_gradients_from_roots_are_those_of_float64(
    tokens: int, width: int, vocabulary: int, seed: int, peaked: float, idle: bool
) -> None:
    """Flat and peaked rows, masked entries, temperatures, rows without an upstream gradient (which read by index)."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(tokens, width, generator=g), torch.randn(vocabulary, width, generator=g) * peaked
    bias = torch.randn(vocabulary, generator=g)
    bias[1::5] = -math.inf
    y = torch.randint(0, vocabulary, (tokens,), generator=g) // 5 * 5  # never a masked entry
    temperature = 0.5 + torch.rand(tokens, generator=g)
    upstream = torch.randn(tokens, generator=g)
    if idle:
        upstream[::3] = 0
    inputs = (x, w, bias, y, upstream, temperature)
    with pytest.MonkeyPatch.context() as patch:
        made = count_blocks(patch)
        got = gradients(*inputs)
    expected = gradients(*(t if t is y else t.double() for t in inputs), backend="reference")
    # No row of dz is off by more than a step of the roots; of float32, at most by so much where logits reach 300.
    dz = (1 / 65535 + 2e-6 * max(1, peaked)) * (upstream / temperature).norm()
    gains = [torch.linalg.matrix_norm(m, 2) for m in (w, x, torch.ones(tokens, 1))]
    for a, b, gain in zip(got, expected, gains, strict=True):
        assert (a - b).norm() <= gain * dz

    blocks = math.ceil(vocabulary / COLUMNS_A_BLOCK)
    raw = blocks_with_room(tokens, width, vocabulary, bytes_a_logit=4)
    room = blocks if raw == blocks else blocks_with_room(tokens, width, vocabulary, bytes_a_logit=2)
    again = math.ceil(int((upstream != 0).sum()) / TOKENS_A_BLOCK)
    assert len(made) == math.ceil(tokens / TOKENS_A_BLOCK) * blocks + again * (blocks - room)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_upstream_gradient_of_lse_does_without_roots(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roots say nothing of the row's scale where p has another factor than the target; float64 would lose by them."""
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 4, generator=g, dtype=dtype).requires_grad_() for n in (30, 50))
    y, upstream = torch.randint(0, 50, (30,), generator=g), torch.randn(2, 30, generator=g, dtype=dtype)
    made = count_blocks(monkeypatch)
    got = torch.autograd.grad(linear_logprob(x, w, y, return_lse=True), (x, w), list(upstream))
    assert len(made) > 50 // COLUMNS_A_BLOCK * 30 // TOKENS_A_BLOCK
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    outputs = linear_logprob(*wide, y, return_lse=True, backend="reference")
    truth = torch.autograd.grad(outputs, wide, list(upstream.double()))
    (alone,) = torch.autograd.grad(linear_logprob(x, w, y), x, upstream[0])
    (alone_truth,) = torch.autograd.grad(linear_logprob(*wide, y, backend="reference"), wide[0], upstream[0].double())
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    for a, b in zip(got, truth, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()
    assert (alone - alone_truth).norm() <= max(tolerance, 1e-5 * (dtype == torch.float32)) * alone_truth.norm()


@given(
    rows=st.integers(0, 12), width=st.integers(1, 9), vocabulary=st.integers(0, 40), roots=st.booleans(),
    block=st.integers(1, 9), dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
@example(rows=1, width=3, vocabulary=5, roots=False, block=1, dtype=torch.bfloat16)  # a gradient that ends at byte 6
@settings(max_examples=200, deadline=None)
def test_no_block_lies_on_another_or_on_an_earlier_gradient(
    rows: int, width: int, vocabulary: int, roots: bool, block: int, dtype: torch.dtype
) -> None:
    logits = torch.float64 if dtype == torch.float64 else torch.float32
    kept = KeptLogits(rows, torch.zeros(vocabulary, width, dtype=dtype), logits, block, roots=roots)
    begin, taken = kept.gradient.data_ptr(), 0
    for index, place in enumerate(kept._places):
        start = place.data_ptr() - begin
        if rows and 0 <= start < kept.gradient.nbytes:
            assert start >= max(taken, index * block * width * dtype.itemsize)
            taken = start + place.nbytes
            assert taken <= kept.gradient.nbytes


def test_memory_beside_the_gradient_has_two_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 of 100 blocks fits into the gradient, a tenth of them beside it."""

    def kept_blocks() -> int:
        return len(KeptLogits(100, torch.zeros(1000, 1), torch.float32, 10, roots=False)._places)

    assert kept_blocks() == 1 + 10
    monkeypatch.setattr(kept_logits, "SPARE_BYTES", 3 * 100 * 4 * 10)
    assert kept_blocks() == 1 + 3


@pytest.mark.parametrize(
    ("change", "kept"),
    [({}, True), ({"weight_needs_gradient": False}, False), ({"half": True}, True), ({"no_grad": True}, False)],
)
def test_memory_is_taken_only_where_a_gradient_will_use_it(change: dict[str, bool], kept: bool) -> None:
    w = torch.zeros(30, 4, dtype=torch.bfloat16 if change.get("half") else torch.float32)
    w.requires_grad_(change.get("weight_needs_gradient", True))
    with torch.set_grad_enabled(not change.get("no_grad", False)):
        assert (module._room_for_logits(torch.zeros(3, 4), w, None, roots=True) is not None) is kept


def test_rows_without_an_upstream_gradient_are_left_out() -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(9, 12, generator=g).requires_grad_(), torch.randn(20, 12, generator=g).requires_grad_()
    y = torch.arange(9)
    upstream = torch.tensor([1.0, 0, 2, 0, 0, -1, 0, 3, 0])
    got = torch.autograd.grad(linear_logprob(x, w, y), [x, w], upstream)
    expected = torch.autograd.grad(torch.log_softmax(x @ w.t(), -1)[torch.arange(9), y], [x, w], upstream)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_second_backward_pass_makes_all_logits_again_and_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_blocks(monkeypatch)
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(30, 4, generator=g).requires_grad_(), torch.randn(50, 4, generator=g).requires_grad_()
    y, upstream = torch.randint(0, 50, (30,), generator=g), torch.randn(30, generator=g)
    logprob = linear_logprob(x, w, y)
    counts = [len(made)]
    first = torch.autograd.grad(logprob, (x, w), upstream, retain_graph=True)
    kept = [t.clone() for t in first]
    counts.append(len(made))
    second = torch.autograd.grad(logprob, (x, w), upstream)
    assert counts[0] < counts[1] < 2 * counts[0]
    assert len(made) == counts[0] + counts[1]
    for a, b, before in zip(first, second, kept, strict=True):
        assert torch.equal(a, before)
        assert torch.equal(a, b)
    monkeypatch.setattr(module, "_room_for_logits", lambda *_, **__: None)
    exact = torch.autograd.grad(linear_logprob(x, w, y), (x, w), upstream)
    assert not torch.equal(exact[0], second[0])  # something had been kept as roots


def test_what_is_kept_lies_on_the_device_of_the_weight() -> None:
    """A GPU that Triton does not serve comes here too; the default device says nothing."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(30, 4, generator=g), torch.randn(2000, 4, generator=g)
    y = torch.arange(30)
    inputs = x, w, torch.zeros(2000), y, torch.ones(30), torch.ones(30)
    expected = gradients(*inputs)
    torch.set_default_device("meta")
    try:
        got = gradients(*inputs)
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_broken_row_of_roots_stays_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    count_blocks(monkeypatch)
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(30, 4, generator=g), torch.randn(50, 4, generator=g).requires_grad_()
    x[7] = torch.nan
    x.requires_grad_()
    (dx,) = torch.autograd.grad(linear_logprob(x, w, torch.arange(30)).sum(), x)  # w has one, so logits are kept
    assert dx.isnan().any(1).nonzero().flatten().tolist() == [7]


def _shard_with_roots(world: Any) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(20, 16, generator=g), torch.randn(301, 16, generator=g)
    y, shard = torch.randint(0, 301, (20,), generator=g), slice(0, 120) if world.rank == 0 else slice(120, 301)
    leaves = [x.requires_grad_(), w[shard].clone().requires_grad_()]
    kept = module._room_for_logits(*leaves, None, roots=True)
    assert kept.roots
    logprob = linear_logprob(*leaves, y, tp_group=dist.group.WORLD)
    dx, dw = torch.autograd.grad(logprob, leaves, torch.linspace(1, 2, 20))
    return [dx, dw]


@pytest.mark.multirank
def test_roots_of_a_shard_belong_to_the_whole_softmax(tmp_path: Any) -> None:
    first, second = on_ranks(2, _shard_with_roots, folder=tmp_path)
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 16, generator=g).double().requires_grad_() for n in (20, 301))
    y = torch.randint(0, 301, (20,), generator=g)
    logprob = linear_logprob(x, w, y, backend="reference")
    dx, dw = torch.autograd.grad(logprob, (x, w), torch.linspace(1, 2, 20).double())
    assert torch.equal(first[0], second[0])
    for got, truth in ((first[0], dx), (torch.cat([first[1], second[1]]), dw)):
        assert 1e-7 * truth.norm() < (got - truth).norm() <= 1e-5 * truth.norm()  # less would be raw logits
