"""Triton half of `exact_logits.py`: a target's logit as a dot product in float64, and the error of a row's peak.

Legend: T tokens, H hidden, V vocabulary; n rows, v columns of logits that are in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .exact_logits import ANY_LOGIT, DOMINANT, put_
from .gemm import mm
from .logit_map_triton import mapped

PEAK_BLOCK_H, PEAK_WARPS = 16, 8
"""Of a tile of 256 columns: 16 products in float64 a thread."""

ROW_BLOCK_H = 512

MOST_TOTAL = tl.constexpr(1 / DOMINANT)
MOST_PEAK = tl.constexpr(ANY_LOGIT)


@triton.jit(do_not_specialize=["T"])
def target_logit_kernel(
    hidden_ptr,  # [T, H]
    weight_ptr,  # [V, H]
    target_ptr,  # i64 [T], token ids
    out_ptr,  # f32 [T]
    T,
    V,
    H,
    vocab_start,
    hidden_stride,
    hidden_step,
    weight_stride,
    weight_step,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Raw logit of the target without its bias, summed in float64; 0 where it is in another rank's shard."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    y = tl.load(target_ptr + row, row < T, -1) - vocab_start
    inside = (row < T) & (y >= 0) & (y < V)
    raw = tl.zeros((BLOCK_T,), tl.float64)
    for start in range(0, H, BLOCK_H):
        h = (start + tl.arange(0, BLOCK_H)).to(tl.int64)  # of a transposed matrix a step is T or V elements
        mask = inside[:, None] & (h < H)[None, :]
        x = tl.load(hidden_ptr + row.to(tl.int64)[:, None] * hidden_stride + h[None, :] * hidden_step, mask, 0.0)
        w = tl.load(weight_ptr + y[:, None] * weight_stride + h[None, :] * weight_step, mask, 0.0)
        raw += tl.sum(x.to(tl.float64) * w.to(tl.float64), 1)
    tl.store(out_ptr + row, raw.to(tl.float32), row < T)


@triton.jit
def dominated(stats_ptr, stats_stride):
    """(peak, whether `exact_logits.dominated_rows` has the row), from the front of its column of stats."""
    peak, total = tl.load(stats_ptr), tl.load(stats_ptr + stats_stride)
    target = tl.load(stats_ptr + 3 * stats_stride)
    return peak, (total < MOST_TOTAL) & (peak != target) & (tl.abs(peak) < MOST_PEAK)


@triton.jit
def exact_z(raw, softcap, inverse, SOFTCAP: tl.constexpr):
    """z in float64; with a cap as exact as float32 makes the target's (cap 90: 1.1e-5, 250: 3.9e-5)."""
    return (
        mapped(raw.to(tl.float32), softcap, inverse, True).to(tl.float64) if SOFTCAP else raw * inverse.to(tl.float64)
    )


