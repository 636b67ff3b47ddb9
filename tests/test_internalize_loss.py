"""The internalisation loss inside an update, against its definition turn by turn in float64."""

import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from episodes import episode, turn
from models import policy
from ranks import on_ranks

from siri.config import LossConfig, OptimConfig
from siri.engine.batch import plan_minibatches, rows_by_group
from siri.engine.distributed import World, all_reduce_max, all_reduce_sum
from siri.engine.optim import BadStepGuard, StepResult
from siri.engine.policy import Policy
from siri.engine.trajectory import Trajectory
from siri.internalize import rerendered_rows
from siri.update import update

DIVERGENCES = ["nll", "forward_kl", "reverse_kl", "jsd"]
UTILITY, DELTA, C_ADV = {"good": 0.5, "bad": -0.5}, {0: 0.5, 1: 0.25, 2: -0.25, 3: 1.0}, 1.5
INTERNALISED = {(group, member) for group in (0, 1, 3) for member in (2, 3)}
"""Groups whose skill half did better, episodes that were shown the good skill."""
TEMPERATURE = 0.8
TOLERANCE = 1e-6
"""Relative, of gradients: the models normalise in float32 whatever the type of their weights (3e-8 was seen)."""


def played(seed: int = 0) -> tuple[list[Trajectory], list[np.ndarray]]:
    """Four groups of two plain and three guided episodes, growing or written anew, with advantages in eighths."""
    rng = np.random.default_rng(seed)
    trajectories = []
    for group in range(4):
        for member in range(5):
            growing, guided = bool(rng.integers(2)), member >= 2
            prompt, twin, turns = [], [], []
            for _ in range(int(rng.integers(1, 5))):
                new = rng.integers(0, 300, int(rng.integers(1, 5))).tolist()
                hint = rng.integers(0, 300, 4).tolist() if not (growing and prompt) else []
                prompt, twin = ([*prompt, *hint, *new], [*twin, *new]) if growing else ([*hint, *new], new)
                action = rng.integers(0, 300, int(rng.integers(3, 9))).tolist()
                start = int(rng.integers(0, 3))
                span = (start, int(rng.integers(start, len(action) + 1)))
                one = turn(prompt=prompt if guided else twin, action=action)
                noise = rng.normal(-5, 1, len(action)).astype(np.float32)
                turns.append(replace(
                    one, action_span=span, behavior_logprob=noise,
                    twin_prompt_ids=np.array(twin, np.int32) if guided else None,
                ))  # fmt: skip
                prompt, twin = [*prompt, *action], [*twin, *action]
            condition = () if not guided else ("bad",) if member == 4 else ("good",)
            trajectories.append(episode(group, member, turns, condition=condition))
    return trajectories, [rng.integers(-8, 20, len(t.turns)) / 8 for t in trajectories]


