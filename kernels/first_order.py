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
    def forward(ctx: Any, num_anchors: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Anchors, which a search for gradients may come from, and then what is returned: the gradients."""
        return tuple(None if g is None else g.view_as(g) for g in tensors[num_anchors:])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "this operation of siri.kernels has no second derivative; for a gradient penalty take the same call with "
            'backend = "reference", or selective_logprob\'s logits through torch.log_softmax'
        )


def first_order(backward: Backward) -> Backward:
    """Torch's own `once_differentiable` looks at the upstream gradient alone. That of a sum needs none, and then a
    gradient penalty had no effect, without a word.

    `backward` is called with (ctx, saved tensors, upstream gradients): checkpoints unpack what is saved once, no more.
    Among it has to be something of each input with a gradient: `torch.autograd.grad` goes only where one of the tensors
    lies that it was asked about.
    """

    @functools.wraps(backward)
    def call(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        with torch.no_grad():
            gradients = backward(ctx, saved, *upstream)
        if not torch.is_grad_enabled():
            return gradients
        anchors = [t for t in (*saved, *upstream) if t is not None and t.requires_grad]
        return FirstOrder.apply(len(anchors), *anchors, *gradients)

    return call


def trace_of(*inputs: Tensor | None) -> list[Tensor | None]:
    """Empty tensors that depend on the inputs without holding their memory, to be saved in their stead."""
    return [None if t is None or not t.requires_grad else t[:0].clone() for t in inputs]
