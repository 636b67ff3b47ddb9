"""Log-probability, entropy and log-sum-exp of tokens straight from hidden states: `[T, V]` logits are never held.

    z_tv = cap(h_t . W_v + b_v) / temperature_t,  cap(x) = softcap * tanh(x / softcap)
    lse_t = log sum_v exp z_tv        logprob_t = z_{t, y_t} - lse_t        p = exp(z - lse)
    entropy_t = lse_t - sum_v p_tv z_tv

    dz_tv = g_logprob_t (1[v = y_t] - p_tv) + g_lse_t p_tv - g_entropy_t p_tv (log p_tv + entropy_t)
    dh_t = sum_v dz_tv z'_tv W_v      dW_v = sum_t dz_tv z'_tv h_t,      z' = dz/draw

The backward pass needs p, and p needs the whole row: it is recomputed block by block from the saved lse (four GEMMs of
2THV operations in all). On a CPU, as many blocks of logits as the weight's gradient will have room for, and some more,
are kept and not made again (kept_logits.py): all of them where T <= H (in bfloat16: H / 2). Signs: this is +logprob,
in nats, as TRL and verl return it; Liger and CCE return its negative.

Legend: T tokens, H hidden, V vocabulary (this rank's shard of it under tensor parallelism).
"""

from typing import Any, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from .checks import check_backend, check_projection, check_targets, check_temperature, kept_rows
from .dispatch import use_triton
from .exact_logits import dominated_rows, exact_logits, peak_columns, peak_error, put_
from .first_order import first_order
from .kept_logits import KeptLogits
from .linear_logprob_graph import linear_logprob_graph
from .projection import (
    LogitMap,
    Normaliser,
    SoftmaxGrad,
    SoftmaxStats,
    blocks,
    compute_dtype,
    exp_,
    full_precision,
    late_columns,
    merge,
    raw_logits,
    raw_logits_ref,
    softmax_stats_,
)
from .vocab_parallel import merge_over_ranks, shard_bounds

TOKEN_BLOCK = 2048
VOCAB_BLOCK = 512
"""One block of logits is 4 MiB in float32. With threads that sleep while they wait, as siri's trainer has them, blocks
of 512 x 1024 took a fifth longer (two Zen 4 cores, T 2048, H 576, V 49152), because threads meet after each; with
threads that spin, 3% longer. None of six other sizes from 1024 x 512 to 2048 x 1024 was faster."""