def naive(student: Policy, teacher: Policy, divergence: str, *, seed: int = 0) -> torch.Tensor:
    """L_int by its definition: one forward pass a turn, one term a token, no packing, no rows."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for trajectory, advantages in zip(*played(seed), strict=True):
        if (trajectory.group, trajectory.member) not in INTERNALISED:
            continue
        for one, advantage in zip(trajectory.turns, advantages.tolist(), strict=True):
            assert one.twin_prompt_ids is not None
            log_s = log_probabilities(student, one.twin_prompt_ids, one.action_ids)
            with torch.no_grad():
                log_t = log_probabilities(teacher, one.prompt_ids, one.action_ids)
            for place in range(*one.action_span):
                count += 1
                s, t, token = log_s[place], log_t[place], int(one.action_ids[place])
                log_m = ((s.exp() + t.exp()) / 2).log()
                term = {
                    "nll": lambda s=s, token=token: -s[token],
                    "forward_kl": lambda s=s, t=t: (t.exp() * (t - s)).sum(),
                    "reverse_kl": lambda s=s, t=t: (s.exp() * (s - t)).sum(),
                    "jsd": lambda s=s, t=t, m=log_m: (s.exp() * (s - m)).sum() / 2 + (t.exp() * (t - m)).sum() / 2,
                }[divergence]()
                total = total + min(max(advantage, 0.0), C_ADV) * term
    assert count > 20
    return total / max(1, count)


def log_probabilities(subject: Policy, prompt: np.ndarray, action: np.ndarray) -> torch.Tensor:
    """f64[A, V]: row i is the distribution that token i of the action was chosen from."""
    ids = torch.from_numpy(np.concatenate([prompt, action]).astype(np.int64))
    logits = subject.model(input_ids=ids[None], use_cache=False).logits[0].double() / TEMPERATURE
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


@dataclass
class Recorder:
    """Plain gradient descent that remembers the gradients, summed over ranks."""

    subject: Policy
    world: World
    rate: float = 0.0
    gradients: list[torch.Tensor] = field(default_factory=list)

    def step(self) -> StepResult:
        total = []
        for p in self.subject.model.parameters():
            mine = torch.zeros_like(p) if p.grad is None else p.grad
            summed = torch.from_numpy(all_reduce_sum(self.world, mine.double().numpy().ravel()))
            total.append(summed)
            p.data -= self.rate * summed.view(p.shape)
            p.grad = None
        self.gradients.append(torch.cat(total))
        return StepResult(grad_norm=float(self.gradients[-1].norm()), learning_rate=self.rate, skipped=False)


def run(
    subject: Policy, *, world: World | None = None, own: bool, distilled: bool, divergence: str = "nll",
    max_tokens: int = 10_000, updates: int = 1, epochs: int = 1, rate: float = 0.0, **settings: Any,
) -> tuple[torch.Tensor, dict[str, float]]:  # fmt: skip
    """([steps, parameters] gradients, metrics) of an update on the policy's own rows, the re-rendered ones or both."""
    world = world or World()
    trajectories, advantages = played()
    mine = [(t, a) for t, a in zip(trajectories, advantages, strict=True) if t.group % world.size == world.rank]
    plain = rows_by_group(*zip(*mine, strict=True)) if own else {}
    extra = rerendered_rows(
        *zip(*mine, strict=True), gate="both", utility=UTILITY, delta=DELTA, c_adv=C_ADV, distill_reasoning=False,
        with_teacher=divergence != "nll",
    ) if distilled else {}  # fmt: skip
    minibatches = plan_minibatches(
        {group: [*plain.get(group, ()), *extra.get(group, ())] for group in plain | extra},
        num_minibatches=updates, max_tokens=max_tokens, seed=(0,),
        reduce_sum=partial(all_reduce_sum, world), reduce_max=partial(all_reduce_max, world),
    )  # fmt: skip
    recorder = Recorder(subject, world, rate)
    metrics = update(
        subject, None, recorder, minibatches,
        loss_config=LossConfig(entropy_coef=0.01), optim_config=OptimConfig(epochs=epochs), temperature=TEMPERATURE,
        divergence=divergence, world=world, guard=BadStepGuard(max_in_a_row=1), dump=lambda minibatch: None,
        **settings,
    )  # fmt: skip
    return torch.stack(recorder.gradients), metrics


def exact_policy() -> Policy:
    return policy(seed=3, dtype=torch.float64)


def naive_gradient(student: Policy, teacher: Policy, divergence: str) -> tuple[torch.Tensor, float]:
    loss = naive(student, teacher, divergence)
    gradient = torch.autograd.grad(loss, list(student.model.parameters()))
    return torch.cat([g.ravel() for g in gradient]), loss.item()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("max_tokens", [10_000, 40])
