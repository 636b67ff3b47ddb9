"""Log-probability and entropy of tokens from logits that already exist.

    z = max(logits, -1e30) / temperature in float32
    logprob = z[target] - lse(z)      entropy = lse(z) - sum_v p_v z_v

    dlogits_v = (g_logprob (1[v = target] - p_v) - g_entropy p_v (log p_v + entropy)) / temperature

Ids that were masked with -inf have probability 0; the floor keeps 0 * inf out of the entropy.

Rows are taken a block at a time: the only tensor of the size of the logits that this makes is their gradient.

Legend: ... any leading shape, V vocabulary, N rows (the product of the leading shape), n rows of one block.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import untraced, use_triton
from .projection import (
    LOGIT_FLOOR,
    LogitMap,
    SoftmaxGrad,
    blocks,
    check_targets,
    check_temperature,
    check_whole,
    compute_dtype,
    softmax_stats_,
)

if TYPE_CHECKING:
    from .softmax_triton import TritonLogits

BLOCK_ELEMENTS = 2**20
"""Logits in one block: 4 MiB in float32, in cache for the handful of passes over it."""


def selective_logprob_ref(logits: Tensor, targets: Tensor, temperature: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """The definition, in one piece: (logprob, entropy) of logits [N, V], targets [N]."""
    raw = logits.to(compute_dtype(logits)).clamp(min=LOGIT_FLOOR)
    logp = torch.log_softmax(LogitMap(temperature=temperature, softcap=None).ref(raw), dim=-1)
    return logp.gather(1, targets.long()[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


class SelectiveLogprob(torch.autograd.Function):
    """Blocks of whole rows, or Triton's row kernels; recomputed for the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, logit_map: LogitMap) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        if use_triton(logits):
            stats = triton_logits(logits, logit_map).stats(targets)
            logprob, entropy, lse = stats.logprob, stats.entropy, stats.lse
        else:
            out = logits.new_empty(3, len(logits), dtype=compute_dtype(logits))
            for rows in row_blocks(logits):
                z = logits[rows].to(out.dtype, copy=True).clamp_(min=LOGIT_FLOOR)
                logit_map.select(rows).apply_(z)
                stats = softmax_stats_(z, targets[rows], targets[rows] >= 0)
                out[:, rows] = torch.stack([stats.logprob, stats.entropy, stats.lse])
            logprob, entropy, lse = (row.clone() for row in out)
        ctx.save_for_backward(logits, targets, entropy, lse)
        ctx.logit_map = logit_map
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_logprob: Tensor | None, g_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, targets, entropy, lse = ctx.saved_tensors
        grad = SoftmaxGrad.from_upstream(entropy, g_logprob, g_entropy)
        if use_triton(logits):
            draw, scale = triton_logits(logits, ctx.logit_map).grad(grad, lse, targets)
            return draw if scale is None else draw.mul_(scale), None, None
        dlogits = torch.empty_like(logits)
        for rows in row_blocks(logits):
            z = logits[rows].to(lse.dtype, copy=True).clamp_(min=LOGIT_FLOOR)
            slope = ctx.logit_map.select(rows).apply_(z)
            dz = grad.select(rows).logits_(z, lse[rows], targets[rows], targets[rows] >= 0)
            dlogits[rows] = dz if slope is None else dz.mul_(slope)
        return dlogits, None, None


def triton_logits(logits: Tensor, logit_map: LogitMap) -> "TritonLogits":
    """logits [N, V] as the row kernels take them: rows of adjacent elements."""
    from .softmax_triton import TritonLogits, inverse_temperature  # here: triton is not everywhere

    raw = logits if logits.stride(1) == 1 else logits.contiguous()
    inverse = inverse_temperature(logit_map, logits)
    return TritonLogits(
        raw=raw, bias=None, inverse_temperature=inverse, softcap=None, dtype=logits.dtype, spendable=False
    )


def row_blocks(logits: Tensor) -> Iterator[slice]:
    return blocks(len(logits), max(1, BLOCK_ELEMENTS // logits.shape[1]))


@overload
def selective_logprob(
    logits: Tensor, targets: Tensor, *, temperature: float | Tensor = 1.0, return_entropy: Literal[False] = False
) -> Tensor: ...
@overload
def selective_logprob(
    logits: Tensor, targets: Tensor, *, temperature: float | Tensor = 1.0, return_entropy: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@untraced
def selective_logprob(
    logits: Tensor, targets: Tensor, *, temperature: float | Tensor = 1.0, return_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """log p(targets) under softmax(logits / temperature), and the entropy.

    Args:
        logits: [..., V], any float dtype; not changed. -inf (or less than -1e30) masks an id: it has probability 0
            and no gradient, and must not be a target (its log-prob would be about -1e30 / temperature).
        targets: i32 or i64 [...], token ids.
        temperature: a positive number, or [...]. Receives no gradient.
        return_entropy: also return the entropy; both are differentiable.

    Returns:
        logprob [...] (, entropy [...]) in nats; float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes that do not fit, a target outside the vocabulary (it is named), or a temperature that is
            not > 0.
    """
    check_whole(logits=logits)
    shape, vocabulary = logits.shape[:-1], logits.shape[-1]
    if targets.shape != shape:
        raise ValueError(f"targets {tuple(targets.shape)} must have the leading shape of logits {tuple(logits.shape)}")
    if isinstance(temperature, Tensor) and temperature.ndim != 0:
        if temperature.shape != shape:
            raise ValueError(
                f"temperature {tuple(temperature.shape)} must be a number or have the shape of targets {tuple(shape)}"
            )
        temperature = temperature.reshape(-1)
    check_targets(targets, vocabulary, ignore_index=None)
    check_temperature(temperature, slice(None))
    logit_map = LogitMap(temperature=temperature, softcap=None)
    logprob, entropy = SelectiveLogprob.apply(logits.reshape(-1, vocabulary), targets.reshape(-1).long(), logit_map)
    return (logprob.view(shape), entropy.view(shape)) if return_entropy else logprob.view(shape)
