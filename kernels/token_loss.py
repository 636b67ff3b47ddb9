"""Losses that need the logits of one token at a time: their gradient is taken in the forward pass.

A chunk of whole rows is projected, the loss says what it is and what its gradient by the logits is, and that is
multiplied back at once: three GEMMs of 2THV operations instead of the four of a recomputing backward pass, which here
only scales. Chunks hold whole rows, because the gradient of a row needs its normaliser.

Legend: T tokens, H hidden, V vocabulary, n rows of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor

from .exact_logits import dominated_rows, exact_logits, largest_columns, peak_error, put_
from .first_order import first_order, trace_of
from .gemm import factor_dtype, mm
from .projection import (
    LogitMap,
    Normaliser,
    RawGrad,
    SoftmaxGrad,
    SoftmaxStats,
    blocks,
    compute_dtype,
    full_precision,
    late_columns,
    raw_logits,
    softmax_stats_,
)
from .weight_gradient import WeightGradient

if TYPE_CHECKING:
    from .softmax_triton import TritonLogits

CHUNK_ELEMENTS = 6 * 2**20
"""Logits in one chunk: 128 rows of 49152 (24 MiB in float32). GEMMs ran at 72 to 80 GFLOP/s a core (Zen 4) from 128
rows up, at 50 to 65 with 64; above 32 MiB glibc maps new pages for every temporary (3 ns an element)."""

GPU_CHUNK_ELEMENTS = 140_000_000
"""560 MB of float32 logits, whose place dz takes; 896 rows of 152k. Each chunk reads and writes the float32 gradient of
the weight once (an estimate for [152k, 3584] on an H100: 1.3 ms, behind products that take 1.4): half the rows would
show in the time, twice as many in the memory."""

FACTOR_ROWS = 4096
"""Of a gradient, at a time: 59 MB in float32 where H = 3584."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchLogits:
    """z[n, V] of a chunk with dz/draw; whoever asks for something spends it."""

    z: Tensor
    slope: Tensor | None
    factors: tuple[Tensor, Tensor, Tensor | None, LogitMap]
    """What z was made of: x[n, H], weight[V, H], bias[V], and the map of these rows."""

    def stats(self, targets: Tensor) -> SoftmaxStats:
        """`SoftmaxStats` [n]; every target is in the vocabulary."""
        stats = softmax_stats_(self.z, targets, targets >= 0)
        if len(rows := dominated_rows(stats)):
            stats = stats._replace(error=peak_error(stats, rows, largest_columns(self.z, rows), *self.factors))
        return stats

    def grad(self, grad: SoftmaxGrad, normaliser: Normaliser, targets: Tensor) -> RawGrad:
        """dLoss/draw, after `stats`, which has taken the peak away."""
        return self.raw_grad(grad.logits_(self.z, normaliser.log_total, targets, targets >= 0))

    def raw_grad(self, dz: Tensor) -> RawGrad:
        """dLoss/draw from dLoss/dz [n, V], which is spent."""
        return RawGrad(values=dz if self.slope is None else dz.mul_(self.slope), scale=None)


Logits = Union[TorchLogits, "TritonLogits"]

