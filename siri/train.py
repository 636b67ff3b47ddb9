"""Train an agent: `torchrun siri/train.py [--config FILE] [--a.b value ...]`.

The loop is `train`, read downwards: episodes, advantages, minibatches, update, evaluation, record, checkpoint.
A stopped run goes on with the same command and ends with the same numbers.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # Python puts a script's folder first, and the modules in it must not shadow others.

import argparse
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
import torch

from siri.config import GigpoConfig, RunConfig
from siri.engine.batch import plan_minibatches, rows_by_group
from siri.engine.checkpoint import Checkpoint, load_latest, save_checkpoint
from siri.engine.config import describe, load_config
from siri.engine.distributed import World, all_reduce_max, all_reduce_sum, init_world, shutdown
from siri.engine.errors import UserError
from siri.engine.files import write_json_atomic
from siri.engine.metrics import RunLog
from siri.engine.optim import BadStepGuard, ShardedAdamW, TrainingDiverged, learning_rate
from siri.engine.policy import Policy, load_policy
from siri.engine.processes import die_with_parent, exit_on_signals
from siri.engine.rollout import Episode, collect
from siri.engine.trajectory import Minibatch, Trajectory
from siri.evaluate import evaluate
from siri.gigpo import gigpo_advantages, turn_table
from siri.rollout_metrics import rollout_metrics
from siri.run_dir import RunState, check_run_dir, claim_run_dir, summary
from siri.session import Session, open_session
from siri.shipped import resolve
from siri.update import update


def train(config: RunConfig, world: World) -> dict:
    """Run `config` from where its run directory stands to the end; returns the content of summary.json.

    Raises UserError for what of the configuration does not fit this machine or this run directory, before anything is
    written; TrainingDiverged after `optim.max_bad_steps` non-finite gradients in a row.
    """
    check_run_dir(config)
    check_ranks(config, world)
    checkpoint = load_latest(config.run_dir, world)
    with open_session(config, world, policy_source=str(checkpoint.policy) if checkpoint else None) as session:
        policy, sampler = session.policy, session.sampler
        reference = load_reference(config, world)
        optimizer = make_optimizer(config, policy, world)
        state = restore(checkpoint, optimizer)
        guard = BadStepGuard(
            max_in_a_row=config.optim.max_bad_steps, in_a_row=state.bad_steps_in_a_row, total=state.bad_steps
        )
        advantage_config = advantages_of(config)
        tasks = session.source.tasks("train")
        if world.is_main:
            claim_run_dir(config)
        with RunLog(
            config.run_dir, world, total=config.iterations, start=state.step, tensorboard=config.tensorboard
        ) as log:
            if "initial" not in state.evaluations:
                state.evaluations["initial"] = evaluate_policy(session, config, world, state, log)

            for step in range(state.step, config.iterations):
                with log.timed("rollout"):
                    hold_weights(session, state)
                    trajectories = collect_episodes(session, config, world, state, tasks, step, log)
                    sampler.sleep()

                with log.timed("advantage"):
                    table = turn_table(trajectories, advantage_config)
                    advantages = gigpo_advantages(trajectories, table, advantage_config)
                    minibatches = plan_minibatches(
                        rows_by_group(trajectories, advantages),
                        num_minibatches=config.optim.updates,
                        max_tokens=config.optim.max_batch_tokens,
                        seed=(config.seed, step),
                        reduce_sum=partial(all_reduce_sum, world),
                        reduce_max=partial(all_reduce_max, world),
                    )

                with log.timed("train"):
                    changes = update(
                        policy,
                        reference,
                        optimizer,
                        minibatches,
                        loss_config=config.loss,
                        optim_config=config.optim,
                        temperature=config.rollout.temperature,
                        world=world,
                        guard=guard,
                        dump=partial(dump_batch, config.run_dir, world, step),
                    )
                    state.policy_version += 1
                state.step = step + 1
                state.bad_steps_in_a_row, state.bad_steps = guard.in_a_row, guard.total

                last = state.step == config.iterations
                if config.eval.every and state.step % config.eval.every == 0 and not last:
                    state.evaluations[f"step-{state.step}"] = evaluate_policy(session, config, world, state, log)
                if last:
                    state.evaluations["final"] = evaluate_policy(session, config, world, state, log)
                episodes = rollout_metrics(trajectories, advantages, world)
                log.record(step, {**episodes, **changes, "phase": state.phase})
                if last or state.step % config.checkpoint.every == 0:
                    save(config, state, policy, optimizer, world, score=episodes["rollout/success_rate"])
            result = summary(config, state, world)
            if world.is_main:
                write_json_atomic(config.run_dir / "summary.json", result)
            return result


def check_ranks(config: RunConfig, world: World) -> None:
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


def advantages_of(config: RunConfig) -> GigpoConfig:
    """GRPO is GiGPO without its step advantage."""
    return config.gigpo if config.algorithm == "gigpo" else config.gigpo.model_copy(update={"omega": 0.0})


def load_reference(config: RunConfig, world: World) -> Policy | None:
    """The starting policy, frozen, where a KL term needs it."""
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


def restore(checkpoint: Checkpoint | None, optimizer: ShardedAdamW) -> RunState:
    """Where the run stands. The weights were loaded with the policy; no generator of the process is drawn from."""
    if checkpoint is None:
        return RunState()
    optimizer.load_state_dict(checkpoint.optimizer_state())
    return RunState(**checkpoint.state)


def hold_weights(session: Session, state: RunState) -> None:
    """The sampler awake, with the policy's present weights."""
    session.sampler.wake()
    if session.sampler.held_version != state.policy_version:
        session.sampler.load_weights(session.policy.model.state_dict().items(), version=state.policy_version)