def linear_logprob_ref(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, with all logits in memory: (logprob, entropy, lse), each [T] and 0 in ignored rows."""
    z = LogitMap(temperature=temperature, softcap=softcap).ref(raw_logits_ref(hidden, weight, bias))
    kept = targets != ignore_index
    logp = torch.log_softmax(z, dim=-1)
    logprob = logp.gather(1, torch.where(kept, targets, 0).long()[:, None]).squeeze(1)
    entropy = -(logp.exp() * logp).sum(-1)
    lse = torch.logsumexp(z, dim=-1)
    return torch.where(kept, logprob, 0), torch.where(kept, entropy, 0), torch.where(kept, lse, 0)


def shard_stats(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_map: LogitMap, vocab_start: int = 0,
    *, with_moment: bool = True, kept: KeptLogits | None = None, late: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`SoftmaxStats` [5, T] over the columns of `weight`, which are the token ids from `vocab_start` on.

    `with_moment=False` may leave out what only the entropy needs. `kept` may get raw logits to hold.
    """
    if use_triton(hidden, weight, bias):
        from .linear_logprob_triton import shard_stats_triton  # here: triton is not everywhere

        return shard_stats_triton(hidden, weight, bias, targets, logit_map, vocab_start)
    dtype = compute_dtype(hidden, weight, bias)
    x = hidden.to(dtype)
    stats = x.new_zeros(len(SoftmaxStats._fields), len(x))
    stats[0] = torch.finfo(dtype).min  # the peak of no columns; 0 would be wrong where all logits are negative
    own = locate(targets, vocab_start, len(weight))
    exact = exact_logits(x, weight, bias, own[0])
    peak_block = torch.zeros_like(targets)  # its first column
    for cols in blocks(len(weight), VOCAB_BLOCK):
        w, b = weight[cols].to(dtype), None if bias is None else bias[cols].to(dtype)
        for rows in blocks(len(x), TOKEN_BLOCK):
            where = locate(targets[rows], vocab_start + cols.start, len(w))
            z = put_(raw_logits(x[rows], w, b, late), *where, exact[rows])
            if kept is not None:
                kept.put_raw(cols, rows, z)
            logit_map.select(rows).apply_(z)
            block = softmax_stats_(z, *where, with_moment=with_moment)
            peak_block[rows] = torch.where(block.peak > stats[0, rows], cols.start, peak_block[rows])
            stats[:, rows] = torch.stack(merge(SoftmaxStats(*stats[:, rows]), block))
            if kept is not None:
                kept.put_roots(cols, rows, z, block.peak)
    whole = SoftmaxStats(*stats)
    if len(found := dominated_rows(whole)):
        columns = peak_columns(x, weight, bias, own, found, peak_block[found], VOCAB_BLOCK)
        stats[-1] = peak_error(whole, found, columns, x, weight, bias, logit_map)
    return stats


def shard_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_map: LogitMap,
    grad: SoftmaxGrad,
    normaliser: Normaliser,
    vocab_start: int,
    needs: tuple[bool, bool, bool],
    kept: KeptLogits | None = None,
    late: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of (hidden, in the compute dtype; weight; bias) from this shard of the vocabulary, where needed.

    `kept`, of these very rows, is spent: its memory becomes the weight's gradient. `late` is that of the forward pass.
    """
    if use_triton(hidden, weight, bias):
        from .linear_logprob_triton import shard_gradients_triton

        return shard_gradients_triton(hidden, weight, bias, targets, logit_map, grad, normaliser, vocab_start, needs)
    need_x, need_w, need_b = needs
    x = hidden.to(normaliser.peak.dtype)
    exact = exact_logits(x, weight, bias, locate(targets, vocab_start, len(weight))[0])
    # dz is scale_t (p_tv - 1[v = y_t]) where the slope has one value a row: the scale then goes to [n, H] factors.
    scale = _row_scale(grad, logit_map) if grad.of_logprob_alone and logit_map.softcap is None else None
    x_scaled = x if scale is None else x * scale[:, None]
    dx = torch.zeros_like(x) if need_x else None
    place = None if kept is None else kept.gradient
    dw = (torch.empty_like(weight) if place is None else place) if need_w else None
    db = torch.empty_like(bias) if need_b and bias is not None else None
    for cols in blocks(len(weight), VOCAB_BLOCK):
        w, b = weight[cols].to(x.dtype), None if bias is None else bias[cols].to(x.dtype)
        dw_block, db_block = torch.zeros_like(w), x.new_zeros(len(w))
        for rows in blocks(len(x), TOKEN_BLOCK):
            column, inside = where = locate(targets[rows], vocab_start + cols.start, len(w))
            norm = normaliser.select(rows)
            p = None if kept is None or scale is None else kept.probabilities(cols, rows, norm)
            if p is None:
                held = None if kept is None else kept.raw(cols, rows)
                z = put_(raw_logits(x[rows], w, b, late), *where, exact[rows]) if held is None else held
                slope = logit_map.select(rows).apply_(z)
                if scale is None:
                    dz = grad.select(rows).logits_(z.sub_(norm.peak[:, None]), norm.log_total, *where)
                    dz = dz if slope is None else dz.mul_(slope)
                else:
                    p = None if kept is None else kept.remade(cols, rows, z, norm)
                    if p is None:
                        p = exp_(z.sub_(norm.peak[:, None]).sub_(norm.log_total[:, None]))
            if p is not None:
                dz = p.scatter_add_(1, column[:, None], -inside[:, None].to(p.dtype))
            if dx is not None:
                dx[rows].addmm_(dz, w)
            if need_w:
                dw_block.addmm_(dz.t(), x_scaled[rows])
            if need_b:
                db_block += dz.sum(0) if scale is None else torch.mv(dz.t(), scale[rows])
        if dw is not None:
            dw[cols] = dw_block
        if db is not None:
            db[cols] = db_block
    if dx is not None and scale is not None:
        dx.mul_(scale[:, None])
    return dx, dw, db


def _row_scale(grad: SoftmaxGrad, logit_map: LogitMap) -> Tensor:
    """[n], dLoss/draw over p_tv - 1[v = y_t]."""
    return grad.p / torch.as_tensor(logit_map.temperature, dtype=grad.p.dtype, device=grad.p.device)


class LinearLogprob(torch.autograd.Function):
    """The logits are made twice, a part at a time: for the statistics, and, where they were not kept, again for the
    gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        logit_map: LogitMap,
        vocab_start: int,
        tp_group: dist.ProcessGroup | None,
        with_entropy: bool,
        kept: KeptLogits | None,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Once, of all rows: logits that are made again in another order of additions are of another softmax.
        ctx.late = late_columns(hidden, weight)
        with full_precision(hidden.device):
            local = shard_stats(
                hidden, weight, bias, targets, logit_map, vocab_start, with_moment=with_entropy, kept=kept,
                late=ctx.late,
            )  # fmt: skip
        stats = merge_over_ranks(local, tp_group)
        # Nobody sees an entropy that was not asked for. The normaliser are rows of a [5, T].
        remade = (stats.rounded_entropy, *(value.clone() for value in stats.normaliser))
        ctx.mark_non_differentiable(*remade)
        ctx.save_for_backward(hidden, weight, bias, targets, logit_map.tensor, *remade)
        ctx.logit_map, ctx.vocab_start, ctx.tp_group, ctx.kept = logit_map, vocab_start, tp_group, kept
        return stats.logprob, stats.entropy, stats.lse, *remade

    @staticmethod
    @first_order
    def backward(
        ctx: Any, saved: tuple[Tensor, ...],
        g_logprob: Tensor | None, g_entropy: Tensor | None, g_lse: Tensor | None, *_: None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        hidden, weight, bias, targets, _temperature, entropy, *normaliser = saved
        grad = SoftmaxGrad.from_upstream(entropy, g_logprob, g_entropy, g_lse)
        kept = ctx.kept  # a second backward pass makes all logits again
        ctx.kept = None if kept is None else kept.spent()
        found = input_gradients(
            hidden, weight, bias, targets, ctx.logit_map, grad, Normaliser(*normaliser), needs=ctx.needs_input_grad[:3],
            vocab_start=ctx.vocab_start, tp_group=ctx.tp_group, kept=kept, late=ctx.late,
        )  # fmt: skip
        return *found, None, None, None, None, None, None


def input_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    logit_map: LogitMap,
    grad: SoftmaxGrad,
    normaliser: Normaliser,
    *,
    needs: tuple[bool, bool, bool],
    vocab_start: int = 0,
    tp_group: dist.ProcessGroup | None = None,
    kept: KeptLogits | None = None,
    late: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of (hidden, weight, bias) in their dtypes, where needed; of hidden, summed over the ranks."""
    live = grad.live_rows()  # the other rows cost nothing, and a NaN in one of them stays there
    with full_precision(hidden.device):
        dx, dw, db = shard_gradients(
            hidden[live], weight, bias, targets[live], logit_map.select(live), grad.select(live),
            normaliser.select(live), vocab_start, needs, None if kept is None else kept.select(live), late,
        )  # fmt: skip
    if dx is not None:
        if tp_group is not None:
            dist.all_reduce(dx, group=tp_group)
        dx = dx.to(hidden.dtype)
        if isinstance(live, Tensor):
            dx = torch.zeros_like(hidden).index_copy_(0, live, dx)
    return dx, dw, db


def _room_for_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, roots: bool) -> KeptLogits | None:
    """Where the weight gets a gradient, and no kernel of a GPU has its own way."""
    if not (torch.is_grad_enabled() and weight.requires_grad) or use_triton(hidden, weight, bias):
        return None
    dtype = compute_dtype(hidden, weight, bias)
    return KeptLogits(len(hidden), weight, dtype, VOCAB_BLOCK, roots=roots and dtype == torch.float32)


@overload
def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, temperature: float | Tensor = 1.0,
    softcap: float | None = None, ignore_index: int = -100, return_entropy: Literal[False] = False,
    return_lse: Literal[False] = False, tp_group: dist.ProcessGroup | None = None,
    backend: Literal["auto", "reference"] = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, temperature: float | Tensor = 1.0,
    softcap: float | None = None, ignore_index: int = -100, return_entropy: bool = False, return_lse: bool = False,
    tp_group: dist.ProcessGroup | None = None, backend: Literal["auto", "reference"] = "auto",
) -> Tensor | tuple[Tensor, ...]: ...  # fmt: skip
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    return_entropy: bool = False,
    return_lse: bool = False,
    tp_group: dist.ProcessGroup | None = None,
    backend: Literal["auto", "reference"] = "auto",
) -> Tensor | tuple[Tensor, ...]:
    """log p(targets) under softmax(cap(hidden @ weight.T + bias) / temperature), in bounded memory.

    Args:
        hidden: [T, H], any float dtype.
        weight: [V, H], the projection (`lm_head.weight`; tied embeddings just receive the sum of both gradients).
        targets: i32 or i64 [T], token ids, or `ignore_index` for rows to skip: 0 in every output, zero gradient.
        bias: [V]; -inf masks a vocabulary entry.
        temperature: a positive number, or [T]; divides the soft-capped logits. Receives no gradient.
        softcap: the logits become `softcap * tanh(logits / softcap)` first.
        return_entropy, return_lse: also return them, in this order; both are differentiable.
        tp_group: vocabulary-parallel: `weight` and `bias` hold this rank's contiguous shard, shards in rank order and
            of any size; `targets` are global ids. Every rank must hold the same `hidden` and `targets` and form the
            same loss; all get the same outputs and the full gradient of `hidden`; `weight` gets its shard's.
        backend: "auto", bounded memory (`dispatch.explain()` says by which kernels; on a CPU, from the forward pass on,
            what the gradient of `weight` takes and at most 64 MiB more); "reference", all logits in memory (the
            oracle, no `tp_group`).

    Returns:
        logprob [T] (, entropy [T]) (, lse [T]) in nats; float32, or float64 if an input is.

    Raises:
        ValueError: shapes that do not fit, a target outside the vocabulary (it is named), or a temperature that is not
            > 0 in a row that is not ignored.
    """
    check_projection(hidden, weight, bias, {"targets": targets, "temperature": temperature})
    check_backend(backend)
    if tp_group is not None and not isinstance(tp_group, dist.ProcessGroup):
        raise ValueError(f"tp_group = {tp_group!r} must be a torch.distributed process group")
    if backend == "reference" and tp_group is not None:
        raise ValueError('backend = "reference" has no tensor-parallel form; use backend = "auto" with tp_group')
    if torch.compiler.is_compiling() and tp_group is None and backend == "auto":
        per_token = isinstance(temperature, Tensor)
        outputs = linear_logprob_graph(
            hidden, weight, bias, targets, 1.0 if per_token else temperature, temperature if per_token else None,
            softcap, ignore_index, return_entropy,
        )  # fmt: skip
        return chosen(outputs, return_entropy, return_lse)
    outputs = logprob_outputs(
        hidden, weight, targets, bias=bias, temperature=temperature, softcap=softcap, ignore_index=ignore_index,
        with_entropy=return_entropy, tp_group=tp_group, backend=backend,
    )  # fmt: skip
    return chosen(outputs, return_entropy, return_lse)


def logprob_outputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    temperature: float | Tensor,
    softcap: float | None,
    ignore_index: int,
    with_entropy: bool,
    tp_group: dist.ProcessGroup | None = None,
    backend: Literal["auto", "reference"] = "auto",
) -> tuple[Tensor, ...]:
    """(logprob, entropy, lse) of `linear_logprob`, and unless by the reference what a backward pass needs: the rounded
    entropy and the `Normaliser`. Each [T]."""
    vocab_start, vocabulary = shard_bounds(weight, tp_group)
    targets = check_targets(targets, vocabulary, ignore_index)
    rows = kept_rows(targets, ignore_index, None)
    check_temperature(temperature, rows)
    logit_map = LogitMap(temperature=temperature, softcap=softcap).pick(rows)
    x, y = rows.pick(hidden), rows.pick(targets)
    if backend == "reference":
        outputs = linear_logprob_ref(x, weight, y, bias=bias, temperature=logit_map.temperature, softcap=softcap)
    else:
        outputs = LinearLogprob.apply(
            x, weight, bias, y, logit_map, vocab_start, tp_group, with_entropy,
            _room_for_logits(x, weight, bias, roots=softcap is None and not with_entropy),
        )  # fmt: skip
    return tuple(rows.spread(o, len(targets)) for o in outputs)


def chosen(outputs: tuple[Tensor, ...], return_entropy: bool, return_lse: bool) -> Tensor | tuple[Tensor, ...]:
    """What was asked for of (logprob, entropy, lse, ...)."""
    wanted = tuple(o for o, want in zip(outputs, (True, return_entropy, return_lse), strict=False) if want)
    return wanted if len(wanted) > 1 else wanted[0]


def locate(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """(column of each target in the block of ids [start, start + width), or 0; whether it lies there)."""
    column = targets - start
    inside = (column >= 0) & (column < width)
    return torch.where(inside, column, 0), inside