@triton.jit(do_not_specialize=["T", "stats_stride"])
def tile_peak_error_kernel(
    partial_ptr,  # f32 [num_tiles, 3, T]
    hidden_ptr,  # [T, H]
    weight_ptr,  # [V, H]
    bias_ptr,  # [V]
    target_ptr,  # i64 [T], token ids
    inverse_ptr,  # f32 [T]
    stats_ptr,  # f32 [5, T], rows `stats_stride` apart; the fifth is written
    T,
    V,
    H,
    num_tiles,
    vocab_start,
    stats_stride,
    hidden_stride,
    hidden_step,
    weight_stride,
    weight_step,
    softcap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The tile with the peak again, in float64. Each dominated row reads BLOCK_V rows of the weight for itself."""
    row = tl.program_id(0)
    stats_ptr += row
    peak, wanted = dominated(stats_ptr, stats_stride)
    if wanted:
        highest, tile = float("-inf"), 0
        for start in range(0, num_tiles, 128):
            index = start + tl.arange(0, 128)
            at = partial_ptr + index.to(tl.int64) * 3 * T + row
            peaks = tl.load(at, index < num_tiles, float("-inf"))
            higher = tl.max(peaks, 0)
            first = tl.min(tl.where(peaks == higher, index, num_tiles), 0)
            tile = tl.where(higher > highest, first, tile)
            highest = tl.maximum(highest, higher)
        col = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        x_ptr = hidden_ptr + row.to(tl.int64) * hidden_stride
        w_ptr = weight_ptr + col.to(tl.int64)[:, None] * weight_stride
        raw = tl.zeros((BLOCK_V,), tl.float64)
        for start in range(0, H, BLOCK_H):
            h = (start + tl.arange(0, BLOCK_H)).to(tl.int64)  # of a transposed matrix a step is T or V elements
            x = tl.load(x_ptr + h * hidden_step, h < H, 0.0)
            w = tl.load(w_ptr + h[None, :] * weight_step, (col < V)[:, None] & (h < H)[None, :], 0.0)
            raw += tl.sum(w.to(tl.float64) * x.to(tl.float64)[None, :], 1)
        if HAS_BIAS:
            raw += tl.load(bias_ptr + col, col < V, 0.0).to(tl.float64)
        z = exact_z(raw, softcap, tl.load(inverse_ptr + row), SOFTCAP)
        y = tl.load(target_ptr + row) - vocab_start
        z = tl.where((col < V) & (col != y), z, float("-inf"))
        tl.store(stats_ptr + 4 * stats_stride, (tl.max(z, 0) - peak.to(tl.float64)).to(tl.float32))


@triton.jit(do_not_specialize=["n"])
def row_peak_error_kernel(
    raw_ptr,  # [n, v]
    hidden_ptr,  # [n, H]
    weight_ptr,  # [v, H]
    bias_ptr,  # [v]
    inverse_ptr,  # f32 [n]
    stats_ptr,  # f32 [5, n]; the fifth is written
    n,
    v,
    H,
    stride,
    hidden_stride,
    hidden_step,
    weight_stride,
    weight_step,
    softcap,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The peak's column is looked up among the logits, and its logit is a dot product in float64."""
    row = tl.program_id(0).to(tl.int64)
    stats_ptr += row
    peak, wanted = dominated(stats_ptr, n)
    if wanted:
        inverse = tl.load(inverse_ptr + row)
        highest, column = float("-inf"), 0
        for start in range(0, v, BLOCK):
            col = start + tl.arange(0, BLOCK)
            raw = tl.load(raw_ptr + row * stride + col, col < v, float("-inf")).to(tl.float32)
            if HAS_BIAS:
                raw += tl.load(bias_ptr + col, col < v, 0.0).to(tl.float32)
            higher = tl.max(raw, 0)  # the map from raw logits to z is monotone
            first = tl.min(tl.where(raw == higher, col, v), 0)
            column = tl.where(higher > highest, first, column)
            highest = tl.maximum(highest, higher)
        h = tl.arange(0, BLOCK_H).to(tl.int64)
        exact = tl.zeros((BLOCK_H,), tl.float64)
        for start in range(0, H, BLOCK_H):
            at = start + h
            x = tl.load(hidden_ptr + row * hidden_stride + at * hidden_step, at < H, 0.0)
            w = tl.load(weight_ptr + tl.cast(column, tl.int64) * weight_stride + at * weight_step, at < H, 0.0)
            exact += x.to(tl.float64) * w.to(tl.float64)
        total = tl.sum(exact, 0)
        if HAS_BIAS:
            total += tl.load(bias_ptr + column).to(tl.float64)
        z = exact_z(total, softcap, inverse, SOFTCAP)
        tl.store(stats_ptr + 4 * n, (z - peak.to(tl.float64)).to(tl.float32))


def raw_target_logits(x: Tensor, weight: Tensor, targets: Tensor, vocab_start: int = 0) -> Tensor:
    """Raw logits of targets i64[n] without their bias, f32 [n]; 0 where one lies in another shard."""
    n = len(x)
    out = torch.empty(n, dtype=torch.float32, device=x.device)
    if n:
        with torch.cuda.device_of(x):
            target_logit_kernel[(triton.cdiv(n, 16),)](
                x, weight, targets.contiguous(), out, n, len(weight), x.shape[1], vocab_start, *x.stride(),
                *weight.stride(), BLOCK_T=16, BLOCK_H=128, num_warps=4,
            )  # fmt: skip
    return out


def raw_slab(x: Tensor, w: Tensor, columns: Tensor, exact: Tensor) -> Tensor:
    """Raw logits [n, v] in float32 by the library's GEMM, but exact[n] in columns i64[n], where these are in [0, v)."""
    raw = mm(x, w.t())
    if not raw.numel():
        return raw
    inside = (columns >= 0) & (columns < len(w))
    return put_(raw, torch.where(inside, columns, 0), inside, exact)
