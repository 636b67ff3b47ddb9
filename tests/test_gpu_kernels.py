"""The Triton kernels on a GPU against float64, at the sizes of real heads. `test_gpu.py` says how these are run.

Not a product of all sizes: each vocabulary and each width of the list stands in at least one case, T crosses the tiles'
borders (127, 129), and one product is beyond 2^31.
"""

import threading
from typing import Any

import pytest
import torch
from projections import gradients, naive, relative_error
from test_distill_loss import DIVERGENCES
from test_distill_loss import problem as distill_problem
from test_distill_loss import run as distill
from test_policy_loss import OPTIONS
from test_policy_loss import problem as policy_problem
from torch import Tensor

from siri.kernels import dispatch, gigpo_advantage, linear_logprob, linear_policy_loss, selective_logprob

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

# (T, H, V)
SHAPES = [
    (1, 8, 1000),
    (127, 72, 32003),
    (129, 576, 49152),
    (129, 896, 151936),
    (127, 960, 49152),
    (257, 1536, 151936),
    (129, 3584, 152064),
    (65, 1536, 262144),
    (4097, 576, 50257),
    (129, 33, 50257),  # no descriptor fits a row of 66 bytes: pointers
]


def make(tokens: int, width: int, vocabulary: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    """Logits of spread 4, targets in the first and last column too."""
    g = torch.Generator("cuda").manual_seed(tokens)
    x = torch.randn(tokens, width, generator=g, device="cuda")
    w = torch.randn(vocabulary, width, generator=g, device="cuda") * (4 / width**0.5)
    y = torch.randint(0, vocabulary, (tokens,), generator=g, device="cuda")
    y[0], y[-1] = 0, vocabulary - 1
    return x.to(dtype), w.to(dtype), y


def eager(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What everybody writes: logits in the dtype of the model."""
    log_p = torch.log_softmax((x @ w.t()).float(), -1)
    return log_p.gather(1, y[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def test_triton_is_what_runs() -> None:
    assert dispatch.explain().startswith("triton")


@pytest.mark.parametrize(("tokens", "width", "vocabulary"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_linear_logprob(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> None:
    x, w, y = make(tokens, width, vocabulary, dtype)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    logprob, entropy = linear_logprob(x, w, y, return_entropy=True)
    true_logprob, true_entropy, _ = naive(x, w, y)
    assert (logprob - true_logprob).abs().max() <= 2e-5
    assert (entropy - true_entropy).abs().max() <= 2e-5
    truth = gradients(true_logprob.sum() - 0.1 * true_entropy.sum(), *leaves)
    got = gradients(logprob.sum() - 0.1 * entropy.sum(), *leaves)
    del true_logprob, true_entropy
    rough_logprob, rough_entropy = eager(x, w, y)
    rough = gradients(rough_logprob.sum() - 0.1 * rough_entropy.sum(), *leaves)
    for g, t, r in zip(got, truth, rough, strict=True):
        assert relative_error(g, t) <= (1e-5 if dtype == torch.float32 else 1.5 * relative_error(r, t))


def test_everything_switched_on() -> None:
    x, w, y = make(300, 896, 32003)
    y[::7] = -100
    head: dict[str, Any] = {
        "bias": torch.linspace(-2, 2, 32003, device="cuda"),
        "temperature": torch.linspace(0.3, 3, 300, device="cuda"),
        "softcap": 15.0,
    }
    got = linear_logprob(x, w, y, **head, return_entropy=True, return_lse=True)
    for value, truth in zip(got, naive(x, w, y, **head), strict=True):
        assert (value - truth).abs().max() <= 5e-5  # temperature 0.3 makes logits of 50


@pytest.mark.parametrize("offset", [-120.0, 120.0])
def test_common_offset(offset: float) -> None:
    x, w, y = make(130, 576, 50257)
    x[:, 0], w[:, 0] = offset, 1.0
    for value, truth in zip(linear_logprob(x, w, y, return_entropy=True, return_lse=True), naive(x, w, y), strict=True):
        assert (value - truth).abs().max() <= 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [576, 3584])
def test_rows_that_another_token_dominates(width: int, dtype: torch.dtype) -> None:
    """Fused, and with logits in memory. `test_logprob_exactness.py` has the same for the CPU."""
    x, w, y = make(130, width, 50257)
    peaks = torch.arange(130, device="cuda") * 386
    size = torch.linspace(20, 150, 130, device="cuda")[:, None]
    w[peaks] = (x.float() * (size / x.float().square().sum(1, keepdim=True))).to(w.dtype)
    y[torch.isin(y, peaks)] = 7
    x, w = x.to(dtype), w.to(dtype)
    truth, true_entropy, _ = naive(x, w, y)
    logprob, entropy = linear_logprob(x, w, y, return_entropy=True)
    _, stats = linear_policy_loss(x, w, y, torch.ones(130, device="cuda"), None, denominator=130)
    assert (logprob - truth).abs().max() <= 2e-5
    assert (stats["logprob"] - truth).abs().max() <= 2e-5
    assert (entropy - true_entropy).abs().max() <= 2e-5


def test_gradients_of_rows_that_are_almost_certain() -> None:
    """See the test of this name for the CPU; here beside bfloat16 eager, too."""
    x, w, _ = make(130, 576, 50257)
    y = torch.arange(130, device="cuda") * 300
    w[y] = (x.float() * (12 / x.float().square().sum(1, keepdim=True))).to(w.dtype)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    got, truth, rough = (f(x, w, y) for f in (linear_logprob, lambda *a: naive(*a)[0], lambda *a: eager(*a)[0]))
    sums = [gradients(value.sum(), *leaves) for value in (got, truth, rough)]
    for g, t, r in zip(*sums, strict=True):
        assert relative_error(g, t) <= 1.5 * relative_error(r, t)


def test_ignored_rows_and_strides_and_a_row_of_nan() -> None:
    x, w, y = make(260, 576, 32003)
    wide = torch.zeros(260, 2 * 576, device="cuda", dtype=x.dtype)
    wide[:, ::2] = x
    y[::3] = -100
    x[4] = torch.nan
    expected = naive(x, w, y)[0]
    for hidden in (x, wide[:, ::2].index_copy(0, torch.tensor([4], device="cuda"), x[4:5]), x.t().contiguous().t()):
        got = linear_logprob(hidden, w.t().contiguous().t() if hidden is not x else w, y)
        assert got[4].isnan()
        rest = torch.arange(260, device="cuda") != 4
        assert (got - expected)[rest].abs().max() <= 2e-5
        assert (got[::3] == 0).all()
    y[:] = -100
    leaves = [x.requires_grad_(), w.requires_grad_()]
    assert all((g == 0).all() for g in gradients(linear_logprob(*leaves, y).sum(), *leaves))


def test_forward_and_backward_in_a_cuda_graph() -> None:
    x, w, y = make(129, 576, 32003)
    y[::5] = -100
    leaves = [x.requires_grad_(), w.requires_grad_()]
    advantage = torch.linspace(-1, 1, 129, device="cuda")

    def once() -> list[Tensor]:
        logprob, entropy = linear_logprob(x, w, y, return_entropy=True)
        policy = linear_policy_loss(x, w, y, advantage, None, denominator=129, entropy_coef=0.1)[0]
        total = (logprob + 0.1 * entropy).sum() + policy
        return [logprob.detach(), policy.detach(), *torch.autograd.grad(total, leaves)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        once()  # compiles
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = once()
    with torch.no_grad():
        x.copy_(x.flip(0))
    graph.replay()
    for got, expected in zip(captured, once(), strict=True):
        torch.testing.assert_close(got.float(), expected.float(), rtol=2e-2, atol=1e-4)


def test_zero_hidden_states_give_minus_log_v() -> None:
    _, w, _ = make(3, 64, 50257)
    x = torch.zeros(3, 64, device="cuda", dtype=torch.bfloat16)
    logprob = linear_logprob(x, w, torch.tensor([0, 1, 50256], device="cuda"))
    assert (logprob + torch.tensor(50257.0).log()).abs().max() <= 1e-6


def test_more_logits_than_int32_counts() -> None:
    """16384 x 151936 = 2.49e9: the last rows are where an index would wrap."""
    x, w, y = make(16384, 64, 151936)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    logprob = linear_logprob(x, w, y)
    last = slice(-64, None)
    truth = naive(x[last], w, y[last])[0]
    assert (logprob[last] - truth).abs().max() <= 2e-5
    upstream = torch.zeros(16384, device="cuda")
    upstream[last] = 1.0
    upstream[0] = 1e-30  # all rows between stay live
    upstream[1:-64] = 1e-30
    dx, _ = gradients((upstream * logprob).sum(), *leaves)
    assert relative_error(dx[last], gradients(truth.sum(), x)[0][last]) <= 5e-3


@pytest.mark.parametrize("chosen", [0, 1])
def test_gradient_of_one_input_in_a_thread(chosen: int) -> None:
    x, w, y = make(129, 576, 32003)
    leaf = (x, w)[chosen].requires_grad_()
    logprob = linear_logprob(x, w, y)
    first = torch.autograd.grad(logprob.sum(), leaf, retain_graph=True)[0]
    second: list[Tensor] = []
    thread = threading.Thread(target=lambda: second.extend(torch.autograd.grad(logprob.sum(), leaf)))
    thread.start()
    thread.join()
    assert torch.equal(first, second[0])
    assert torch.equal(linear_logprob(x, w, y), logprob)


def test_another_number_of_tokens_compiles_nothing() -> None:
    from siri.kernels import exact_logits_triton as exact
    from siri.kernels import linear_logprob_triton as linear
    from siri.kernels import softmax_triton as rows

    kernels = [
        linear.tile_stats_tma_kernel, linear.tile_stats_kernel, exact.target_logit_kernel, linear.merge_tiles_kernel,
        exact.tile_peak_error_kernel,
        rows.logit_grad_kernel,
    ]  # fmt: skip

    def once(tokens: int) -> list[int]:
        x, w, y = make(tokens, 576, 50257)
        linear_logprob(x.requires_grad_(), w.requires_grad_(), y, temperature=tokens / 100).sum().backward()
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    once(100)  # one slab of all columns, whose number is odd
    known = once(4096)  # slabs of a multiple of 256 columns: row kernels are compiled for either kind
    assert [once(tokens) for tokens in (1, 16, 129, 1000, 2048, 8192)] == [known] * 6


def test_memory_of_the_forward_pass() -> None:
    """12 bytes for 256 logits (128 where pointers are used), and the per-token vectors."""
    x, w, y = make(8192, 512, 50257)
    with torch.no_grad():
        linear_logprob(x, w, y)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        linear_logprob(x, w, y)
    assert torch.cuda.max_memory_allocated() - before <= 8192 * 50257 * 12 / 128 + 2**22


def test_memory_of_the_policy_loss() -> None:
    """Beside the gradients, the weight's in float32, less than 600 MB at any T: a chunk of logits, where dz is made."""
    x, w, y = make(4096, 512, 152064)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    advantage = torch.ones(4096, device="cuda")

    def once() -> None:
        linear_policy_loss(*leaves, y, advantage, None, denominator=4096)[0].backward()
        x.grad = w.grad = None

    once()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once()
    gradients_of = 4 * w.numel() + x.element_size() * x.numel()
    assert torch.cuda.max_memory_allocated() - before <= 6e8 + gradients_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_selective_logprob(dtype: torch.dtype) -> None:
    g = torch.Generator("cuda").manual_seed(0)
    logits = (torch.randn(3, 67, 50257, generator=g, device="cuda") * 4).to(dtype).requires_grad_()
    y = torch.randint(0, 50257, (3, 67), generator=g, device="cuda")
    got = selective_logprob(logits, y, temperature=0.8, return_entropy=True)
    truth = torch.distributions.Categorical(logits=logits.double() / 0.8)
    assert (got[0] - truth.log_prob(y)).abs().max() <= 2e-5
    assert (got[1] - truth.entropy()).abs().max() <= 2e-5
    expected = gradients(truth.log_prob(y).sum() + truth.entropy().sum(), logits)[0]
    tolerance = 2.5e-3 if dtype == torch.bfloat16 else 1e-5
    assert relative_error(gradients(got[0].sum() + got[1].sum(), logits)[0], expected) <= tolerance


def to_gpu(tensors: Any, dtype: torch.dtype) -> Any:
    return {name: t.cuda().to(dtype) if name.endswith(("hidden", "weight", "bias")) and t.ndim == 2 else t.cuda()
            for name, t in tensors.items()}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_policy_loss_is_that_of_the_reference(dtype: torch.dtype) -> None:
    (hidden, weight, bias, targets), columns = policy_problem(700, width=64, vocabulary=50257)
    inputs = to_gpu({"hidden": hidden / 8, "weight": weight, "bias": bias, "targets": targets, **columns}, dtype)
    leaves = [inputs[name].requires_grad_() for name in ("hidden", "weight")]
    loss, stats = linear_policy_loss(**inputs, **OPTIONS)
    exact = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    truth, true_stats = linear_policy_loss(**exact, **OPTIONS)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-4)
    assert stats["entropy"].item() == pytest.approx(true_stats["entropy"].item(), rel=1e-5)
    for got, expected in zip(gradients(loss, *leaves), gradients(truth, *leaves), strict=True):
        assert relative_error(got, expected) <= (5e-3 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_distill_loss_is_that_of_the_reference(divergence: str, dtype: torch.dtype) -> None:
    inputs = to_gpu(distill_problem(300, vocabulary=32003), dtype)
    leaves = [inputs[name].requires_grad_() for name in ("hidden", "weight")]
    loss = distill(divergence, inputs, denominator=31.0, softcap=9.0)
    exact = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    truth = distill(divergence, exact, denominator=31.0, softcap=9.0)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    for got, expected in zip(gradients(loss, *leaves), gradients(truth, *leaves), strict=True):
        assert relative_error(got, expected) <= (5e-3 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("rows", [6400, 131072])
@pytest.mark.parametrize("episode_stats", ["trajectory", "row"])
def test_gigpo_advantage_is_that_of_the_cpu(rows: int, episode_stats: str) -> None:
    g = torch.Generator().manual_seed(0)
    traj = torch.arange(rows) // 32
    columns = {
        "reward": (torch.rand(rows, generator=g) < 0.02).double(),
        "traj": traj,
        "episode_group": traj // 8,
        "step_group": traj // 8 * 100 + torch.randint(0, 40, (rows,), generator=g),
        "valid": torch.rand(rows, generator=g) < 0.9,
    }
    options: dict[str, Any] = {"gamma": 0.95, "omega": 1.0, "episode_stats": episode_stats, "return_parts": True}
    expected = gigpo_advantage(**columns, **options)
    device = {name: column.cuda() for name, column in columns.items()}
    got, again = gigpo_advantage(**device, **options), gigpo_advantage(**device, **options)
    for a, b, truth in zip(got, again, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a.cpu(), truth, rtol=1e-9, atol=1e-9)
        assert torch.equal(a.cpu() == 0, truth == 0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = gigpo_advantage(**device, **options)
    device["reward"].copy_(1 - device["reward"])
    graph.replay()
    for a, b in zip(replayed, gigpo_advantage(**device, **options), strict=True):
        assert torch.equal(a, b)


def test_wrong_labels_of_gigpo_advantage_are_named() -> None:
    rows = {
        name: torch.zeros(1000, dtype=torch.int64, device="cuda") for name in ("traj", "episode_group", "step_group")
    }
    rows |= {"reward": torch.rand(1000, device="cuda"), "valid": torch.ones(1000, device="cuda")}
    rows["step_group"][900:] = 4
    rows["episode_group"][950] = 1
    with pytest.raises(ValueError, match=r"traj\[\d+\] = 0 lies in task group"):
        gigpo_advantage(**rows, gamma=0.95, omega=1.0)
    rows["traj"] += torch.arange(1000, device="cuda")
    with pytest.raises(ValueError, match=r"step_group\[\d+\] = 4 lies in task group"):
        gigpo_advantage(**rows, gamma=0.95, omega=1.0)
    rows["traj"][999] = 0
    with pytest.raises(ValueError, match="the rows of 0 are not contiguous"):
        gigpo_advantage(**rows, gamma=0.95, omega=1.0)


@pytest.mark.parametrize("length", [4097, 131072])
def test_returns_over_one_long_trajectory(length: int) -> None:
    g = torch.Generator().manual_seed(0)
    zeros = torch.zeros(length, dtype=torch.int64)
    columns = {"reward": torch.rand(length, generator=g, dtype=torch.float64), "traj": zeros, "episode_group": zeros}
    columns |= {"step_group": torch.arange(length) % 7, "valid": zeros == 0}
    options: dict[str, Any] = {"gamma": 0.99, "omega": 1.0, "return_parts": True}
    expected = gigpo_advantage(**columns, **options)
    got = gigpo_advantage(**{name: column.cuda() for name, column in columns.items()}, **options)
    torch.testing.assert_close(got.returns.cpu(), expected.returns, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.advantage.cpu(), expected.advantage, rtol=1e-9, atol=1e-9)
