"""Triton half of `linear_logprob`: the forward pass never writes a logit, the backward pass writes a slab at a time.

Forward: each program multiplies one tile of [block_t, block_v] logits in registers and writes three numbers for each of
its rows (peak, total, moment: see `SoftmaxStats`). A second kernel merges the tiles of a row in order, a third takes
the target's logit as a dot product of its own. Splitting over the vocabulary keeps every multiprocessor busy at any T,
and since all sums have a fixed order, results repeat bit for bit. The partial results take 12 / block_v bytes a logit.

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
from .gemm import add_mm_, factor_dtype, mm
from .projection import LogitMap, SoftmaxGrad, blocks
from .softmax_triton import LOG2_E, LOGIT_FLOOR, TritonLogits, inverse_temperature, mapped

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


@triton.jit
def tile_place(tile, T, V, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, GROUP: tl.constexpr):
    """(row of tiles, column of tiles) of the program, GROUP rows of tiles at a time."""
    tiles_t = tl.cdiv(T, BLOCK_T)
    per_group = GROUP * tl.cdiv(V, BLOCK_V)
    first = tile // per_group * GROUP
    size = tl.minimum(tiles_t - first, GROUP)
    return first + tile % per_group % size, tile % per_group // size


@triton.jit
def store_tile_stats(
    raw,
    bias_ptr,
    inverse_ptr,
    partial_ptr,
    tile_t,
    tile_v,
    T,
    V,
    softcap,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Peak, total and moment of raw[BLOCK_T, BLOCK_V] to partial[tile_v, 3, T]."""
    row = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    col = tile_v * BLOCK_V + tl.arange(0, BLOCK_V)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + col, col < V, 0.0).to(tl.float32)[None, :]
    z = mapped(raw, softcap, tl.load(inverse_ptr + row, row < T, 0.0)[:, None], SOFTCAP)
    # On every tile, not on the last one only: a branch here makes the compiler drop warp specialisation on sm_90.
    z = tl.where((col < V)[None, :], z, LOGIT_FLOOR)
    peak = tl.max(z, 1)
    z -= peak[:, None]
    e = tl.exp2(z * LOG2_E)
    partial_ptr += tile_v.to(tl.int64) * 3 * T + row
    tl.store(partial_ptr, peak, row < T)
    tl.store(partial_ptr + T, tl.sum(e, 1), row < T)
    tl.store(partial_ptr + 2 * T, tl.sum(e * z, 1), row < T)


