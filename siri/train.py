"""Train an agent: `torchrun siri/train.py [--config FILE] [--a.b value ...]`.

The loop is `train`, read downwards: phase, skills, episodes, what the skills did, advantages, minibatches, update,
evaluation, record, checkpoint.
A stopped run goes on with the same command and ends with the same numbers.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # Python puts a script's folder first, and the modules in it must not shadow others.

import os

# Threads that wait for work sleep. Spinning, the default, made one rollout take 7 to 37 s in place of 4 s on a machine
# with other work. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
from collections.abc import Sequence
from functools import partial

from siri.config import RunConfig
from siri.engine.batch import plan_minibatches
from siri.engine.config import describe, load_config
from siri.engine.distributed import World, all_reduce_max, all_reduce_sum, init_world, shutdown, tell_torchrun
from siri.engine.errors import UserError
from siri.engine.optim import TrainingDiverged
from siri.engine.processes import die_with_parent, exit_on_signals
from siri.gigpo import gigpo_advantages, turn_table
from siri.paths import find_config
from siri.rollout_metrics import rollout_metrics
from siri.run import collect_episodes, mine_skills, open_run, update_policy
from siri.run_record import account, evaluate_now, keep_sample, pass_to_next_phase, save, say_what_begins, write_summary


def train(config: RunConfig, world: World) -> None:
    """Run `config` from where its run directory stands to the end.

    Raises UserError for what of the configuration does not fit this machine or this run directory, before anything is
    written; TrainingDiverged after `optim.max_bad_steps` non-finite gradients in a row.
    """
    with open_run(config, world) as run:
        log, state, guidance = run.log, run.state, run.guidance
        if say_what_begins(run):
            return
        if "initial" not in state.evaluations:
            evaluate_now(run, "initial")

        while not run.is_over():
            step = state.step
            # Here and not after the update: a run that ends begins no phase, and one that goes on from that end does.
            pass_to_next_phase(run)
            with log.timed("mining"):
                mined = mine_skills(run, step)

            with log.timed("rollout"):
                trajectories = collect_episodes(run, step)

            with log.timed("advantage"):
                effects, skills = guidance.learn(trajectories, run.session.renderer, step=step)
                table = turn_table(trajectories, run.advantages, statistics=config.skills.statistics)
                advantages = gigpo_advantages(trajectories, table, run.advantages, device=world.device)
                episodes = rollout_metrics(trajectories, advantages, world)
                minibatches = plan_minibatches(
                    guidance.rows(trajectories, advantages, effects=effects, step=step),
                    num_minibatches=config.optim.updates,
                    max_tokens=config.optim.max_batch_tokens,
                    seed=(config.seed, step),
                    reduce_sum=partial(all_reduce_sum, world),
                    reduce_max=partial(all_reduce_max, world),
                )

            with log.timed("train"):
                changes = update_policy(run, step, minibatches)
                state.policy_version += 1
                state.step += 1
                state.env_steps += int(episodes["rollout/env_steps"])

            score = None
            if run.is_over():
                score = evaluate_now(run, "final")
            elif config.eval.every and state.step % config.eval.every == 0:
                score = evaluate_now(run, f"step-{state.step}")

            speeds = account(run, minibatches, episodes["rollout/action_tokens"])
            keep_sample(run, step, trajectories, effects.delta)
            metrics = {**mined, **episodes, **skills, **changes, **speeds, "phase": guidance.phase}
            log.record(step, metrics, to_go=run.iterations_left())
            if score is not None or state.step % config.checkpoint.every == 0:
                with log.timed("checkpoint"):
                    save(run, score=score)
        write_summary(run)


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
    config = load_config(RunConfig, str(find_config(args.config)) if args.config else None, settings)
    with exit_on_signals():
        world = init_world(config.device)
        try:
            train(config, world)
        except TrainingDiverged as error:
            if world.is_main:
                print(f"{prog}: stopped: {error}", file=sys.stderr)
            tell_torchrun(str(error))
            return 1
        finally:
            shutdown()
    return 0


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()  # a rank must not outlive torchrun; started by hand, a run may outlive its shell
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"siri/train.py: {error}", file=sys.stderr)
        tell_torchrun(str(error))
        sys.exit(2)
