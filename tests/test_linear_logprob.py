"""`linear_logprob` against float64 definitions that share no code with it.

`test_triton_interpreter.py` runs this file again, with the Triton kernels in place of the reference.
"""

import importlib
import math
import os
import threading
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from projections import Meter, gradients, naive, relative_error
from ranks import on_ranks
from torch import Tensor

from siri.kernels import linear_logprob
from siri.kernels.projection import LogitMap, SoftmaxStats, merge

module: Any = importlib.import_module("siri.kernels.linear_logprob")  # the package attribute is the function

# A float32 logit of size 30 is known to 2e-6; log-probabilities of the cases here come out ten times better than this.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}
# Half-precision inputs: the sums are float32, only the returned gradient is rounded (2^-9 and 2^-12 at most). Tensor
# cores take dz in float16 too: as much again.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GRAD_TOLERANCE = {
    torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2.5e-3, torch.float16: 8e-4 if INTERPRETED else 4e-4,
}  # fmt: skip


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that divide nothing, so that small inputs cross many of their borders."""
    monkeypatch.setattr(module, "TOKEN_BLOCK", 50)
    monkeypatch.setattr(module, "VOCAB_BLOCK", 129)


def make(
    tokens: int, hidden: int, vocabulary: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, weight, targets), logits of about unit spread times `scale`."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=g)
    w = torch.randn(vocabulary, hidden, generator=g) * scale / math.sqrt(hidden)
    return x.to(dtype), w.to(dtype), torch.randint(0, vocabulary, (tokens,), generator=g)


# One row; one more than a block of tokens; H that is no multiple of 8; V that no block divides, once with a single tail
# column.
@pytest.mark.parametrize(("tokens", "width", "vocabulary"), [(1, 8, 1000), (51, 72, 1291), (127, 33, 503)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("small_blocks")
def test_values_and_gradients_with_everything_switched_on(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype
) -> None:
    x, w, y = make(tokens, width, vocabulary, dtype=dtype, scale=4.0)
    g = torch.Generator().manual_seed(1)
    bias = torch.randn(vocabulary, generator=g).to(dtype)
    temperature = torch.rand(tokens, generator=g) * 4.9 + 0.1
    y[tokens // 2 :: 5] = -100 if tokens > 1 else y[0]
    head = {"bias": bias, "temperature": temperature, "softcap": 6.0}
    leaves = [t.requires_grad_() for t in (x, w, bias)]
    upstream = torch.randn(3, tokens, generator=g)

    got = linear_logprob(x, w, y, **head, return_entropy=True, return_lse=True)
    expected = naive(x, w, y, **head)
    for value, truth in zip(got, expected, strict=True):
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (value - truth).abs().max() <= TOLERANCE[dtype]
    got_grads = gradients(sum((u * v).sum() for u, v in zip(upstream, got, strict=True)), *leaves)
    true_grads = gradients(sum((u * v).sum() for u, v in zip(upstream, expected, strict=True)), *leaves)
    for got_grad, true_grad in zip(got_grads, true_grads, strict=True):
        assert relative_error(got_grad, true_grad) <= GRAD_TOLERANCE[dtype]


@pytest.mark.usefixtures("small_blocks")
def test_gradcheck() -> None:
    x, w, y = make(4, 5, 140, dtype=torch.float64, scale=3.0)
    y[1] = -100
    bias = torch.linspace(-1, 1, 140, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, w, bias)]
    temperature = torch.tensor([0.5, 1.0, 2.0, 3.0])

    def everything(x: Tensor, w: Tensor, bias: Tensor) -> Any:
        options: dict[str, Any] = {"bias": bias, "temperature": temperature, "softcap": 4.0}
        return linear_logprob(x, w, y, return_entropy=True, return_lse=True, **options)

    assert torch.autograd.gradcheck(everything, leaves, fast_mode=True)


@pytest.mark.parametrize("vocabulary", [1, 1000, 1300, pytest.param(49152, marks=pytest.mark.reference)])
def test_zero_hidden_states_give_minus_log_v_exactly(vocabulary: int) -> None:
    """A tail of phantom zero logits would show here: 1000 columns padded to 1024 give log 1024."""
    x, w, y = torch.zeros(3, 8), torch.randn(vocabulary, 8), torch.tensor([0, vocabulary // 2, vocabulary - 1])
    logprob, entropy, lse = linear_logprob(x, w, y, return_entropy=True, return_lse=True)
    log_v = torch.tensor(float(vocabulary)).log()
    assert (logprob == -log_v).all()
    assert (entropy == log_v).all()
    assert (lse == log_v).all()


def test_last_column_target_in_a_tail_block() -> None:
    x, w, _ = make(5, 8, 1025)  # the second vocabulary block is one column wide
    y = torch.tensor([1024, 1023, 0, 1024, 512])
    leaf = w.requires_grad_()
    got, truth = linear_logprob(x, w, y), naive(x, w, y)[0]
    assert (got - truth).abs().max() <= 2e-6
    got_grad, true_grad = gradients(got.sum(), leaf)[0], gradients(truth.sum(), leaf)[0]
    assert relative_error(got_grad[1024], true_grad[1024]) <= 2e-6


@pytest.mark.parametrize("chosen", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradient_of_one_input_only(chosen: tuple[bool, bool, bool]) -> None:
    x, w, y = make(70, 16, 300)
    inputs = [x, w, torch.randn(300)]
    for tensor, wanted in zip(inputs, chosen, strict=True):
        tensor.requires_grad_(wanted)
    leaf = inputs[chosen.index(True)]
    linear_logprob(inputs[0], inputs[1], y, bias=inputs[2]).sum().backward()
    assert [t.grad is not None for t in inputs] == list(chosen)
    truth = naive(inputs[0], inputs[1], y, bias=inputs[2])[0].sum()
    assert relative_error(leaf.grad, gradients(truth, leaf)[0]) <= 2e-6


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.usefixtures("small_blocks")
def test_gradient_of_one_output_only(which: int) -> None:
    x, w, y = make(70, 16, 300, scale=3.0)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    u = torch.linspace(-1, 2, 70)
    got = gradients((u * linear_logprob(x, w, y, return_entropy=True, return_lse=True)[which]).sum(), *leaves)
    truth = gradients((u * naive(x, w, y)[which]).sum(), *leaves)
    for got_grad, true_grad in zip(got, truth, strict=True):
        assert relative_error(got_grad, true_grad) <= 2e-6


def test_ignored_rows_are_zero_and_isolated() -> None:
    """Whatever an ignored row holds, NaN included, stays out of the outputs and of every gradient."""
    x, w, y = make(80, 16, 300)
    ignored = torch.arange(80) % 3 == 0
    y[ignored] = -7
    x[ignored] = float("nan")
    leaves = [x.requires_grad_(), w.requires_grad_()]
    got = linear_logprob(x, w, y, ignore_index=-7, return_entropy=True, return_lse=True)
    assert all((value[ignored] == 0).all() for value in got)
    dx, dw = gradients(sum(value.sum() for value in got), *leaves)
    assert (dx[ignored] == 0).all()
    kept = x.detach()[~ignored].requires_grad_()
    w2 = w.detach().requires_grad_()
    true_dx, true_dw = gradients(sum(v.sum() for v in naive(kept, w2, y[~ignored])), kept, w2)
    assert relative_error(dx[~ignored], true_dx) <= 2e-6
    assert relative_error(dw, true_dw) <= 2e-6


def test_a_nan_row_spoils_itself_only() -> None:
    x, w, y = make(80, 16, 300)
    clean = linear_logprob(x, w, y)
    x[11] = float("nan")
    leaves = [x.requires_grad_(), w.requires_grad_()]
    logprob = linear_logprob(x, w, y)
    others = torch.arange(80) != 11
    assert logprob[11].isnan()
    assert torch.equal(logprob[others], clean[others])
    dx, dw = gradients(logprob[others].sum(), *leaves)
    assert (dx[11] == 0).all()
    without = x.detach()[others].requires_grad_()
    true_dx, true_dw = gradients(naive(without, w, y[others])[0].sum(), without, w)
    assert relative_error(dx[others], true_dx) <= 2e-6
    assert relative_error(dw, true_dw) <= 2e-6


@pytest.mark.parametrize("tokens", [0, 9])
def test_no_kept_row_gives_a_connected_zero(tokens: int) -> None:
    x, w, _ = make(tokens, 8, 30)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    logprob, entropy = linear_logprob(x, w, torch.full((tokens,), -100), return_entropy=True)
    assert logprob.shape == (tokens,)
    assert (logprob == 0).all()
    for grad, leaf in zip(gradients(logprob.sum() + entropy.sum(), *leaves), leaves, strict=True):
        assert grad.shape == leaf.shape
        assert (grad == 0).all()


@pytest.mark.parametrize("bad", [300, -1, 2**40])
def test_a_target_outside_the_vocabulary_is_named(bad: int) -> None:
    x, w, y = make(5, 8, 300)
    y[3] = bad
    with pytest.raises(ValueError, match=rf"targets\[3\] = {bad} is outside the vocabulary \[0, 300\)"):
        linear_logprob(x, w, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(5, 7)}, r"hidden \(5, 7\) and weight \(300, 8\)"),
        ({"targets": torch.zeros(4, dtype=torch.long)}, r"targets \(4,\) must be \[T\] = \[5\]"),
        ({"targets": torch.zeros(5)}, "token ids must be integers"),
        ({"bias": torch.zeros(5)}, r"bias \(5,\) must be \[V\] = \[300\]"),
        ({"temperature": torch.ones(3)}, r"temperature \(3,\)"),
        ({"temperature": 0.0}, "temperature = 0.0 must be > 0"),
        ({"softcap": -1.0}, "softcap = -1.0 must be > 0"),
        ({"backend": "triton3"}, "backend = 'triton3'"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    x, w, y = make(5, 8, 300)
    with pytest.raises(ValueError, match=message):
        linear_logprob(**{"hidden": x, "weight": w, "targets": y, **change})


def test_int32_targets_scalar_tensor_temperature_and_strided_inputs() -> None:
    x, w, y = make(60, 16, 300)
    plain = linear_logprob(x, w, y, temperature=0.7)
    wide, tall = torch.zeros(60, 33), torch.zeros(17, 300)
    wide[:, 1::2], tall[1:] = x, w.t()
    strided = linear_logprob(wide[:, 1::2], tall[1:].t(), y.int(), temperature=torch.tensor(0.7))
    assert (strided - plain).abs().max() <= 2e-6


def test_tied_weights_receive_both_gradients() -> None:
    _, table, y = make(40, 16, 200)
    ids = torch.arange(40) * 3
    table.requires_grad_()
    got = gradients(linear_logprob(table[ids], table, y).sum(), table)[0]
    truth = gradients(naive(table[ids], table, y)[0].sum(), table)[0]
    assert relative_error(got, truth) <= 2e-6


@pytest.mark.usefixtures("small_blocks")
def test_backward_in_a_thread_twice_and_repeatable() -> None:
    x, w, y = make(120, 16, 300)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    value = linear_logprob(x, w, y).sum()
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second: list[Tensor] = []
    thread = threading.Thread(target=lambda: second.extend(torch.autograd.grad(value, leaves)))
    thread.start()
    thread.join()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(linear_logprob(x, w, y), linear_logprob(x, w, y))


def test_autocast_does_not_touch_the_logits() -> None:
    x, w, y = make(60, 16, 300, scale=4.0)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_logprob(x, w, y)
        grads = gradients(got.sum(), *leaves)
    truth = naive(x, w, y)[0]
    assert (got - truth).abs().max() <= 1e-5  # bfloat16 logits would be off by 1e-2
    for got_grad, true_grad in zip(grads, gradients(truth.sum(), *leaves), strict=True):
        assert relative_error(got_grad, true_grad) <= 2e-6


@pytest.mark.usefixtures("small_blocks")
def test_infinite_bias_masks_vocabulary_entries() -> None:
    """Padding of the vocabulary: two whole blocks of -inf columns, entropy and its gradient stay finite."""
    x, w, y = make(60, 16, 400)
    y %= 130
    bias = torch.zeros(400)
    bias[130:] = float("-inf")
    leaves = [x.requires_grad_(), w.requires_grad_()]
    got = linear_logprob(x, w, y, bias=bias, return_entropy=True, return_lse=True)
    truth = naive(x, w[:130], y)
    for value, true_value in zip(got, truth, strict=True):
        assert (value - true_value).abs().max() <= 2e-6
    grads = gradients(sum(v.sum() for v in got), *leaves)
    for got_grad, true_grad in zip(grads, gradients(sum(v.sum() for v in truth), *leaves), strict=True):
        assert relative_error(got_grad, true_grad) <= 2e-6


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(-50, 50), st.floats(0.2, 5.0))
def test_probabilities_sum_to_one_and_offsets_cancel(seed: int, offset: float, temperature: float) -> None:
    """sum_v p_v = 1; a constant bias moves lse by offset / temperature and nothing else."""
    x, w, _ = make(1, 6, 40, seed=seed, dtype=torch.float64, scale=5.0)
    every = torch.arange(40)
    rows = x.expand(40, 6)
    bias = torch.full((40,), offset, dtype=torch.float64)
    plain = linear_logprob(rows, w, every, temperature=temperature, return_entropy=True, return_lse=True)
    moved = linear_logprob(rows, w, every, bias=bias, temperature=temperature, return_entropy=True, return_lse=True)
    torch.testing.assert_close(plain[0].exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(plain[1][0], -(plain[0].exp() * plain[0]).sum(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved[0], plain[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved[1], plain[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved[2], plain[2] + offset / temperature, rtol=1e-9, atol=1e-9)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 199), min_size=1, max_size=4, unique=True), st.integers(0, 2**31))
def test_vocabulary_shards_merge_to_the_whole(cuts: list[int], seed: int) -> None:
    """Tensor parallelism without the ranks: statistics of uneven shards merge to those of the whole vocabulary."""
    x, w, y = make(20, 8, 200, seed=seed, dtype=torch.float64, scale=20.0)
    edges = [0, *sorted(cuts), 200]
    logit_map = LogitMap(temperature=0.8, softcap=None)
    shards = [
        SoftmaxStats(*module.shard_stats(x, w[start:stop], None, y, logit_map, start))
        for start, stop in pairwise(edges)
    ]
    whole = shards[0]
    for shard in shards[1:]:
        whole = merge(whole, shard)
    for got, truth in zip((whole.logprob, whole.entropy, whole.lse), naive(x, w, y, temperature=0.8), strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-10)


def _tensor_parallel_rank(world: Any) -> list[Tensor]:
    x, w, y = make(70, 16, 301, scale=4.0)
    y[::6] = -100
    bias = torch.linspace(-1, 1, 301)
    shard = slice(0, 120) if world.rank == 0 else slice(120, 301)
    leaves = [x.requires_grad_(), w[shard].clone().requires_grad_(), bias[shard].clone().requires_grad_()]
    outputs = linear_logprob(
        leaves[0], leaves[1], y, bias=leaves[2], temperature=0.9, return_entropy=True, return_lse=True,
        tp_group=dist.group.WORLD,
    )  # fmt: skip
    value = outputs[0].sum() + 0.3 * outputs[1].sum() - 0.1 * outputs[2].sum()
    with pytest.raises(ValueError, match=r"targets\[0\] = 301 is outside the vocabulary \[0, 301\)"):
        linear_logprob(x[:1], leaves[1], torch.tensor([301]), tp_group=dist.group.WORLD)
    return [t.detach() for t in (*outputs, *torch.autograd.grad(value, leaves))]


@pytest.mark.multirank
def test_tensor_parallel_ranks_equal_one_rank(tmp_path: Any) -> None:
    first, second = on_ranks(2, _tensor_parallel_rank, folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first[:4], second[:4], strict=True))  # outputs and dX, bit for bit
    x, w, y = make(70, 16, 301, scale=4.0)
    y[::6] = -100
    leaves = [x.requires_grad_(), w.requires_grad_(), torch.linspace(-1, 1, 301).requires_grad_()]
    outputs = naive(*leaves[:2], y, bias=leaves[2], temperature=0.9)
    for got, truth in zip(first, outputs, strict=False):
        assert (got - truth).abs().max() <= 1e-5
    dx, dw, db = gradients(outputs[0].sum() + 0.3 * outputs[1].sum() - 0.1 * outputs[2].sum(), *leaves)
    assert relative_error(first[3], dx) <= 2e-6
    assert relative_error(torch.cat([first[4], second[4]]), dw) <= 2e-6
    assert relative_error(torch.cat([first[5], second[5]]), db) <= 2e-6


def test_reference_backend_is_the_same_function() -> None:
    x, w, y = make(60, 16, 300, dtype=torch.float64)
    y[::4] = -100
    options: dict[str, Any] = {"temperature": 0.6, "softcap": 3.0, "return_entropy": True, "return_lse": True}
    leaves = [x.requires_grad_(), w.requires_grad_()]
    bounded = linear_logprob(x, w, y, **options)
    reference = linear_logprob(x, w, y, backend="reference", **options)
    torch.testing.assert_close(bounded, reference, rtol=1e-10, atol=1e-10)
    a, b = (torch.autograd.grad(sum(v.square().sum() for v in outputs), leaves) for outputs in (bounded, reference))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.reference
@pytest.mark.usefixtures("small_blocks")
def test_logits_are_never_held() -> None:
    """No operator of forward or backward returns more than one block of 50 x 129."""
    x, w, y = make(300, 8, 700)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    with Meter() as meter:
        logprob, entropy = linear_logprob(x, w, y, return_entropy=True)
        torch.autograd.grad(logprob.sum() - entropy.sum(), leaves)
    assert meter.largest == 50 * 129
    with Meter() as meter:
        torch.autograd.grad(linear_logprob(x, w, y, backend="reference").sum(), leaves)
    assert meter.largest == 300 * 700  # the meter does see what it looks for
