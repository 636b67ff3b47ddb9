"""One iteration's optimisation: from packed minibatches to changed weights, with the numbers that say how it went.

    L = L_policy + lambda L_int

L_policy covers the tokens that carry a sampler log-prob, L_int (siri/internalize.py) those of re-rendered rows. Both
come from one pass over a micro-batch, each with its own global denominator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from siri.config import LossConfig, OptimConfig
from siri.engine.distributed import World, all_gather_object, all_reduce_max, all_reduce_sum
from siri.engine.optim import BadStepGuard, ShardedAdamW
from siri.engine.policy import Head, Policy
from siri.engine.trajectory import Minibatch, PackedBatch
from siri.kernels import linear_policy_loss, masked_distill_loss
from siri.kernels.distill_loss import Divergence


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """A micro-batch on the device, with what other policies said of its trained tokens before the first update."""

    batch: PackedBatch
    old_logprob_L: torch.Tensor | None
    """f32[L], the policy before the first update; None where there is one update only (then it is the current one)."""
    ref_logprob_L: torch.Tensor | None
    """f32[L], the frozen reference; None without a KL term."""
    teacher_hidden_D: torch.Tensor | None
    """[D, H], hidden states of the policy before the first update, under the prompts that the tokens of re-rendered
    rows were drawn from; None where there are no such rows, or where the divergence (nll) does not ask for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an iteration minimises."""

    policy: LossConfig
    temperature: float
    distill_lambda: float
    divergence: Divergence
    teacher_head: Head | None
    """The projection before the first update, where a later update needs it; None: it is the current one."""


def to_device(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """The batch on `device`, save for its teacher, which goes there on its own, and the row bounds: attention wants
    them as numbers, and asking a GPU would wait."""
    names = [field.name for field in fields(batch) if field.name not in ("cu_seqlens", "teacher")]
    return replace(batch, **{name: getattr(batch, name).to(device, non_blocking=True) for name in names})


def update(
    policy: Policy,
    reference: Policy | None,
    optimizer: ShardedAdamW,
    minibatches: Sequence[Minibatch],
    *,
    loss_config: LossConfig,
    optim_config: OptimConfig,
    temperature: float,
    distill_lambda: float = 0.0,
    divergence: Divergence = "nll",
    world: World,
    guard: BadStepGuard,
    dump: Callable[[Minibatch], None],
) -> dict[str, float]:
    """Run `epochs` passes over the minibatches, an optimiser step each; returns the metrics of the iteration.

    Old log-probs are those of the weights that enter; with a single step they are the current ones and cost no second
    forward pass (ALGORITHM section 3). `distill_lambda` weighs the internalisation loss of re-rendered rows; at 0 they
    have none, and there are no metrics of it. A `divergence` other than nll is one from the weights that enter, under
    the prompts that the tokens were drawn from: it needs rows with a teacher. `dump` gets each minibatch whose gradient
    was not finite, so that the optimiser skipped it. Losses and statistics stay on the device until the end of this
    function, where they are read at once.
    Raises TrainingDiverged when `guard` has seen too many such gradients in a row.
    """
    if not minibatches:  # every episode of the iteration was lost, on all ranks: there is nothing to learn from
        return {"train/skipped_steps": 0.0}
    several = len(minibatches) * optim_config.epochs > 1
    objective = Objective(
        policy=loss_config,
        temperature=temperature,
        distill_lambda=distill_lambda,
        divergence=divergence,
        teacher_head=None,
    )
    if several and divergence != "nll" and distill_lambda and any(m.distill_tokens for m in minibatches):
        objective = replace(objective, teacher_head=_frozen(policy.head))
    anchored = [
        [_anchor(policy, reference, batch, objective, several=several) for batch in minibatch.batches]
        for minibatch in minibatches
    ]
    tally = _Tally(policy.device)
    bad_steps = 0
    for epoch in range(optim_config.epochs):
        for minibatch, batches in zip(minibatches, anchored, strict=True):
            for item in batches:
                hidden_L = policy.hidden_L(item.batch)
                loss, stats = _policy_loss(policy.head, hidden_L, item, minibatch, objective)
                distill_loss = _distill_loss(policy.head, hidden_L, item, minibatch, objective)
                (loss if distill_loss is None else loss + distill_lambda * distill_loss).backward()
                tally.add(loss, stats, gap=_gap(item, stats) if epoch == 0 else None, distill_loss=distill_loss)
            result = optimizer.step()
            tally.grad_norms.append(result.grad_norm)
            if result.skipped:
                bad_steps += 1
                dump(minibatch)
            guard.observe(result)
    metrics = {**tally.metrics(world), "train/lr": result.learning_rate, "train/skipped_steps": float(bad_steps)}
    return {**metrics, **_distill_metrics(minibatches, tally, world, objective)} if distill_lambda else metrics


def _frozen(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.detach().clone()
    return replace(head, weight=head.weight.detach().clone(), bias=bias)


def _anchor(
    policy: Policy, reference: Policy | None, batch: PackedBatch, objective: Objective, *, several: bool
) -> Anchored:
    teacher_hidden_D = None
    if _distills(batch, objective) and objective.divergence != "nll":
        assert batch.teacher is not None, "re-rendered rows without a teacher"
        with torch.no_grad():
            teacher_hidden_D = policy.hidden_L(to_device(batch.teacher, policy.device))
    batch, temperature = to_device(batch, policy.device), objective.temperature
    return Anchored(
        batch=batch,
        old_logprob_L=policy.logprob_L(batch, temperature=temperature) if several else None,
        ref_logprob_L=None if reference is None else reference.logprob_L(batch, temperature=temperature),
        teacher_hidden_D=teacher_hidden_D,
    )


def _policy_loss(
    head: Head, hidden_L: torch.Tensor, item: Anchored, minibatch: Minibatch, objective: Objective
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch, config = item.batch, objective.policy
    return linear_policy_loss(
        hidden_L,
        head.weight,
        batch.target_L,
        batch.advantage_L,
        item.old_logprob_L,
        behavior_logprob=batch.behavior_logprob_L,
        importance_clip=config.importance_clip,
        token_weight=batch.policy_weight_L,
        ref_logprob=item.ref_logprob_L,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        kl_coef=config.kl_coef,
        entropy_coef=config.entropy_coef,
        denominator=max(1, minibatch.policy_tokens),
        bias=head.bias,
        softcap=head.softcap,
        temperature=objective.temperature,
    )


def _distills(batch: PackedBatch, objective: Objective) -> bool:
    return objective.distill_lambda > 0 and len(batch.distill_index_D) > 0


def _distill_loss(
    head: Head, hidden_L: torch.Tensor, item: Anchored, minibatch: Minibatch, objective: Objective
) -> torch.Tensor | None:
    """This micro-batch's part of L_int; None where it has none."""
    batch, teacher = item.batch, objective.teacher_head
    if not _distills(batch, objective):
        return None
    return masked_distill_loss(
        hidden_L.index_select(0, batch.distill_index_D),
        head.weight,
        batch.target_L.index_select(0, batch.distill_index_D),
        batch.distill_weight_D,
        divergence=objective.divergence,
        teacher_hidden=item.teacher_hidden_D,
        teacher_weight=None if teacher is None else teacher.weight,
        teacher_bias=None if teacher is None else teacher.bias,
        denominator=max(1, minibatch.distill_tokens),
        bias=head.bias,
        softcap=head.softcap,
        temperature=objective.temperature,
    )


