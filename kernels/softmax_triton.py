"""Triton kernels on logits that are in memory: statistics of each row, and the gradient of each logit.

    z_tv = cap(raw_tv + b_v) / temperature_t
    peak, total, moment, target of row t: see `SoftmaxStats`
    draw_tv = slope_tv (p_tv (p_t + p_logp_t logp_tv) + target_t 1[v = y_t]) / scale: see `SoftmaxGrad`

Row kernels walk over their row: a block of a whole vocabulary spills, and a gradient can take the place of the logits
that it comes from. Row offsets are 64-bit: n * v may exceed 2^31.

Legend: n rows, v columns of the block in memory.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .exact_logits_triton import ROW_BLOCK_H, row_peak_error_kernel
from .logit_map_triton import LOG2_E, LOGIT_FLOOR, mapped
from .projection import Normaliser, RawGrad, SoftmaxGrad, SoftmaxStats

STATS_BLOCK, STATS_WARPS = 4096, 8
GRAD_BLOCK, GRAD_WARPS = 2048, 8
"""Sixteen and eight elements a thread: 80 and 40 registers at most on sm_80, sm_90 and sm_100, nothing spilled."""

FP16_PEAK = 2.0**14
"""What the largest dz of a float16 gradient is scaled to. Unscaled, dz below 6e-8 would be 0: with 1e5 tokens in the
denominator, all of it."""


@triton.jit
def store_gradient(d, z, inverse_temperature, softcap, out_ptr, col, v, SOFTCAP: tl.constexpr):
    """The gradient of raw logits, from d = dLoss/dz / temperature, as the next block of a row.

    `out` may lie on the row of logits that this walk reads, from its front on: elements of the gradient are no larger,
    so what is overwritten was read in this block or before it; the barrier sees to it that every warp has.
    """
    if SOFTCAP:
        capped = z / (inverse_temperature * softcap)
        d *= tl.where(capped < -1, 0.0, 1 - capped * capped)  # a masked one was not capped: 0 * inf
    tl.debug_barrier()
    tl.store(out_ptr + col, d.to(out_ptr.dtype.element_ty), col < v)


@triton.jit(do_not_specialize=["n"])
def row_stats_kernel(
    raw_ptr,  # [n, v]
    bias_ptr,  # [v]
    target_ptr,  # i64 [n]
    inverse_ptr,  # f32 [n], 1 / temperature
    stats_ptr,  # f32 [5, n], of which four are written
    n,
    v,
    stride,
    softcap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    raw_ptr += row * stride
    inverse = tl.load(inverse_ptr + row)
    peak = -float("inf")
    total = tl.zeros((BLOCK,), tl.float32)
    moment = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, v, BLOCK):
        col = start + tl.arange(0, BLOCK)
        raw = tl.load(raw_ptr + col, col < v, -float("inf")).to(tl.float32)
        if HAS_BIAS:
            raw += tl.load(bias_ptr + col, col < v, 0.0).to(tl.float32)
        z = mapped(raw, softcap, inverse, SOFTCAP)
        z = tl.where(col < v, z, LOGIT_FLOOR)
        higher = tl.maximum(peak, tl.max(z, 0))
        drop = tl.where(start == 0, 0.0, peak - higher)
        scale = tl.exp2(drop * LOG2_E)
        z -= higher
        e = tl.where(col < v, tl.exp2(z * LOG2_E), 0.0)
        total *= scale  # before it meets the drop, which may be that to the floor
        moment = scale * moment + total * drop + e * z
        total += e
        peak = higher
    y = tl.load(target_ptr + row)
    inside = (y >= 0) & (y < v)
    raw_y = tl.load(raw_ptr + y, inside, 0.0).to(tl.float32)
    if HAS_BIAS:
        raw_y += tl.load(bias_ptr + y, inside, 0.0).to(tl.float32)
    z_y = mapped(raw_y, softcap, inverse, SOFTCAP)
    tl.store(stats_ptr + row, peak)
    tl.store(stats_ptr + n + row, tl.sum(total, 0))
    tl.store(stats_ptr + 2 * n + row, tl.sum(moment, 0))
    tl.store(stats_ptr + 3 * n + row, tl.where(inside, z_y, 0.0))


@triton.jit(do_not_specialize_on_alignment=["peak_ptr", "total_ptr"])  # rows of a [5, n] of any n
def logit_grad_kernel(
    raw_ptr,  # [n, v]
    bias_ptr,  # [v]
    target_ptr,  # i64 [n]
    inverse_ptr,  # f32 [n]
    peak_ptr,  # f32 [n], total_ptr too: its Normaliser
    total_ptr,
    g_target_ptr,  # f32 [n], the three of SoftmaxGrad
    g_p_ptr,
    g_p_logp_ptr,
    scale_ptr,  # f32, 0-dim
    out_ptr,  # [n, v]; may lie on raw, each row from where its raw row begins
    v,
    stride,
    out_stride,
    softcap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_P_LOGP: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    raw_ptr += row * stride
    out_ptr += row * out_stride
    inverse = tl.load(inverse_ptr + row)
    peak, log_total = tl.load(peak_ptr + row), tl.log(tl.load(total_ptr + row))
    g_p = tl.load(g_p_ptr + row)
    if HAS_P_LOGP:
        g_p_logp = tl.load(g_p_logp_ptr + row)
    y, g_target = tl.load(target_ptr + row), tl.load(g_target_ptr + row)
    factor = inverse
    if HAS_SCALE:
        factor /= tl.load(scale_ptr)
    for start in range(0, v, BLOCK):
        col = start + tl.arange(0, BLOCK)
        raw = tl.load(raw_ptr + col, col < v, 0.0).to(tl.float32)
        if HAS_BIAS:
            raw += tl.load(bias_ptr + col, col < v, 0.0).to(tl.float32)
        z = mapped(raw, softcap, inverse, SOFTCAP)
        logp = z - peak - log_total
        p = tl.exp2(logp * LOG2_E)
        d = p * (g_p + g_p_logp * logp) if HAS_P_LOGP else p * g_p
        d += tl.where(col == y, g_target, 0.0)
        d *= factor
        store_gradient(d, z, inverse, softcap, out_ptr, col, v, SOFTCAP)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonLogits:
    """Raw logits of some rows and columns, on a GPU, with what turns them into z.

    Vectors that the methods are given may have any stride.
    """

    raw: Tensor
    """[n, v], any stride between rows; without the bias"""
    bias: Tensor | None
    """[v]"""
    inverse_temperature: Tensor
    """f32 [n]"""
    softcap: float | None
    dtype: torch.dtype
    """of the gradient"""
    spendable: bool = False
    """The gradient may take the place of `raw`, which then is contiguous and float32."""
    place: Tensor | None = None
    """[n, v], else: where the gradient goes"""
    factors: tuple[Tensor, Tensor] | None = None
    """x[n, H] and weight[v, H] that `raw` is the product of, if `stats` is to look for the error of its peaks"""

    def stats(self, targets: Tensor) -> SoftmaxStats:
        """`SoftmaxStats` over these columns; `targets` i64 [n] are columns, outside [0, v) where in another block."""
        n, v = self.raw.shape
        out = torch.zeros(len(SoftmaxStats._fields), n, dtype=torch.float32, device=self.raw.device)
        if n == 0:
            return SoftmaxStats(*out)
        bias, softcap = self.bias_or_any(), self.softcap or 1.0
        head = {"HAS_BIAS": self.bias is not None, "SOFTCAP": self.softcap is not None}
        with torch.cuda.device_of(self.raw):
            row_stats_kernel[(n,)](
                self.raw, bias, targets.contiguous(), self.inverse_temperature, out, n, v, self.raw.stride(0), softcap,
                BLOCK=STATS_BLOCK, num_warps=STATS_WARPS, **head,
            )  # fmt: skip
            if self.factors is not None:
                x, weight = self.factors
                row_peak_error_kernel[(n,)](
                    self.raw, x, weight, bias, self.inverse_temperature, out, n, v, x.shape[1], self.raw.stride(0),
                    *x.stride(), *weight.stride(), softcap, BLOCK=STATS_BLOCK, BLOCK_H=ROW_BLOCK_H,
                    num_warps=STATS_WARPS, **head,
                )  # fmt: skip
        return SoftmaxStats(*out)

    def grad(self, grad: SoftmaxGrad, normaliser: Normaliser, targets: Tensor) -> RawGrad:
        """dLoss/draw, in the place of `raw` if that is spendable. `normaliser` [n] is of the whole vocabulary."""
        n, v = self.raw.shape
        out = self.gradient_place()
        if n == 0:
            return RawGrad(values=out, scale=None)
        bound = grad.target.abs() + grad.p.abs()
        if grad.p_logp is not None:
            bound = bound + grad.p_logp.abs()  # |p log p| <= 1 / e
        scale = self.scale(bound)
        peak, total = (value.contiguous() for value in normaliser)
        with torch.cuda.device_of(self.raw):
            logit_grad_kernel[(n,)](
                self.raw, self.bias_or_any(), targets.contiguous(), self.inverse_temperature, peak,
                total, grad.target.contiguous(), grad.p.contiguous(),
                peak if grad.p_logp is None else grad.p_logp.contiguous(), peak if scale is None else scale, out, v,
                self.raw.stride(0), out.stride(0), self.softcap or 1.0, HAS_BIAS=self.bias is not None,
                SOFTCAP=self.softcap is not None, HAS_P_LOGP=grad.p_logp is not None,
                HAS_SCALE=scale is not None, BLOCK=GRAD_BLOCK, num_warps=GRAD_WARPS,
            )  # fmt: skip
        return RawGrad(values=out, scale=scale)

    def gradient_place(self) -> Tensor:
        """[n, v] for the gradient: `place`, or the front of each row of `raw`, whose elements are as large or more."""
        if not self.spendable:
            assert self.place is not None  # whoever asks for a gradient has said where to
            return self.place
        return self.raw.view(self.dtype)[:, : self.raw.shape[1]]

    def scale(self, bound: Tensor) -> Tensor | None:
        """Power of two that a float16 gradient is divided by, 0-dim; None for other dtypes. |dLoss/dz| <= bound[n]."""
        if self.dtype != torch.float16:
            return None
        largest = (bound * self.inverse_temperature).amax().nan_to_num(nan=1.0, posinf=1.0).clamp(min=1e-30)
        return (largest / FP16_PEAK).log2().ceil().exp2()

    def bias_or_any(self) -> Tensor:
        """A pointer is needed even where none is read."""
        return self.raw if self.bias is None else self.bias.contiguous()
