"""The logits whose own error shows, summed in float64: the target's, and the peak's where another token dominates.

A float32 product of logits near 120 is off by 7e-5 (H 576). Over a vocabulary such errors cancel, but log p is the
target's logit less lse, and lse is the peak's logit where that has nearly all probability.

Legend: T tokens, H hidden, V vocabulary; n rows.
"""

import math

import torch
from torch import Tensor

from .dispatch import capturing
from .projection import CACHED_LOGITS, LOGIT_FLOOR, LogitMap, SoftmaxStats, blocks, raw_logits

DOMINANT = 1 / 8
"""Probability of a peak from which on it is made exact. What the others add to the error of lse is weighted by theirs.
"""

ANY_LOGIT = 1e20
"""Below it in magnitude a peak is a logit: neither that of a row whose ids are all masked, nor infinite, nor NaN."""


def exact_logits(
    x: Tensor, w: Tensor, b: Tensor | None, column: Tensor, rows: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Raw logit of one column i64[n] a row, f64 [n], from x[n, H] (or its `rows` i64[n]), w[V, H], b[V]."""
    out = x.new_empty(len(column), dtype=torch.float64)
    for part in blocks(len(column), max(1, CACHED_LOGITS // 8 // max(1, x.shape[1]))):  # 1 MiB in float64
        factor = x[part] if rows is None else x[rows[part]]
        out[part] = (factor.double() * w[column[part]]).sum(1)
    return out if b is None else (out + b[column]).clamp_(min=LOGIT_FLOOR)


def put_(raw: Tensor, column: Tensor, inside: Tensor, value: Tensor) -> Tensor:
    """raw[n, v] with value[n] in the column i64[n] of each row, where inside bool[n]."""
    column = column[:, None]
    return raw.scatter_(1, column, torch.where(inside[:, None], value[:, None].to(raw.dtype), raw.gather(1, column)))


def dominated_rows(stats: SoftmaxStats) -> Tensor:
    """Rows i64 with a peak that has `DOMINANT` probability and is not the target, whose logit is exact already.

    None in float64, which needs no care, nor while a CUDA graph is captured, where their number could not be known.
    """
    if stats.peak.dtype == torch.float64 or capturing(stats.peak):
        return torch.zeros(0, dtype=torch.int64, device=stats.peak.device)
    dominant = (stats.total < 1 / DOMINANT) & (stats.peak != stats.target) & (stats.peak.abs() < ANY_LOGIT)
    return dominant.nonzero().squeeze(1)


def peak_columns(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: tuple[Tensor, Tensor],
    rows: Tensor,
    starts: Tensor,
    width: int,
) -> Tensor:
    """Column i64[m] of the largest raw logit of some rows i64[m], which is one of the `width` from starts i64[m] on.

    x[n, H] in the compute dtype. Makes those logits again, of one block of V / width, but for the row's `target`:
    (column i64[n], whether it is in this vocabulary).
    """
    columns = torch.empty_like(starts)
    for start in starts.unique().tolist():
        w = weight[start : start + width].to(x.dtype)
        b = None if bias is None else bias[start : start + width].to(x.dtype)
        for among in (starts == start).nonzero().squeeze(1).split(max(1, CACHED_LOGITS // width)):
            raw = raw_logits(x[rows[among]], w, b)
            column = target[0][rows[among]] - start
            inside = target[1][rows[among]] & (column >= 0) & (column < len(w))
            put_(raw, torch.where(inside, column, 0), inside, raw.new_full((len(raw),), -math.inf))
            columns[among] = start + raw.argmax(1)
    return columns


def largest_columns(z: Tensor, rows: Tensor) -> Tensor:
    """Column i64[m] of the largest of z[n, V] in some rows i64[m], a few rows at a time: they are copied."""
    return torch.cat([z[part].argmax(1) for part in rows.split(max(1, CACHED_LOGITS // max(1, z.shape[1])))])


def peak_error(
    stats: SoftmaxStats, rows: Tensor, column: Tensor,
    x: Tensor, weight: Tensor, bias: Tensor | None, logit_map: LogitMap,
) -> Tensor:  # fmt: skip
    """`SoftmaxStats.error` [n] from the column of the peak of some rows, both i64[m]; 0 in the others."""
    dtype = stats.error.dtype
    z = logit_map.select(rows).exact(exact_logits(x, weight, bias, column, rows), dtype)
    return torch.zeros_like(stats.error).index_copy_(0, rows, (z - stats.peak[rows]).to(dtype))
