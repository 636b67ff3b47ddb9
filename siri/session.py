"""From a configuration to the working parts: tasks, policy, prompts, sampler."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from siri.config import EnvironmentConfig, RunConfig
from siri.engine.distributed import World
from siri.engine.errors import UserError
from siri.engine.policy import Policy, load_policy
from siri.engine.rollout_hf import HfSampler
from siri.engine.rollout_vllm import open_vllm_sampler, vllm_is_installed
from siri.engine.sampling import Sampler
from siri.envs.household.brief import brief
from siri.envs.household.source import OfficialGames, ProceduralGames
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


def make_source(config: EnvironmentConfig) -> Games:
    """The tasks. Raises UserError where official games are asked for and not found."""
    if config.games == "procedural":
        return ProceduralGames(size=config.size, num_train=config.num_train, num_valid=config.num_valid, seed=0)
    path = config.path or os.environ.get("ALFWORLD_DATA")
    if path is None:
        raise UserError(
            "environment.path: official games need a folder, and neither this nor $ALFWORLD_DATA is set; "
            "run `alfworld-download` and set ALFWORLD_DATA, or set environment.games: procedural"
        )
    return OfficialGames(path)


@contextmanager
def open_session(config: RunConfig, world: World, *, policy_source: str | None = None) -> Iterator[Session]:
    """The parts of a run, the sampler holding the policy's weights as version 0; closed on the way out.

    `policy_source`: a directory to load the policy from in place of `config.policy.model` (a checkpoint).
    Raises UserError for whatever of the configuration cannot be had on this machine.
    """
    source = make_source(config.environment)
    policy = load_policy(
        policy_source or resolve(config.policy.model),
        dtype=getattr(torch, config.policy.dtype),
        device=world.device,
    )
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
