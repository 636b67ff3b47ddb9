"""Logits that wait for the backward pass in the memory of the weight's gradient: how many, and that nothing changes.

About the path without Triton; `linear_logprob` has one case of it on a CPU, whatever the number of tokens.
"""

import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from siri.kernels import linear_logprob
from siri.kernels.dispatch import use_triton

module: Any = importlib.import_module("siri.kernels.linear_logprob")  # the package attribute is the function

pytestmark = pytest.mark.skipif(
    use_triton(torch.zeros(1)), reason="the Triton kernels recompute the logits in chunks of their own"
)

TOKENS_A_BLOCK, COLUMNS_A_BLOCK = 5, 7


def run(x: Tensor, w: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch, *, keep: bool) -> tuple[int, list[Tensor]]:
    """(blocks of logits made, [logprob, entropy, gradients of x and w])."""
    made = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "TOKEN_BLOCK", TOKENS_A_BLOCK)
        patch.setattr(module, "VOCAB_BLOCK", COLUMNS_A_BLOCK)
        raw_logits = module.raw_logits
        patch.setattr(module, "raw_logits", lambda *a: made.append(1) or raw_logits(*a))
        if not keep:
            patch.setattr(module, "_room_for_logits", lambda *_: None)
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
    # Block by block from the front, as long as the floats of the gradient last.
    fits = [s * max(rows, width) + rows * min(COLUMNS_A_BLOCK, vocabulary - s) <= vocabulary * width for s in starts]
    assert made == made_anew - token_blocks * sum(fits)
    if rows <= width:
        assert all(fits)


@pytest.mark.parametrize(
    ("change", "kept"),
    [({}, True), ({"weight_needs_gradient": False}, False), ({"half": True}, False), ({"no_grad": True}, False)],
)
def test_memory_is_taken_only_where_a_gradient_will_use_it(change: dict[str, bool], kept: bool) -> None:
    w = torch.zeros(30, 4, dtype=torch.bfloat16 if change.get("half") else torch.float32)
    w.requires_grad_(change.get("weight_needs_gradient", True))
    with torch.set_grad_enabled(not change.get("no_grad", False)):
        assert (module._room_for_logits(torch.zeros(3, 4), w, None, 3) is not None) is kept


def test_rows_without_an_upstream_gradient_fall_back_to_making_logits_again() -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(9, 12, generator=g).requires_grad_(), torch.randn(20, 12, generator=g).requires_grad_()
    y = torch.arange(9)
    upstream = torch.tensor([1.0, 0, 2, 0, 0, -1, 0, 3, 0])
    got = torch.autograd.grad(linear_logprob(x, w, y), [x, w], upstream)
    expected = torch.autograd.grad(torch.log_softmax(x @ w.t(), -1)[torch.arange(9), y], [x, w], upstream)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
