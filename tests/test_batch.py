"""Packing: every trained token once, whatever the batch size, the merging or the number of ranks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from episodes import episode, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.engine.batch import make_rows, pack, plan_minibatches, rows_by_group
from siri.engine.errors import UserError
from siri.engine.trajectory import Ended, Minibatch, PackedBatch, TrainRow, Trajectory, Turn

VOCABULARY = 12


def row(ids: Sequence[int], positions: Sequence[int], advantage: float = 1.0, behavior: bool = True) -> TrainRow:
    trained = len(positions)
    return TrainRow(
        ids=np.array(ids, dtype=np.int32),
        loss_positions=np.array(positions, dtype=np.int64),
        behavior_logprob=np.full(trained, -0.5, dtype=np.float32) if behavior else None,
        advantage=np.full(trained, advantage, dtype=np.float32),
        distill_weight=None if behavior else np.full(trained, 0.25, dtype=np.float32),
        distill_tokens=0 if behavior else trained,
    )


@st.composite
def train_rows(draw: st.DrawFn) -> TrainRow:
    """Rows of any kind, those included that hold no token and only count."""
    ids = draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=20))
    positions = draw(st.sets(st.integers(1, len(ids) - 1))) if len(ids) > 1 else set()
    numbers = st.floats(-5, 5, width=32)
    logprob = st.one_of(numbers, st.sampled_from([np.nan, -np.inf, np.inf]))

    def column(values: st.SearchStrategy[float]) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=len(positions), max_size=len(positions))), dtype=np.float32)

    distilled = draw(st.booleans())
    return TrainRow(
        ids=np.array(ids, dtype=np.int32),
        loss_positions=np.array(sorted(positions), dtype=np.int64),
        behavior_logprob=column(logprob) if draw(st.booleans()) else None,
        advantage=column(numbers),
        distill_weight=column(st.sampled_from([0.25, 0.5])) if distilled else None,
        distill_tokens=len(positions) + draw(st.integers(0, 3)) if distilled else 0,
    )


@st.composite
def conversations(draw: st.DrawFn) -> Trajectory:
    """Turns that extend the one before, nearly extend it, or start anew."""
    tokens = st.lists(st.integers(0, 2), max_size=4)
    turns: list[Turn] = []
    for _ in range(draw(st.integers(0, 6))):
        before = [*turns[-1].prompt_ids, *turns[-1].action_ids] if turns else []
        kept = draw(st.sampled_from([before, before, before[:-1], []]))
        turns.append(turn(prompt=[*kept, *draw(tokens)] or [1], action=draw(tokens)))
    return episode(0, 0, turns)


def trained_tokens_of_rows(rows: Sequence[TrainRow]) -> Counter:
    """Multiset of (row so far, token, advantage, log-prob, distillation weight)."""
    found: Counter = Counter()
    for one in rows:
        logprobs = [np.nan] * len(one.loss_positions) if one.behavior_logprob is None else one.behavior_logprob
        weights = [None] * len(one.loss_positions) if one.distill_weight is None else one.distill_weight.tolist()
        columns = zip(one.loss_positions, one.advantage, logprobs, weights, strict=True)
        for position, advantage, logprob, weight in columns:
            logprob = float(logprob) if np.isfinite(logprob) else None
            context = tuple(one.ids[:position].tolist())
            found[context, int(one.ids[position]), float(advantage), logprob, weight] += 1
    return found


def trained_tokens_of_batches(batches: Sequence[PackedBatch]) -> Counter:
    """The same, read from packed batches as a model would: positions and boundaries must agree."""
    found: Counter = Counter()
    for batch in batches:
        starts = batch.cu_seqlens.tolist()
        distill = dict(zip(batch.distill_index_D.tolist(), batch.distill_weight_D.tolist(), strict=True))
        columns = zip(
            batch.hidden_index_L.tolist(),
            batch.target_L.tolist(),
            batch.advantage_L.tolist(),
            batch.behavior_logprob_L.tolist(),
            batch.policy_weight_L.tolist(),
            strict=True,
        )
        for place, (index, target, advantage, logprob, policy) in enumerate(columns):
            start = max(s for s in starts[:-1] if s <= index)
            assert batch.position_T[start : index + 1].tolist() == list(range(index - start + 1))
            context = tuple(batch.input_ids_T[start : index + 1].tolist())
            assert policy == float(np.isfinite(logprob))
            found[context, target, advantage, logprob if policy else None, distill.pop(place, None)] += 1
        assert not distill
    return found


def test_worked_example() -> None:
    """The example in the module's docstring, literally."""
    turns = [turn(prompt=[5, 6], action=[7, 8]), turn(prompt=[5, 6, 7, 8, 9], action=[4])]
    merged = make_rows(episode(0, 0, turns), np.array([0.5, -2.0]))
    assert len(merged) == 1
    assert merged[0].ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert merged[0].loss_positions.tolist() == [2, 3, 5]
    assert merged[0].advantage.tolist() == [0.5, 0.5, -2.0]

    [batch] = pack([row([1, 2, 3], [2]), merged[0]], max_tokens=9)
    assert batch.input_ids_T.tolist() == [5, 6, 7, 8, 9, 4, 1, 2, 3]
    assert batch.position_T.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 6, 9]
    assert batch.target_L.tolist() == [7, 8, 4, 3]
    assert batch.hidden_index_L.tolist() == [1, 2, 4, 7]
    assert batch.advantage_L.tolist() == [0.5, 0.5, -2.0, 1.0]
    assert batch.behavior_logprob_L.tolist() == [-1.0, -1.0, -1.0, -0.5]


