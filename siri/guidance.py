"""What a run does with skills: asks for them, shows them, tries them, and distils what they helped with.

Every rank holds the same bank and buffer: what changes them is gathered from all ranks first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np

from siri.config import RunConfig
from siri.engine.batch import rows_by_group
from siri.engine.distributed import World, all_gather_object
from siri.engine.policy import load_tokenizer
from siri.engine.sampling import Sampler, request_seed
from siri.engine.trajectory import TrainRow, Trajectory
from siri.families import family_of
from siri.given_skills import read_skills
from siri.internalize import lambda_at, rerendered_rows
from siri.mining import MiningRules, SkillRequest, SuccessBuffer, mine, successes
from siri.phases import Evidence, Phase, Transition, first_phase, next_phase
from siri.prompts import Renderer
from siri.screening import ScreenRules
from siri.shipped import is_warm_started, resolve
from siri.skills import BankRules, Origin, Skill, SkillBank
from siri.trials import solved_both_ways, trials_of

RETRIEVAL_TURN = -2
"""Stands where rollouts put the turn in the seed of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What is known of skills when an iteration's episodes are judged."""

    delta: dict[int, float]
    """Delta_g of this rank's groups."""
    utility: dict[str, float]
    """Mean utility by skill id over the evaluations of earlier iterations. With this one's the gate `both` would ask
    the same groups twice: in a run of 13 iterations 29 of 34 groups with Delta_g > 0 passed, with earlier ones 17."""