def _distill_metrics(
    minibatches: Sequence[Minibatch], tally: "_Tally", world: World, objective: Objective
) -> dict[str, float]:
    """L_int, the mean over optimiser steps; of one pass over the rows, the tokens that pull (w_t > 0), the sum of m_t
    that L_int is divided by, and the mean of w_t over m_t."""
    weights = [batch.distill_weight_D for minibatch in minibatches for batch in minibatch.batches]
    own = [float(tally.distill_loss), sum(float(w.sum()) for w in weights), sum(int((w > 0).sum()) for w in weights)]
    loss, weight, pulling = all_reduce_sum(world, np.array(own)).tolist()
    gated = sum(minibatch.distill_tokens for minibatch in minibatches)
    return {
        "distill/loss": loss / max(1, len(tally.grad_norms)),
        "distill/tokens": pulling,
        "distill/gated_tokens": float(gated),
        "distill/weight_mean": weight / max(1, gated),
        "distill/lambda": objective.distill_lambda,
    }


def _gap(item: Anchored, stats: dict[str, torch.Tensor]) -> torch.Tensor:
    """f32[L]: |trainer - sampler| log-probability (nats) of the tokens that enter the policy loss, -1 for the others.

    The others stay in for now: dropping them would wait for the device.
    """
    trainer = stats["logprob"] if item.old_logprob_L is None else item.old_logprob_L
    gap = (trainer - item.batch.behavior_logprob_L).abs()
    return torch.where(item.batch.policy_weight_L > 0, gap, -1.0)