@settings(deadline=None)
@given(rows=st.lists(train_rows(), max_size=12), spare=st.integers(0, 40))
def test_packing_keeps_every_trained_token_once(rows: list[TrainRow], spare: int) -> None:
    limit = max([1, *(len(one.ids) for one in rows)]) + spare
    batches = pack(rows, limit)
    assert all(0 < batch.num_tokens <= limit for batch in batches)
    assert sum(batch.num_tokens for batch in batches) == sum(len(one.ids) for one in rows)
    assert trained_tokens_of_batches(batches) == trained_tokens_of_rows(rows)


@settings(deadline=None)
@given(conversation=conversations())
def test_merging_trains_the_same_tokens_after_the_same_contexts(conversation: Trajectory) -> None:
    advantages = np.arange(len(conversation.turns), dtype=np.float64)
    merged = make_rows(conversation, advantages)
    apart = [
        make_rows(episode(0, 0, [one]), advantages[index : index + 1]) for index, one in enumerate(conversation.turns)
    ]
    assert trained_tokens_of_rows(merged) == trained_tokens_of_rows([one for rows in apart for one in rows])
    assert all(len(one.loss_positions) > 0 for one in merged)


def test_prompts_written_anew_stay_apart() -> None:
    turns = [
        turn(prompt=prompt, action=action) for prompt, action in (([5, 6], [7]), ([5, 6, 8], [7]), ([5, 6, 8, 7], [9]))
    ]
    rows = make_rows(episode(0, 0, turns), np.ones(3))
    assert [one.ids.tolist() for one in rows] == [[5, 6, 7], [5, 6, 8, 7, 9]]
    assert [one.loss_positions.tolist() for one in rows] == [[2], [3, 4]]


def test_nothing_to_train() -> None:
    assert make_rows(episode(0, 0, []), np.zeros(0)) == []
    assert make_rows(episode(0, 0, [turn(action=[])]), np.zeros(1)) == []
    assert pack([], 10) == []
    assert plan_minibatches({}, num_minibatches=3, max_tokens=10, seed=(0,)) == []


def test_one_token_row() -> None:
    [batch] = pack([row([3], [])], 1)
    assert batch.input_ids_T.tolist() == [3]
    assert batch.cu_seqlens.tolist() == [0, 1]
    assert batch.num_trained == 0


def test_row_longer_than_the_limit_names_the_setting() -> None:
    with pytest.raises(UserError, match=r"max_batch_tokens: 4 .* row of 5 tokens"):
        pack([row([1, 2], [1]), row([1, 2, 3, 4, 5], [4])], 4)


def test_token_without_predecessor_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        pack([row([1, 2], [1]), row([3], [0])], 4)


def test_nonfinite_sampler_logprobs_leave_the_policy_loss() -> None:
    odd = row([1, 2, 3, 4], [1, 2, 3])
    odd.behavior_logprob[:] = [-np.inf, -0.5, np.nan]
    rows = [odd, row([1, 2], [1], behavior=False)]
    [batch] = pack(rows, 10)
    assert batch.policy_weight_L.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert batch.behavior_logprob_L.isnan().tolist() == [True, False, True, True]


