"""A run being worked on: everything the training loop holds, and what it does with the whole of it."""

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from siri.config import GigpoConfig, RunConfig
from siri.engine import random_state
from siri.engine.checkpoint import Checkpoint, load_latest
from siri.engine.config import dump_config
from siri.engine.distributed import World
from siri.engine.errors import UserError
from siri.engine.files import hold_folder, user_error_on_write, write_text_atomic
from siri.engine.metrics import RunLog
from siri.engine.optim import BadStepGuard, ShardedAdamW, learning_rate
from siri.engine.policy import Policy, load_policy
from siri.engine.rollout import Episode, collect
from siri.engine.trajectory import Minibatch, Trajectory
from siri.guidance import Guidance, open_guidance, skill_request_of
from siri.mining import SkillRequest
from siri.prompts import skill_text
from siri.run_dir import RunState, check_run_dir, git_commit, iterations_left, kernels_in_use
from siri.session import Session, open_session
from siri.shipped import resolve
from siri.trials import halves
from siri.update import update


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The parts of a run. `state` and `guidance` are what changes, beside the weights and the optimiser."""

    config: RunConfig
    world: World
    session: Session
    reference: Policy | None
    """The starting policy, frozen, where a KL term needs it."""
    optimizer: ShardedAdamW
    guard: BadStepGuard
    state: RunState
    guidance: Guidance
    skill_request: SkillRequest | None
    """How the policy is asked for skills; None where it is not."""
    log: RunLog

    def is_over(self) -> bool:
        """The iterations asked for are done, or as nearly as whole iterations can the environment steps."""
        return self.iterations_left() == 0

    def iterations_left(self) -> int:
        """Until `is_over`, if iterations go on taking as many environment steps as they did."""
        return iterations_left(self.config, done=self.state.step, env_steps=self.state.env_steps)

    @property
    def advantages(self) -> GigpoConfig:
        """GRPO is GiGPO without its step advantage."""
        config = self.config
        return config.gigpo.model_copy(update={"omega": 0.0}) if config.algorithm == "grpo" else config.gigpo


@contextmanager
def open_run(config: RunConfig, world: World) -> Iterator[Run]:
    """Everything checked and loaded, from the newest checkpoint if there is one. Nothing is written before all is.

    Raises UserError for what of the configuration does not fit this machine, these ranks or the run directory.
    """
    began = time.perf_counter()
    check_run_dir(config)
    check_sizes(config, world)
    kernels_in_use(world)  # a wrong SIRI_KERNELS is found here and not after the first rollout
    with ExitStack() as stack:
        if world.is_main:
            stack.enter_context(hold_folder(config.run_dir))
        checkpoint = load_latest(config.run_dir, world)
        guidance = open_guidance(config, world, checkpoint.state["guidance"] if checkpoint else {})
        splits = {"environment.path": "train", "eval.split": config.eval.split}
        policy_source = str(checkpoint.policy) if checkpoint else None
        session = stack.enter_context(open_session(config, world, splits=splits, policy_source=policy_source))
        reference = load_reference(config, world)
        skill_request = skill_request_of(config)
        optimizer = make_optimizer(config, session.policy, world)
        state = restore(checkpoint, optimizer, config, world)
        guard = BadStepGuard(
            max_in_a_row=config.optim.max_bad_steps, in_a_row=state.bad_steps_in_a_row, total=state.bad_steps
        )
        log = stack.enter_context(
            RunLog(config.run_dir, world, total=config.iterations, start=state.step, tensorboard=config.tensorboard)
        )
        if world.is_main:
            write_text_atomic(config.run_dir / "config.yaml", dump_config(config))
        state.seconds["startup"] = state.seconds.get("startup", 0.0) + time.perf_counter() - began
        yield Run(
            config=config,
            world=world,
            session=session,
            reference=reference,
            optimizer=optimizer,
            guard=guard,
            state=state,
            guidance=guidance,
            skill_request=skill_request,
            log=log,
        )


def check_sizes(config: RunConfig, world: World) -> None:
    """Raises UserError where the work of an iteration does not divide over the ranks or into packed batches."""
    if config.rollout.num_tasks % world.size:
        raise UserError(
            f"rollout.num_tasks: {config.rollout.num_tasks} task groups do not divide over {world.size} ranks, and a "
            "group is never split; use a multiple, or start another number of ranks"
        )
    longest = config.policy.max_prompt_tokens + config.policy.max_action_tokens
    if longest > config.optim.max_batch_tokens:
        raise UserError(
            f"optim.max_batch_tokens: {config.optim.max_batch_tokens} is less than the longest sequence, "
            f"policy.max_prompt_tokens + policy.max_action_tokens = {longest}; raise it to {longest} or more"
        )


def load_reference(config: RunConfig, world: World) -> Policy | None:
    """The starting policy, frozen; None without a KL term."""
    if config.loss.kl_coef == 0:
        return None
    reference = load_policy(
        resolve(config.policy.model), dtype=getattr(torch, config.policy.dtype), device=world.device
    )
    reference.model.requires_grad_(False)
    return reference


def make_optimizer(config: RunConfig, policy: Policy, world: World) -> ShardedAdamW:
    o = config.optim
    schedule = partial(
        learning_rate,
        peak=o.lr,
        kind=o.schedule,
        warmup_steps=o.warmup_steps,
        total_steps=config.iterations * o.updates * o.epochs,
    )
    return ShardedAdamW(
        policy.model.named_parameters(),
        world,
        schedule=schedule,
        betas=(o.beta1, o.beta2),
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
    )


def restore(checkpoint: Checkpoint | None, optimizer: ShardedAdamW, config: RunConfig, world: World) -> RunState:
    """Where the run stands. The weights were loaded with the policy.

    Nothing of ours draws from the generators of the process; an environment or a model with a habit of it may.
    """
    random_state.seed_all(config.seed * world.size + world.rank)
    if checkpoint is None:
        return RunState(commit=git_commit())
    checkpoint.restore_random_state(world)
    optimizer.load_state_dict(checkpoint.optimizer_state())
    return RunState(**checkpoint.state)


def hold_weights(run: Run) -> None:
    """The sampler awake, with the policy's present weights."""
    sampler, version = run.session.sampler, run.state.policy_version
    sampler.wake()
    if sampler.held_version != version:
        sampler.load_weights(run.session.policy.model.state_dict().items(), version=version)


