"""Triton half of `masked_distill_loss`: divergence and gradient of a chunk whose logits are in memory.

Two walks over each row of student and teacher: the first sums the divergence, the second writes its gradient. The
formulas are those of `distill_loss.py`; a probability of 0 contributes 0, because log-probabilities end at -1e30.

Legend: n rows, v the vocabulary.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .logit_map_triton import LOG2_E, mapped
from .projection import RawGrad
from .softmax_triton import TritonLogits, store_gradient

BLOCK, WARPS = 2048, 8

FP16_BOUND = 64.0
"""Taken for the largest |dD/dz|. For forward_kl and jsd it is 1; for reverse_kl it is what log S - log T can reach."""


@triton.jit
def log_softmax(raw_ptr, bias_ptr, peak, log_total, inverse, softcap, col, v, HAS_BIAS: tl.constexpr,
                SOFTCAP: tl.constexpr):  # fmt: skip
    """(log-probabilities of these columns, their z)."""
    raw = tl.load(raw_ptr + col, col < v, 0.0).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + col, col < v, 0.0).to(tl.float32)
    z = mapped(raw, softcap, inverse, SOFTCAP)
    return z - peak - log_total, z  # in this order: lse itself is rounded, by 1.5e-5 where it is 300


@triton.jit
def log_mean(log_s, log_t):
    """log((S + T) / 2)."""
    peak = tl.maximum(log_s, log_t)
    return peak + tl.log(tl.exp2((log_s - peak) * LOG2_E) + tl.exp2((log_t - peak) * LOG2_E)) - 0.6931471805599453


@triton.jit(do_not_specialize_on_alignment=["student_total_ptr", "teacher_total_ptr"])  # rows of a [5, n] of any n
def divergence_kernel(
    student_ptr,  # [n, v]
    student_bias_ptr,  # [v]
    student_peak_ptr,  # f32 [n], student_total too: its SoftmaxStats
    student_total_ptr,
    teacher_ptr,  # [n, v]
    teacher_bias_ptr,  # [v]
    teacher_peak_ptr,  # f32 [n], teacher_total too
    teacher_total_ptr,
    inverse_ptr,  # f32 [n]
    weight_ptr,  # f32 [n]
    scale_ptr,  # f32, 0-dim
    divergence_ptr,  # f32 [n]
    out_ptr,  # [n, v]; may lie on student, each row from where the student's begins
    v,
    out_stride,
    softcap,
    KIND: tl.constexpr,
    STUDENT_BIAS: tl.constexpr,
    TEACHER_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * v
    teacher_ptr += row * v
    out_ptr += row * out_stride
    inverse = tl.load(inverse_ptr + row)
    peak_s, log_s_total = tl.load(student_peak_ptr + row), tl.log(tl.load(student_total_ptr + row))
    peak_t, log_t_total = tl.load(teacher_peak_ptr + row), tl.log(tl.load(teacher_total_ptr + row))
    sum_s = tl.zeros((BLOCK,), tl.float32)  # of the terms weighted by S
    sum_t = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, v, BLOCK):
        col = start + tl.arange(0, BLOCK)
        log_s, _ = log_softmax(
            student_ptr, student_bias_ptr, peak_s, log_s_total, inverse, softcap, col, v, STUDENT_BIAS, SOFTCAP
        )
        log_t, _ = log_softmax(
            teacher_ptr, teacher_bias_ptr, peak_t, log_t_total, inverse, softcap, col, v, TEACHER_BIAS, SOFTCAP
        )
        if KIND == "forward_kl":
            sum_t += tl.where(col < v, tl.exp2(log_t * LOG2_E) * (log_t - log_s), 0.0)
        elif KIND == "reverse_kl":
            sum_s += tl.where(col < v, tl.exp2(log_s * LOG2_E) * (log_s - log_t), 0.0)
        else:
            log_m = log_mean(log_s, log_t)
            sum_s += tl.where(col < v, tl.exp2(log_s * LOG2_E) * (log_s - log_m), 0.0)
            sum_t += tl.where(col < v, tl.exp2(log_t * LOG2_E) * (log_t - log_m), 0.0)
    kl_s, kl_t = tl.sum(sum_s, 0), tl.sum(sum_t, 0)
    tl.store(divergence_ptr + row, (kl_s + kl_t) * (0.5 if KIND == "jsd" else 1.0))
    factor = tl.load(weight_ptr + row) * inverse
    if HAS_SCALE:
        factor /= tl.load(scale_ptr)
    for start in range(0, v, BLOCK):
        col = start + tl.arange(0, BLOCK)
        log_s, z = log_softmax(
            student_ptr, student_bias_ptr, peak_s, log_s_total, inverse, softcap, col, v, STUDENT_BIAS, SOFTCAP
        )
        log_t, _ = log_softmax(
            teacher_ptr, teacher_bias_ptr, peak_t, log_t_total, inverse, softcap, col, v, TEACHER_BIAS, SOFTCAP
        )
        s = tl.exp2(log_s * LOG2_E)
        if KIND == "forward_kl":
            d = s - tl.exp2(log_t * LOG2_E)
        elif KIND == "reverse_kl":
            d = s * (log_s - log_t - kl_s)
        else:
            d = s * (log_s - log_mean(log_s, log_t) - kl_s) * 0.5
        d *= factor
        store_gradient(d, z, inverse, softcap, out_ptr, col, v, SOFTCAP)


def divergence_triton(
    student: TritonLogits,
    teacher: TritonLogits,
    row_weight: Tensor,
    kind: Literal["nll", "forward_kl", "reverse_kl", "jsd"],
) -> tuple[Tensor, RawGrad]:
    """(D [n], gradient of row_weight * D by the student's raw logits, in their place); both are contiguous."""
    n, v = student.raw.shape
    d = torch.empty(n, dtype=torch.float32, device=student.raw.device)
    out = student.gradient_place()
    if n == 0:
        return d, RawGrad(values=out, scale=None)
    anywhere = torch.zeros(n, dtype=torch.int64, device=student.raw.device)
    softmax_s, softmax_t = student.stats(anywhere), teacher.stats(anywhere)
    scale = student.scale(FP16_BOUND * row_weight.abs())
    with torch.cuda.device_of(student.raw):
        divergence_kernel[(n,)](
            student.raw, student.bias_or_any(), softmax_s.peak, softmax_s.total, teacher.raw, teacher.bias_or_any(),
            softmax_t.peak, softmax_t.total, student.inverse_temperature, row_weight.contiguous(),
            d if scale is None else scale, d, out, v, out.stride(0), student.softcap or 1.0, KIND=kind,
            STUDENT_BIAS=student.bias is not None, TEACHER_BIAS=teacher.bias is not None,
            SOFTCAP=student.softcap is not None, HAS_SCALE=scale is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return d, RawGrad(values=out, scale=scale)