@triton.jit(do_not_specialize=["T", "num_tiles"])
def tile_stats_tma_kernel(
    hidden_ptr,  # [T, H]
    weight_ptr,  # [V, H]
    bias_ptr,  # [V]
    inverse_ptr,  # f32 [T]
    partial_ptr,  # f32 [tiles of V, 3, T]
    T,
    V,
    H,
    hidden_stride,
    weight_stride,
    softcap,
    num_tiles,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Persistent and warp-specialised: some warps load, some multiply, some reduce the tile before."""
    x_tile = tl.make_tensor_descriptor(hidden_ptr, [T, H], [hidden_stride, 1], [BLOCK_T, BLOCK_H])
    w_tile = tl.make_tensor_descriptor(weight_ptr, [V, H], [weight_stride, 1], [BLOCK_V, BLOCK_H])
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), warp_specialize=True, flatten=False):
        tile_t, tile_v = tile_place(tile, T, V, BLOCK_T, BLOCK_V, GROUP)
        raw = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
        for h in range(0, H, BLOCK_H):
            x = x_tile.load([tile_t * BLOCK_T, h])
            w = w_tile.load([tile_v * BLOCK_V, h])
            raw = tl.dot(x, w.T, raw)
        store_tile_stats(
            raw, bias_ptr, inverse_ptr, partial_ptr, tile_t, tile_v, T, V, softcap, BLOCK_T, BLOCK_V, HAS_BIAS, SOFTCAP
        )


@triton.jit(do_not_specialize=["T"])
def tile_stats_kernel(
    hidden_ptr,  # [T, H], any strides
    weight_ptr,  # [V, H], any strides
    bias_ptr,  # [V]
    inverse_ptr,  # f32 [T]
    partial_ptr,  # f32 [tiles of V, 3, T]
    T,
    V,
    H,
    hidden_stride,
    hidden_step,
    weight_stride,
    weight_step,
    softcap,
    DOT: tl.constexpr,  # dtype of the factors: float32 where those of the inputs differ
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """One tile a program. float32 factors as three TF32 products: within 2^-21 of exact products."""
    tile_t, tile_v = tile_place(tl.program_id(0), T, V, BLOCK_T, BLOCK_V, GROUP)
    # Past the end, row 0 and on is read again: those results are not stored, or masked.
    row = ((tile_t * BLOCK_T + tl.arange(0, BLOCK_T)) % T).to(tl.int64)
    col = ((tile_v * BLOCK_V + tl.arange(0, BLOCK_V)) % V).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    # A step is T or V elements where the matrix is transposed: BLOCK_H of them fit in 32 bits, H might not.
    x_ptr = hidden_ptr + row[:, None] * hidden_stride + h[None, :] * hidden_step
    w_ptr = weight_ptr + col[None, :] * weight_stride + h[:, None] * weight_step
    raw = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
    for start in range(0, H, BLOCK_H):
        x = tl.load(x_ptr, (h < H - start)[None, :], 0.0)
        w = tl.load(w_ptr, (h < H - start)[:, None], 0.0)
        raw = tl.dot(x.to(DOT), w.to(DOT), raw, input_precision="tf32x3")
        x_ptr += BLOCK_H * hidden_step
        w_ptr += BLOCK_H * weight_step
    store_tile_stats(
        raw, bias_ptr, inverse_ptr, partial_ptr, tile_t, tile_v, T, V, softcap, BLOCK_T, BLOCK_V, HAS_BIAS, SOFTCAP
    )


@triton.jit(do_not_specialize=["T"], do_not_specialize_on_alignment=["out_ptr"])  # a row of a [4, T] of any T
def target_logit_kernel(
    hidden_ptr,  # [T, H]
    weight_ptr,  # [V, H]
    bias_ptr,  # [V]
    target_ptr,  # i64 [T], token ids
    inverse_ptr,  # f32 [T]
    out_ptr,  # f32 [T]
    T,
    V,
    H,
    vocab_start,
    hidden_stride,
    hidden_step,
    weight_stride,
    weight_step,
    softcap,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """z at the target, 0 where it is in another rank's shard."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    y = tl.load(target_ptr + row, row < T, -1) - vocab_start
    inside = (row < T) & (y >= 0) & (y < V)
    raw = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, H, BLOCK_H):
        h = (start + tl.arange(0, BLOCK_H)).to(tl.int64)  # of a transposed matrix a step is T or V elements
        mask = inside[:, None] & (h < H)[None, :]
        x = tl.load(hidden_ptr + row.to(tl.int64)[:, None] * hidden_stride + h[None, :] * hidden_step, mask, 0.0)
        w = tl.load(weight_ptr + y[:, None] * weight_stride + h[None, :] * weight_step, mask, 0.0)
        raw += tl.sum(x.to(tl.float32) * w.to(tl.float32), 1)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + y, inside, 0.0).to(tl.float32)
    z = mapped(raw, softcap, tl.load(inverse_ptr + row, row < T, 0.0), SOFTCAP)
    tl.store(out_ptr + row, tl.where(inside, z, 0.0), row < T)


