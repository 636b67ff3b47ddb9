import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks
from torch import nn

from siri.engine.distributed import World
from siri.engine.errors import UserError
from siri.engine.optim import BadStepGuard, ShardedAdamW, StepResult, TrainingDiverged, learning_rate, partition

BETAS, EPS, DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 0.5
ROWS, VOCABULARY = 24, 11


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, VOCABULARY)).to(dtype)


def rates(step):
    return learning_rate(step, peak=0.02, kind="cosine", warmup_steps=2, total_steps=12)


def make_optimizer(model, world=None):
    return ShardedAdamW(
        model.named_parameters(),
        world or World(),
        schedule=rates,
        betas=BETAS,
        eps=EPS,
        weight_decay=DECAY,
        clip_norm=CLIP,
    )


def data(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(VOCABULARY, (2, ROWS), generator=generator)


def backward(model, step, rows, micro_batches):
    """Accumulates the gradient of these rows' part of the mean over all ROWS: the denominator is global."""
    inputs, targets = data(step)
    for part in torch.tensor(rows).tensor_split(micro_batches):
        loss = nn.functional.cross_entropy(model(inputs[part]).float(), targets[part], reduction="sum") / ROWS
        (loss * 3.0).backward()


def train(model, optimizer, steps, *, rows=tuple(range(ROWS)), micro_batches=1):
    results = []
    for step in steps:
        backward(model, step, rows, micro_batches)
        results.append(optimizer.step())
    return results


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def relative_gap(a, b):
    return max(float((a[k] - b[k]).norm() / b[k].norm().clamp_min(1e-12)) for k in b if k != "steps")


def test_one_rank_is_torchs_adamw_after_torchs_clipping_bit_for_bit():
    ours, theirs = make_model(), make_model()
    optimizer = make_optimizer(ours)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.0, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for step in range(8):
        backward(ours, step, range(ROWS), 2)
        result = optimizer.step()
        backward(theirs, step, range(ROWS), 2)
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), CLIP)
        reference.param_groups[0]["lr"] = rates(step)
        reference.step()
        reference.zero_grad()
        assert result == StepResult(grad_norm=norm.item(), learning_rate=rates(step), skipped=False)
        assert result.grad_norm > CLIP or step > 3  # clipping takes part
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert optimizer.steps == 8
    state = optimizer.state_dict()
    for name, p in theirs.named_parameters():
        assert torch.equal(state[f"{name}/exp_avg"], reference.state[p]["exp_avg"])
        assert torch.equal(state[f"{name}/exp_avg_sq"], reference.state[p]["exp_avg_sq"])
    assert all(p.grad is None for p in ours.parameters())


def test_stopping_and_resuming_changes_nothing():
    straight = make_model()
    train(straight, make_optimizer(straight), range(6))
    first = make_model()
    optimizer = make_optimizer(first)
    train(first, optimizer, range(3))
    second = make_model()
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.steps == 3
    train(second, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))