class _Tally:
    """Sums of an iteration, kept on the device until `metrics` reads them all at once."""

    def __init__(self, device: torch.device) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.ratio_max = torch.zeros((), device=device)
        self.distill_loss = torch.zeros((), device=device)
        self.gaps: list[torch.Tensor] = []
        self.grad_norms: list[float] = []

    def add(
        self,
        loss: torch.Tensor,
        stats: dict[str, torch.Tensor],
        *,
        gap: torch.Tensor | None,
        distill_loss: torch.Tensor | None,
    ) -> None:
        self.ratio_max = torch.maximum(self.ratio_max, stats["ratio_max"].float())
        for name in ("num_tokens", "clipped_low", "clipped_high", "dual_clipped", "approx_kl", "kl_ref", "entropy"):
            self.sums[name] = self.sums.get(name, 0) + stats[name]
        self.sums["loss"] = self.sums.get("loss", 0) + loss.detach()
        if gap is not None:
            self.gaps.append(gap)
        if distill_loss is not None:
            self.distill_loss = self.distill_loss + distill_loss.detach()

    def metrics(self, world: World) -> dict[str, float]:
        """What the sums come to over all ranks, read from the device at once."""
        names = list(self.sums)
        totals = dict(
            zip(names, all_reduce_sum(world, np.array([float(self.sums[name]) for name in names])), strict=True)
        )
        ratio_max = all_reduce_max(world, np.array([float(self.ratio_max)]))[0]
        local = torch.cat(self.gaps).float().cpu().numpy() if self.gaps else np.zeros(0, np.float32)
        gap = np.concatenate(all_gather_object(world, local[local != -1]))
        tokens = max(1.0, totals["num_tokens"])
        steps = max(1, len(self.grad_norms))
        return {
            "train/loss": totals["loss"] / steps,
            "train/grad_norm": float(np.mean([norm for norm in self.grad_norms if np.isfinite(norm)] or [np.nan])),
            "train/approx_kl": totals["approx_kl"] / tokens,
            "train/kl_ref": totals["kl_ref"] / tokens,
            "train/entropy": totals["entropy"] / tokens,
            "train/clipped_low": totals["clipped_low"] / tokens,
            "train/clipped_high": totals["clipped_high"] / tokens,
            "train/dual_clipped": totals["dual_clipped"] / tokens,
            "train/ratio_max": float(ratio_max),
            "mismatch/mean": float(gap.mean()) if len(gap) else 0.0,
            "mismatch/p99": float(np.quantile(gap, 0.99)) if len(gap) else 0.0,
            "mismatch/max": float(gap.max()) if len(gap) else 0.0,
        }
