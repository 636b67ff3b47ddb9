"""Clipped policy-gradient loss straight from hidden states, its gradient taken in the forward pass.

    ratio_t = exp(clamp(logprob_t - old_t, -20, 20))
    pg_t    = max(-A_t ratio_t, -A_t clip(ratio_t, 1 - clip_low, 1 + clip_high)),  if A_t < 0: min(that, -A_t dual_clip)
    kl_t    = clamp(k3(clamp(ref_t - logprob_t, -20, 20)), -10, 10),  k3(x) = exp(x) - x - 1 >= 0
    L       = sum_t token_weight_t rho_t (pg_t + kl_coef kl_t - entropy_coef entropy_t) / denominator
    rho_t   = min(exp(old_t - behavior_t), importance_clip),  1 without behavior_logprob, never differentiated

PPO's clip, dual clip (Ye et al. 2020), Schulman's k3 estimator of KL(policy || reference). The +-10 clamps the value
of k3 (where it binds, the KL term has no gradient); the +-20 clamps log-ratios, so that exp() stays finite (e^20 =
4.9e8) and a clamped token has gradient 0 instead of inf * 0. Without `old_logprob` the data are on-policy: ratio =
exp(logprob - detach(logprob)), value 1, gradient A_t.

Legend: T tokens, H hidden, V vocabulary.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .checks import (
    check_backend,
    check_denominator,
    check_number,
    check_projection,
    check_targets,
    check_temperature,
    kept_rows,
)
from .dispatch import untraced, use_triton
from .linear_logprob import linear_logprob_ref
from .projection import LogitMap, RawGrad, SoftmaxGrad, compute_dtype
from .token_loss import Logits, TokenLoss

LOG_RATIO_CLAMP = 20.0
K3_CLAMP = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTokens:
    """What the loss knows of each token beside its logits. Vectors [T] in the compute dtype."""

    advantage: Tensor
    old_logprob: Tensor | None
    ref_logprob: Tensor | None
    behavior_logprob: Tensor | None
    weight: Tensor
    """token_weight / denominator"""
    counted: Tensor | None
    """bool: the rows that are reported, see `Rows.mask`; None for all"""
    clip_low: float
    clip_high: float
    dual_clip: float
    kl_coef: float
    entropy_coef: float
    importance_clip: float

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "dual_clip", "kl_coef", "entropy_coef", "importance_clip"):
            check_number(name, getattr(self, name))
        if not self.dual_clip > 1.0:
            raise ValueError(
                f"dual_clip = {self.dual_clip} must be above 1: it caps the loss of a token whose ratio grew "
                "(3.0 is usual, inf is none)"
            )
        for name in ("clip_low", "clip_high"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(
                    f"{name} = {getattr(self, name)} must be at least 0: the ratio is clipped to "
                    "[1 - clip_low, 1 + clip_high]"
                )
        if not self.importance_clip >= 1.0:
            raise ValueError(
                f"importance_clip = {self.importance_clip} must be at least 1: below, exact samplers are cut too"
            )
        if self.kl_coef != 0.0 and self.ref_logprob is None:
            raise ValueError(f"kl_coef = {self.kl_coef} needs ref_logprob; pass it, or kl_coef = 0")

    def select(self, rows: slice) -> "PolicyTokens":
        return replace(
            self,
            advantage=self.advantage[rows],
            old_logprob=None if self.old_logprob is None else self.old_logprob[rows],
            ref_logprob=None if self.ref_logprob is None else self.ref_logprob[rows],
            behavior_logprob=None if self.behavior_logprob is None else self.behavior_logprob[rows],
            weight=self.weight[rows],
            counted=None if self.counted is None else self.counted[rows],
        )

    def report(self, values: Tensor) -> Tensor:
        """values[T], 0 in rows that are not counted."""
        return values if self.counted is None else torch.where(self.counted, values, 0)


def k3(log_ratio: Tensor) -> Tensor:
    """exp(x) - x - 1 >= 0; for x = log q - log p at a token drawn from p, an unbiased estimate of KL(p || q)."""
    return torch.expm1(log_ratio) - log_ratio


def policy_loss_of(logprob: Tensor, entropy: Tensor, tokens: PolicyTokens) -> tuple[Tensor, dict[str, Tensor]]:
    """(weighted sum of the token losses, what to report) from logprob[T] and entropy[T], differentiable."""
    old = logprob.detach() if tokens.old_logprob is None else tokens.old_logprob
    log_ratio = (logprob - old).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    ratio = log_ratio.exp()
    unclipped = -tokens.advantage * ratio
    clipped = -tokens.advantage * ratio.clamp(1 - tokens.clip_low, 1 + tokens.clip_high)
    surrogate = torch.maximum(unclipped, clipped)
    bound = -tokens.advantage * tokens.dual_clip
    negative = tokens.advantage < 0
    loss = torch.where(negative, torch.minimum(surrogate, bound), surrogate) - tokens.entropy_coef * entropy
    kl_ref = torch.zeros_like(logprob)
    if tokens.ref_logprob is not None:
        kl_ref = k3((tokens.ref_logprob - logprob).clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)).clamp(-K3_CLAMP, K3_CLAMP)
        loss = loss + tokens.kl_coef * kl_ref
    weight = tokens.weight
    if tokens.behavior_logprob is not None:
        # Bounded before exp(), which a sampler that is far off would overflow.
        weight = weight * (old - tokens.behavior_logprob).clamp(max=math.log(tokens.importance_clip)).exp()
    binds = clipped > unclipped
    sums = {
        "num_tokens": torch.ones_like(logprob),
        "clipped_low": binds & negative,
        "clipped_high": binds & ~negative,
        "dual_clipped": negative & (surrogate > bound),
        "approx_kl": k3(log_ratio),
        "kl_ref": kl_ref,
        "entropy": entropy,
    }
    stats = {name: tokens.report(values).sum() for name, values in sums.items()}
    stats["ratio_max"] = torch.cat([tokens.report(ratio), ratio.new_zeros(1)]).max()
    stats["logprob"] = logprob
    return (weight * loss).sum(), {name: value.detach().to(logprob.dtype) for name, value in stats.items()}


def linear_policy_loss_ref(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_map: LogitMap, tokens: PolicyTokens
) -> tuple[Tensor, dict[str, Tensor]]:
    """The definition, with all logits in memory and autograd doing the rest."""
    logprob, entropy, _ = linear_logprob_ref(
        hidden, weight, targets, bias=bias, temperature=logit_map.temperature, softcap=logit_map.softcap
    )
    return policy_loss_of(logprob, entropy, tokens)


def linear_policy_loss_chunked(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logit_map: LogitMap, tokens: PolicyTokens
) -> tuple[Tensor, dict[str, Tensor]]:
    """Chunks of whole rows through `TokenLoss`; the derivative by (logprob, entropy) is autograd's, on vectors."""
    dtype = compute_dtype(hidden, weight, bias)
    nothing = hidden.new_zeros(0, dtype=dtype)
    _, totals = policy_loss_of(nothing, nothing, tokens.select(slice(0, 0)))
    totals["logprob"] = hidden.new_zeros(len(hidden), dtype=dtype)

    def chunk_loss(logits: Logits, rows: slice, wanted: bool) -> tuple[Tensor, RawGrad | None]:
        softmax = logits.stats(targets[rows])
        logprob, entropy = softmax.logprob.requires_grad_(wanted), softmax.entropy.requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            loss, stats = policy_loss_of(logprob, entropy, tokens.select(rows))
        totals["logprob"][rows] = stats.pop("logprob")
        for name, value in stats.items():
            totals[name] = torch.maximum(totals[name], value) if name == "ratio_max" else totals[name] + value
        if not wanted:
            return loss, None
        g_logprob, g_entropy = torch.autograd.grad(loss, (logprob, entropy))
        grad = SoftmaxGrad.from_upstream(softmax.rounded_entropy, g_logprob, g_entropy if tokens.entropy_coef else None)
        return loss.detach(), logits.grad(grad, softmax.normaliser, targets[rows])

    on_triton = use_triton(hidden, weight, bias)
    return TokenLoss.run(hidden, weight, bias, logit_map, targets, chunk_loss, on_triton), totals


