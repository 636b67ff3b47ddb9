"""AdamW on replicated parameters with sharded state, clipping by global norm, and steps skipped when not finite.

Every parameter has one owner among the ranks (ZeRO stage 1). A step sums the ranks' gradients onto the owner
(denominators are global, so nothing is averaged), the owner updates, and its result is broadcast. State that leaves
this file is whole and named by parameter: a checkpoint written by one rank resumes on two.

Parameters that are not float32 get a float32 master copy at their owner, and their gradients are added up in float32
over the micro-batches: in bfloat16 a small update or a small micro-batch would be rounded away.

Why not torch's ZeroRedundancyOptimizer: it neither reduces nor clips nor keeps masters, and gathers its state by
pickling whole shards; what is left of it is the partition below.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from siri.engine.distributed import World
from siri.engine.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one optimiser step did; equal on every rank."""

    grad_norm: float
    """Global L2 norm before clipping, over all ranks; not finite if and only if the step was skipped."""
    learning_rate: float
    skipped: bool
    """Parameters and optimiser state are as before."""


class TrainingDiverged(RuntimeError):
    """Too many non-finite gradients in a row."""


@dataclass(slots=True, kw_only=True)
class BadStepGuard:
    """Counts skipped steps; both counters belong into the checkpoint."""

    max_in_a_row: int
    in_a_row: int = 0
    total: int = 0

    def observe(self, result: StepResult) -> None:
        """Raises TrainingDiverged at the `max_in_a_row`-th skipped step in a row."""
        self.in_a_row = self.in_a_row + 1 if result.skipped else 0
        self.total += result.skipped
        if self.in_a_row >= self.max_in_a_row:
            raise TrainingDiverged(
                f"the gradient was not finite {self.in_a_row} steps in a row (max_bad_steps: {self.max_in_a_row}); "
                "weights and optimiser are as before the first of them; lower the learning rate, or look at the "
                "dumped batches"
            )


