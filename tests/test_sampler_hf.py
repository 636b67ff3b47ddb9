import pytest
import sampler_contract as contract

from siri.engine.rollout_hf import HfSampler, _next_wave
from siri.engine.sampling import StaleWeightsError


@pytest.fixture
def model(tmp_path):
    return contract.load_model(contract.save_model(tmp_path))


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(model, check):
    check(model, HfSampler(model))


def test_nothing_is_sampled_before_the_first_hand_over(model):
    with pytest.raises(StaleWeightsError, match="holds no weights yet"):
        HfSampler(model).submit(contract.request(0, version=0))


def test_tensors_that_are_not_the_modules_own_are_refused(model):
    sampler = HfSampler(model)
    sampler.load_weights(model.state_dict().items(), version=1)
    tensors = {**model.state_dict()}
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].clone()
    with pytest.raises(StaleWeightsError, match=f"{name} of policy version 2"):
        sampler.load_weights(tensors.items(), version=2)
    assert sampler.held_version is None


def test_a_wave_takes_the_oldest_request_and_its_likes(monkeypatch):
    monkeypatch.setattr("siri.engine.rollout_hf.WAVE_TOKENS", 3 * (50 + 12))
    lengths = (50, 10, 48, 150, 49, 51, 50)
    queue = [
        contract.request(id, version=0, prompt_ids=contract.np.zeros(length, "int32"))
        for id, length in enumerate(lengths)
    ]
    assert sorted(request.id for request in _next_wave(queue)) == [0, 4, 6]
    assert [request.id for request in _next_wave(queue[3:4])] == [3]