def test_the_state_before_the_first_step_is_that_of_a_fresh_optimiser():
    model = make_model()
    optimizer = make_optimizer(model)
    state = optimizer.state_dict()
    assert int(state.pop("steps")) == 0
    assert all(float(tensor.abs().max()) == 0.0 for tensor in state.values())
    resumed = make_optimizer(model)
    resumed.load_state_dict({**state, "steps": torch.tensor(0)})
    train(model, resumed, range(2))
    plain = make_model()
    train(plain, make_optimizer(plain), range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("micro_batches", [2, 3, 5, ROWS])
def test_the_gradient_does_not_depend_on_micro_batches(micro_batches):
    whole, parts = make_model(), make_model()
    backward(whole, 0, range(ROWS), 1)
    backward(parts, 0, range(ROWS), micro_batches)
    a = {name: p.grad for name, p in parts.named_parameters()}
    b = {name: p.grad for name, p in whole.named_parameters()}
    assert relative_gap(a, b) < 1e-6


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_nothing(poison, dtype):
    model = make_model(dtype)
    optimizer = make_optimizer(model)
    train(model, optimizer, range(3))
    before, state = weights(model), optimizer.state_dict()
    backward(model, 3, range(ROWS), 1)
    # On its way in, as a bad loss would: an extra backward pass with one bad element.
    model[3].bias.backward(torch.tensor([0.0] * (VOCABULARY - 1) + [poison], dtype=dtype))
    result = optimizer.step()
    assert result.skipped
    assert not math.isfinite(result.grad_norm)
    assert all(torch.equal(before[k], v) for k, v in weights(model).items())
    assert all(torch.equal(state[k], v) for k, v in optimizer.state_dict().items())
    assert optimizer.steps == 3
    # And nothing of it lingers in the step after.
    untouched = make_model(dtype)
    reference = make_optimizer(untouched)
    expected = train(untouched, reference, range(4))
    assert train(model, optimizer, [3]) == expected[3:]
    assert all(torch.equal(v, weights(untouched)[k]) for k, v in weights(model).items())


def test_bf16_parameters_follow_a_float32_master():
    """1000 steps of 1e-4 move a weight of 1.0 by 0.1; in bfloat16 alone 1.0 - 1e-4 rounds back to 1.0."""
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    q = nn.Parameter(torch.ones(4))
    arguments = {"weight_decay": 0.0, "clip_norm": 1e9}
    ours = ShardedAdamW([("p", p)], World(), schedule=lambda _: 1e-4, **arguments)
    exact = torch.optim.AdamW([q], lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(1000):
        p.backward(torch.full((4,), 0.5, dtype=torch.bfloat16))
        q.backward(torch.full((4,), 0.5))
        ours.step()
        exact.step()
        exact.zero_grad()
    state = ours.state_dict()
    torch.testing.assert_close(state["p/master"], q.detach(), rtol=1e-6, atol=0)
    assert torch.equal(p, q.bfloat16())
    # A checkpoint keeps the master: the weights of the model file alone would lose it.
    r = nn.Parameter(p.detach().clone())
    resumed = ShardedAdamW([("p", r)], World(), schedule=lambda _: 1e-4, **arguments)
    resumed.load_state_dict(state)
    for optimizer, parameter in ((ours, p), (resumed, r)):
        parameter.backward(torch.full((4,), 0.5, dtype=torch.bfloat16))
        optimizer.step()
    assert torch.equal(resumed.state_dict()["p/master"], ours.state_dict()["p/master"])


def test_bf16_gradients_are_added_up_in_float32():
    """1 + 256 * 2**-9: each small term is lost in bfloat16 (its spacing above 1 is 2**-7), their sum is 0.5."""
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = ShardedAdamW([("p", p)], World(), schedule=lambda _: 0.0, clip_norm=1e9)
    p.backward(torch.tensor([1.0], dtype=torch.bfloat16))
    for _ in range(256):
        p.backward(torch.tensor([2.0**-9], dtype=torch.bfloat16))
    assert optimizer.step().grad_norm == 1.5


def test_frozen_parameters_are_left_alone_and_a_missing_gradient_is_zero():
    model = make_model()
    model[0].weight.requires_grad_(False)
    before = weights(model)
    optimizer = make_optimizer(model)
    model[1].bias.backward(torch.ones(16))
    assert optimizer.step().grad_norm == 4.0
    after = weights(model)
    assert torch.equal(before["0.weight"], after["0.weight"])
    torch.testing.assert_close(after["3.weight"], before["3.weight"] * (1 - rates(0) * DECAY))  # decay alone
    assert not any(name.startswith("0.") for name in optimizer.state_dict())


def test_a_state_of_another_model_is_refused():
    model = make_model()
    state = make_optimizer(model).state_dict()
    with pytest.raises(UserError, match=r"3\.bias/master is missing in the checkpoint.*start a new run"):
        make_optimizer(make_model(torch.bfloat16)).load_state_dict(
            {k: v for k, v in make_optimizer(make_model(torch.bfloat16)).state_dict().items() if k != "3.bias/master"}
        )
    with pytest.raises(UserError, match=r"4\.weight/exp_avg is missing in the model"):
        make_optimizer(model).load_state_dict({**state, "4.weight/exp_avg": torch.zeros(1)})
    with pytest.raises(UserError, match=r"1\.bias/exp_avg has shape \[3\], this model's is \[16\]"):
        make_optimizer(model).load_state_dict({**state, "1.bias/exp_avg": torch.zeros(3)})


@given(sizes=st.lists(st.integers(1, 1000), max_size=40), ranks=st.integers(1, 9))
def test_the_partition_is_balanced(sizes, ranks):
    owners = partition(sizes, ranks)
    assert owners == partition(iter(sizes), ranks)
    load = [sum(s for s, o in zip(sizes, owners, strict=True) if o == rank) for rank in range(ranks)]
    assert sum(load) == sum(sizes)
    assert max(load) - min(load) <= max(sizes, default=0)


def test_learning_rates():
    rate = partial(learning_rate, peak=2.0, warmup_steps=4, total_steps=12)
    assert [rate(s, kind="constant") for s in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert [rate(s, kind="linear") for s in (3, 4, 8, 12, 99)] == [2.0, 2.0, 1.0, 0.0, 0.0]
    assert [rate(s, kind="cosine") for s in (4, 6, 8, 12)] == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 0.0])
    assert learning_rate(0, peak=1.0, kind="cosine", total_steps=10) == 1.0
    assert learning_rate(5, peak=1.0, kind="linear", warmup_steps=5, total_steps=5) == 1.0


def test_the_guard_stops_after_so_many_in_a_row():
    good = StepResult(grad_norm=1.0, learning_rate=1.0, skipped=False)
    bad = StepResult(grad_norm=math.nan, learning_rate=1.0, skipped=True)
    guard = BadStepGuard(max_in_a_row=3)
    for result in (bad, bad, good, bad, bad):
        guard.observe(result)
    assert (guard.in_a_row, guard.total) == (2, 4)
    resumed = copy.copy(guard)
    with pytest.raises(TrainingDiverged, match=r"not finite 3 steps in a row \(max_bad_steps: 3\)"):
        resumed.observe(bad)


def run_on_ranks(world, saved):
    """Everything that needs two ranks, in one start: gradients, steps, a poisoned rank, saving and resuming."""
    mine = range(world.rank * 9, ROWS if world.rank else 9)  # uneven: 9 and 15 rows
    model = make_model()
    optimizer = make_optimizer(model, world)
    results = train(model, optimizer, [0], rows=mine, micro_batches=3)
    first = optimizer.state_dict()
    results += train(model, optimizer, range(1, 4), rows=mine)
    before = weights(model)
    backward(model, 4, mine, 1)
    if world.rank == 1:
        model[0].weight.grad[0, 0] = math.nan
    poisoned = optimizer.step()
    unchanged = all(torch.equal(before[k], v) for k, v in weights(model).items())

    resumed = make_model()
    resumed.load_state_dict(saved["model"])
    continued = make_optimizer(resumed, world)
    continued.load_state_dict(saved["optimizer"])
    train(resumed, continued, range(3, 6), rows=mine)

    half = make_model(torch.bfloat16)
    masters = make_optimizer(half, world)
    train(half, masters, range(2), rows=mine, micro_batches=2)
    return {
        "results": results,
        "first": first,
        "weights": before,
        "state": optimizer.state_dict(),
        "poisoned": poisoned,
        "unchanged": unchanged,
        "resumed": weights(resumed),
        "half": weights(half),
        "half_state": masters.state_dict(),
        "owned": list(optimizer._masters),
    }


@pytest.mark.multirank
def test_two_ranks_are_one(tmp_path):
    alone = make_model()
    optimizer = make_optimizer(alone)
    expected = train(alone, optimizer, [0])
    first = optimizer.state_dict()
    expected += train(alone, optimizer, [1, 2])
    saved = {"model": copy.deepcopy(alone.state_dict()), "optimizer": optimizer.state_dict()}
    expected += train(alone, optimizer, [3])
    at_four = weights(alone)

    a, b = on_ranks(2, run_on_ranks, saved, folder=tmp_path)

    assert sorted(a["owned"] + b["owned"]) == sorted(at_four), "each parameter has one owner"
    assert a["owned"]
    assert b["owned"]
    assert b["first"] == b["state"] == b["half_state"] == {}
    # The first moment after one step is 0.1 of the clipped gradient: this is the gradient, summed over ranks.
    assert relative_gap(a["first"], first) < 1e-6
    for name in at_four:
        assert torch.equal(a["weights"][name], b["weights"][name]), "replicas agree bit for bit"
        assert torch.equal(a["half"][name], b["half"][name])
        assert torch.equal(a["half_state"][f"{name}/master"].bfloat16(), a["half"][name])
    assert a["results"] == b["results"]
    for one, two in zip(expected, a["results"], strict=True):
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-6)
    assert relative_gap(a["weights"], at_four) < 1e-5

    assert a["poisoned"].skipped
    assert b["poisoned"].skipped
    assert a["unchanged"]
    assert b["unchanged"]

    # Written by one rank, resumed by two ...
    train(alone, optimizer, [4, 5])
    assert relative_gap(a["resumed"], weights(alone)) < 1e-5
    # ... and written by two, resumed by one.
    back = make_model()
    back.load_state_dict(a["weights"])
    resumed = make_optimizer(back)
    resumed.load_state_dict(a["state"])
    train(back, resumed, [4, 5])
    assert relative_gap(weights(back), weights(alone)) < 1e-5