def learning_rate(
    step: int,
    *,
    peak: float,
    kind: Literal["constant", "linear", "cosine"],
    warmup_steps: int = 0,
    total_steps: int,
) -> float:
    """The rate of optimiser step `step` (0-based): linear from peak/warmup_steps up to `peak`, then as `kind` says.

    linear and cosine reach 0 at step `total_steps`, one after the last.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    factor = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[kind]
    return peak * factor


def partition(sizes: Iterable[int], ranks: int) -> list[int]:
    """Owner of each parameter: in order, the rank with the fewest elements so far (the lowest of equals)."""
    load = [0] * ranks
    owners = []
    for size in sizes:
        owner = load.index(min(load))
        load[owner] += size
        owners.append(owner)
    return owners


class ShardedAdamW:
    """The optimiser of a replicated model. All ranks construct it alike and call its methods together.

    `schedule` maps the number of steps done (skipped ones do not count) to the learning rate. Weight decay is decoupled
    and covers every parameter, as torch.optim.AdamW's default does. With one rank and float32 the result is that of
    torch.optim.AdamW after torch.nn.utils.clip_grad_norm_, bit for bit.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        world: World,
        *,
        schedule: Callable[[int], float],
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float = 1.0,
    ) -> None:
        self._parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self._world = world
        self._schedule = schedule
        self._clip_norm = clip_norm
        self._owner = dict(
            zip(self._parameters, partition((p.numel() for p in self._parameters.values()), world.size), strict=True)
        )
        self._wide_gradients: dict[nn.Parameter, torch.Tensor] = {}
        self._masters = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            for name, p in self._parameters.items()
            if self._owner[name] == world.rank
        }
        for p in self._parameters.values():
            if p.dtype != torch.float32:
                p.register_post_accumulate_grad_hook(self._widen)
        on_gpu = world.device.type == "cuda"
        # Fused on CUDA: one pass over memory, and no temporaries of the size of the shard.
        self._adamw = torch.optim.AdamW(
            self._masters.values(), lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=on_gpu or None
        )
        self.steps = 0
        """Steps done, skipped ones not counted."""

    @torch.no_grad()
    def step(self) -> StepResult:
        """Consumes the gradients of all ranks (a missing one counts as zero); updates, unless the norm is not finite.

        The host waits for the device once, for the norm that decides.
        """
        gradients = self._sum_over_ranks(self._take_gradients())
        norm = self._norm(gradients)
        grad_norm, rate = norm.item(), self._schedule(self.steps)
        skipped = not math.isfinite(grad_norm)
        if not skipped:
            self._update(gradients, torch.clamp(self._clip_norm / (norm + 1e-6), max=1.0), rate)
        return StepResult(grad_norm=grad_norm, learning_rate=rate, skipped=skipped)

    @torch.no_grad()
    def state_dict(self) -> dict[str, torch.Tensor]:
        """The whole state, on CPU, at rank 0; empty elsewhere. `steps` i64[]; moments and masters f32, shaped as their
        parameter, under `<parameter>/exp_avg`, `/exp_avg_sq` and, where it is not float32 itself, `/master`."""
        state = {"steps": torch.tensor(self.steps)}
        for name, p in self._parameters.items():
            for key in self._keys(p):
                whole = self._state(name, key) if name in self._masters else torch.empty_like(p, dtype=torch.float32)
                if self._world.size > 1:
                    dist.broadcast(whole, src=self._owner[name])
                if self._world.is_main:
                    state[f"{name}/{key}"] = whole.detach().to("cpu", copy=True).contiguous()
        return state if self._world.is_main else {}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes this rank's part of a whole state written under any number of ranks.

        Raises UserError if names or shapes are not those of this model.
        """
        expected = {f"{name}/{key}": p.shape for name, p in self._parameters.items() for key in self._keys(p)}
        expected["steps"] = torch.Size([])
        for name in sorted(expected.keys() ^ state.keys()):
            where = "checkpoint" if name in expected else "model"
            raise UserError(
                f"optimiser state: {name} is missing in the {where}; the checkpoint is of another model or another "
                "policy.dtype: resume with the configuration it was made with, or start a new run"
            )
        for name, shape in expected.items():
            if state[name].shape != shape:
                raise UserError(
                    f"optimiser state: {name} has shape {list(state[name].shape)}, this model's is {list(shape)}; "
                    "resume with the model the checkpoint was made with, or start a new run"
                )
        self.steps = int(state["steps"])
        for name, master in self._masters.items():
            p = self._parameters[name]
            for key in self._keys(p):
                self._state(name, key).copy_(state[f"{name}/{key}"])
            self._adamw.state[master]["step"].fill_(float(self.steps))
            if master is not p:
                p.copy_(master)

    def _widen(self, p: torch.Tensor) -> None:
        assert isinstance(p, nn.Parameter)
        assert p.grad is not None
        if p in self._wide_gradients:
            self._wide_gradients[p].add_(p.grad)
        else:
            self._wide_gradients[p] = p.grad.float()
        p.grad = None

    def _take_gradients(self) -> dict[str, torch.Tensor]:
        gradients = {}
        for name, p in self._parameters.items():
            gradient = p.grad if p.dtype == torch.float32 else self._wide_gradients.pop(p, None)
            gradients[name] = torch.zeros_like(p, dtype=torch.float32) if gradient is None else gradient
            p.grad = None
        return gradients

    def _sum_over_ranks(self, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The summed gradients of the parameters this rank owns."""
        if self._world.size > 1:
            waiting = [dist.reduce(g, dst=self._owner[name], async_op=True) for name, g in gradients.items()]
            for work in waiting:
                work.wait()
        return {name: gradients[name] for name in self._masters}

    def _norm(self, owned: dict[str, torch.Tensor]) -> torch.Tensor:
        """f32[], the same bits on every rank and for every number of ranks: norms of parameters, in their order."""
        norms = torch.zeros(len(self._parameters), device=self._world.device)
        for i, name in enumerate(self._parameters):
            if name in owned:
                norms[i] = torch.linalg.vector_norm(owned[name])
        if self._world.size > 1:
            dist.all_reduce(norms)  # exact: all terms but the owner's are zero
        return torch.linalg.vector_norm(norms)

    def _update(self, owned: dict[str, torch.Tensor], scale: torch.Tensor, rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        for name, master in self._masters.items():
            master.grad = owned[name].mul_(scale)
        self._adamw.step()
        self.steps += 1
        for name, master in self._masters.items():
            master.grad = None
            if master is not self._parameters[name]:
                self._parameters[name].copy_(master)
        if self._world.size > 1:
            waiting = [dist.broadcast(p, self._owner[name], async_op=True) for name, p in self._parameters.items()]
            for work in waiting:
                work.wait()

    def _keys(self, p: nn.Parameter) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq") if p.dtype == torch.float32 else ("exp_avg", "exp_avg_sq", "master")

    def _state(self, name: str, key: str) -> torch.Tensor:
        """A tensor of the state of an owned parameter; torch makes moments at the first step, so here before it."""
        master = self._masters[name]
        if key == "master":
            return master
        if not self._adamw.state[master]:
            step = torch.zeros((), device=master.device if self._adamw.defaults["fused"] else "cpu")
            self._adamw.state[master] = {
                "step": step,
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }
        return self._adamw.state[master][key]
