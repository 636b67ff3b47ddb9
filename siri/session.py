"""From a configuration to the working parts: tasks, policy, prompts, sampler."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from siri.config import PolicyConfig, RunConfig
from siri.engine.distributed import World
from siri.engine.environment import TaskSource
from siri.engine.errors import UserError
from siri.engine.policy import Policy, load_policy
from siri.engine.rollout_hf import HfSampler
from siri.engine.rollout_vllm import open_vllm_sampler, vllm_is_installed
from siri.engine.sampling import Sampler
from siri.families import family_of
from siri.prompts import Renderer
from siri.shipped import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What training and evaluation both work with."""

    source: TaskSource
    policy: Policy
    renderer: Renderer
    sampler: Sampler


def check_splits(source: TaskSource, splits: Mapping[str, str]) -> None:
    """Raises UserError for a split that these tasks do not have, and for a task that cannot be read."""
    for setting, split in splits.items():
        if split not in source.splits():
            raise UserError(f"{setting}: these games have no split {split!r}; there are {', '.join(source.splits())}")
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
    family = family_of(config.environment)
    with family.open_source(config, world) as source:
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
            shorten=family.shorten,
            unchanged=family.unchanged,
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
