"""Weighted distillation into the policy straight from hidden states, its gradient taken in the forward pass.

    L = sum_t w_t D_t / denominator,  S = softmax(z_t) the student, T = softmax(teacher z_t), detached, one vocabulary

    nll          D_t = -log S(y_t)                                             dz = S - onehot(y_t)
    forward_kl   D_t = KL(T || S) = sum_v T (log T - log S)                    dz = S - T
    reverse_kl   D_t = KL(S || T) = sum_v S (log S - log T)                    dz = S (log S - log T - D_t)
    jsd          D_t = KL(S || M) / 2 + KL(T || M) / 2,  M = (S + T) / 2       dz = S (log S - log M - KL(S || M)) / 2

All in nats; jsd is at most log 2. Temperature and soft cap apply to both, and no temperature^2 factor is added. SIRI's
internalisation loss is `nll` with w_t = m_t clip(A, 0, c_adv) (arXiv 2606.02355).

Legend: T tokens, H hidden (the teacher's may differ), V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .checks import check_backend, check_denominator, check_projection, check_targets, check_temperature, kept_rows
from .dispatch import untraced, use_triton
from .projection import LogitMap, RawGrad, SoftmaxGrad, column_pieces, compute_dtype, log_softmax_, raw_logits_ref
from .token_loss import Head, Logits, TokenLoss, TorchLogits

Divergence = Literal["nll", "forward_kl", "reverse_kl", "jsd"]


def divergence_ref(log_s: Tensor, log_t: Tensor | None, targets: Tensor, divergence: Divergence) -> Tensor:
    """D [T] by its definition, from log-probabilities [T, V] of student and teacher (None for nll)."""
    if log_t is None:
        return -log_s.gather(1, targets[:, None]).squeeze(1)
    if divergence == "forward_kl":
        return (log_t.exp() * (log_t - log_s)).sum(1)
    if divergence == "reverse_kl":
        return (log_s.exp() * (log_s - log_t)).sum(1)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    return ((log_s.exp() * (log_s - log_m)).sum(1) + (log_t.exp() * (log_t - log_m)).sum(1)) / 2


def divergence_and_grad(log_s: Tensor, log_t: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """(D [n], dD/dz [n, V]) from log-probabilities [n, V], both spent. Finite however small a probability is."""
    d, d_of_s = log_s.new_zeros(len(log_s)), log_s.new_zeros(len(log_s))
    for cols in column_pieces(log_s):
        a, b = log_s[:, cols], log_t[:, cols]
        s = a.exp()
        if divergence == "forward_kl":
            t = b.exp()
            d += b.sub_(a).mul_(t).sum(1)
            torch.sub(s, t, out=a)
        elif divergence == "reverse_kl":
            d += s.mul_(torch.sub(a, b, out=b)).sum(1)
        else:
            log_m = torch.logaddexp(a, b).sub_(math.log(2))
            d += b.exp().mul_(b.sub_(log_m)).sum(1)
            d_of_s += s.mul_(torch.sub(a, log_m, out=b)).sum(1)
    if divergence == "forward_kl":
        return d, log_s
    # What is left in log_t is the surplus, log s - log t or log s - log m, whose mean the gradient is centred at.
    mean, share = (d, 1.0) if divergence == "reverse_kl" else (d_of_s, 0.5)
    for cols in column_pieces(log_s):
        log_s[:, cols].exp_().mul_(log_t[:, cols].sub_(mean[:, None])).mul_(share)
    return (d + d_of_s) * share, log_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A frozen projection over the student's vocabulary."""

    hidden: Tensor
    """[T, H of the teacher]"""
    weight: Tensor
    """[V, H of the teacher]"""
    bias: Tensor | None


def masked_distill_loss_ref(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_map: LogitMap,
    targets: Tensor,
    token_weight: Tensor,
    teacher: Teacher | None,
    divergence: Divergence,
) -> Tensor:
    """The definition, with all logits in memory and autograd doing the rest.

    `token_weight` is already divided by the denominator.
    """
    log_s = torch.log_softmax(logit_map.ref(raw_logits_ref(hidden, weight, bias)), dim=1)
    log_t = None
    if teacher is not None:
        raw = raw_logits_ref(teacher.hidden, teacher.weight, teacher.bias)
        log_t = torch.log_softmax(logit_map.ref(raw), dim=1).to(log_s.dtype)
    return (token_weight * divergence_ref(log_s, log_t, targets, divergence)).sum()


def masked_distill_loss_chunked(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    logit_map: LogitMap,
    targets: Tensor,
    token_weight: Tensor,
    teacher: Teacher | None,
    divergence: Divergence,
) -> Tensor:
    """Chunks of whole rows through `TokenLoss`; the teacher's rows are projected beside the student's."""
    dtype = compute_dtype(hidden, weight, bias)
    frozen = () if teacher is None else (teacher.hidden, teacher.weight, teacher.bias)
    on_triton = use_triton(hidden, weight, bias, *frozen)
    teacher_head = None
    if teacher is not None:
        teacher_head = Head.of(teacher.hidden, teacher.weight, teacher.bias, on_triton=on_triton, dtype=dtype)

    def chunk_loss(logits: Logits, rows: slice, wanted: bool) -> tuple[Tensor, RawGrad | None]:
        draw: RawGrad | None = None
        weight_n, targets_n = token_weight[rows], targets[rows]
        if teacher is not None and teacher_head is not None:
            x = teacher_head.factor(teacher.hidden[rows])
            teacher_logits = teacher_head.logits(x, logit_map.select(rows))
            d, draw = chunk_divergence(logits, teacher_logits, weight_n, divergence)
        else:
            softmax = logits.stats(targets_n)
            d = -softmax.logprob
            if wanted:
                grad = SoftmaxGrad.from_upstream(d, g_logprob=-weight_n)
                draw = logits.grad(grad, softmax.normaliser, targets_n)
        return (weight_n * d).sum(), draw

    return TokenLoss.run(hidden, weight, bias, logit_map, targets if teacher is None else None, chunk_loss, on_triton)


