"""Kernels of the fused forward pass of `linear_logprob`: see `linear_logprob_triton.py`.

Legend: T tokens, H hidden, V vocabulary.
"""

import triton
import triton.language as tl

from .logit_map_triton import LOG2_E, LOGIT_FLOOR, mapped


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
    target_ptr,
    inverse_ptr,
    partial_ptr,
    tile_t,
    tile_v,
    T,
    V,
    vocab_start,
    softcap,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Peak, total and moment of raw[BLOCK_T, BLOCK_V], targets left out, to partial[tile_v, 3, T]."""
    row = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    col = tile_v * BLOCK_V + tl.arange(0, BLOCK_V)
    # Past the vocabulary the bias is the floor. In every tile, not in the last only: with a branch here the compiler
    # drops warp specialisation on sm_90.
    bias = tl.where(col < V, 0.0, LOGIT_FLOOR)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + col, col < V, 0.0).to(tl.float32)
    z = mapped(raw + bias[None, :], softcap, tl.load(inverse_ptr + row, row < T, 0.0)[:, None], SOFTCAP)
    y = tl.load(target_ptr + row, row < T, -1).to(tl.int32) - vocab_start
    z = tl.where(col[None, :] != y[:, None], z, LOGIT_FLOOR)
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
    target_ptr,  # i64 [T], token ids
    inverse_ptr,  # f32 [T]
    partial_ptr,  # f32 [tiles of V, 3, T]
    T,
    V,
    H,
    vocab_start,
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
            raw,
            bias_ptr,
            target_ptr,
            inverse_ptr,
            partial_ptr,
            tile_t,
            tile_v,
            T,
            V,
            vocab_start,
            softcap,
            BLOCK_T,
            BLOCK_V,
            HAS_BIAS,
            SOFTCAP,
        )


@triton.jit(do_not_specialize=["T"])
def tile_stats_kernel(
    hidden_ptr,  # [T, H], any strides
    weight_ptr,  # [V, H], any strides
    bias_ptr,  # [V]
    target_ptr,  # i64 [T], token ids
    inverse_ptr,  # f32 [T]
    partial_ptr,  # f32 [tiles of V, 3, T]
    T,
    V,
    H,
    vocab_start,
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
        raw,
        bias_ptr,
        target_ptr,
        inverse_ptr,
        partial_ptr,
        tile_t,
        tile_v,
        T,
        V,
        vocab_start,
        softcap,
        BLOCK_T,
        BLOCK_V,
        HAS_BIAS,
        SOFTCAP,
    )


@triton.jit(do_not_specialize=["T", "stats_stride"])
def merge_tiles_kernel(
    partial_ptr,  # f32 [num_tiles, 3, T]
    raw_ptr,  # f32 [T], exact: see exact_logits_triton.py
    bias_ptr,  # [V]
    target_ptr,  # i64 [T], token ids
    inverse_ptr,  # f32 [T]
    stats_ptr,  # f32 [5, T], rows `stats_stride` apart; the fifth stays
    T,
    V,
    num_tiles,
    vocab_start,
    stats_stride,
    softcap,
    BLOCK_T: tl.constexpr,
    TILES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """The target, which the tiles leave out, then TILES tiles at a time, in order."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    y = tl.load(target_ptr + row, row < T, -1) - vocab_start
    inside = (row < T) & (y >= 0) & (y < V)
    raw = tl.load(raw_ptr + row, row < T, 0.0)
    if HAS_BIAS:
        raw += tl.load(bias_ptr + y, inside, 0.0).to(tl.float32)
    z = mapped(raw, softcap, tl.load(inverse_ptr + row, row < T, 0.0), SOFTCAP)
    peak = tl.where(inside, z, LOGIT_FLOOR)
    total = tl.where(inside, 1.0, 0.0)
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
        total, tile_total = scale * total, tile_scale * tile_total  # before they meet a drop, maybe to the floor
        moment = scale * moment + total * drop + tl.sum(tile_scale * tile_moment + tile_total * tile_drop, 0)
        total += tl.sum(tile_total, 0)
        peak = higher
    stats_ptr += row
    tl.store(stats_ptr, peak, row < T)
    tl.store(stats_ptr + stats_stride, total, row < T)
    tl.store(stats_ptr + 2 * stats_stride, moment, row < T)
    tl.store(stats_ptr + 3 * stats_stride, tl.where(inside, z, 0.0), row < T)
