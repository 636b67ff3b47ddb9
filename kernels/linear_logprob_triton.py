"""Triton half of `linear_logprob`: the forward pass never writes a logit, the backward pass writes a slab at a time.

Forward: each program multiplies one tile of [block_t, block_v] logits in registers and writes three numbers for each of
its rows (peak, total, moment: see `SoftmaxStats`), without the target's logit, which a second kernel takes as a dot
product of its own, in float64. A third merges the tiles of a row, in order, and the target. A fourth makes the peak
exact where another token than the target dominates. Splitting over the
vocabulary keeps every multiprocessor busy at any T, and since all sums have a fixed order, results repeat bit for bit.
The partial results take 12 / block_v bytes a logit.

Backward: a slab of [T, SLAB / T] logits at a time: recomputed by the library's GEMM in float32, turned into dz in its
place by one kernel, multiplied into dX (summed in float32) and into this slab's rows of dW (complete after one GEMM).

Legend: T tokens, H hidden, V vocabulary.
"""

import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import interpreting
from .exact_logits_triton import PEAK_BLOCK_H, PEAK_WARPS, raw_slab, raw_target_logits, tile_peak_error_kernel
from .gemm import add_mm_, factor_dtype, mm
from .logit_map_triton import LOGIT_FLOOR, inverse_temperature
from .logit_tiles_triton import merge_tiles_kernel, tile_stats_kernel, tile_stats_tma_kernel
from .projection import LogitMap, Normaliser, SoftmaxGrad, SoftmaxStats, blocks
from .softmax_triton import TritonLogits

SLAB = 2**26
"""Logits in one slab of the backward pass: 256 MiB in float32, whose place dz takes. 8192 columns at T = 8192."""

PARTIALS = 2**24
"""(row, tile) pairs in one launch of the forward pass: 192 MiB of partial results. T = 28k at V = 152k."""

GROUP_T = 8
"""Token tiles that walk over the vocabulary together: their rows of X stay in the L2 cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Sizes of one program. Chosen by what the compiler makes of them (docs/log.md), not by timings on a GPU."""

    block_t: int
    block_v: int
    block_h: int
    warps: int
    stages: int
    descriptors: bool = False
    """Loads by TMA, in a persistent warp-specialised program."""


# Descriptors (TMA). 12 warps with 4 asked for on sm_90, 12 with 8 on sm_100; with 8 on sm_90 the compiler leaves warp
# specialisation out without a word, with 4 on sm_100 it spills 1 KB a thread. 193 KiB of the 227 of shared memory.
TMA_SM90 = Launch(block_t=128, block_v=256, block_h=64, warps=4, stages=4, descriptors=True)
TMA_SM100 = Launch(block_t=128, block_v=256, block_h=64, warps=8, stages=4, descriptors=True)
# Pointers: other GPUs, any H and strides. 182 registers at most.
POINTER_HALF = Launch(block_t=128, block_v=128, block_h=64, warps=8, stages=3)
POINTER_FLOAT = Launch(block_t=128, block_v=64, block_h=32, warps=8, stages=3)
INTERPRETED = Launch(block_t=32, block_v=64, block_h=32, warps=4, stages=2)