def test_distilled_tokens_count_whatever_their_weight() -> None:
    """m_t and w_t are counted apart: tokens of weight 0 are in the denominator, and a row of them alone in no batch."""
    plain, mixed = row([1, 2, 3], [1, 2]), replace(row([4, 5, 6], [2], behavior=False), distill_tokens=3)
    counts_only = replace(row([], [], behavior=False), distill_tokens=5)
    [minibatch] = plan_minibatches({0: [counts_only, plain], 1: [mixed]}, num_minibatches=1, max_tokens=10, seed=(0,))
    [batch] = minibatch.batches
    assert (minibatch.policy_tokens, minibatch.distill_tokens) == (2, 8)
    assert batch.input_ids_T.tolist() == [1, 2, 3, 4, 5, 6]
    assert (batch.distill_index_D.tolist(), batch.distill_weight_D.tolist()) == ([2], [0.25])
    assert batch.policy_weight_L.tolist() == [1.0, 1.0, 0.0]
    assert plan_minibatches({0: [counts_only]}, num_minibatches=1, max_tokens=10, seed=(0,)) == []


def test_teachers_are_packed_beside_their_rows_and_bound_the_batch() -> None:
    """In the order of the rows' trained tokens, and never more tokens of either kind than the limit."""
    rows = [
        replace(row([9, token], [1], behavior=False), teacher=row([7] * length + [token], [length]))
        for token, length in ((1, 6), (2, 3), (3, 4), (4, 1))
    ]
    rows[0] = replace(
        rows[0], ids=np.array([9, 9, 9, 1], np.int32), loss_positions=np.array([3]), teacher=row([7, 1], [1])
    )
    batches = pack([*rows, row([8, 8], [1])], max_tokens=8)
    for batch in batches:
        assert batch.num_tokens <= 8
        distilled = batch.target_L[batch.distill_index_D].tolist()
        if batch.teacher is None:
            assert not distilled
        else:
            assert batch.teacher.num_tokens <= 8
            assert batch.teacher.target_L.tolist() == distilled
            contexts = batch.teacher.input_ids_T[batch.teacher.hidden_index_L]
            assert contexts.tolist() == [7] * len(distilled)
    assert sorted(t for batch in batches for t in batch.target_L[batch.distill_index_D].tolist()) == [1, 2, 3, 4]
    with pytest.raises(UserError, match="training row of 7 tokens"):
        pack([replace(rows[1], teacher=row([7] * 7, [6]))], max_tokens=6)


def deal_of(groups: Sequence[Sequence[TrainRow]], **settings: object) -> list[list[TrainRow]]:
    """Which rows each minibatch gets, those without tokens included: rows that only name others are dealt alike."""
    names = {g: [row([g, index], [1]) for index in range(len(rows))] for g, rows in enumerate(groups)}
    plan = plan_minibatches(names, **{**settings, "max_tokens": 2})
    return [
        [groups[g][index] for batch in step.batches for g, index in batch.input_ids_T.view(-1, 2).tolist()]
        for step in plan
    ]


def plan_on_ranks(ranks: Sequence[dict[int, list[TrainRow]]], **settings: object) -> list[list[Minibatch]]:
    """One plan a rank, with real reductions: a first pass collects what each rank sends, a second answers it."""
    sent: dict[str, list[np.ndarray]] = {"sum": [], "max": []}

    def send(kind: str, counts: np.ndarray) -> np.ndarray:
        sent[kind].append(counts.copy())
        return counts

    for rows in ranks:
        plan_minibatches(rows, reduce_sum=lambda c: send("sum", c), reduce_max=lambda c: send("max", c), **settings)
    assert len(sent["sum"]) == len(sent["max"]) == len(ranks)
    total, most = np.sum(sent["sum"], axis=0), np.max(sent["max"], axis=0)
    return [plan_minibatches(rows, reduce_sum=lambda c: total, reduce_max=lambda c: most, **settings) for rows in ranks]


@settings(deadline=None)
@given(
    groups=st.lists(st.lists(train_rows(), max_size=5), max_size=5),
    world=st.integers(1, 3),
    num_minibatches=st.integers(1, 4),
    max_tokens=st.integers(20, 60),
)
def test_ranks_agree_on_steps_and_denominators(
    groups: list[list[TrainRow]], world: int, num_minibatches: int, max_tokens: int
) -> None:
    settings = {"num_minibatches": num_minibatches, "max_tokens": max_tokens, "seed": (7, 1)}
    ranks = [{g: rows for g, rows in enumerate(groups) if g % world == rank} for rank in range(world)]
    plans = plan_on_ranks(ranks, **settings)
    alone = plan_minibatches(dict(enumerate(groups)), **settings)

    assert all(len(plan) == len(alone) <= num_minibatches for plan in plans)
    dealt = [some for some in deal_of(groups, **settings) if any(len(one.ids) for one in some)]
    for step, one in enumerate(alone):
        on_ranks = [plan[step] for plan in plans]
        assert len({len(minibatch.batches) for minibatch in on_ranks}) == 1
        batches = [batch for minibatch in on_ranks for batch in minibatch.batches]
        assert any(batch.num_tokens > 0 for batch in batches)
        # The same tokens take part in a step on one rank and on several, padding adds none, and the counts are theirs.
        assert trained_tokens_of_batches(batches) == trained_tokens_of_batches(one.batches)
        policy = sum(int((batch.policy_weight_L > 0).sum()) for batch in batches)
        distill = sum(some.distill_tokens for some in dealt[step])
        assert trained_tokens_of_batches(batches) == trained_tokens_of_rows(dealt[step])
        assert {(m.policy_tokens, m.distill_tokens) for m in [*on_ranks, one]} == {(policy, distill)}
    everything = [batch for plan in plans for minibatch in plan for batch in minibatch.batches]
    assert trained_tokens_of_batches(everything) == trained_tokens_of_rows([r for rows in groups for r in rows])