def collect_episodes(
    session: Session, config: RunConfig, world: World, state: RunState, tasks: Sequence[str], step: int, log: RunLog
) -> list[Trajectory]:
    """This rank's task groups of iteration `step`: group g is played on rank g modulo the number of ranks."""
    rollout, source = config.rollout, session.source
    drawn = draw_tasks(tasks, step * rollout.num_tasks, rollout.num_tasks, config.seed)
    episodes = [
        Episode(
            group=group,
            member=member,
            task_id=drawn[group],
            task_type=source.task_type(drawn[group]),
            environment=source.make(drawn[group]),
            dialogue=session.renderer.dialogue,
        )
        for group in range(world.rank, rollout.num_tasks, world.size)
        for member in range(rollout.group_size)
    ]
    return collect(
        session.sampler,
        episodes,
        max_turns=config.environment.max_turns,
        max_prompt_tokens=config.policy.max_prompt_tokens,
        max_action_tokens=config.policy.max_action_tokens,
        temperature=rollout.temperature,
        run_seed=config.seed,
        step=step,
        policy_version=state.policy_version,
        max_concurrent=rollout.max_concurrent,
        on_progress=lambda progress: log.progress("rollout", progress.finished, progress.total),
    )


def draw_tasks(tasks: Sequence[str], start: int, count: int, seed: int) -> list[str]:
    """Tasks `start` to `start + count` of an endless stream: one permutation of the split after another."""
    places = [divmod(index, len(tasks)) for index in range(start, start + count)]
    return [tasks[permutation(len(tasks), seed, epoch)[place]] for epoch, place in places]


@lru_cache(maxsize=2)
def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


def evaluate_policy(session: Session, config: RunConfig, world: World, state: RunState, log: RunLog) -> dict:
    """The plain-prompt evaluation of the present weights, as summary.json keeps it."""
    with log.timed("eval"):
        hold_weights(session, state)
        result = evaluate(
            session.sampler,
            session.source,
            session.renderer,
            split=config.eval.split,
            policy=config.policy,
            config=config.eval,
            max_turns=config.environment.max_turns,
            max_concurrent=config.rollout.max_concurrent,
            seed=config.seed,
            policy_version=state.policy_version,
            world=world,
            on_progress=lambda progress: log.progress("eval", progress.finished, progress.total),
        )
        session.sampler.sleep()
    log.note(f"evaluation on {result}")
    return result.as_dict()


def save(
    config: RunConfig, state: RunState, policy: Policy, optimizer: ShardedAdamW, world: World, *, score: float
) -> None:
    save_checkpoint(
        config.run_dir,
        state.step,
        world=world,
        save_policy=policy.save,
        optimizer_state=optimizer.state_dict(),
        state=state.as_dict(),
        keep_last=config.checkpoint.keep_last,
        score=score,
    )


def dump_batch(run_dir: Path, world: World, step: int, minibatch: Minibatch) -> None:
    """Keep the minibatch whose gradient was not finite, for whoever looks for the reason."""
    folder = run_dir / "bad_steps"
    folder.mkdir(exist_ok=True)
    torch.save(minibatch.batches, folder / f"step-{step}-rank-{world.rank}.pt")


def main(argv: Sequence[str], prog: str = "siri/train.py") -> int:
    """Run with command-line words. Returns the exit code; raises UserError for bad settings."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config FILE] [--name.of.setting value ...]",
        description="Train an agent. A stopped run goes on with the same command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="settings, in the file and on the command line alike:\n" + describe(RunConfig),
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; those on the command line override it")
    args, settings = parser.parse_known_args(argv)
    config = load_config(RunConfig, args.config, settings)
    with exit_on_signals():
        world = init_world(config.device)
        try:
            train(config, world)
        except TrainingDiverged as error:
            print(f"{prog}: stopped: {error}", file=sys.stderr)
            return 1
        finally:
            shutdown()
    return 0


if __name__ == "__main__":
    die_with_parent()
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"siri/train.py: {error}", file=sys.stderr)
        sys.exit(2)
