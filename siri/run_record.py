"""What a run writes down: totals, evaluations, checkpoints, the bank, pairs of episodes, the summary, the report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from siri.engine.checkpoint import save_checkpoint
from siri.engine.distributed import all_reduce_sum
from siri.engine.files import strict_json, write_json_atomic
from siri.engine.metrics import append_line, keep_before
from siri.engine.trajectory import Ended, Minibatch, Trajectory
from siri.evaluate import evaluate
from siri.prompts import skill_text
from siri.run import Run, hold_weights
from siri.run_dir import summary

SAMPLE_CHARS = 1200
"""Most characters kept of an observation or action in samples.jsonl."""


def account(run: Run, minibatches: Sequence[Minibatch], action_tokens: float) -> dict[str, float]:
    """Adds this iteration's seconds and tokens to the run's totals; returns its speeds (tokens a second, all ranks)."""
    seconds, totals = run.log.seconds, run.state
    passed = sum(batch.num_tokens for minibatch in minibatches for batch in minibatch.batches)
    trained = float(all_reduce_sum(run.world, np.array([passed]))[0]) * run.config.optim.epochs
    tokens = {"rollout": action_tokens, "train": trained}
    for name, value in tokens.items():
        totals.tokens[name] = totals.tokens.get(name, 0.0) + value
    for name, value in seconds.items():
        totals.seconds[name] = totals.seconds.get(name, 0.0) + value
    return {f"tokens_per_second/{name}": value / seconds[name] for name, value in tokens.items()}


def evaluate_now(run: Run, name: str) -> float:
    """The plain-prompt evaluation of the present weights, kept in the run's state under `name`; its success rate."""
    config = run.config
    with run.log.timed("eval"):
        hold_weights(run)
        result = evaluate(
            run.session.sampler,
            run.session.source,
            run.session.renderer,
            split=config.eval.split,
            policy=config.policy,
            config=config.eval,
            max_turns=config.environment.max_turns,
            max_concurrent=config.rollout.max_concurrent,
            seed=config.seed,
            policy_version=run.state.policy_version,
            world=run.world,
            on_progress=lambda progress: run.log.progress("eval", progress.finished, progress.total),
        )
        run.session.sampler.sleep()
    run.state.evaluations[name] = result.as_dict()
    run.log.note(f"{name} evaluation: {result}")
    return result.overall.rate


def pass_to_next_phase(run: Run) -> None:
    """Where it is time for it; the warm-up's end is an evaluation point."""
    change = run.guidance.change_phase(run.state.step)
    if change is not None:
        run.log.note(f"{'warning: ' if change.warning else ''}{change.phase} begins: {change.reason}")
        if "after_warmup" not in run.state.evaluations:
            evaluate_now(run, "after_warmup")


def save(run: Run, *, score: float | None) -> None:
    """A checkpoint. `score`, the evaluation of these very weights if there was one, decides which is the best."""
    run.state.guidance = run.guidance.as_dict()
    if run.world.is_main:
        write_json_atomic(run.config.run_dir / "skills.json", run.guidance.bank.as_dict())
    save_checkpoint(
        run.config.run_dir,
        run.state.step,
        world=run.world,
        save_policy=run.session.policy.save,
        optimizer_state=run.optimizer.state_dict(),
        state=run.state.as_dict(),
        keep_last=run.config.checkpoint.keep_last,
        score=score,
    )


def write_summary(run: Run) -> None:
    run.state.guidance = run.guidance.as_dict()
    if run.world.is_main:
        write_json_atomic(run.config.run_dir / "summary.json", summary(run.config, run.state, run.world))