def chunk_divergence(
    logits: Logits, teacher: Logits, row_weight: Tensor, divergence: Divergence
) -> tuple[Tensor, RawGrad]:
    """(D [n], gradient of row_weight * D by the raw logits), for the divergences that read the teacher's whole rows."""
    if isinstance(logits, TorchLogits):
        assert isinstance(teacher, TorchLogits)  # both heads were made for one backend
        d, dz = divergence_and_grad(log_softmax_(logits.z), log_softmax_(teacher.z), divergence)
        return d, logits.raw_grad(dz.mul_(row_weight[:, None]))
    from .distill_loss_triton import divergence_triton  # here: triton is not everywhere

    assert not isinstance(teacher, TorchLogits)
    return divergence_triton(logits, teacher, row_weight, divergence)


@untraced
def masked_distill_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weight: Tensor,
    *,
    divergence: Divergence = "nll",
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    denominator: float | Tensor,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    backend: Literal["auto", "reference"] = "auto",
) -> Tensor:
    """sum_t token_weight_t * D_t / denominator, with S the student's distribution of token t and T the teacher's:

        nll          D_t = -log S(target_t)
        forward_kl   D_t = KL(T || S)
        reverse_kl   D_t = KL(S || T)
        jsd          D_t = KL(S || M) / 2 + KL(T || M) / 2,  M = (S + T) / 2

    Args:
        hidden, weight, targets, bias, temperature, softcap, ignore_index: as in `linear_logprob`. `targets` also masks
            rows for the divergences that do not read them.
        token_weight: [T]; rows of weight 0 are skipped, whatever else they hold.
        divergence: "nll" towards the target; or towards a teacher's whole distribution.
        teacher_hidden: [T, H'], needed by all but "nll"; no gradient flows into the teacher.
        teacher_weight, teacher_bias: [V, H'], [V]; without teacher_weight the teacher uses the student's own
            projection, detached.
        denominator: the global count of distilled tokens, > 0 (max(1, count)); never this call's own. A tensor on a
            GPU is not looked at.
        backend: "auto", chunks of whole rows; "reference", all logits in memory.

    Returns:
        The loss, 0-dim, float32 or float64, connected to hidden, weight and bias even if no row is kept.

    Raises:
        ValueError: shapes that do not fit, a target outside the vocabulary, denominator <= 0, an unknown divergence,
            a teacher that is missing, not used, or of another vocabulary size, or a temperature that is not > 0 in a
            row that is kept.
    """
    per_token = {"targets": targets, "token_weight": token_weight, "temperature": temperature}
    check_projection(hidden, weight, bias, per_token)
    targets = check_targets(targets, len(weight), ignore_index, token_weight)
    denominator = check_denominator(denominator)
    check_backend(backend)
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence = {divergence!r} must be one of {', '.join(get_args(Divergence))}")
    if (divergence == "nll") != (teacher_hidden is None):
        remedy = "drop teacher_hidden" if divergence == "nll" else "pass teacher_hidden"
        raise ValueError(
            f"divergence = {divergence!r} with teacher_hidden {'None' if teacher_hidden is None else 'given'}: {remedy}"
        )
    if teacher_hidden is None and not (teacher_weight is None and teacher_bias is None):
        raise ValueError(
            "teacher_weight or teacher_bias given without teacher_hidden: pass the teacher's hidden states"
        )
    if teacher_weight is None and teacher_bias is not None:
        raise ValueError(
            "teacher_bias given without teacher_weight: the teacher then has the student's weight and bias; pass "
            "teacher_weight too"
        )
    rows = kept_rows(targets, ignore_index, token_weight)
    teacher = None
    if teacher_hidden is not None:
        if teacher_weight is None:
            teacher_weight, teacher_bias = weight, bias
        check_projection(teacher_hidden, teacher_weight, teacher_bias, {}, prefix="teacher_")
        if len(teacher_hidden) != len(hidden) or len(teacher_weight) != len(weight):
            raise ValueError(
                f"teacher_hidden {tuple(teacher_hidden.shape)} and teacher_weight {tuple(teacher_weight.shape)} must "
                f"have the student's T = {len(hidden)} and V = {len(weight)}"
            )
        teacher = Teacher(
            hidden=rows.pick(teacher_hidden.detach()),
            weight=teacher_weight.detach(),
            bias=None if teacher_bias is None else teacher_bias.detach(),
        )
    row_weight = rows.pick(token_weight.detach()).to(compute_dtype(hidden, weight, bias)) / denominator
    run = masked_distill_loss_ref if backend == "reference" else masked_distill_loss_chunked
    check_temperature(temperature, rows)
    logit_map = LogitMap(temperature=temperature, softcap=softcap).pick(rows)
    return run(rows.pick(hidden), weight, bias, logit_map, rows.pick(targets), row_weight, teacher, divergence)