@untraced
def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantage: Tensor,
    old_logprob: Tensor | None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    kl_coef: float = 0.0,
    ref_logprob: Tensor | None = None,
    entropy_coef: float = 0.0,
    behavior_logprob: Tensor | None = None,
    importance_clip: float = 2.0,
    token_weight: Tensor | None = None,
    denominator: float | Tensor,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    backend: Literal["auto", "reference"] = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate + kl_coef * k3 KL to a reference - entropy_coef * entropy, summed over tokens / denominator.

    Args:
        hidden, weight, targets, bias, temperature, softcap, ignore_index: as in `linear_logprob`.
        advantage: [T].
        old_logprob: [T] nats, of the policy that the ratio is formed against; None: on-policy, ratio 1 with gradient A.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        dual_clip: where A < 0 the loss is at most -A * dual_clip; above 1, inf for no such bound.
        ref_logprob: [T] nats of the frozen reference; needed if kl_coef is not 0, and reported whenever given.
        behavior_logprob: [T] nats, of the sampler that drew the tokens: its mismatch with the trainer is corrected by
            a truncated importance weight on the token's loss. None: no correction.
        importance_clip: most that this weight can be; at least 1.
        token_weight: [T]; rows of weight 0 are skipped, whatever else they hold (NaN included). None: 1 everywhere.
        denominator: the global number of trained tokens (over all micro-batches and ranks), > 0, never this call's own.
            A tensor on a GPU is not looked at.
        backend: "auto", chunks of whole rows; "reference", all logits in memory.

    Returns:
        (loss, stats): loss 0-dim, float32 or float64, connected to hidden, weight and bias even if no row is kept; its
        gradient costs three GEMMs and is ready when this returns. `stats` are detached 0-dim sums over the kept rows,
        unweighted, for the caller to reduce over micro-batches and ranks: num_tokens, clipped_low (A < 0 and ratio
        below 1 - clip_low), clipped_high (A > 0 and ratio above 1 + clip_high), dual_clipped, approx_kl (k3 of KL(old
        || new)), kl_ref, entropy; ratio_max, a maximum (0 if no row is kept); and logprob[T], of every token (0 on
        skipped rows).

    Raises:
        ValueError: shapes that do not fit, a target outside the vocabulary, denominator <= 0, dual_clip <= 1,
            importance_clip < 1, a negative clip_low or clip_high, kl_coef without ref_logprob, or a temperature that is
            not > 0 in a row that is kept.
    """
    optional: dict[str, Tensor | None] = {
        "old_logprob": old_logprob, "ref_logprob": ref_logprob, "behavior_logprob": behavior_logprob,
        "token_weight": token_weight,
    }  # fmt: skip
    given = {name: values for name, values in optional.items() if values is not None}
    per_token = {"targets": targets, "advantage": advantage, "temperature": temperature, **given}
    check_projection(hidden, weight, bias, per_token)
    targets = check_targets(targets, len(weight), ignore_index, token_weight)
    denominator = check_denominator(denominator)
    check_backend(backend)
    rows, dtype = kept_rows(targets, ignore_index, token_weight), compute_dtype(hidden, weight, bias)

    def pick(values: Tensor) -> Tensor:
        return rows.pick(values.detach()).to(dtype)

    tokens = PolicyTokens(
        advantage=pick(advantage),
        old_logprob=None if old_logprob is None else pick(old_logprob),
        ref_logprob=None if ref_logprob is None else pick(ref_logprob),
        behavior_logprob=None if behavior_logprob is None else pick(behavior_logprob),
        weight=pick(torch.ones_like(advantage) if token_weight is None else token_weight) / denominator,
        counted=rows.mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
        importance_clip=importance_clip,
    )
    run = linear_policy_loss_ref if backend == "reference" else linear_policy_loss_chunked
    check_temperature(temperature, rows)
    logit_map = LogitMap(temperature=temperature, softcap=softcap).pick(rows)
    loss, stats = run(rows.pick(hidden), weight, bias, rows.pick(targets), logit_map, tokens)
    return loss, {**stats, "logprob": rows.spread(stats["logprob"], len(targets))}
