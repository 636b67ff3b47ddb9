"""What every sampler must do, as checks that both sampler tests run on a minuscule random model."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from siri.engine import attention, random_state
from siri.engine.sampling import Completion, Sampler, SampleRequest, StaleWeightsError

VOCAB, STOP, CONTEXT = 64, 1, 256


def save_model(folder: Path, **changes: object) -> str:
    """A random Llama of 50 k parameters whose next-token distributions are far from uniform. Heads of 32 features are
    the smallest that vLLM has CPU kernels for."""
    settings = dict(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    with random_state.preserved():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    return str(folder)


def load_model(folder: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention.register()).eval()


def request(id: int, *, version: int, **changes: object) -> SampleRequest:
    """A request of its own length and seed. Any field can be changed."""
    rng = np.random.default_rng(id)
    fields = {
        "id": id,
        "prompt_ids": rng.integers(3, VOCAB, rng.integers(1, 150)).astype(np.int32),
        "seed": 2**60 + id,
        "temperature": 0.7,
        "max_tokens": 12,
        "stop_token_ids": (STOP,),
        "policy_version": version,
    }
    return SampleRequest(**{**fields, **changes})


def sample(sampler: Sampler, requests: Iterable[SampleRequest], *, at_once: int = 1000) -> dict[int, Completion]:
    """Completions by id, with at most `at_once` requests pending."""
    waiting, pending, done = list(requests), 0, {}
    while waiting or pending:
        while waiting and pending < at_once:
            sampler.submit(waiting.pop(0))
            pending += 1
        for completion in sampler.poll():
            assert completion.id not in done
            done[completion.id] = completion
            pending -= 1
    assert sampler.poll() == []
    return done


def hand_over(model: PreTrainedModel, sampler: Sampler) -> int:
    version = (sampler.held_version or 0) + 1
    sampler.load_weights(model.state_dict().items(), version=version)
    assert sampler.held_version == version
    return version


@torch.no_grad()
def logprobs_of(model: PreTrainedModel, request: SampleRequest, completion: Completion) -> np.ndarray:
    """f32[A]: the log-probabilities that the trainer's own forward pass gives the drawn tokens."""
    ids = torch.from_numpy(np.concatenate([request.prompt_ids, completion.action_ids])).long()
    logits = model(ids[None]).logits[0, len(request.prompt_ids) - 1 : -1]
    logprob = (logits.float() / (request.temperature or 1.0)).log_softmax(-1)
    return logprob.gather(1, ids[len(request.prompt_ids) :, None]).squeeze(1).numpy()


