"""Tokens out of a policy: the contract between the rollout and whatever draws the tokens.

    load_weights(tensors, version=7)          the weights of version 7 are in the sampler, checked
    submit(SampleRequest(policy_version=7))   ... any number of them, at any time
    poll() -> [Completion, ...]               ... until every request has come back
    sleep(), wake()                           around training: memory that only sampling needs is given up

Two samplers keep it: `rollout_vllm.VllmSampler` and `rollout_hf.HfSampler`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol

import numpy as np
import torch


class StaleWeightsError(RuntimeError):
    """The sampler does not hold the weights it was asked to sample from. Never caught: such tokens must not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Draw one continuation. There is no top-p and no top-k: tokens come from the whole distribution."""

    id: int
    """Chosen by the caller; unique among the requests that have not come back yet."""
    prompt_ids: np.ndarray
    """i32[P], P >= 1"""
    seed: int
    """In [0, 2**63): alone decides the randomness, whatever else is being sampled."""
    temperature: float
    """Logits are divided by it; 0 draws the most likely token, with log-probabilities at temperature 1."""
    max_tokens: int
    """Most tokens drawn."""
    stop_token_ids: tuple[int, ...]
    """Drawing ends after any of these."""
    policy_version: int
    """The weights to sample from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was drawn for one request."""

    id: int
    action_ids: np.ndarray
    """i32[A], A >= 1; the stop token is its last element if one was drawn."""
    logprob: np.ndarray
    """f32[A], nats: log-probability of each drawn token at the sampling temperature."""
    finished_by: Literal["stop", "length"]


class Sampler(Protocol):
    """Draws tokens, many requests at a time, no request waiting for another."""

    @property
    def held_version(self) -> int | None:
        """Version of the weights held and checked; None where there are none (at the start, after `sleep` on a GPU)."""
        ...

    def submit(self, request: SampleRequest) -> None:
        """Queue a request. Raises StaleWeightsError unless `request.policy_version` is the version held."""
        ...

    def poll(self) -> list[Completion]:
        """Work for at least one step of the engine and return what has finished; [] at once if nothing is pending."""
        ...

    def sleep(self) -> None:
        """Give up memory that training can use. Nothing may be pending."""
        ...

    def wake(self) -> None:
        """Take the memory back. Where `held_version` is None, `load_weights` comes next."""
        ...

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int) -> None:
        """Take over `model.state_dict().items()` as `version`, and forget whatever was computed with older weights.

        Nothing may be pending. Raises StaleWeightsError, naming the tensor, if the sampler then computes with other
        values than those given.
        """
        ...

    def close(self) -> None:
        """Free everything. The sampler is not used again."""
        ...


def request_seed(*, run_seed: int, step: int, group: int, member: int, turn: int) -> int:
    """The seed of one turn's request, in [0, 2**63): the low 63 bits of BLAKE2b-64 over the five decimal numbers.

    The same on every machine and Python version; different for any two turns of a run, up to chance (2**-63 a pair).
    """
    text = f"siri request {run_seed} {step} {group} {member} {turn}"
    return int.from_bytes(blake2b(text.encode("ascii"), digest_size=8).digest(), "little") & (2**63 - 1)


def check_version(request: SampleRequest, held_version: int | None) -> None:
    """Raises StaleWeightsError unless the request asks for the version held."""
    if request.policy_version != held_version:
        held = "no weights yet" if held_version is None else f"version {held_version}"
        raise StaleWeightsError(
            f"request {request.id} asks for policy version {request.policy_version}, but the sampler holds {held}; "
            "hand the weights over with load_weights() before sampling"
        )
