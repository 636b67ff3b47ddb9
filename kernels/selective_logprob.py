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

from .checks import Rows, check_targets, check_temperature, check_tensors
from .dispatch import untraced, use_triton
from .first_order import first_order
from .projection import LOGIT_FLOOR, LogitMap, Normaliser, SoftmaxGrad, blocks, compute_dtype, softmax_stats_

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
        """`logits` [..., V]; targets and outputs [N]."""
        ctx.set_materialize_grads(False)
        out = logits.new_empty(4, len(targets), dtype=compute_dtype(logits))
        on_triton = use_triton(logits)
        for part, rows in row_parts(logits, whole=on_triton):
            if on_triton:
                stats = triton_logits(part, logit_map.select(rows)).stats(targets[rows])
            else:
                z = part.to(out.dtype, copy=True).clamp_(min=LOGIT_FLOOR)
                logit_map.select(rows).apply_(z)
                stats = softmax_stats_(z, targets[rows], targets[rows] >= 0)
            out[:, rows] = torch.stack([stats.logprob, stats.entropy, *stats.normaliser])
        logprob, entropy, *normaliser = (row.clone() for row in out)
        ctx.save_for_backward(logits, targets, logit_map.tensor, entropy, *normaliser)
        ctx.logit_map = logit_map
        return logprob, entropy

    @staticmethod
    @first_order
    def backward(
        ctx: Any, saved: tuple[Tensor, ...], g_logprob: Tensor | None, g_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits, targets, _, entropy, peak, total = saved
        grad = SoftmaxGrad.from_upstream(entropy, g_logprob, g_entropy)
        on_triton, dlogits = use_triton(logits), torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        flat = dlogits.view(len(targets), logits.shape[-1])
        for part, rows in row_parts(logits, whole=on_triton):
            norm, logit_map = Normaliser(peak[rows], total[rows]), ctx.logit_map.select(rows)
            if on_triton:
                draw, scale = triton_logits(part, logit_map, flat[rows]).grad(grad.select(rows), norm, targets[rows])
                if scale is not None:
                    draw.mul_(scale)
                continue
            z = part.to(peak.dtype, copy=True).clamp_(min=LOGIT_FLOOR)
            slope = logit_map.apply_(z)
            z.sub_(norm.peak[:, None])
            dz = grad.select(rows).logits_(z, norm.log_total, targets[rows], targets[rows] >= 0)
            flat[rows] = dz if slope is None else dz.mul_(slope)
        return dlogits, None, None


def row_parts(logits: Tensor, *, whole: bool) -> Iterator[tuple[Tensor, slice]]:
    """logits[..., V] as matrices without a copy, one after the other, with the rows of [N] that they are.

    `whole`: as few as there can be; else of `BLOCK_ELEMENTS` at most.
    """
    start = 0
    for matrix in matrices(logits):
        size = len(matrix) if whole else BLOCK_ELEMENTS // max(1, matrix.shape[1])
        for rows in blocks(len(matrix), max(1, size)):
            yield matrix[rows], slice(start + rows.start, start + rows.stop)
        start += len(matrix)


def matrices(logits: Tensor) -> Iterator[Tensor]:
    """Views [n, V] that make up logits[..., V]: several where rows have no one stride, as after `logits[:, :-1]`."""
    try:
        yield logits.view(-1, logits.shape[-1]) if logits.numel() else logits.reshape(0, logits.shape[-1])
    except RuntimeError:  # torch's word for: not without a copy
        for part in logits:
            yield from matrices(part)


def triton_logits(logits: Tensor, logit_map: LogitMap, place: Tensor | None = None) -> "TritonLogits":
    """logits [n, V] as the row kernels take them: rows of adjacent elements. `place` is for their gradient."""
    from .logit_map_triton import inverse_temperature  # here: triton is not everywhere
    from .softmax_triton import TritonLogits

    raw = logits if logits.stride(1) == 1 else logits.contiguous()
    inverse = inverse_temperature(logit_map, logits)
    return TritonLogits(raw=raw, bias=None, inverse_temperature=inverse, softcap=None, dtype=logits.dtype, place=place)


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
    check_tensors(
        logits=logits, targets=targets, **({"temperature": temperature} if isinstance(temperature, Tensor) else {})
    )
    if not logits.is_floating_point() or logits.ndim == 0:
        raise ValueError(f"logits {tuple(logits.shape)} of {logits.dtype} must be floating-point [..., V]")
    shape, vocabulary = logits.shape[:-1], logits.shape[-1]
    if targets.shape != shape:
        raise ValueError(f"targets {tuple(targets.shape)} must have the leading shape of logits {tuple(logits.shape)}")
    targets = check_targets(targets, vocabulary, ignore_index=None).reshape(-1)
    if isinstance(temperature, Tensor) and temperature.ndim != 0 and temperature.shape != shape:
        raise ValueError(
            f"temperature {tuple(temperature.shape)} must be a number or have the shape of targets {tuple(shape)}"
        )
    check_temperature(temperature, Rows(index=slice(None)))
    if isinstance(temperature, Tensor) and temperature.ndim != 0:
        temperature = temperature.reshape(-1)
    logprob, entropy = SelectiveLogprob.apply(logits, targets, LogitMap(temperature=temperature, softcap=None))
    return (logprob.view(shape), entropy.view(shape)) if return_entropy else logprob.view(shape)