@triton.jit(do_not_specialize=["T", "stats_stride"])
def merge_tiles_kernel(
    partial_ptr,  # f32 [num_tiles, 3, T]
    stats_ptr,  # f32 [3, T], rows `stats_stride` apart
    T,
    num_tiles,
    stats_stride,
    BLOCK_T: tl.constexpr,
    TILES: tl.constexpr,
):
    """TILES tiles at a time, in order."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    peak = tl.full((BLOCK_T,), LOGIT_FLOOR, tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    moment = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, num_tiles, TILES):
        tile = start + tl.arange(0, TILES)
        mask = (tile < num_tiles)[:, None] & (row < T)[None, :]
        at = partial_ptr + tile.to(tl.int64)[:, None] * 3 * T + row[None, :]
        tile_peak = tl.load(at, mask, LOGIT_FLOOR)
        tile_total = tl.load(at + T, mask, 0.0)
        higher = tl.maximum(peak, tl.max(tile_peak, 0))
        drop, tile_drop = peak - higher, tile_peak - higher[None, :]
        scale, tile_scale = tl.exp2(drop * LOG2_E), tl.exp2(tile_drop * LOG2_E)
        tile_moment = tl.load(at + 2 * T, mask, 0.0)
        moment = scale * (moment + total * drop) + tl.sum(tile_scale * (tile_moment + tile_total * tile_drop), 0)
        total = scale * total + tl.sum(tile_scale * tile_total, 0)
        peak = higher
    stats_ptr += row
    tl.store(stats_ptr, peak, row < T)
    tl.store(stats_ptr + stats_stride, total, row < T)
    tl.store(stats_ptr + 2 * stats_stride, moment, row < T)


def shard_stats_triton(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_map: LogitMap, vocab_start: int = 0
) -> Tensor:
    """`SoftmaxStats` [4, T] over the columns of `weight`, which are the token ids from `vocab_start` on."""
    (T, H), V = hidden.shape, len(weight)
    stats = torch.empty(4, T, dtype=torch.float32, device=hidden.device)
    if T == 0:
        return stats
    inverse = inverse_temperature(logit_map, hidden)
    head: dict[str, Any] = {"HAS_BIAS": bias is not None, "SOFTCAP": logit_map.softcap is not None}
    any_bias, softcap = weight if bias is None else bias.contiguous(), logit_map.softcap or 1.0
    targets = targets.contiguous()
    launch = choose_launch(hidden, weight)
    tiles_v = triton.cdiv(V, launch.block_v)
    for rows in blocks(T, max(1, PARTIALS // tiles_v // launch.block_t) * launch.block_t):
        x = hidden[rows]
        n = len(x)
        partial = torch.empty(tiles_v, 3, n, dtype=torch.float32, device=x.device)
        with torch.cuda.device_of(x):
            _launch_tiles(launch, x, weight, any_bias, inverse[rows], partial, softcap, head)
            target_logit_kernel[(triton.cdiv(n, 16),)](
                x, weight, any_bias, targets[rows], inverse[rows], stats[3, rows], n, V, H, vocab_start, *x.stride(),
                *weight.stride(), softcap, BLOCK_T=16, BLOCK_H=128, num_warps=4, **head,
            )  # fmt: skip
            merge_tiles_kernel[(triton.cdiv(n, 32),)](
                partial, stats[:, rows], n, tiles_v, T, BLOCK_T=32, TILES=32, num_warps=4
            )
    return stats


def choose_launch(hidden: Tensor, weight: Tensor) -> Launch:
    """The launch for these inputs on the GPU where they are."""
    if interpreting():
        return INTERPRETED
    half = factor_dtype(hidden, weight) != torch.float32
    if half and all(describable(t) for t in (hidden, weight)):
        major = torch.cuda.get_device_capability(hidden.device)[0]
        if major == 9:
            return TMA_SM90
        if major == 10 and compiles_for_blackwell(triton.__version__):
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
    launch: Launch, x: Tensor, weight: Tensor, bias: Tensor, inverse: Tensor, partial: Tensor, softcap: float,
    head: dict[str, Any],
) -> None:  # fmt: skip
    (n, H), V = x.shape, len(weight)
    tiles = triton.cdiv(n, launch.block_t) * triton.cdiv(V, launch.block_v)
    common: dict[str, Any] = {
        "BLOCK_T": launch.block_t, "BLOCK_V": launch.block_v, "BLOCK_H": launch.block_h, "GROUP": GROUP_T,
        "num_warps": launch.warps, "num_stages": launch.stages, **head,
    }  # fmt: skip
    if launch.descriptors:
        launched = tile_stats_tma_kernel[(min(tiles, multiprocessors(x.device)),)]
        arguments = (x, weight, bias, inverse, partial, n, V, H, x.stride(0), weight.stride(0), softcap, tiles)
        # Triton keeps the allocator in a context variable, which the thread of a backward pass does not inherit: it is
        # set for each launch, in a copy of the context, because the caller's other kernels may have one of their own.
        contextvars.copy_context().run(_with_scratch, lambda: launched(*arguments, **common))
    else:
        tile_stats_kernel[(tiles,)](
            x, weight, bias, inverse, partial, n, V, H, *x.stride(), *weight.stride(), softcap,
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
    lse: Tensor,
    vocab_start: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of (hidden, f32; weight; bias) from this shard of the vocabulary; all rows are live."""
    need_x, need_w, need_b = needs
    dtype = factor_dtype(hidden, weight)
    x, inverse = hidden.to(dtype), inverse_temperature(logit_map, hidden)
    dx = torch.zeros_like(x, dtype=torch.float32) if need_x else None
    dw = torch.zeros_like(weight) if need_w else None
    db = torch.zeros_like(bias) if need_b and bias is not None else None
    for cols in blocks(len(weight), max(1024, SLAB // max(1, len(x)) // 256 * 256)):
        w, b = weight[cols].to(dtype), None if bias is None else bias[cols]
        logits = TritonLogits(
            raw=mm(x, w.t()),
            bias=b,
            inverse_temperature=inverse,
            softcap=logit_map.softcap,
            dtype=dtype,
            spendable=True,
        )
        draw, scale = logits.grad(grad, lse, targets - (vocab_start + cols.start))
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