def test_loss_and_gradient_are_those_of_the_definition(divergence: str, max_tokens: int) -> None:
    subject = exact_policy()
    expected, loss = naive_gradient(subject, subject, divergence)
    got, metrics = run(
        subject, own=False, distilled=True, divergence=divergence, max_tokens=max_tokens, distill_lambda=0.25
    )
    assert got.shape[0] == 1
    assert expected.norm() > 1e-3
    assert difference(got[0], 0.25 * expected) < TOLERANCE
    assert metrics["distill/loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["distill/lambda"] == 0.25


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_combined_gradient_is_the_sum_of_both(divergence: str) -> None:
    """In common micro-batches, whose cuts do not matter."""
    subject = exact_policy()
    expected, _ = naive_gradient(subject, subject, divergence)
    alone, before = run(subject, own=True, distilled=False)
    for max_tokens in (10_000, 40):
        both, after = run(
            subject, own=True, distilled=True, divergence=divergence, max_tokens=max_tokens, distill_lambda=2.0
        )
        assert difference(both[0], alone[0] + 2.0 * expected) < TOLERANCE
        # Re-rendered rows are in no number of the policy loss.
        for name in before.keys() - {"train/grad_norm"}:
            assert after[name] == pytest.approx(before[name], rel=1e-5, abs=1e-7), name
    added = {"loss", "tokens", "gated_tokens", "weight_mean", "lambda"}
    assert after.keys() - before.keys() == {f"distill/{name}" for name in added}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_teacher_is_frozen_before_the_first_step(divergence: str) -> None:
    """Three passes over the rows, the head tied to the embedding: student, features and head all move, it does not."""
    subject, student, teacher = exact_policy(), exact_policy(), exact_policy()
    got, metrics = run(
        subject, own=False, distilled=True, divergence=divergence, epochs=3, rate=0.5, distill_lambda=1.0
    )
    losses = []
    for step in range(3):
        expected, loss = naive_gradient(student, teacher, divergence)
        losses.append(loss)
        assert difference(got[step], expected) < TOLERANCE
        moved = torch.nn.utils.parameters_to_vector(student.model.parameters()) - 0.5 * expected
        torch.nn.utils.vector_to_parameters(moved.detach(), student.model.parameters())
    assert losses[0] > losses[1] > losses[2]
    assert metrics["distill/loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_metrics_count_tokens_and_weights_of_one_pass() -> None:
    weights = [
        min(max(a, 0.0), C_ADV)
        for t, advantages in zip(*played(), strict=True)
        if (t.group, t.member) in INTERNALISED
        for one, a in zip(t.turns, advantages.tolist(), strict=True)
        for _ in range(*one.action_span)
    ]
    assert 0.0 in weights
    for updates, epochs in ((1, 1), (3, 2)):
        _, metrics = run(exact_policy(), own=True, distilled=True, updates=updates, epochs=epochs, distill_lambda=1.0)
        assert metrics["distill/gated_tokens"] == len(weights)
        assert metrics["distill/tokens"] == sum(weight > 0 for weight in weights)
        assert metrics["distill/weight_mean"] == pytest.approx(np.mean(weights))


class Passes:
    """Counts forward passes by the number of tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[int] = []
        original = Policy.hidden_L

        def counted(subject: Policy, batch: Any) -> torch.Tensor:
            self.tokens.append(batch.num_tokens)
            return original(subject, batch)

        monkeypatch.setattr(Policy, "hidden_L", counted)


def test_hidden_states_are_computed_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch)
    run(exact_policy(), own=True, distilled=True, distill_lambda=1.0)
    assert len(passes.tokens) == 1
    run(exact_policy(), own=True, distilled=True, divergence="jsd", distill_lambda=1.0)
    assert len(passes.tokens) == 3  # one more, of the teacher


def test_without_lambda_or_tokens_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, before = run(exact_policy(), own=True, distilled=False, max_tokens=64, updates=2)
    same, after = run(exact_policy(), own=True, distilled=False, max_tokens=64, updates=2, distill_lambda=1.0)
    assert torch.equal(alone, same)
    assert after == {
        **before, "distill/loss": 0.0, "distill/tokens": 0.0, "distill/gated_tokens": 0.0, "distill/weight_mean": 0.0,
        "distill/lambda": 1.0,
    }  # fmt: skip

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("no internalisation at lambda 0")

    monkeypatch.setattr("siri.update.masked_distill_loss", never)
    monkeypatch.setattr("siri.update._frozen", never)
    passes = Passes(monkeypatch)
    alone, before = run(exact_policy(), own=True, distilled=False)
    single = len(passes.tokens)
    same, after = run(exact_policy(), own=True, distilled=True, divergence="jsd", distill_lambda=0.0)
    assert len(passes.tokens) == 2 * single
    assert difference(same, alone) < TOLERANCE
    assert after.keys() == before.keys()


def test_bfloat16_comes_near() -> None:
    subject = policy(seed=3, dtype=torch.bfloat16)
    exact = replace(subject, model=copy.deepcopy(subject.model).double())
    expected, loss = naive_gradient(exact, exact, "jsd")
    got, metrics = run(subject, own=False, distilled=True, divergence="jsd", max_tokens=64, distill_lambda=1.0)
    assert metrics["distill/loss"] == pytest.approx(loss, rel=0.02)
    assert difference(got[0], expected) < 0.05


@pytest.mark.multirank
@pytest.mark.parametrize(("ranks", "divergence"), [(2, "jsd"), (3, "nll")])
def test_the_gradient_does_not_depend_on_ranks(ranks: int, divergence: str, tmp_path: Any) -> None:
    """Of three ranks, one has nothing to distil."""
    subject = exact_policy()
    expected, loss = naive_gradient(subject, subject, divergence)
    for got, metrics in on_ranks(ranks, _run_on_rank, divergence, folder=tmp_path):
        assert difference(got[0], expected) < TOLERANCE
        assert metrics["distill/loss"] == pytest.approx(loss, rel=1e-6)


def _run_on_rank(world: World, divergence: str) -> tuple[torch.Tensor, dict[str, float]]:
    return run(
        exact_policy(), world=world, own=False, distilled=True, divergence=divergence, max_tokens=40,
        distill_lambda=1.0,
    )  # fmt: skip
