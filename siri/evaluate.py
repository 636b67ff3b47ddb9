"""Evaluation on the plain prompt: every task of a split played exactly once.

This path renders prompts without skills and has no access to any bank: nothing it imports can read one (a test walks
the imports). Results carry the hash of the tasks; numbers with different hashes are of different tasks and must not be
compared.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from siri.config import EvalConfig, PolicyConfig
from siri.engine.dialogue import Dialogue
from siri.engine.distributed import World, all_gather_object
from siri.engine.environment import TaskSource
from siri.engine.rollout import Episode, Progress, collect
from siri.engine.sampling import Sampler
from siri.engine.trajectory import Ended, Trajectory
from siri.prompts import Renderer

EVAL_STEP = 2**31 - 1
"""Stands where training puts its iteration in the seed of a request: no evaluation shares a seed with training."""


Prompt = Literal["plain", "with skills"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A success rate with its Wilson 95% interval."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:6.1%}  [{low:.1%}, {high:.1%}]  {self.successes}/{self.episodes}"

    def as_dict(self) -> dict[str, float | int]:
        low, high = self.interval
        return {"success_rate": self.rate, "episodes": self.episodes, "low": low, "high": high}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `siri eval` prints and `summary.json` keeps."""

    prompt: Prompt
    """What the policy was shown: beside a plain result, one with skills must never pass for it."""
    split: str
    split_hash: str
    overall: Rate
    by_type: dict[str, Rate]
    mean_turns: float
    errors: int
    """Episodes the environment itself broke; they are in no rate."""
    mean_score: float | None = None
    """Of the episodes in the rates, where the environment gives scores."""

    def __str__(self) -> str:
        width = max(map(len, [*self.by_type, "all"]))
        lines = [f"  {name:<{width}}  {rate}" for name, rate in [("all", self.overall), *self.by_type.items()]]
        lost = f", {self.errors} episodes lost to the environment" if self.errors else ""
        prompt = {"plain": "plain prompt", "with skills": "prompt with skills"}[self.prompt]
        score = "" if self.mean_score is None else f", score {self.mean_score:.3f}"
        where = f"split {self.split} ({self.split_hash[:12]})"
        head = f"{prompt}, {where}, {self.mean_turns:.1f} turns a game{score}{lost}"
        return "\n".join([head, f"  {'':<{width}}  success  95% interval", *lines])

    def as_dict(self) -> dict[str, object]:
        return {
            **self.overall.as_dict(),
            "prompt": self.prompt,
            "split": self.split,
            "split_hash": self.split_hash,
            "mean_turns": self.mean_turns,
            "errors": self.errors,
            **({} if self.mean_score is None else {"mean_score": self.mean_score}),
            "by_type": {name: rate.as_dict() for name, rate in self.by_type.items()},
        }


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def evaluate(
    sampler: Sampler,
    source: TaskSource,
    renderer: Renderer,
    *,
    split: str,
    policy: PolicyConfig,
    config: EvalConfig,
    max_turns: int,
    max_concurrent: int,
    seed: int,
    policy_version: int,
    world: World,
    on_progress: Callable[[Progress], None] | None = None,
    dialogues: Callable[[str], Callable[[], Dialogue]] | None = None,
) -> Evaluation:
    """Play the first `config.limit` (default all) tasks of `split`, shared out over the ranks.

    `dialogues` maps a task id to what makes its dialogue, for the comparison of `siri.eval_command` with prompts that
    show skills; nothing else passes it (a test reads the calls), and the result says so.
    """
    tasks = list(enumerate(source.tasks(split)))[: config.limit]
    episodes = [
        Episode(
            group=index,
            member=0,
            task_id=task_id,
            task_type=source.task_type(task_id),
            environment=source.make(task_id),
            dialogue=renderer.dialogue if dialogues is None else dialogues(task_id),
        )
        for index, task_id in tasks[world.rank :: world.size]
    ]
    played = collect(
        sampler,
        episodes,
        max_turns=max_turns,
        max_prompt_tokens=policy.max_prompt_tokens,
        max_action_tokens=policy.max_action_tokens,
        temperature=config.temperature,
        run_seed=seed,
        step=EVAL_STEP,
        policy_version=policy_version,
        max_concurrent=max_concurrent,
        on_progress=on_progress,
    )
    outcomes = [_Outcome.of(trajectory) for trajectory in played]
    gathered = [outcome for rank in all_gather_object(world, outcomes) for outcome in rank]
    prompt: Prompt = "plain" if dialogues is None else "with skills"
    return summarize(gathered, prompt=prompt, split=split, split_hash=source.split_hash(split, config.limit))


@dataclass(frozen=True, slots=True)
class _Outcome:
    task_type: str
    success: bool
    turns: int
    error: bool
    score: float | None = None

    @classmethod
    def of(cls, trajectory: Trajectory) -> "_Outcome":
        broken = trajectory.ended is Ended.ENV_ERROR
        return cls(trajectory.task_type, trajectory.success, len(trajectory.turns), broken, trajectory.score)


def summarize(outcomes: Sequence[_Outcome], *, prompt: Prompt, split: str, split_hash: str) -> Evaluation:
    kept = [outcome for outcome in outcomes if not outcome.error]
    scores = [outcome.score for outcome in kept if outcome.score is not None]
    by_type: defaultdict[str, list[bool]] = defaultdict(list)
    for outcome in kept:
        by_type[outcome.task_type].append(outcome.success)
    return Evaluation(
        prompt=prompt,
        split=split,
        split_hash=split_hash,
        overall=Rate(successes=sum(outcome.success for outcome in kept), episodes=len(kept)),
        by_type={name: Rate(successes=sum(wins), episodes=len(wins)) for name, wins in sorted(by_type.items())},
        mean_turns=sum(outcome.turns for outcome in kept) / max(1, len(kept)),
        errors=len(outcomes) - len(kept),
        mean_score=sum(scores) / len(scores) if scores else None,
    )
