"""Backward passes that have no derivative of their own."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


class FirstOrder(torch.autograd.Function):
    """Gradients that pass on no gradient: whoever asks for one is told."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else g.view_as(g) for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "this operation of siri.kernels has no second derivative; for a gradient penalty take the same call with "
            'backend = "reference", or selective_logprob\'s logits through torch.log_softmax'
        )


def first_order(backward: Backward) -> Backward:
    """Torch's own `once_differentiable` looks at the upstream gradient alone. That of a sum needs none, and then a
    gradient penalty had no effect, without a word."""

    @functools.wraps(backward)
    def call(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        if not torch.is_grad_enabled():
            return gradients
        return FirstOrder.apply(torch.zeros((), requires_grad=True), *gradients)

    return call