def shard_stats_triton(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_map: LogitMap, vocab_start: int = 0
) -> Tensor:
    """`SoftmaxStats` [5, T] over the columns of `weight`, which are the token ids from `vocab_start` on."""
    T, V = len(hidden), len(weight)
    stats = torch.zeros(len(SoftmaxStats._fields), T, dtype=torch.float32, device=hidden.device)
    if T == 0 or V == 0:
        stats[0] = LOGIT_FLOOR.value  # of no columns
        return stats
    inverse = inverse_temperature(logit_map, hidden)
    head: dict[str, Any] = {"HAS_BIAS": bias is not None, "SOFTCAP": logit_map.softcap is not None}
    any_bias, softcap = weight if bias is None else bias.contiguous(), logit_map.softcap or 1.0
    targets = targets.contiguous()
    raw = raw_target_logits(hidden, weight, targets, vocab_start)
    launch = choose_launch(hidden, weight, bias)
    tiles_v = triton.cdiv(V, launch.block_v)
    for rows in blocks(T, max(1, PARTIALS // tiles_v // launch.block_t) * launch.block_t):
        x, y = hidden[rows], targets[rows]
        n = len(x)
        partial = torch.empty(tiles_v, 3, n, dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):
            _launch_tiles(launch, x, weight, any_bias, y, inverse[rows], partial, vocab_start, softcap, head)
            merge_tiles_kernel[(triton.cdiv(n, 32),)](
                partial, raw[rows], any_bias, y, inverse[rows], stats[:, rows], n, V, tiles_v, vocab_start, T, softcap,
                BLOCK_T=32, TILES=32, num_warps=4, **head,
            )  # fmt: skip
            tile_peak_error_kernel[(n,)](
                partial, x, weight, any_bias, y, inverse[rows], stats[:, rows], n, V, x.shape[1], tiles_v, vocab_start,
                T, *x.stride(), *weight.stride(), softcap, BLOCK_V=launch.block_v, BLOCK_H=PEAK_BLOCK_H,
                num_warps=PEAK_WARPS, **head,
            )  # fmt: skip
    return stats


def choose_launch(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Launch:
    """The launch for these inputs on the GPU where they are. With a bias, the kernel for sm_100 spills 112 bytes."""
    if interpreting():
        return INTERPRETED
    half = factor_dtype(hidden, weight) != torch.float32
    if half and all(describable(t) for t in (hidden, weight)):
        major = torch.cuda.get_device_capability(hidden.device)[0]
        if major == 9:
            return TMA_SM90
        if major == 10 and bias is None and compiles_for_blackwell(triton.__version__):
            return TMA_SM100
    return POINTER_HALF if half else POINTER_FLOAT


def compiles_for_blackwell(version: str) -> bool:
    """3.6.0 fails to specialise the descriptor kernel for sm_100, 3.7.0, 3.8.0 and 3.9.0 do it."""
    return tuple(map(int, version.split(".")[:2])) >= (3, 7)


def multiprocessors(device: torch.device) -> int:
    return 2 if interpreting() else torch.cuda.get_device_properties(device).multi_processor_count


def describable(matrix: Tensor) -> bool:
    """Whether a TMA descriptor can describe it: rows of adjacent elements that all start at multiples of 16 bytes."""
    row, column = matrix.stride()
    aligned = row * matrix.element_size() % 16 == 0 and matrix.data_ptr() % 16 == 0
    return aligned and column == 1 and row >= matrix.shape[1]  # an expanded row has stride 0


def _launch_tiles(
    launch: Launch, x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, inverse: Tensor, partial: Tensor,
    vocab_start: int, softcap: float, head: dict[str, Any],
) -> None:  # fmt: skip
    (n, H), V = x.shape, len(weight)
    tiles = triton.cdiv(n, launch.block_t) * len(partial)
    common: dict[str, Any] = {
        "BLOCK_T": launch.block_t, "BLOCK_V": launch.block_v, "BLOCK_H": launch.block_h, "GROUP": GROUP_T,
        "num_warps": launch.warps, "num_stages": launch.stages, **head,
    }  # fmt: skip
    if launch.descriptors:
        launched = tile_stats_tma_kernel[(min(tiles, multiprocessors(x.device)),)]
        arguments = (
            x, weight, bias, targets, inverse, partial, n, V, H, vocab_start, x.stride(0), weight.stride(0), softcap,
            tiles,
        )  # fmt: skip
        # Triton keeps the allocator in a context variable, which the thread of a backward pass does not inherit: it is
        # set for each launch, in a copy of the context, because the caller's other kernels may have one of their own.
        contextvars.copy_context().run(_with_scratch, lambda: launched(*arguments, **common))
    else:
        tile_stats_kernel[(tiles,)](
            x, weight, bias, targets, inverse, partial, n, V, H, vocab_start, *x.stride(), *weight.stride(), softcap,
            DOT=getattr(tl, str(factor_dtype(x, weight)).removeprefix("torch.")), **common,
        )  # fmt: skip


def _with_scratch(launch: Callable[[], Any]) -> None:
    """Calls `launch` with memory for descriptors at hand, on the current device: the one that Triton launches on."""
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
    launch()


def shard_gradients_triton(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_map: LogitMap,
    grad: SoftmaxGrad,
    normaliser: Normaliser,
    vocab_start: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of (hidden, f32; weight; bias) from this shard of the vocabulary; all rows are live."""
    need_x, need_w, need_b = needs
    dtype = factor_dtype(hidden, weight)
    x, inverse = hidden.to(dtype), inverse_temperature(logit_map, hidden)
    exact = raw_target_logits(x, weight, targets, vocab_start)
    dx = torch.zeros_like(x, dtype=torch.float32) if need_x else None
    dw = torch.zeros_like(weight) if need_w else None
    db = torch.zeros_like(bias) if need_b and bias is not None else None
    for cols in blocks(len(weight), max(1024, SLAB // max(1, len(x)) // 256 * 256)):
        w, b = weight[cols].to(dtype), None if bias is None else bias[cols]
        columns = targets - (vocab_start + cols.start)
        logits = TritonLogits(
            raw=raw_slab(x, w, columns, exact),
            bias=b,
            inverse_temperature=inverse,
            softcap=logit_map.softcap,
            dtype=dtype,
            spendable=True,
        )
        draw, scale = logits.grad(grad, normaliser, columns)
        if dx is not None:
            add_mm_(dx, draw, w, scale)
        if dw is not None:
            dw_cols = mm(draw.t(), x)
            dw[cols] = dw_cols if scale is None else dw_cols.mul_(scale)
        if db is not None:
            db_cols = draw.sum(0, dtype=torch.float32)
            db[cols] = db_cols if scale is None else db_cols.mul_(scale)
        del logits, draw  # else this slab lives on beside the next one
    return dx, dw, db
