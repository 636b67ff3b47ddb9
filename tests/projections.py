"""Independent float64 definitions for the tests of the `linear_*` kernels, and a meter of what a call allocates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def naive_log_softmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(log p [T, V], lse [T]) in float64, differentiable."""
    z = torch.einsum("th,vh->tv", hidden.double(), weight.double())
    if bias is not None:
        z = z + bias.double()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    z = z / (temperature.double()[:, None] if isinstance(temperature, Tensor) else temperature)
    lse = z.logsumexp(1)
    return z - lse[:, None], lse


def naive(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, **head: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob, entropy, lse) in float64, 0 in ignored rows."""
    log_p, lse = naive_log_softmax(hidden, weight, **head)
    kept = targets != ignore_index
    logprob = log_p[torch.arange(len(targets)), targets.long().clamp(min=0)]
    entropy = -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(1)
    return tuple(torch.where(kept, value, 0.0) for value in (logprob, entropy, lse))  # type: ignore[return-value]


def gradients(value: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Gradients of a scalar, in float64."""
    return [g.double() for g in torch.autograd.grad(value, leaves, retain_graph=True)]


def relative_error(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected||, Frobenius."""
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@dataclass
class Meter(TorchDispatchMode):
    """Watches every operator, those inside autograd functions and backward passes included."""

    largest: int = 0
    """Elements of the largest tensor that any operator made, views and in-place results apart."""

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.numel())
        return out