def test_every_group_is_dealt_evenly_and_by_the_seed() -> None:
    rows = {group: [row([group, member], [1]) for member in range(8)] for group in range(4)}
    plans = {
        seed: [
            [tuple(pair) for batch in step.batches for pair in batch.input_ids_T.view(-1, 2).tolist()]
            for step in plan_minibatches(rows, num_minibatches=2, max_tokens=16, seed=(seed,))
        ]
        for seed in (0, 1)
    }
    for steps in plans.values():
        assert [Counter(group for group, _ in step) for step in steps] == [dict.fromkeys(range(4), 4)] * 2
    assert plans[0] != plans[1]


def test_rows_by_group_is_in_member_order_without_failed_episodes() -> None:
    episodes = [
        episode(2, 1, [turn(prompt=[3])]),
        episode(0, 0, [turn(prompt=[4])], ended=Ended.ENV_ERROR),
        episode(2, 0, [turn(prompt=[5]), turn(prompt=[6])]),
    ]
    rows = rows_by_group(episodes, [np.ones(1), None, np.ones(2)])
    assert {group: [one.ids.tolist() for one in ones] for group, ones in rows.items()} == {2: [[5, 3], [6, 3], [3, 3]]}


def bigram_gradient(minibatches: Sequence[Minibatch], denominator: int | None) -> torch.Tensor:
    """Gradient of a policy loss for a table of next-token logits: one step, summed over micro-batches and ranks.

    `denominator` None is the incumbent: each micro-batch is averaged over its own tokens, then micro-batches and ranks.
    """
    logits = torch.linspace(-1, 1, VOCABULARY**2, dtype=torch.float64).sin().view(VOCABULARY, -1).requires_grad_()
    for minibatch in minibatches:
        for batch in minibatch.batches:
            predicted = logits[batch.input_ids_T[batch.hidden_index_L]].log_softmax(-1)
            logprob_L = predicted.gather(-1, batch.target_L[:, None])[:, 0]
            loss = -(batch.policy_weight_L * batch.advantage_L * logprob_L).sum()
            own = max(1.0, float(batch.policy_weight_L.sum())) * len(minibatch.batches) * len(minibatches)
            (loss / (own if denominator is None else denominator)).backward()
    assert logits.grad is not None
    return logits.grad


def test_fault_7_gradient_does_not_depend_on_micro_batches_or_ranks() -> None:
    rng = np.random.default_rng(0)
    rows: dict[int, list[TrainRow]] = {group: [] for group in range(6)}
    for group in rows:
        for length in rng.integers(2, 40, size=8):
            ids = rng.integers(0, VOCABULARY, size=length)
            rows[group].append(row(ids, range(1, length, rng.integers(1, 4)), advantage=rng.normal()))

    ours, incumbent = [], []
    for world in (1, 2, 3):
        ranks = [{g: rows[g] for g in rows if g % world == rank} for rank in range(world)]
        for max_tokens in (40, 100, 10_000):
            plans = plan_on_ranks(ranks, num_minibatches=2, max_tokens=max_tokens, seed=(3,))
            for step in range(2):
                on_ranks = [plan[step] for plan in plans]
                ours.append((step, bigram_gradient(on_ranks, on_ranks[0].policy_tokens)))
                incumbent.append((step, bigram_gradient(on_ranks, None)))

    def spread(gradients: list[tuple[int, torch.Tensor]]) -> float:
        return max(
            float((gradient - gradients[step][1]).norm() / gradients[step][1].norm()) for step, gradient in gradients
        )

    assert spread(ours) < 1e-6
    assert spread(incumbent) > 0.05