@dataclass(slots=True, kw_only=True)
class Guidance:
    """Skills, the successes they are mined from, and the phase of the run. Part of every checkpoint."""

    config: RunConfig
    world: World
    bank: SkillBank
    buffer: SuccessBuffer
    phase: Phase
    began: int = 0
    """Iteration that the phase began with."""
    transitions: list[dict[str, Any]]
    """Every change of phase: iteration, phase, reason."""

    @property
    def uses_skills(self) -> bool:
        return self.phase != "warmup"

    @property
    def num_usable(self) -> int:
        """Skills that have proved themselves; without validation all count that are in use."""
        return len(self.bank.live) if self.config.no_validation else self.bank.counts()["active"]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; `open_guidance` makes the same of it."""
        return {
            "bank": self.bank.as_dict(),
            "successes": self.buffer.as_dict(),
            "phase": self.phase,
            "began": self.began,
            "transitions": list(self.transitions),
        }

    def is_mining_due(self, step: int) -> bool:
        due = self.uses_skills and (step - self.began) % self.config.mining.every == 0
        return due and self.config.oracle_skills is None and len(self.buffer) > 0

    def mine(
        self,
        sampler: Sampler,
        renderer: Renderer,
        *,
        request: SkillRequest,
        step: int,
        policy_version: int,
        max_prompt_tokens: int,
    ) -> dict[str, float]:
        """Ask the weights in the sampler for skills; returns the counts of successes and answers as metrics."""
        config = self.config
        found, repeats, counts = mine(
            sampler,
            renderer,
            self.buffer,
            known=[(skill.condition, skill.strategy) for skill in self.bank.skills],
            rules=mining_rules(config, request),
            run_seed=config.seed,
            iteration=step,
            policy_version=policy_version,
            max_prompt_tokens=max_prompt_tokens,
            world=self.world,
        )
        ids = [skill.id for skill in self.bank.skills]
        ids += [self.bank.add(new.condition, new.strategy, new.origin).id for new in found]
        for repeat in repeats:
            self.bank.add_witness(ids[repeat.index], repeat.task_id)
        return {f"mining/{name}": float(count) for name, count in counts.items()}

    def skills_for(self, task: str, *, step: int, group: int) -> tuple[Skill, ...]:
        """What the skill half of a group is shown; nothing in the warm-up, in a group that is not to be paired, or
        where no skill matches."""
        skills = self.config.skills
        # Evenly spread, and the same for any number of ranks: of 32 groups a share of 0.25 takes 3, 7, 11, ...
        paired = floor((group + 1) * skills.paired) > floor(group * skills.paired)
        if not (self.uses_skills and paired):
            return ()
        seed = request_seed(run_seed=self.config.seed, step=step, group=group, member=-1, turn=RETRIEVAL_TURN)
        return self.bank.retrieve(task, k=skills.k, explore=skills.explore, seed=seed)

    def learn(
        self, trajectories: Sequence[Trajectory], renderer: Renderer, *, step: int
    ) -> tuple[Effects, dict[str, float]]:
        """Take in an iteration's successes and trials. Returns what its episodes are judged by, and metrics."""
        utility = {skill.id: skill.mean for skill in self.bank.skills}
        own = trials_of(trajectories, iteration=step)
        found = successes(trajectories, iteration=step, shorten=renderer.shorten)
        gathered = all_gather_object(self.world, (own, found, solved_both_ways(trajectories, own)))
        self.buffer.add(success for _, part, _ in gathered for success in part)
        trials = [trial for part, _, _ in gathered for trial in part]
        changed = () if self.config.no_validation else self.bank.record(trials, iteration=step)
        statuses = [skill.status for skill in changed]
        metrics = {f"skills/{name}": float(count) for name, count in self.bank.counts().items()}
        if trials:
            metrics["skills/effect"] = float(np.mean([trial.delta for trial in trials]))
            metrics["skills/plain_return"] = float(np.mean([trial.plain_mean for trial in trials]))
            metrics["skills/guided_return"] = float(np.mean([trial.skill_mean for trial in trials]))
            solved, played = np.sum([counts for _, _, counts in gathered], axis=0).T
            metrics["skills/plain_success"], metrics["skills/guided_success"] = (solved / played).tolist()
        metrics |= {
            "skills/trials": float(len(trials)),
            "skills/promoted": float(statuses.count("active")),
            "skills/given_up": float(statuses.count("retired")),
            "successes/tasks": float(len(self.buffer)),
        }
        return Effects(delta={trial.group: trial.delta for trial in own}, utility=utility), metrics

    def distill_lambda(self, step: int) -> float:
        """Weight of the internalisation loss in iteration `step`."""
        config = self.config.internalize
        if self.phase != "internalise" or self.config.no_internalisation:
            return 0.0
        return lambda_at(step - self.began, lambda_max=config.lambda_max, lambda_warmup=config.lambda_warmup)

    def rows(
        self,
        trajectories: Sequence[Trajectory],
        advantages: Sequence[np.ndarray | None],
        *,
        effects: Effects,
        step: int,
    ) -> dict[int, list[TrainRow]]:
        """Every row to train on by task group: each episode under its own prompts, and what is internalised."""
        rows = rows_by_group(trajectories, advantages)
        if self.distill_lambda(step) == 0:
            return rows
        config = self.config.internalize
        # Skills that are never judged have no utility: only the effect in the group is left to gate by.
        gate = "group" if self.config.no_validation else config.gate
        distilled = rerendered_rows(
            trajectories,
            advantages,
            gate="none" if self.config.no_gate else gate,
            utility=effects.utility,
            delta=effects.delta,
            c_adv=config.c_adv,
            distill_reasoning=config.distill_reasoning,
            with_teacher=config.divergence != "nll",
        )
        return {group: rows.get(group, []) + distilled.get(group, []) for group in sorted({*rows, *distilled})}

    def evidence(self, step: int) -> Evidence:
        """What is known after `step` iterations."""
        return Evidence(
            iterations=step - self.began,
            successes=self.buffer.seen,
            tasks=len(self.buffer),
            usable_skills=self.num_usable,
        )

    def change_phase(self, step: int) -> Transition | None:
        """After `step` iterations: begin the next phase, if it is time."""
        config = self.config
        if config.algorithm != "siri":
            return None
        change = next_phase(
            self.phase, self.evidence(step), config.phases, no_internalisation=config.no_internalisation
        )
        if change is not None:
            self.transitions.append({"iteration": step, "phase": change.phase, "reason": change.reason})
            self.phase, self.began = change.phase, step
        return change


