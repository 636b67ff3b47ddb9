"""From a configuration to the working parts: tasks, policy, prompts, sampler."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from siri.config import EnvironmentConfig, PolicyConfig, RunConfig
from siri.engine.distributed import World, num_cores
from siri.engine.errors import UserError
from siri.engine.policy import Policy, load_policy
from siri.engine.rollout_hf import HfSampler
from siri.engine.rollout_vllm import open_vllm_sampler, vllm_is_installed
from siri.engine.sampling import Sampler
from siri.engine.workers import EnvironmentWorkers
from siri.envs.household.brief import brief
from siri.envs.household.engine import HouseholdEnv
from siri.envs.household.source import Engine, OfficialGames, ProceduralGames
from siri.envs.household.textworld_oracle import TextWorldEnv, check_textworld
from siri.prompts import Renderer
from siri.shipped import resolve

Games = ProceduralGames | OfficialGames


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What training and evaluation both work with."""

    source: Games
    policy: Policy
    renderer: Renderer
    sampler: Sampler


@contextmanager
def open_engine(config: RunConfig, world: World) -> Iterator[Engine]:
    """What plays the games: our engine, or TextWorld in worker processes, which end with the block.

    Raises UserError where TextWorld is asked for and not installed.
    """
    if config.environment.engine == "siri":
        yield HouseholdEnv
        return
    check_textworld("environment.engine")
    # One a core: TextWorld only computes, and a worker holds 75 MB. They start when the first games are played.
    num_workers = max(1, min(num_cores() // world.local_size, config.rollout.max_concurrent))
    with EnvironmentWorkers(TextWorldEnv, num_workers=num_workers) as workers:
        yield workers.make


def make_source(config: EnvironmentConfig, engine: Engine) -> Games:
    """The tasks, played by `engine`. Raises UserError where official games are asked for and not found."""
    if config.games == "procedural":
        return ProceduralGames(
            size=config.size, num_train=config.num_train, num_valid=config.num_valid, seed=0, engine=engine
        )
    path = config.path or os.environ.get("ALFWORLD_DATA")
    if path is None:
        raise UserError(
            "environment.path: official games need a folder, and neither this nor $ALFWORLD_DATA is set; "
            "run `alfworld-download` and set ALFWORLD_DATA, or set environment.games: procedural"
        )
    return OfficialGames(path, engine=engine)


def check_splits(source: Games, splits: Mapping[str, str]) -> None:
    """Raises UserError for a split that these games do not have, and for an official game that cannot be read."""
    for setting, split in splits.items():
        if split not in source.splits():
            raise UserError(f"{setting}: these games have no split {split!r}; there are {', '.join(source.splits())}")
        if isinstance(source, OfficialGames):
            source.check(split)


def check_context(config: PolicyConfig, policy: Policy) -> None:
    """Raises UserError where prompt and action can be longer than the positions, or the window, the model has."""
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    longest = config.max_prompt_tokens + config.max_action_tokens
    if context is not None and longest > context:
        raise UserError(
            f"policy.max_prompt_tokens: {config.max_prompt_tokens} and policy.max_action_tokens: "
            f"{config.max_action_tokens} make {longest} tokens, but {config.model!r} has a context of {context} "
            f"(max_position_embeddings); set policy.max_prompt_tokens to {context - config.max_action_tokens} or less"
        )
    window = getattr(policy.model.config.get_text_config(), "sliding_window", None)
    if window is not None and window < longest:
        raise UserError(
            f"policy.max_prompt_tokens: with policy.max_action_tokens it makes {longest} tokens, but {config.model!r} "
            f"attends to the last {window} only (sliding_window), which packed training does not do; set "
            f"policy.max_prompt_tokens to {window - config.max_action_tokens} or less"
        )


@contextmanager
def open_session(
    config: RunConfig, world: World, *, splits: Mapping[str, str], policy_source: str | None = None
) -> Iterator[Session]:
    """The parts of a run; the sampler holds no weights yet. It and the games' engine are closed on the way out.

    `splits` are those that will be played, each under the name of the setting it comes from. `policy_source`: a
    directory to load the policy from in place of `config.policy.model` (a checkpoint).
    Raises UserError for whatever of the configuration cannot be had on this machine: games first, then the policy, and
    the sampler, which takes longest to start, last.
    """
    with open_engine(config, world) as engine:
        source = make_source(config.environment, engine)
        check_splits(source, splits)
        policy = load_policy(
            policy_source or resolve(config.policy.model),
            dtype=getattr(torch, config.policy.dtype),
            device=world.device,
        )
        check_context(config.policy, policy)
        renderer = Renderer(
            policy.tokenizer,
            style=config.policy.prompt_style,
            shorten=brief,
            history_length=config.policy.history_length,
        )
        sampler = make_sampler(config, policy, world)
        try:
            yield Session(source=source, policy=policy, renderer=renderer, sampler=sampler)
        finally:
            sampler.close()


def make_sampler(config: RunConfig, policy: Policy, world: World) -> Sampler:
    """The sampler asked for; `auto` takes vLLM where it is installed. Raises UserError if it cannot be had."""
    if config.rollout.sampler == "transformers" or (config.rollout.sampler == "auto" and not vllm_is_installed()):
        return HfSampler(policy.model)
    return open_vllm_sampler(
        policy.source,
        dtype=policy.model.dtype,
        device=world.device,
        max_model_len=config.policy.max_prompt_tokens + config.policy.max_action_tokens,
        max_num_seqs=config.rollout.max_concurrent,
    )
