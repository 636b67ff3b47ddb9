"""`siri.kernels.adapters`: the heads of TRL, verl and Liger against float64, and the originals' faults.

The adapters are called as the originals' callers call them: by position where those do.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from projections import gradients, naive, relative_error
from ranks import on_ranks
from torch import Tensor

from siri.engine.distributed import World
from siri.kernels import adapters

TRL = adapters.ChunkedLogProbFunction.apply
LIGER = adapters.LigerFusedLinearScaledCrossEntropyFunction.apply


def make(tokens: int, hidden: int, vocabulary: int, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """(hidden [T, H], weight [V, H], targets [T], upstream gradients of two outputs [2, T])."""
    g = torch.Generator().manual_seed(tokens * vocabulary + hidden)
    x = torch.randn(tokens, hidden, generator=g).to(dtype).requires_grad_()
    w = (torch.randn(vocabulary, hidden, generator=g) * 2 / hidden**0.5).to(dtype).requires_grad_()
    return x, w, torch.randint(0, vocabulary, (tokens,), generator=g), torch.randn(2, tokens, generator=g)


def assert_close(got: Tensor, truth: Tensor) -> None:
    assert got.shape == truth.shape
    assert (got - truth).abs().max() <= 2e-5


# As written in the source of each release: names, order and defaults. Where ours differ, the docstring says so.
SIGNATURES: dict[Callable[..., Any], str] = {
    adapters.selective_log_softmax: "logits, index, temperature=1.0, row_mask=None",
    TRL: "hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping=None, logit_scale=1.0, "
    "outputs=('entropy',)",
    adapters.linear_cross_entropy: "hidden, weight, labels, temperature=1.0, reduction='none', dist_process_group=None",
    adapters.FusedLinearForPPO: "chunk_size=512, impl_backend='torch'",
    adapters.FusedLinearForPPO().forward: "hidden_states, vocab_weights, input_ids, temperature=1.0",
    LIGER: "_input, weight, target, temperature=1.0, ignore_index=-100, m_tiles_per_cluster=1, return_entropy=False",
    adapters.build_step_group: "anchor_obs, index, enable_similarity=False, similarity_thresh=0.95, summarize=False",
    adapters.compute_gigpo_outcome_advantage: "token_level_rewards, step_rewards, response_mask, anchor_obs, index, "
    "traj_index, epsilon=1e-06, step_advantage_w=1.0, mode='mean_norm', enable_similarity=False, "
    "similarity_thresh=0.95, *, compute_mean_std_cross_steps=True",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures_are_the_originals(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    bare = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
    assert str(bare) == f"({SIGNATURES[function]})"


# --- TRL: selective_log_softmax ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
def test_trl_selective_log_softmax(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """One id a position, or K of them."""
    g = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 3, 101, generator=g) * 5).to(dtype).requires_grad_()
    index = torch.randint(0, 101, shape, generator=g)
    u = torch.randn(shape, generator=g)
    truth = (logits.double() / 0.7).log_softmax(-1).gather(-1, index.view(2, 3, -1)).view(shape)
    got = adapters.selective_log_softmax(logits, index.int(), 0.7)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(got, truth)
    error = relative_error(gradients((u * got).sum(), logits)[0], gradients((u * truth).sum(), logits)[0])
    assert error <= {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 5e-3}[dtype]


def test_trl_masked_tokens_are_impossible_and_spoil_nothing() -> None:
    logits = torch.randn(3, 12).index_fill(1, torch.tensor([5, 6]), -torch.inf).requires_grad_()
    index = torch.tensor([[5, 1], [5, 6], [2, 3]])
    got = adapters.selective_log_softmax(logits, index)
    truth = logits.double().log_softmax(-1).gather(-1, index)
    possible = truth.isfinite()
    assert possible.sum() == 3
    assert got[~possible].isneginf().all()
    assert_close(got[possible], truth[possible])
    gradient = gradients(got[possible].sum(), logits)[0]
    expected = gradients(logits.double().log_softmax(-1).gather(-1, index)[possible].sum(), logits)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.01, 1e6])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3)])
def test_trl_masked_tokens_score_as_in_log_softmax(dtype: torch.dtype, temperature: float, shape: Any) -> None:
    """-inf among others, NaN in a row of nothing else; the gradient of the other rows does not see them."""
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:, 5:7] = -torch.inf
    logits[2] = -torch.inf
    logits.requires_grad_()
    index = torch.tensor([[5, 1, 6], [1, 5, 11], [3, 5, 3], [6, 5, 6]])[:, : math.prod(shape) // 4].view(shape)
    truth = F.log_softmax(logits.double() / temperature, -1).gather(-1, index.view(4, -1)).view(shape)
    got = adapters.selective_log_softmax(logits, index, temperature)
    torch.testing.assert_close(got.double(), truth, rtol=2e-6, atol=2e-5, equal_nan=True)
    possible = truth.isfinite()
    assert truth.isneginf().any()
    assert truth[2].isnan().all()
    gradient, expected = (gradients(values[possible].sum(), logits)[0] for values in (got, truth))
    kept = [0, 1, 3]  # in row 2 log_softmax has NaN
    assert (gradient[2] == 0).all()
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(gradient[kept], expected[kept], rtol=tolerance, atol=tolerance / temperature)


def test_trl_one_id_a_position_makes_no_second_gradient_of_the_logits() -> None:
    """Of several ids, the distances to the likeliest have one."""
    logits = torch.randn(3, 8, requires_grad=True)
    waiting, nodes = [adapters.selective_log_softmax(logits, torch.tensor([1, 2, 3])).grad_fn], []
    while waiting:
        node = waiting.pop()
        if node is not None:
            nodes.append(node.name())
            waiting += [before for before, _ in node.next_functions]
    assert not any("Gather" in name for name in nodes)
    assert nodes.count("torch::autograd::AccumulateGrad") == 1


@pytest.mark.parametrize("several", [False, True])
def test_trl_row_mask_gives_zero_and_does_not_look_at_the_id(several: bool) -> None:
    logits = torch.randn(4, 9, requires_grad=True)
    index, mask = torch.tensor([3, -100, 8, 0]), torch.tensor([1, 0, 1, 0])
    truth = logits.double().log_softmax(-1)[[0, 2], [3, 8]]
    if several:
        index, mask, truth = (column[:, None].expand(-1, 2) for column in (index, mask, truth))
    got = adapters.selective_log_softmax(logits, index, 1.0, mask)
    assert (got[[1, 3]] == 0).all()
    assert_close(got[[0, 2]], truth)
    assert (gradients(got.sum(), logits)[0][[1, 3]] == 0).all()


# --- TRL: ChunkedLogProbFunction --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_trl_chunked_logprob(cap: float | None, scale: float) -> None:
    """Scale, then cap, then temperature; the entropy has its gradient (trl#6625)."""
    x, w, y, (u, v) = make(21, 9, 301)
    b = torch.linspace(-2, 2, 301).requires_grad_()
    z = (torch.einsum("th,vh->tv", x.double(), w.double()) + b.double()) * scale
    z = (z if cap is None else cap * torch.tanh(z / cap)) / 0.8
    truth = torch.distributions.Categorical(logits=z)
    logprob, entropy, *rest = TRL(x, w, b, y, 0.8, 8192, cap, scale, ("log_probs", "entropy"))
    assert rest == [None, None, None]
    assert entropy is not None
    assert_close(logprob, truth.log_prob(y))
    assert_close(entropy, truth.entropy())
    got = gradients((u * logprob + v * entropy).sum(), x, w, b)
    expected = gradients((u * truth.log_prob(y) + v * truth.entropy()).sum(), x, w, b)
    assert max(map(relative_error, got, expected)) <= 5e-6


def test_trl_entropy_only_where_it_is_asked_for() -> None:
    x, w, y, _ = make(4, 3, 7)
    assert TRL(x, w, None, y, 1.0, 4096, None, 1.0, ())[1] is None
    assert TRL(x, w, None, y, 1.0, 4096)[1] is not None


# As in the sources of the trainers, with what is refused. DPO's loss of another kind asks for log_sum_sq_probs too.
@pytest.mark.parametrize(
    ("trainer", "outputs", "refused"),
    [
        ("GRPO", ("log_probs", "entropy"), None),
        ("GRPO's reference", ("log_probs",), None),
        ("SFT", ("log_probs", "entropy", "is_top1"), "is_top1"),
        ("KTO", ("log_probs", "entropy", "mean_logits"), "mean_logits"),
        ("DPO", ("log_probs", "entropy", "mean_logits", "is_top1"), "mean_logits"),
    ],
)
def test_trl_trainers_are_served_or_refused(trainer: str, outputs: tuple[str, ...], refused: str | None) -> None:
    x, w, y, _ = make(4, 3, 7)
    if refused is None:
        assert_close(TRL(x, w, None, y, 1.0, 64, None, 1.0, outputs)[0], naive(x, w, y)[0])
        return
    with pytest.raises(ValueError, match=f"outputs: '{refused}' is not computed here"):
        TRL(x, w, None, y, 1.0, 64, None, 1.0, outputs)


def test_trl_a_batch_without_a_trained_token_stays_in_the_graph() -> None:
    x, w, y, _ = make(4, 3, 7)
    logprob, *_ = TRL(x[:0], w, None, y[:0], 1.0, 4096)
    assert all((g == 0).all() for g in gradients(logprob.sum(), x, w))


# --- verl -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.6, "per token"])
def test_verl_linear_cross_entropy(temperature: Any) -> None:
    """Hidden states [B, S, H] come out as [B * S]; the hidden size is no multiple of 128."""
    x, w, y, (u, v) = make(24, 9, 301)
    if temperature == "per token":
        temperature = torch.linspace(0.4, 2.0, 24)
    logprob, entropy = adapters.linear_cross_entropy(
        x.view(2, 12, 9), w, y.view(2, 12), temperature.view(2, 12) if isinstance(temperature, Tensor) else temperature,
        "none",
    )  # fmt: skip
    true_logprob, true_entropy, _ = naive(x, w, y, temperature=temperature)
    assert logprob.dtype == entropy.dtype == torch.float32
    assert_close(logprob, true_logprob)
    assert_close(entropy, true_entropy)
    got = gradients((u * logprob + v * entropy).sum(), x, w)
    expected = gradients((u * true_logprob + v * true_entropy).sum(), x, w)
    assert max(map(relative_error, got, expected)) <= 5e-6


@pytest.mark.parametrize("reduction", ["sum", "mean", "MEAN"])
def test_verl_reductions_are_of_the_log_prob_only(reduction: str) -> None:
    x, w, y, _ = make(10, 4, 33)
    logprob, entropy = adapters.linear_cross_entropy(x, w, y, 1.0, reduction)
    true_logprob, true_entropy, _ = naive(x, w, y)
    reduced = true_logprob.sum() if reduction == "sum" else true_logprob.mean()
    assert_close(logprob, reduced)
    assert_close(entropy, true_entropy)
    assert max(map(relative_error, gradients(logprob, x, w), gradients(reduced, x, w))) <= 5e-6


def test_verl_no_phantom_columns() -> None:
    """verl #2656: the last tile's missing columns entered the sum as logits of 0."""
    logprob, entropy = adapters.linear_cross_entropy(torch.zeros(3, 4), torch.zeros(1000, 4), torch.arange(3))
    theirs = -math.log(1024)
    assert abs(theirs + math.log(1000)) > 1e-2
    assert_close(logprob, torch.full((3,), -math.log(1000)))
    assert_close(entropy, torch.full((3,), math.log(1000)))


@pytest.mark.parametrize("level", [-20.0, -120.0, -300.0, 120.0])
def test_verl_logits_may_all_be_low(level: float) -> None:
    """verl starts the maximum at 0: exp(z - 0) of z < -104 is 0 in float32, and the log-prob +inf."""
    assert torch.tensor(-105.0).exp() == 0
    x, w, y, _ = make(5, 4, 1300)
    x, w = torch.cat([x, torch.ones(5, 1)], 1), torch.cat([w, torch.full((1300, 1), level)], 1)
    got = adapters.linear_cross_entropy(x, w, y)
    for value, truth in zip(got, naive(x, w, y)[:2], strict=True):
        assert (value - truth).abs().max() <= 1e-4  # float32 logits of 300 have a spacing of 3e-5


def test_verl_fused_linear_for_ppo_rounds_neither_logits_nor_entropy() -> None:
    """verl does, to the dtype of the hidden states; its log-probs are float32 ones of such logits."""
    x, w, y, _ = make(24, 8, 65, dtype=torch.bfloat16)
    head = adapters.FusedLinearForPPO(chunk_size=7, impl_backend="liger")
    logprob, entropy = head.forward(
        hidden_states=x.view(2, 12, 8), vocab_weights=w, input_ids=y.view(2, 12).int(), temperature=0.5
    )
    true_logprob, true_entropy, _ = naive(x, w, y, temperature=0.5)
    theirs = ((x @ w.t()) / 0.5).float().log_softmax(-1).gather(-1, y[:, None]).squeeze(-1)
    assert (theirs - true_logprob).abs().max() > 1e-3
    assert (true_entropy.bfloat16() - true_entropy).abs().max() > 1e-3
    assert_close(logprob, true_logprob.view(2, 12))
    assert_close(entropy, true_entropy.view(2, 12))
    assert_close(head(x, w, y)[0], naive(x, w, y)[0])
    assert not list(head.parameters())


def _verl_rank(world: World) -> tuple[Tensor, ...]:
    group = dist.group.WORLD
    x, w, y, _ = make(20, 8, 301)
    shard = w.detach()[[slice(0, 160), slice(160, 301)][world.rank]].requires_grad_()
    with torch.no_grad():
        quiet = adapters.linear_cross_entropy(x, shard, y, 0.9, "none", group)[0]
    logprob, entropy = adapters.linear_cross_entropy(x, shard, y, 0.9, "none", group)
    assert torch.equal(quiet, logprob)
    dx, dw = torch.autograd.grad(logprob.sum() + 0.3 * entropy.sum() + x.sum(), (x, shard))
    return logprob.detach(), entropy.detach(), dx - 1, dw


@pytest.mark.multirank
def test_verl_callers_sum_the_gradient_over_the_ranks(tmp_path: Any) -> None:
    first, second = on_ranks(2, _verl_rank, folder=tmp_path)
    x, w, y, _ = make(20, 8, 301)
    true_logprob, true_entropy, _ = naive(x, w, y, temperature=0.9)
    for logprob, entropy, *_ in (first, second):
        assert_close(logprob, true_logprob)
        assert_close(entropy, true_entropy)
    dx, dw = gradients(true_logprob.sum() + 0.3 * true_entropy.sum(), x, w)
    assert relative_error(first[2] + second[2], dx) <= 5e-6
    assert relative_error(torch.cat([first[3], second[3]]), dw) <= 5e-6


# --- Liger ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_liger_returns_nll_then_entropy(dtype: torch.dtype) -> None:
    """Ignored rows are 0 and give no gradient, whatever is in them; the mean is what `F.cross_entropy` gives."""
    x, w, y, (u, v) = make(22, 8, 65, dtype=dtype)
    y[::5] = -1
    x.data[::5] = torch.nan
    nll, entropy = LIGER(x, w, y, 0.7, -1, 1, True)
    clean = x.detach().nan_to_num().requires_grad_()
    true_logprob, true_entropy, _ = naive(clean, w, y, -1, temperature=0.7)
    assert nll.dtype == entropy.dtype == torch.float32
    assert_close(nll, -true_logprob)
    assert_close(entropy, true_entropy)
    got = gradients((u * nll + v * entropy).sum(), x, w)
    expected = gradients((v * true_entropy - u * true_logprob).sum(), clean, w)
    assert (got[0][::5] == 0).all()
    assert max(map(relative_error, got, expected)) <= (5e-6 if dtype == torch.float32 else 5e-3)
    mean = F.cross_entropy(clean.double() @ w.double().t() / 0.7, y, ignore_index=-1)
    assert_close(nll.sum() / (y != -1).sum().clamp_min(1), mean)


def test_liger_entropy_is_a_choice_and_may_be_alone_in_the_loss() -> None:
    x, w, y, _ = make(6, 8, 16)
    alone = LIGER(x, w, y)
    assert isinstance(alone, Tensor)
    assert_close(alone, -naive(x, w, y)[0])
    _, entropy = LIGER(x, w, y, return_entropy=True)
    got, expected = gradients(entropy.sum(), x, w), gradients(naive(x, w, y)[1].sum(), x, w)
    assert max(map(relative_error, got, expected)) <= 5e-6
    assert LIGER(x[:0], w, y[:0]).shape == (0,)


# --- what is refused --------------------------------------------------------------------------------------------------

X, W, Y = torch.zeros(4, 3), torch.zeros(7, 3), torch.tensor([0, 6, 2, 1])
LOGITS = torch.zeros(2, 2, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adapters.selective_log_softmax(LOGITS, Y.view(2, 2), 0.0), "temperature = 0.0 must be > 0"),
        (lambda: adapters.selective_log_softmax(LOGITS, Y.view(2, 2) + 1), r"^index\[0, 1\] = 7 is outside"),
        (lambda: adapters.selective_log_softmax(LOGITS, Y.view(2, 2).double()), "^index have dtype torch.float64"),
        (lambda: adapters.selective_log_softmax(LOGITS, Y), r"index \(4,\) must be \[...\] or"),
        (lambda: adapters.selective_log_softmax(LOGITS, Y[:0].view(2, 2, 0)), r"index \(2, 2, 0\) must be \[...\] or"),
        (lambda: adapters.selective_log_softmax(LOGITS, Y.view(1, 2, 2)), r"index \(1, 2, 2\) must be \[...\] or"),
        (lambda: adapters.selective_log_softmax(LOGITS, LOGITS.long() - 1), r"^index\[0, 0, 0\] = -1 is outside"),
        (lambda: adapters.selective_log_softmax(LOGITS, Y.view(2, 2), 1.0, Y), r"row_mask \(4,\) must have the shape"),
        (lambda: TRL(X, W, None, Y + 1, 1.0, 64), r"targets\[1\] = 7 is outside the vocabulary \[0, 7\)"),
        (lambda: TRL(X, W, None, Y, 0.0, 64), "temperature = 0.0 must be > 0"),
        (lambda: TRL(X, W, X, Y, 1.0, 64), r"bias \(4, 3\) must be \[V\] = \[7\]"),
        (lambda: TRL(X, W, None, Y, 1.0, 64, None, 0.0), "logit_scale = 0.0 must be > 0; multiply hidden"),
        (lambda: TRL(X, W, None, Y, 1.0, 64, None, 1.0, ("is_top1",)), "outputs: 'is_top1' is not computed here"),
        (lambda: adapters.linear_cross_entropy(X, W, Y, 1.0, "max"), "reduction = 'max' must be one of 'none', 'sum'"),
        (lambda: adapters.linear_cross_entropy(X, W, Y + 1), r"^labels\[1\] = 7 is outside"),
        (lambda: adapters.linear_cross_entropy(X, W, Y[:2]), r"^labels \(2,\) must be \[T\] = \[4\]"),
        (lambda: adapters.linear_cross_entropy(X, W, Y, torch.zeros(4)), r"^temperature\[0\] = 0.0 must be > 0"),
        (lambda: adapters.FusedLinearForPPO()(X, W, Y + 1), r"^input_ids\[1\] = 7 is outside"),
        (
            lambda: adapters.FusedLinearForPPO()(X, W.t(), Y),
            r"^hidden_states \(4, 3\) and vocab_weights \(3, 7\) must be .* with one H; vocab_weights seems to be",
        ),
        (lambda: adapters.FusedLinearForPPO()(X, W, Y[:2]), r"input_ids \(2,\) must have the leading shape of hidden"),
        (lambda: LIGER(X, W, Y - 1), r"^target\[0\] = -1 is outside .* and is not ignore_index \(-100\)"),
        (lambda: LIGER(X, W.t(), Y), r"^_input \(4, 3\) and weight \(3, 7\) must be"),
    ],
)  # fmt: skip
def test_wrong_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