def open_guidance(config: RunConfig, world: World, state: Mapping[str, Any]) -> Guidance:
    """From the state in a checkpoint, or, where that is empty, from the start.

    Raises UserError if `oracle_skills` cannot be read, or holds what no skill may say.
    """
    rules = bank_rules(config)
    if state:
        return Guidance(
            config=config,
            world=world,
            bank=SkillBank.from_dict(state["bank"], rules),
            buffer=SuccessBuffer.from_dict(state["successes"], config.mining.buffer_size),
            phase=state["phase"],
            began=state["began"],
            transitions=list(state["transitions"]),
        )
    bank = SkillBank(rules)
    for condition, strategy in given_skills(config):
        origin = Origin(task_id="", task_type="oracle", iteration=0, policy_version=0, played=0, group=0, member=0)
        bank.add(condition, strategy, origin)
    plain = config.algorithm != "siri"
    begins = first_phase(config.phases, no_warmup=config.no_warmup, no_internalisation=config.no_internalisation)
    phase: Phase = "warmup" if plain else begins
    return Guidance(
        config=config,
        world=world,
        bank=bank,
        buffer=SuccessBuffer(config.mining.buffer_size),
        phase=phase,
        transitions=[{"iteration": 0, "phase": phase, "reason": "the run begins"}],
    )


def given_skills(config: RunConfig) -> list[tuple[str, str]]:
    """(condition, strategy) of the skills in the file `oracle_skills`; none where there is no file."""
    if config.oracle_skills is None:
        return []
    # Before the games and the weights are loaded: a slip in the file should not take a minute to come up.
    renderer = Renderer(load_tokenizer(resolve(config.policy.model)), style=config.policy.prompt_style)
    return read_skills(
        config.oracle_skills,
        rules=screen_rules(config),
        max_size=config.skills.max_size,
        count_tokens=lambda line: len(renderer.literal(line)),
        vocabulary=family_of(config.environment).vocabulary(),
    )


def bank_rules(config: RunConfig) -> BankRules:
    skills = config.skills
    return BankRules(
        n_eval=skills.n_eval,
        max_eval=skills.max_eval,
        promote_above=skills.promote_above,
        retire_below=skills.retire_below,
        confidence=skills.confidence,
        max_size=skills.max_size,
    )


def skill_request_of(config: RunConfig) -> SkillRequest | None:
    """How the policy is asked for skills; None where it is not. `auto` is decided by the policy the run began with.

    Not by the directory the weights are in: a checkpoint of a policy that was taught the short request does not say so.
    Raises UserError if the policy cannot be had on this machine.
    """
    if config.algorithm != "siri" or config.oracle_skills is not None:
        return None
    request = config.mining.request
    if request != "auto":
        return request
    return "short" if is_warm_started(config.policy.model) else "instruction"


def screen_rules(config: RunConfig) -> ScreenRules:
    mining = config.mining
    return ScreenRules(
        max_chars=mining.max_chars,
        max_tokens=mining.max_skill_tokens,
        dedup_threshold=mining.dedup_threshold,
        # `mug 2` of one household is not `mug 2` of another, and neither the code of a product, a size nor a price of
        # one wish is that of the next.
        allow_numbers=False,
        # Households and the invented shop write nothing else. Official products do, in their titles and options, but
        # what a skill has to name are kinds of things and what to do with them.
        ascii_only=True,
    )


def mining_rules(config: RunConfig, request: SkillRequest) -> MiningRules:
    mining = config.mining
    return MiningRules(
        num_shown=mining.num_shown,
        num_candidates=mining.num_candidates,
        temperature=mining.temperature,
        max_answer_tokens=mining.max_answer_tokens,
        request=request,
        screen=screen_rules(config),
    )
