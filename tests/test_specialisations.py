"""How many versions of each Triton kernel a run compiles: Triton's own specialisation keys, without a GPU.

The kernels are not run, only asked for the version that their arguments want; what the ops return is worthless here.
"""

import contextlib
import importlib
from collections import defaultdict
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit

from siri.kernels import (
    gigpo_advantage,
    linear_logprob,
    linear_logprob_triton,
    linear_policy_loss,
    masked_distill_loss,
    selective_logprob,
)

OPS = ("linear_logprob", "policy_loss", "distill_loss", "gigpo_advantage", "selective_logprob")


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Names of kernels with the versions asked for so far, as on an sm_90."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    known: dict[str, set[str]] = defaultdict(set)

    def ask(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        bind = jit.create_function_from_signature(self.signature, self.params, backend)
        _, specialisation, chosen = bind(*args, **options, debug=False)
        known[self.fn.__name__].add(f"{specialisation} {chosen}")

    monkeypatch.setattr(jit.JITFunction, "run", ask)
    for name in OPS:
        monkeypatch.setattr(importlib.import_module(f"siri.kernels.{name}"), "use_triton", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(linear_logprob_triton, "multiprocessors", lambda _: 132)
    return known


def call_all(tokens: int) -> None:
    """Every op, with as many tokens and a temperature of their own."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 64, generator=g).bfloat16().requires_grad_()
    w = torch.randn(1003, 64, generator=g).bfloat16().requires_grad_()
    y, ones = torch.randint(0, 1003, (tokens,), generator=g), torch.ones(tokens)
    options: dict[str, Any] = {"temperature": tokens / 100, "denominator": tokens}
    logprob, entropy = linear_logprob(x, w, y, temperature=tokens / 100, return_entropy=True)
    (logprob + entropy).nan_to_num().sum().backward()
    linear_policy_loss(x, w, y, ones, None, entropy_coef=0.1, **options)
    masked_distill_loss(x, w, y, ones, **options)
    masked_distill_loss(x, w, y, ones, divergence="jsd", teacher_hidden=x.detach(), **options)
    logits = (x @ w.t()).detach().requires_grad_()
    sum(selective_logprob(logits, y, return_entropy=True)).sum().backward()
    rows = 7 * tokens
    traj = torch.arange(rows) // 7
    columns = (traj, traj // 8, traj // 8 * 40 + torch.arange(rows) % 40, torch.ones(rows, dtype=torch.bool))
    gigpo_advantage(torch.rand(rows, generator=g), *columns, gamma=0.9, omega=1.0)


@pytest.mark.parametrize("launch", ["TMA_SM90", "POINTER_HALF"])
def test_another_number_of_tokens_or_temperature_compiles_nothing(
    launch: str, versions: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = getattr(linear_logprob_triton, launch)
    monkeypatch.setattr(linear_logprob_triton, "choose_launch", lambda *_: chosen)
    monkeypatch.setattr(linear_logprob_triton, "SLAB", 2**20)
    call_all(100)  # one slab of all columns, whose number is odd
    call_all(2048)  # slabs of a multiple of 256 columns: row kernels are compiled for either kind
    first = {name: len(keys) for name, keys in versions.items()}
    assert {"row_stats_kernel", "logit_grad_kernel", "divergence_kernel", "score_kernel", "merge_tiles_kernel"} <= set(
        first
    )
    for tokens in (1, 16, 17, 129, 1000, 1024):
        call_all(tokens)
        assert {name: len(keys) for name, keys in versions.items()} == first, tokens