def mine_skills(run: Run, step: int) -> dict[str, float]:
    """Before the rollout of iteration `step`: have the policy write skills, if it is time."""
    if run.skill_request is None or not run.guidance.is_mining_due(step):
        return {}
    hold_weights(run)
    return run.guidance.mine(
        run.session.sampler,
        run.session.renderer,
        request=run.skill_request,
        step=step,
        policy_version=run.state.policy_version,
        max_prompt_tokens=run.config.policy.max_prompt_tokens,
    )


def collect_episodes(run: Run, step: int) -> list[Trajectory]:
    """This rank's task groups of iteration `step`: group g is played on rank g modulo the number of ranks."""
    config, world, source = run.config, run.world, run.session.source
    rollout = config.rollout
    drawn = draw_tasks(source.tasks("train"), step * rollout.num_tasks, rollout.num_tasks, config.seed)
    episodes = [
        episode
        for group in range(world.rank, rollout.num_tasks, world.size)
        for episode in group_episodes(run, step, group, drawn[group])
    ]
    hold_weights(run)
    trajectories = collect(
        run.session.sampler,
        episodes,
        max_turns=config.environment.max_turns,
        max_prompt_tokens=config.policy.max_prompt_tokens,
        max_action_tokens=config.policy.max_action_tokens,
        temperature=rollout.temperature,
        run_seed=config.seed,
        step=step,
        policy_version=run.state.policy_version,
        max_concurrent=rollout.max_concurrent,
        on_progress=lambda progress: run.log.progress("rollout", progress.finished, progress.total),
    )
    run.session.sampler.sleep()
    return trajectories


