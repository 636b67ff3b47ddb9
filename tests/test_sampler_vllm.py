"""The sampler contract on an in-process vLLM engine, and what only an engine with a copy of the weights gets wrong.

One engine serves the whole file: starting it takes 6 s. Its KV cache is so small that requests are preempted.
"""

import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import sampler_contract as contract
import torch
from ranks import on_ranks
from rollout_fakes import FakeGame, episode, values_of

from siri.engine import random_state, weight_sharing
from siri.engine.errors import UserError
from siri.engine.rollout import collect
from siri.engine.rollout_vllm import open_vllm_sampler, vllm_is_installed
from siri.engine.sampling import StaleWeightsError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not vllm_is_installed(), reason="vllm is not installed"),
]
CPU = torch.device("cpu")
TOKEN_BYTES = 2 * 2 * 32 * 4
"""Key and value, 2 layers, one head of 32 float32."""


def open_sampler(folder: str, **changes: object):
    settings = {"dtype": torch.float32, "device": CPU, "max_model_len": contract.CONTEXT, "max_num_seqs": 64}
    return open_vllm_sampler(folder, **{**settings, **changes})


def process_state() -> dict[str, object]:
    return {
        "random": random_state.capture(),
        "environment": {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
        "threads": torch.get_num_threads(),
        "set_num_threads": torch.set_num_threads,
        "affinity": os.sched_getaffinity(0),
        "memory_policy": Path("/proc/self/numa_maps").read_text().count(" bind:"),
        "log_handlers": (list(logging.root.handlers), list(logging.getLogger("vllm").handlers)),
        "default_dtype": torch.get_default_dtype(),
    }


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    os.environ["LOCAL_WORLD_SIZE"] = "1 of ours"
    random_state.seed_all(123)
    folder = contract.save_model(tmp_path_factory.mktemp("model"))
    before = process_state()
    sampler = open_sampler(folder, kv_cache_bytes=12 * contract.CONTEXT * TOKEN_BYTES)
    after = process_state()
    del os.environ["LOCAL_WORLD_SIZE"]
    yield sampler, folder, before, after
    sampler.close()


@pytest.fixture
def sampler(started):
    return started[0]


@pytest.fixture
def model(started):
    return contract.load_model(started[1])


def test_starting_leaves_the_process_as_it_was(started):
    _, _, before, after = started
    assert "vllm" in sys.modules
    assert after == before


def test_nothing_is_sampled_before_the_first_hand_over(started):
    sampler = started[0]
    if sampler.held_version is None:
        with pytest.raises(StaleWeightsError, match="holds no weights yet"):
            sampler.submit(contract.request(0, version=0))


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(model, sampler, check):
    check(model, sampler)


def test_equal_bits_whatever_the_company(model, sampler):
    version = contract.hand_over(model, sampler)
    requests = [contract.request(id, version=version, max_tokens=20, stop_token_ids=()) for id in range(32)]
    together = contract.sample(sampler, requests)
    for order, at_once in ((requests[::2] + requests[1::2], 32), (requests[::-1], 9), (requests[20:23], 1)):
        for id, completion in contract.sample(sampler, order, at_once=at_once).items():
            np.testing.assert_array_equal(completion.action_ids, together[id].action_ids)
            np.testing.assert_array_equal(completion.logprob, together[id].logprob)


def test_equal_episodes_whatever_the_order_and_number(model, sampler):
    rules = {
        "max_turns": 8,
        "max_prompt_tokens": contract.CONTEXT - 12,
        "max_action_tokens": 12,
        "temperature": 1.0,
        "run_seed": 3,
        "step": 1,
    }

    def play(order: range, max_concurrent: int) -> dict:
        version = contract.hand_over(model, sampler)
        episodes = [episode(n // 4, n % 4, FakeGame(f"game {n}", length=3 + n % 5)) for n in order]
        played = collect(sampler, episodes, **rules, policy_version=version, max_concurrent=max_concurrent)
        return {(t.group, t.member): [(turn | {"policy_version": 0}) for turn in values_of(t)["turns"]] for t in played}

    together = play(range(24), 24)
    assert sum(len(turns) for turns in together.values()) == sum(3 + n % 5 for n in range(24))
    assert play(range(23, -1, -1), 5) == together
    assert play(range(24), 11) == together


def test_more_prompt_tokens_at_once_than_a_step_takes(model, sampler):
    version = contract.hand_over(model, sampler)
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, contract.VOCAB, (60, 200)).astype(np.int32)
    requests = [contract.request(id, version=version, prompt_ids=prompt) for id, prompt in enumerate(prompts)]
    contract.assert_faithful(model, requests, contract.sample(sampler, requests))


NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.1.self_attn.o_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.0.input_layernorm.weight",
    "model.norm.weight",
]


@pytest.mark.parametrize("stale", NAMES)
def test_one_stale_tensor_is_caught_before_anything_is_sampled(model, sampler, monkeypatch, stale):
    """The old values of one tensor are loaded in place of the new; they differ in one element, by the least step."""
    held = contract.hand_over(model, sampler)
    names = {stale, "lm_head.weight"} if stale == "model.embed_tokens.weight" else {stale}  # one tied tensor
    old = model.state_dict()[stale].clone()
    flat = model.state_dict()[stale].view(-1)
    flat[-17] = torch.nextafter(flat[-17], torch.tensor(np.inf))
    load = weight_sharing.load

    def load_stale(engine, named_tensors):
        load(engine, ((name, old if name in names else tensor) for name, tensor in named_tensors))

    monkeypatch.setattr(weight_sharing, "load", load_stale)
    with pytest.raises(StaleWeightsError, match=f"policy version {held + 1} over version {held}, .* {stale} "):
        contract.hand_over(model, sampler)
    for version in (held, held + 1):
        with pytest.raises(StaleWeightsError, match="holds no weights"):
            sampler.submit(contract.request(0, version=version))
    monkeypatch.undo()
    contract.logprobs_are_the_trainers(model, sampler)


def test_a_tensor_that_never_arrives_is_caught(model, sampler, monkeypatch):
    contract.hand_over(model, sampler)
    contract.perturb(model, 3)
    missing = "model.layers.1.self_attn.v_proj.weight"
    load = weight_sharing.load

    def load_most(engine, named_tensors):
        load(engine, ((name, tensor) for name, tensor in named_tensors if name != missing))

    monkeypatch.setattr(weight_sharing, "load", load_most)
    with pytest.raises(StaleWeightsError, match=missing):
        contract.hand_over(model, sampler)


@pytest.mark.parametrize("missing", ["model.norm.weight", "lm_head.weight"])
def test_a_tensor_that_is_never_handed_over_is_caught(model, sampler, missing):
    tensors = [(name, tensor) for name, tensor in model.state_dict().items() if name != missing]
    with pytest.raises(StaleWeightsError, match=f"{missing} \\(never handed over\\)"):
        sampler.load_weights(tensors, version=100)


@pytest.mark.parametrize("part", ["q_proj", "v_proj"])
def test_a_part_of_a_fused_tensor_that_is_never_handed_over_is_caught(model, sampler, part):
    """The tensor it is a part of arrives: with the old values in that part."""
    missing = f"model.layers.0.self_attn.{part}.weight"
    tensors = [(name, tensor) for name, tensor in model.state_dict().items() if name != missing]
    with pytest.raises(StaleWeightsError, match=f"without {missing}"):
        sampler.load_weights(tensors, version=101)


@pytest.mark.parametrize("repacked", [True, False])
def test_the_packed_head_of_a_tied_model(model, sampler, monkeypatch, repacked):
    """A loader that skips a tied head, as many models' do: left to itself, vLLM's CPU build would go on computing
    logits with the old embedding."""
    contract.hand_over(model, sampler)
    contract.perturb(model, 4)
    load = weight_sharing.load

    def load_without_head(engine, named_tensors):
        load(engine, ((name, tensor) for name, tensor in named_tensors if name != "lm_head.weight"))

    monkeypatch.setattr(weight_sharing, "load", load_without_head)
    if repacked:
        contract.logprobs_are_the_trainers(model, sampler)
    else:
        monkeypatch.setattr(weight_sharing, "_repack_embeddings", lambda model: None)
        with pytest.raises(StaleWeightsError, match=r"trainer's lm_head\.weight"):
            contract.hand_over(model, sampler)


@pytest.mark.parametrize("dropped", [True, False])
def test_cached_prefixes_of_old_weights_are_dropped(model, sampler, monkeypatch, dropped):
    prompt = np.random.default_rng(0).integers(3, contract.VOCAB, 200).astype(np.int32)
    asked = contract.request(0, version=contract.hand_over(model, sampler), prompt_ids=prompt)
    contract.sample(sampler, [asked])
    contract.perturb(model, 5)
    if not dropped:
        monkeypatch.setattr(sampler._engine, "reset_prefix_cache", lambda: True)
    asked = contract.request(0, version=contract.hand_over(model, sampler), prompt_ids=prompt)
    completion = contract.sample(sampler, [asked])[0]
    gap = np.abs(completion.logprob - contract.logprobs_of(model, asked, completion)).max()
    assert gap < 1e-4 if dropped else gap > 1e-2
    monkeypatch.undo()
    contract.hand_over(model, sampler)


def test_every_column_of_a_wide_layer_is_compared_within_a_few_hand_overs(model, monkeypatch):
    monkeypatch.setattr(weight_sharing, "WINDOW", 7 * 48)
    tensor = torch.arange(3.0 * 48).view(3, 48)
    seen = set()
    for version in range(5, 12):
        sample = weight_sharing._sample(tensor, torch.float32, version)
        assert torch.equal(sample.values, tensor[:, sample.columns])
        seen |= set(sample.columns.tolist())
    assert seen == set(range(48))


def test_user_errors(tmp_path, started):
    folder = started[1]
    with pytest.raises(
        UserError, match=r"policy\.max_prompt_tokens: .* makes 256 tokens, .*, and there are 1000 for it"
    ):
        open_sampler(folder, kv_cache_bytes=1000)
    with pytest.raises(UserError, match=r"rollout.sampler: vLLM cannot run .* context of 4096 tokens"):
        open_sampler(folder, max_model_len=4096)


def test_heads_without_a_cpu_kernel_are_refused(tmp_path, started):
    with pytest.raises(UserError, match=r"kernels for heads of \[32, .* has heads of 16"):
        open_sampler(contract.save_model(tmp_path, num_attention_heads=4))


def engine_of_a_rank(world, folder: str) -> list[tuple[list[int], list[float]]]:
    """Each rank has weights of its own here: the engines must not share anything."""
    model = contract.load_model(folder)
    contract.perturb(model, world.rank)
    sampler = open_sampler(folder)
    contract.logprobs_are_the_trainers(model, sampler)
    sampler.close()
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    assert total.item() == world.size
    return [world.rank, os.environ["LOCAL_WORLD_SIZE"]]


@pytest.mark.multirank
def test_each_rank_has_its_own_engine(tmp_path):
    folder = contract.save_model(tmp_path / "model")
    assert on_ranks(2, engine_of_a_rank, folder, folder=tmp_path) == [[0, "2"], [1, "2"]]