def perturb(model: PreTrainedModel, seed: int) -> None:
    """Change every weight, as an optimiser would (but more)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def assert_faithful(model: PreTrainedModel, requests: list[SampleRequest], done: dict[int, Completion]) -> None:
    for asked in requests:
        np.testing.assert_allclose(done[asked.id].logprob, logprobs_of(model, asked, done[asked.id]), atol=1e-4)


def tokens_depend_on_nothing_but_the_request(model: PreTrainedModel, sampler: Sampler) -> None:
    version = hand_over(model, sampler)
    requests = [request(id, version=version) for id in range(40)]
    together = sample(sampler, requests)
    shuffled = random.Random(0).sample(requests, len(requests))
    for order, at_once in ((shuffled, 1000), (shuffled, 7), (requests[:6], 1)):
        for id, completion in sample(sampler, order, at_once=at_once).items():
            assert completion.action_ids.tolist() == together[id].action_ids.tolist()
            np.testing.assert_allclose(completion.logprob, together[id].logprob, atol=1e-4)
    assert len({tuple(completion.action_ids) for completion in together.values()}) > 35


def the_same_calls_give_the_same_bits(model: PreTrainedModel, sampler: Sampler) -> None:
    version = hand_over(model, sampler)
    requests = [request(id, version=version) for id in range(12)]
    first, second = sample(sampler, requests), sample(sampler, requests)
    for id in first:
        np.testing.assert_array_equal(first[id].action_ids, second[id].action_ids)
        np.testing.assert_array_equal(first[id].logprob, second[id].logprob)


def seeds_decide(model: PreTrainedModel, sampler: Sampler) -> None:
    version = hand_over(model, sampler)
    prompt = np.array([5, 6, 7], np.int32)
    requests = [request(id, version=version, prompt_ids=prompt, seed=id // 2, temperature=1.0) for id in range(20)]
    done = sample(sampler, requests)
    drawn = [tuple(done[id].action_ids) for id in range(20)]
    assert drawn[::2] == drawn[1::2]
    assert len(set(drawn)) == 10


def logprobs_are_the_trainers(model: PreTrainedModel, sampler: Sampler) -> None:
    version = hand_over(model, sampler)
    temperatures = (0.4, 1.0, 1.5)
    requests = [request(id, version=version, temperature=temperatures[id % 3]) for id in range(30)]
    assert_faithful(model, requests, sample(sampler, requests))


def the_whole_distribution_is_sampled(model: PreTrainedModel, sampler: Sampler) -> None:
    version = hand_over(model, sampler)
    prompt, draws = np.array([9, 33, 12], np.int32), 3000
    requests = [
        request(id, version=version, prompt_ids=prompt, seed=7919 * id, temperature=1.3, max_tokens=1)
        for id in range(draws)
    ]
    done = sample(sampler, requests, at_once=500)
    seen = np.bincount([completion.action_ids[0] for completion in done.values()], minlength=VOCAB)
    with torch.no_grad():
        expected = draws * (model(torch.tensor([[9, 33, 12]])).logits[0, -1] / 1.3).softmax(-1).numpy()
    common = expected >= 5
    cells = np.append(seen[common], seen[~common].sum()), np.append(expected[common], expected[~common].sum())
    statistic = float(((cells[0] - cells[1]) ** 2 / cells[1]).sum())
    freedom = len(cells[0]) - 1
    assert freedom > 15
    # Mean `freedom`, standard deviation sqrt(2 freedom): five of those are a one in a million.
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def drawing_ends_with_a_stop_token_or_at_the_limit(model: PreTrainedModel, sampler: Sampler) -> None:
    version = hand_over(model, sampler)
    ends = tuple(range(1, VOCAB, 8))
    requests = [request(id, version=version, stop_token_ids=ends, temperature=1.5) for id in range(40)]
    done = sample(sampler, requests)
    assert {completion.finished_by for completion in done.values()} == {"stop", "length"}
    for completion in done.values():
        assert completion.action_ids.dtype == np.int32
        assert completion.logprob.dtype == np.float32
        assert len(completion.action_ids) == len(completion.logprob)
        assert not set(completion.action_ids[:-1].tolist()) & set(ends)
        if completion.finished_by == "stop":
            assert int(completion.action_ids[-1]) in ends
        else:
            assert len(completion.action_ids) == 12
            assert int(completion.action_ids[-1]) not in ends
    # The model's own end-of-text token is a token like any other unless the request names it.
    assert any(2 in completion.action_ids[:-1] for completion in done.values())


def temperature_zero_is_greedy(model: PreTrainedModel, sampler: Sampler) -> None:
    version = hand_over(model, sampler)
    requests = [request(id, version=version, temperature=0.0) for id in range(8)]
    done = sample(sampler, requests)
    assert_faithful(model, requests, done)
    for asked in requests:
        ids = asked.prompt_ids.tolist()
        for token in done[asked.id].action_ids.tolist():
            with torch.no_grad():
                assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def random_state_is_left_alone(model: PreTrainedModel, sampler: Sampler) -> None:
    before = random_state.capture()
    version = hand_over(model, sampler)
    sample(sampler, [request(id, version=version) for id in range(5)])
    assert random_state.capture() == before


def new_weights_are_sampled_from(model: PreTrainedModel, sampler: Sampler) -> None:
    version = hand_over(model, sampler)
    old = [request(id, version=version) for id in range(20)]
    before = sample(sampler, old)
    for seed in (1, 2):
        perturb(model, seed)
        version = hand_over(model, sampler)
        requests = [request(id, version=version) for id in range(20)]
        after = sample(sampler, requests)
        assert_faithful(model, requests, after)
        changed = [id for id in after if after[id].action_ids.tolist() != before[id].action_ids.tolist()]
        assert len(changed) > 15
        before = after


def other_versions_are_refused(model: PreTrainedModel, sampler: Sampler) -> None:
    version = hand_over(model, sampler)
    for wrong in (version - 1, version + 1):
        with pytest.raises(StaleWeightsError, match=f"policy version {wrong}, but the sampler holds version {version}"):
            sampler.submit(request(0, version=wrong))
    assert sampler.poll() == []


CHECKS: list[Callable[[PreTrainedModel, Sampler], None]] = [
    tokens_depend_on_nothing_but_the_request,
    the_same_calls_give_the_same_bits,
    seeds_decide,
    logprobs_are_the_trainers,
    the_whole_distribution_is_sampled,
    drawing_ends_with_a_stop_token_or_at_the_limit,
    temperature_zero_is_greedy,
    random_state_is_left_alone,
    new_weights_are_sampled_from,
    other_versions_are_refused,
]
