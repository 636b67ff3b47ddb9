"""One iteration's optimisation: from packed minibatches to changed weights, with the numbers that say how it went."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from siri.config import LossConfig, OptimConfig
from siri.engine.distributed import World, all_gather_object, all_reduce_max, all_reduce_sum
from siri.engine.optim import BadStepGuard, ShardedAdamW
from siri.engine.policy import Policy
from siri.engine.trajectory import Minibatch, PackedBatch
from siri.kernels import linear_policy_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """A micro-batch on the device, with what other policies said of its trained tokens before the first update."""

    batch: PackedBatch
    old_logprob_L: torch.Tensor | None
    """f32[L], the policy before the first update; None where there is one update only (then it is the current one)."""
    ref_logprob_L: torch.Tensor | None
    """f32[L], the frozen reference; None without a KL term."""


def to_device(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """The batch on `device`, save for the row bounds: attention wants them as numbers, and asking a GPU would wait."""
    names = [field.name for field in fields(batch) if field.name != "cu_seqlens"]
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
    world: World,
    guard: BadStepGuard,
    dump: Callable[[Minibatch], None],
) -> dict[str, float]:
    """Run `epochs` passes over the minibatches, an optimiser step each; returns the metrics of the iteration.

    Old log-probs are those of the weights that enter; with a single step they are the current ones and cost no second
    forward pass (ALGORITHM section 3). `dump` gets each minibatch whose gradient was not finite, so that the optimiser
    skipped it. Losses and statistics stay on the device until the end of this function, where they are read at once.
    Raises TrainingDiverged when `guard` has seen too many such gradients in a row.
    """
    if not minibatches:  # every episode of the iteration was lost, on all ranks: there is nothing to learn from
        return {"train/skipped_steps": 0.0}
    several = len(minibatches) * optim_config.epochs > 1
    anchored = [
        [_anchor(policy, reference, batch, several=several, temperature=temperature) for batch in minibatch.batches]
        for minibatch in minibatches
    ]
    tally = _Tally(policy.device)
    bad_steps = 0
    for epoch in range(optim_config.epochs):
        for minibatch, batches in zip(minibatches, anchored, strict=True):
            for item in batches:
                loss, stats = _loss(policy, item, minibatch, loss_config, temperature)
                loss.backward()
                tally.add(loss, stats, gap=_gap(item, stats) if epoch == 0 else None)
            result = optimizer.step()
            tally.grad_norms.append(result.grad_norm)
            if result.skipped:
                bad_steps += 1
                dump(minibatch)
            guard.observe(result)
    return {**tally.metrics(world), "train/lr": result.learning_rate, "train/skipped_steps": float(bad_steps)}


def _anchor(
    policy: Policy, reference: Policy | None, batch: PackedBatch, *, several: bool, temperature: float
) -> Anchored:
    batch = to_device(batch, policy.device)
    return Anchored(
        batch=batch,
        old_logprob_L=policy.logprob_L(batch, temperature=temperature) if several else None,
        ref_logprob_L=None if reference is None else reference.logprob_L(batch, temperature=temperature),
    )


def _loss(
    policy: Policy, item: Anchored, minibatch: Minibatch, config: LossConfig, temperature: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    head, batch = policy.head, item.batch
    return linear_policy_loss(
        policy.hidden_L(batch),
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
        temperature=temperature,
    )


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
        self.gaps: list[torch.Tensor] = []
        self.grad_norms: list[float] = []

    def add(self, loss: torch.Tensor, stats: dict[str, torch.Tensor], *, gap: torch.Tensor | None) -> None:
        self.ratio_max = torch.maximum(self.ratio_max, stats["ratio_max"].float())
        for name in ("num_tokens", "clipped_low", "clipped_high", "dual_clipped", "approx_kl", "kl_ref", "entropy"):
            self.sums[name] = self.sums.get(name, 0) + stats[name]
        self.sums["loss"] = self.sums.get("loss", 0) + loss.detach()
        if gap is not None:
            self.gaps.append(gap)

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