def group_episodes(run: Run, step: int, group: int, task_id: str) -> list[Episode]:
    """A task group: all plain, or, where there are skills to show, one half plain and one half with them.

    The halves share their seeds, member by member. A group for which no skill matches is plain altogether.
    """
    source, renderer, size = run.session.source, run.session.renderer, run.config.rollout.group_size
    skills = run.guidance.skills_for(source.task(task_id), step=step, group=group)
    plain, guided = halves(size) if skills else (range(size), range(0))
    shown = [skill_text(skill.condition, skill.strategy) for skill in skills]
    episode = partial(Episode, group=group, task_id=task_id, task_type=source.task_type(task_id))
    return [
        *(episode(member=m, environment=source.make(task_id), dialogue=renderer.dialogue) for m in plain),
        *(
            episode(
                member=m,
                seed_member=m - guided.start,
                environment=source.make(task_id),
                dialogue=partial(renderer.dialogue, shown),
                twin=renderer.dialogue,
                condition=tuple(skill.id for skill in skills),
            )
            for m in guided
        ),
    ]


def draw_tasks(tasks: Sequence[str], start: int, count: int, seed: int) -> list[str]:
    """Tasks `start` to `start + count` of an endless stream: one permutation of the split after another."""
    places = [divmod(index, len(tasks)) for index in range(start, start + count)]
    return [tasks[permutation(len(tasks), seed, epoch)[place]] for epoch, place in places]


@lru_cache(maxsize=2)
def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """i64[length], of this seed and epoch."""
    return np.random.default_rng((seed, epoch)).permutation(length)


def update_policy(run: Run, step: int, minibatches: Sequence[Minibatch]) -> dict[str, float]:
    """Change the weights by one iteration's minibatches; returns the metrics of it."""
    config = run.config
    changes = update(
        run.session.policy,
        run.reference,
        run.optimizer,
        minibatches,
        loss_config=config.loss,
        optim_config=config.optim,
        temperature=config.rollout.temperature,
        distill_lambda=run.guidance.distill_lambda(step),
        divergence=config.internalize.divergence,
        world=run.world,
        guard=run.guard,
        dump=partial(dump_batch, config.run_dir, run.world, step),
    )
    internalised = run.state.tokens.get("internalised", 0.0) + changes.get("distill/tokens", 0.0)
    run.state.tokens["internalised"] = internalised
    run.state.bad_steps_in_a_row, run.state.bad_steps = run.guard.in_a_row, run.guard.total
    if np.isfinite(changes.get("mismatch/mean", np.nan)):
        seen = run.state.mismatch
        seen["iterations"] = seen.get("iterations", 0.0) + 1
        seen["mean"] = seen.get("mean", 0.0) + (changes["mismatch/mean"] - seen.get("mean", 0.0)) / seen["iterations"]
        seen["max"] = max(seen.get("max", 0.0), changes["mismatch/max"])
    return changes


def dump_batch(run_dir: Path, world: World, step: int, minibatch: Minibatch) -> None:
    """Keep the minibatch whose gradient was not finite, for whoever looks for the reason; the first 20 of a run."""
    folder = run_dir / "bad_steps"
    earlier = len(list(folder.glob(f"*-rank-{world.rank}.pt")))
    if earlier < 20:
        path = folder / f"{earlier}-iteration-{step}-rank-{world.rank}.pt"
        content = io.BytesIO()  # straight to a file, torch reports a full disk as a RuntimeError
        torch.save(minibatch.batches, content)
        with user_error_on_write(path):
            folder.mkdir(exist_ok=True)
            path.write_bytes(content.getbuffer())
