"""The packed forward pass is the plain one, and the gradient does not depend on how tokens are cut into batches."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import policy
from ranks import on_ranks
from transformers import Qwen2Config, Qwen2ForCausalLM

from siri.config import LossConfig, OptimConfig
from siri.engine import attention
from siri.engine.batch import pack, plan_minibatches
from siri.engine.distributed import World, all_reduce_max, all_reduce_sum
from siri.engine.optim import BadStepGuard, ShardedAdamW
from siri.engine.policy import Policy
from siri.engine.trajectory import TrainRow
from siri.update import update


def rows(count: int, seed: int, vocabulary: int = 300) -> list[TrainRow]:
    """Random sequences of 3 to 30 tokens with random trained positions, advantages and sampler log-probs."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(3, 30))
        trained = np.sort(rng.choice(np.arange(1, length), int(rng.integers(1, length)), replace=False))
        made.append(
            TrainRow(
                ids=rng.integers(0, vocabulary, length).astype(np.int32),
                loss_positions=trained.astype(np.int64),
                behavior_logprob=rng.normal(-5, 1, len(trained)).astype(np.float32),
                advantage=rng.normal(size=len(trained)).astype(np.float32),
            )
        )
    return made


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_packed_logprobs_are_those_of_each_row_alone(architecture):
    subject = policy(dtype=torch.float64)
    if architecture == "qwen2":  # attention with bias, another module path
        config = Qwen2Config(
            vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=64, tie_word_embeddings=False, initializer_range=0.2,
        )  # fmt: skip
        model = Qwen2ForCausalLM._from_config(config, attn_implementation=attention.register()).double().eval()
        subject = Policy(model=model, tokenizer=subject.tokenizer, source="")
    some = rows(9, seed=1)
    for batch in pack(some, max_tokens=64):
        got = subject.logprob_L(batch, temperature=0.7)
        bounds, expected = batch.cu_seqlens.tolist(), []
        for start, stop in itertools.pairwise(bounds):
            ids = batch.input_ids_T[start:stop]
            logits = subject.model(input_ids=ids[None], use_cache=False).logits[0].double() / 0.7
            logprob = F.log_softmax(logits, dim=-1)
            here = (batch.hidden_index_L >= start) & (batch.hidden_index_L < stop)
            index = batch.hidden_index_L[here] - start
            expected.append(logprob[index, batch.target_L[here]])
        torch.testing.assert_close(got.double(), torch.cat(expected), rtol=0, atol=1e-6)


def test_no_block_mask_of_all_tokens_is_built(monkeypatch):
    seen = []
    original = attention.packed_attention

    def spy(module, query, key, value, attention_mask, **kwargs):
        seen.append(attention_mask.numel())
        return original(module, query, key, value, attention_mask, **kwargs)

    subject = policy()
    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, spy)
    [batch] = pack(rows(8, seed=2), max_tokens=1000)
    subject.logprob_L(batch, temperature=1.0)
    assert seen == [1, 1]


def gradients(world: World, groups: dict[int, list[TrainRow]], *, max_tokens: int, updates: int) -> torch.Tensor:
    """[updates, parameters]: the gradient of each update, summed over ranks; the learning rate is 0."""
    subject = policy(seed=3)
    optimizer = ShardedAdamW(subject.model.named_parameters(), world, schedule=lambda step: 0.0, clip_norm=1e9)
    captured: list[torch.Tensor] = []
    take = optimizer.step

    def step():
        total = [torch.from_numpy(all_reduce_sum(world, p.grad.numpy().ravel())) for p in subject.model.parameters()]
        captured.append(torch.cat(total))
        return take()

    optimizer.step = step  # type: ignore[method-assign]
    mine = {group: some for group, some in groups.items() if group % world.size == world.rank}
    minibatches = plan_minibatches(
        mine, num_minibatches=updates, max_tokens=max_tokens, seed=(0,),
        reduce_sum=partial(all_reduce_sum, world), reduce_max=partial(all_reduce_max, world),
    )  # fmt: skip
    update(
        subject, None, optimizer, minibatches,
        loss_config=LossConfig(entropy_coef=0.01), optim_config=OptimConfig(updates=updates), temperature=1.0,
        world=world, guard=BadStepGuard(max_in_a_row=1), dump=lambda minibatch: None,
    )  # fmt: skip
    return torch.stack(captured)


GROUPS = {group: rows(5, seed=10 + group) for group in range(4)}


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("updates", [1, 2])
def test_the_gradient_does_not_depend_on_micro_batches(updates):
    whole = gradients(World(), GROUPS, max_tokens=10_000, updates=updates)
    assert whole.shape[0] == updates
    assert whole.norm() > 1e-3
    for max_tokens in (30, 64, 200):
        assert difference(gradients(World(), GROUPS, max_tokens=max_tokens, updates=updates), whole) < 1e-6


@pytest.mark.multirank
def test_the_gradient_does_not_depend_on_ranks(tmp_path):
    whole = gradients(World(), GROUPS, max_tokens=64, updates=2)
    for got in on_ranks(2, _gradients_on_rank, folder=tmp_path):
        assert difference(got, whole) < 1e-6


def _gradients_on_rank(world: World) -> torch.Tensor:
    return gradients(world, GROUPS, max_tokens=64, updates=2)