ChunkLoss = Callable[[Logits, slice, bool], tuple[Tensor, RawGrad | None]]
"""(logits of a chunk, its rows, whether a gradient is wanted) -> (the chunk's summed loss, dLoss/draw)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A projection in the dtype that its factors are multiplied in."""

    weight: Tensor
    """[V, H]"""
    bias: Tensor | None
    """[V]"""
    on_triton: bool
    late: Tensor | None = None
    """see `late_columns`"""

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, *, on_triton: bool, dtype: torch.dtype) -> "Head":
        """Plain torch multiplies in `dtype`, tensor cores multiply halves as they are."""
        if on_triton:
            return cls(weight=weight.to(factor_dtype(hidden, weight)), bias=bias, on_triton=True)
        bias = None if bias is None else bias.to(dtype)
        return cls(weight=weight.to(dtype), bias=bias, on_triton=False, late=late_columns(hidden, weight))

    def factor(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.weight.dtype)

    def logits(self, x: Tensor, logit_map: LogitMap, targets: Tensor | None = None) -> Logits:
        """Of x[n, H], which `factor` returned; the logit of `targets` i64[n], if given, is exact."""
        if self.on_triton:
            from .exact_logits_triton import raw_slab, raw_target_logits  # here: triton is not everywhere
            from .logit_map_triton import inverse_temperature
            from .softmax_triton import TritonLogits

            if targets is None:
                raw = mm(x, self.weight.t())
            else:
                raw = raw_slab(x, self.weight, targets, raw_target_logits(x, self.weight, targets))
            return TritonLogits(
                raw=raw, bias=self.bias, softcap=logit_map.softcap, dtype=x.dtype, spendable=True,
                inverse_temperature=inverse_temperature(logit_map, x),
                factors=None if targets is None else (x, self.weight),
            )  # fmt: skip
        z = raw_logits(x, self.weight, self.bias, self.late)
        if targets is not None:
            put_(z, targets, targets >= 0, exact_logits(x, self.weight, self.bias, targets))
        slope = logit_map.apply_(z)
        return TorchLogits(z=z, slope=slope, factors=(x, self.weight, self.bias, logit_map))

    def chunk_rows(self) -> int:
        if self.on_triton:
            return max(128, GPU_CHUNK_ELEMENTS // max(1, len(self.weight)) // 128 * 128)
        return max(64, min(1024, CHUNK_ELEMENTS // max(1, len(self.weight))))


class TokenLoss(torch.autograd.Function):
    """Sum over tokens of a loss, by chunks of whole rows."""

    @classmethod
    def run(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        logit_map: LogitMap,
        targets: Tensor | None,
        chunk_loss: ChunkLoss,
        on_triton: bool,
    ) -> Tensor:
        """The loss, 0-dim. No gradient is formed where autograd is off. `targets` i64[T]: see `Head.logits`."""
        if not torch.is_grad_enabled():
            hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
        trace = trace_of(hidden, weight, bias)
        return cls.apply(hidden, weight, bias, logit_map, targets, chunk_loss, on_triton, *trace)

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        logit_map: LogitMap,
        targets: Tensor | None,
        chunk_loss: ChunkLoss,
        on_triton: bool,
        *trace: Tensor | None,
    ) -> Tensor:
        need_x, need_w, need_b = ctx.needs_input_grad[:3]
        dtype = compute_dtype(hidden, weight, bias)
        head = Head.of(hidden, weight, bias, on_triton=on_triton, dtype=dtype)
        dx = torch.empty_like(hidden, dtype=kept_dtype(hidden)) if need_x else None
        dw = WeightGradient(weight, dtype=kept_dtype(weight), sum_dtype=dtype) if need_w else None
        db = torch.zeros_like(bias, dtype=dtype) if need_b and bias is not None else None
        loss = hidden.new_zeros((), dtype=dtype)
        with full_precision(hidden.device):
            for rows in blocks(len(hidden), head.chunk_rows()):
                x = head.factor(hidden[rows])
                logits = head.logits(x, logit_map.select(rows), None if targets is None else targets[rows])
                chunk, grad = chunk_loss(logits, rows, any(ctx.needs_input_grad))
                loss += chunk
                if grad is None:
                    continue
                draw, scale = grad
                if dx is not None:
                    dx_rows = mm(draw, head.weight)
                    dx[rows] = dx_rows if scale is None else dx_rows.mul_(scale)
                if dw is not None:
                    dw.add_(draw, x, scale)
                if db is not None:
                    db_chunk = draw.sum(0, dtype=dtype)
                    db += db_chunk if scale is None else db_chunk.mul_(scale)
                del logits, grad, draw  # else they live on beside the next chunk's
        ctx.save_for_backward(
            dx,
            None if dw is None else dw.rounded(),
            None if db is None or bias is None else db.to(kept_dtype(bias)),
            *trace,
        )
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, saved: tuple[Tensor | None, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(saved[:3], ctx.dtypes, strict=True)
        return (*(None if g is None else scaled(g, grad, dtype) for g, dtype in gradients), *[None] * 7)


def kept_dtype(leaf: Tensor) -> torch.dtype:
    """Of a gradient that waits for its factor: loss scaling rescues float16 only from what is not float16 yet."""
    return torch.float32 if leaf.dtype == torch.float16 else leaf.dtype


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * factor, 0-dim, in `dtype`. Multiplied in the factor's dtype: bfloat16 would round 0.05 by 0.1%."""
    # `loss.backward()` passes 1: the [V, H] gradient is handed on uncopied. On a GPU looking would be a sync.
    if gradient.dtype == dtype and factor.device.type == "cpu" and factor.item() == 1.0:
        return gradient
    out = torch.empty_like(gradient, dtype=dtype)
    for rows in blocks(len(gradient), FACTOR_ROWS):
        out[rows] = gradient[rows].to(factor.dtype) * factor
    return out
