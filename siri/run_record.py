"""What a run writes down: totals, evaluations, checkpoints, the bank, pairs of episodes, the summary, the report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from siri.engine.checkpoint import save_checkpoint
from siri.engine.distributed import all_gather_object, all_reduce_sum
from siri.engine.files import strict_json, write_json_atomic
from siri.engine.metrics import append_line, keep_before
from siri.engine.trajectory import Ended, Minibatch, Trajectory
from siri.evaluate import evaluate
from siri.phases import is_held_up
from siri.prompts import skill_text
from siri.report.command import write_report
from siri.report.formats import Half, Sample
from siri.report.run_files import last_saved
from siri.run import Run, hold_weights
from siri.run_dir import kernels_in_use, summary
from siri.show_skills import read_json
from siri.skills import effect_since_promotion

SAMPLE_CHARS = 1200
"""Most characters kept of an observation or action in samples.jsonl."""


def say_what_begins(run: Run) -> bool:
    """A line for people. Returns whether there is nothing left to do: the run is over, and its summary written."""
    config, state = run.config, run.state
    if run.is_over() and has_its_summary(run):
        run.log.note(f"{config.run_dir}: this run is over ({state.step} iterations); see summary.json and report.html")
        return True
    where = f"{run.world}, sampling with {type(run.session.sampler).__name__}"
    begins = f"after iteration {state.step}" if state.step else "from the start"
    run.log.note(f"{config.run_dir}: {config.algorithm} with {config.policy.model} on {where}, {begins}")
    run.log.note(f"kernels: {kernels_in_use(run.world)}")
    return False


def has_its_summary(run: Run) -> bool:
    """summary.json is of where the run stands; it may have ended earlier before, and been extended."""
    content = read_json(run.config.run_dir / "summary.json")
    return isinstance(content, dict) and content.get("iterations") == run.state.step


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
    run.state.evaluations[name] = {**result.as_dict(), "iterations": run.state.step}
    run.log.note(f"{name} evaluation: {result}")
    return result.overall.rate


def pass_to_next_phase(run: Run) -> None:
    """Where it is time for it; the warm-up's end is an evaluation point."""
    guidance, step, config = run.guidance, run.state.step, run.config
    before, change = guidance.phase, guidance.change_phase(step)
    if change is None:
        evidence = guidance.evidence(step)
        if is_held_up(guidance.phase, evidence, config.phases, no_internalisation=config.no_internalisation):
            counts, usable = guidance.bank.counts(), "in use" if config.no_validation else "active"
            there_are = f"{counts['candidate']} candidates, {counts['retired']} retired"
            run.log.note(
                f"mining goes on until there is a skill to go on with: none is {usable} after "
                f"{config.phases.mining_steps} iterations ({there_are})"
            )
    else:
        run.log.note(f"{'warning: ' if change.warning else ''}{change.phase} begins: {change.reason}")
        if before == "warmup":
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


def keep_sample(run: Run, step: int, trajectories: Sequence[Trajectory], effect: Mapping[int, float]) -> None:
    """Appends to samples.jsonl how one task of iteration `step` went without and with skills, for people to read.

    Of all ranks' groups with an `effect` (Delta_g) the first one; of each of its halves the first episode. Lines of
    iterations that are run again are dropped first, so a stopped run ends with the same file. Bounded: every iteration
    up to 63, every second up to 127, every fourth up to 255 and so on (which does not depend on how long the run will
    be, as that may change), and no text longer than SAMPLE_CHARS: 20 turns of household texts are 10 to 20 kB, a
    run of 1000 iterations keeps 190 pairs.
    """
    if step % (1 << max(0, step.bit_length() - 6)):
        return
    own = first_pair(run, step, trajectories, effect)
    found = [pair for pair in all_gather_object(run.world, own) if pair is not None]
    if not run.world.is_main:
        return
    path = run.config.run_dir / "samples.jsonl"
    keep_before(path, step)
    if found:
        _, sample = min(found, key=lambda pair: pair[0])
        append_line(path, strict_json(asdict(sample)))


def first_pair(
    run: Run, step: int, trajectories: Sequence[Trajectory], effect: Mapping[int, float]
) -> tuple[int, Sample] | None:
    """This rank's first group with an `effect`, and how it went; None without one."""
    if not effect:
        return None
    group = min(effect)
    played = [t for t in trajectories if t.group == group and t.ended is not Ended.ENV_ERROR]
    plain, guided = (next(t for t in played if bool(t.condition) is guided) for guided in (False, True))
    skills = [run.guidance.bank[id] for id in guided.condition]
    return group, Sample(
        step=step,
        task_id=guided.task_id,
        task=guided.task,
        skills=tuple(skill_text(skill.condition, skill.strategy) for skill in skills),
        delta=effect[group],
        plain=_half(plain),
        guided=_half(guided),
    )


def _half(trajectory: Trajectory) -> Half:
    turns = tuple((_cut(turn.observation), _cut(turn.action), turn.action_valid) for turn in trajectory.turns)
    return Half(success=trajectory.success, ended=trajectory.ended.value, turns=turns)


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARS else text[:SAMPLE_CHARS] + "…"


def write_summary(run: Run) -> None:
    """summary.json and report.html, the last things that a run writes."""
    config = run.config
    if run.state.evaluations.get("final", {}).get("iterations") != run.state.step:
        evaluate_now(run, "final")  # a run that was told to end where it had already been
    run.state.guidance = run.guidance.as_dict()
    if not run.world.is_main:
        return
    keep_before(config.run_dir / "samples.jsonl", run.state.step)  # a run that is now shorter than it was
    content = {**summary(config, run.state, run.world), "saved": last_saved(config.run_dir)}
    effect, groups = effect_since_promotion(run.guidance.bank.skills)
    content["skills"] |= {"effect_since_promotion": effect, "groups_since_promotion": groups}
    write_json_atomic(config.run_dir / "summary.json", content)
    before, after = run.state.evaluations["initial"], run.state.evaluations["final"]
    change = f"{before['success_rate']:.1%} -> {after['success_rate']:.1%}"
    if "mean_score" in after:
        change += f", score {before['mean_score']:.3f} -> {after['mean_score']:.3f}"
    run.log.note(f"plain success {change} ({after['episodes']} games of {after['split']}); see {config.run_dir}")
    try:
        write_report(config.run_dir)
    except Exception as error:  # the run is whole without its picture, which can be made again at any time
        reason = f"{type(error).__name__}: {error}"
        run.log.note(f"warning: no report ({reason}); `siri report --run {config.run_dir}` tries again")
