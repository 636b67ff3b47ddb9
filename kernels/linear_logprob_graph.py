"""`linear_logprob` as one operator of a graph, for torch.compile: nothing in it is traced, so `fullgraph=True` works.

What depends on values (a target outside the vocabulary, rows to skip) happens inside the operator, when it runs. Its
gradient is an operator too, from what the forward pass saved. Logits are not kept for it: four GEMMs on every device.

Legend: T tokens, H hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from .checks import Rows
from .projection import LogitMap, Normaliser, SoftmaxGrad, compute_dtype, late_columns


@torch.library.custom_op("siri::linear_logprob", mutates_args=())
def linear_logprob_graph(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    temperature_T: Tensor | None,
    softcap: float | None,
    ignore_index: int,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(logprob, entropy, lse, and for the backward pass the rounded entropy and the two of `Normaliser`), each [T].

    Arguments as in `linear_logprob`; `temperature_T` takes the place of `temperature` where it is given.
    """
    from .linear_logprob import logprob_outputs  # here: it imports this file

    logprob, entropy, lse, rounded, peak, total = logprob_outputs(
        hidden, weight, targets, bias=bias, temperature=temperature if temperature_T is None else temperature_T,
        softcap=softcap, ignore_index=ignore_index, with_entropy=with_entropy,
    )  # fmt: skip
    return logprob, entropy, lse, rounded, peak, total


@linear_logprob_graph.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    dtype = compute_dtype(hidden, weight, bias)
    return tuple(hidden.new_empty(hidden.shape[:1], dtype=dtype) for _ in range(6))


@torch.library.custom_op("siri::linear_logprob_backward", mutates_args=())
def linear_logprob_graph_backward(
    g_logprob: Tensor,
    g_entropy: Tensor | None,
    g_lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    temperature_T: Tensor | None,
    softcap: float | None,
    ignore_index: int,
    entropy: Tensor,
    peak: Tensor,
    total: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (hidden, weight, bias), dense; [0] where `needs` says no."""
    from .linear_logprob import input_gradients

    kept = targets != ignore_index
    late = late_columns(Rows.of(kept).pick(hidden), weight)  # as the forward pass found them
    upstream = [None if g is None else torch.where(kept, g, 0) for g in (g_logprob, g_entropy, g_lse)]
    logit_map = LogitMap(temperature=temperature if temperature_T is None else temperature_T, softcap=softcap)
    found = input_gradients(
        hidden, weight, bias, targets.long(), logit_map, SoftmaxGrad.from_upstream(entropy, *upstream),
        Normaliser(peak, total), needs=(needs[0], needs[1], needs[2]), late=late,
    )  # fmt: skip
    dx, dw, db = (hidden.new_empty(0) if g is None else g.contiguous() for g in found)
    return dx, dw, db


@linear_logprob_graph_backward.register_fake
def _(
    g_logprob: Tensor, g_entropy: Tensor | None, g_lse: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    leaves = zip((hidden, weight, bias), others[-1], strict=True)
    dx, dw, db = (hidden.new_empty(0) if t is None or not need else t.new_empty(t.shape) for t, need in leaves)
    return dx, dw, db


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, ctx.temperature, temperature_T, ctx.softcap, ctx.ignore_index, ctx.entropy = inputs
    _, _, _, *remade = output
    ctx.mark_non_differentiable(*remade)
    ctx.save_for_backward(hidden, weight, bias, targets, temperature_T, *remade)


def _backward(ctx: Any, g_logprob: Tensor, g_entropy: Tensor, g_lse: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, targets, temperature_T, *saved = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    found = linear_logprob_graph_backward(
        g_logprob, g_entropy if ctx.entropy else None, g_lse, hidden, weight, bias, targets, ctx.temperature,
        temperature_T, ctx.softcap, ctx.ignore_index, *saved, list(needs),
    )  # fmt: skip
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), *[None] * 6)


linear_logprob_graph.register_autograd(_backward, setup_context=_save)
