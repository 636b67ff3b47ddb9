import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.engine.random_state import capture, preserved, restore, seed_all

# `gauss` and `standard_normal` keep a spare second draw in the state: an odd number of draws leaves it filled.
DRAWS = {
    "python": lambda: random.random(),
    "python_gauss": lambda: random.gauss(0.0, 1.0),
    "numpy": lambda: float(np.random.rand()),
    "numpy_gauss": lambda: float(np.random.standard_normal()),
    "torch": lambda: float(torch.rand(())),
    "torch_gauss": lambda: float(torch.randn(())),
}
draws = st.lists(st.sampled_from(sorted(DRAWS)), max_size=12)


@settings(max_examples=50, deadline=None)
@given(before=draws, after=draws, disturbance=draws, seed=st.integers(0, 2**64))
def test_the_sequence_goes_on_as_if_nothing_had_happened(before, after, disturbance, seed):
    seed_all(seed)
    for name in before:
        DRAWS[name]()
    state = json.loads(json.dumps(capture(), allow_nan=False))
    expected = [DRAWS[name]() for name in after]
    for name in disturbance:
        DRAWS[name]()
    restore(state)
    assert [DRAWS[name]() for name in after] == expected


def test_preserved_undoes_reseeding_even_when_the_body_raises():
    seed_all(7)
    with preserved():
        expected = [draw() for draw in DRAWS.values()]

    def reseed_and_fail():
        with preserved():
            seed_all(0)
            raise RuntimeError("engine did not start")

    with pytest.raises(RuntimeError, match="did not start"):
        reseed_and_fail()
    assert [draw() for draw in DRAWS.values()] == expected


def test_seeds_differ_and_repeat():
    def first_draws(seed):
        seed_all(seed)
        return [draw() for draw in DRAWS.values()]

    assert first_draws(1) == first_draws(1)
    assert all(a != b for a, b in zip(first_draws(1), first_draws(2), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_state_is_part_of_it():
    torch.cuda.init()
    seed_all(3)
    state = json.loads(json.dumps(capture()))
    expected = torch.rand(4, device="cuda")
    seed_all(4)
    restore(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)
