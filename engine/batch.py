"""From trajectories to packed token batches: rows, packing, and the minibatches of an iteration.

Worked example. The turn with prompt `[5, 6]` and action `[7, 8]`, and the next one with prompt `[5, 6, 7, 8, 9]` and
action `[4]`, become one row, because the second prompt extends the first turn:

    ids = [5, 6, 7, 8, 9, 4]    loss_positions = [2, 3, 5]

Packed with another row, `ids = [1, 2, 3]`, `loss_positions = [2]` (the longest row comes first):

    input_ids_T    = [5, 6, 7, 8, 9, 4, 1, 2, 3]
    position_T     = [0, 1, 2, 3, 4, 5, 0, 1, 2]
    cu_seqlens     = [0, 6, 9]
    target_L       = [7, 8, 4, 3]
    hidden_index_L = [1, 2, 4, 7]

The label shift happens in `pack`, and only there: a token at position p is predicted by the hidden state at p - 1.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from siri.engine.errors import UserError
from siri.engine.trajectory import Minibatch, PackedBatch, TrainRow, Trajectory, Turn

Reduce = Callable[[np.ndarray], np.ndarray]
"""A collective over all ranks, elementwise on an i64 array; the identity on one rank."""


def make_rows(trajectory: Trajectory, advantages: np.ndarray) -> list[TrainRow]:
    """Rows that train every action token of a trajectory once.

    Consecutive turns share a row as long as each prompt starts with the tokens of the turn before (prompt and action),
    so no token is computed twice: a growing conversation is one row, prompts written anew are one row a turn.

    Args:
        trajectory: every prompt holds at least one token.
        advantages: [number of turns], given to each token of the turn's action.

    Returns:
        Rows in turn order; a row without action tokens is left out.
    """
    turns = trajectory.turns
    assert len(advantages) == len(turns), f"{len(advantages)} advantages for {len(turns)} turns"
    prompts = [turn.prompt_ids for turn in turns]
    spans = [(0, len(turn.action_ids)) for turn in turns]
    rows = []
    for run in _runs(turns, prompts):
        ids, positions = _sequence(turns[run], prompts[run], spans[run])
        row = TrainRow(
            ids=ids,
            loss_positions=positions,
            behavior_logprob=np.concatenate([turn.behavior_logprob for turn in turns[run]], dtype=np.float32),
            advantage=_per_token(advantages[run], spans[run]),
        )
        rows.append(row)
    return [row for row in rows if len(row.loss_positions)]


def make_twin_rows(
    trajectory: Trajectory, spans: Sequence[tuple[int, int]], weights: np.ndarray, *, with_teacher: bool
) -> list[TrainRow]:
    """Rows that distil a part of each action into its twin prompt: no sampler log-prob, no advantage.

    Turns share a row as in `make_rows`, as long as the twin prompts grow (and, with a teacher, the prompts themselves).
    Tokens of weight 0 count (`distill_tokens`), but are not trained, and nothing is kept that only they would need.

    Args:
        trajectory: every turn has a twin prompt, unless all spans are empty.
        spans: half-open range of each turn's `action_ids` with m_t = 1; an empty one for a turn that is only context.
        weights: [number of turns], >= 0, the w_t of each token of the span.
        with_teacher: also give each row its `teacher`.

    Returns:
        Rows in turn order; one in which every span is empty is left out.
    """
    turns = trajectory.turns
    assert len(spans) == len(weights) == len(turns), f"{len(spans)} spans, {len(weights)} weights, {len(turns)} turns"
    if all(start == stop for start, stop in spans):
        return []
    prompts = [turn.prompt_ids for turn in turns]
    twins = [turn.twin_prompt_ids for turn in turns if turn.twin_prompt_ids is not None]
    assert len(twins) == len(turns), "a turn without a twin prompt"
    trained = [span if weight > 0 else (0, 0) for span, weight in zip(spans, weights, strict=True)]
    rows = []
    for run in _runs(turns, twins, *([prompts] if with_teacher else [])):
        ids, positions = _sequence(turns[run], twins[run], trained[run])
        row = TrainRow(
            ids=ids,
            loss_positions=positions,
            behavior_logprob=None,
            advantage=np.zeros(len(positions), dtype=np.float32),
            distill_weight=_per_token(weights[run], trained[run]),
            distill_tokens=sum(stop - start for start, stop in spans[run]),
        )
        if with_teacher and len(positions):
            ids, positions = _sequence(turns[run], prompts[run], trained[run])
            teacher = replace(row, ids=ids, loss_positions=positions, distill_weight=None, distill_tokens=0)
            row = replace(row, teacher=teacher)
        rows.append(row)
    return [row for row in rows if row.distill_tokens]


def _runs(turns: Sequence[Turn], *renderings: Sequence[np.ndarray]) -> list[slice]:
    """Turns cut where a prompt does not start with the tokens of the turn before, in any of the given renderings."""
    cuts = [
        index
        for index in range(1, len(turns))
        if not all(
            # As bytes (all are i32): 1.4 us a turn of 1000 tokens, numpy.array_equal takes 10.
            prompts[index].tobytes().startswith(prompts[index - 1].tobytes() + turns[index - 1].action_ids.tobytes())
            for prompts in renderings
        )
    ]
    bounds = [0, *cuts, len(turns)] if turns else []
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def _sequence(
    turns: Sequence[Turn], prompts: Sequence[np.ndarray], spans: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens of turns that extend each other, positions of the spans), up to the last token of a span."""
    assert min(map(len, prompts)) > 0, "an empty prompt: nothing predicts the first action token"
    positions = np.concatenate(
        [len(prompt) + np.arange(*span) for prompt, span in zip(prompts, spans, strict=True)], dtype=np.int64
    )
    ids = np.concatenate([prompts[-1], turns[-1].action_ids], dtype=np.int32)  # the last prompt holds all before it
    return ids[: positions[-1] + 1 if len(positions) else 0], positions


def _per_token(values: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """f32[tokens of the spans], from one value a turn."""
    return np.repeat(np.asarray(values, dtype=np.float32), [stop - start for start, stop in spans])


def rows_by_group(
    trajectories: Sequence[Trajectory], advantages: Sequence[np.ndarray | None]
) -> dict[int, list[TrainRow]]:
    """Rows by task group, in (member, step) order, for `plan_minibatches`; no rows where the advantages are None."""
    rows: defaultdict[int, list[TrainRow]] = defaultdict(list)
    pairs = zip(trajectories, advantages, strict=True)
    for trajectory, advantage in sorted(pairs, key=lambda pair: (pair[0].group, pair[0].member)):
        if advantage is not None:
            rows[trajectory.group] += make_rows(trajectory, advantage)
    return dict(rows)


def pack(rows: Sequence[TrainRow], max_tokens: int) -> list[PackedBatch]:
    """Rows laid end to end in batches of at most `max_tokens` tokens: none is split or repeated, nothing is padded.

    First-fit decreasing: deterministic, and never more than 11/9 of the fewest batches possible, plus one. A row
    without tokens is in no batch: it only counts.

    Raises:
        UserError: a row is longer than `max_tokens`; it would overrun the memory that the limit is there to bound.
    """
    rows = [row for row in rows if row.num_tokens]
    return [_lay_out([rows[index] for index in batch]) for batch in _first_fit_decreasing(rows, max_tokens)]


def _first_fit_decreasing(rows: Sequence[TrainRow], max_tokens: int) -> list[list[int]]:
    lengths = np.array([row.longest_pass for row in rows], dtype=np.int64)
    if len(lengths) and lengths.max() > max_tokens:
        raise UserError(
            f"max_batch_tokens: {max_tokens} is less than a training row of {lengths.max()} tokens, and rows are never "
            f"split; raise it to {lengths.max()} or more, or lower max_prompt_tokens or max_action_tokens"
        )
    batches: list[list[int]] = []
    free = np.full(len(lengths), max_tokens, dtype=np.int64)
    for index in np.argsort(-lengths, kind="stable").tolist():
        batch = int(np.argmax(free[: len(batches) + 1] >= lengths[index]))  # the last candidate is a new batch: it fits
        if batch == len(batches):
            batches.append([])
        batches[batch].append(index)
        free[batch] -= lengths[index]
    return batches


def _lay_out(rows: Sequence[TrainRow]) -> PackedBatch:
    lengths = np.array([row.num_tokens for row in rows], dtype=np.int64)
    trained = np.array([len(row.loss_positions) for row in rows], dtype=np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    starts = cu_seqlens[:-1].astype(np.int64)
    input_ids = _join([row.ids for row in rows], np.int64)
    loss_position = _join([row.loss_positions for row in rows], np.int64)
    assert (loss_position >= 1).all(), "a row's first token has nothing before it to predict it"
    absolute = loss_position + np.repeat(starts, trained)
    behavior = _join([_behavior_logprob(row) for row in rows], np.float32)
    finite = np.isfinite(behavior)
    distilled = np.repeat(np.array([row.distill_weight is not None for row in rows], dtype=np.bool_), trained)
    weights = [row.distill_weight for row in rows if row.distill_weight is not None]
    teachers = [row.teacher for row in rows if row.teacher is not None]
    assert len(teachers) in (0, len(weights)), "re-rendered rows with and without a teacher"
    return PackedBatch(
        input_ids_T=torch.from_numpy(input_ids),
        position_T=torch.from_numpy(np.arange(len(input_ids)) - np.repeat(starts, lengths)),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        hidden_index_L=torch.from_numpy(absolute - 1),
        target_L=torch.from_numpy(input_ids[absolute]),
        behavior_logprob_L=torch.from_numpy(np.where(finite, behavior, np.float32(np.nan))),
        advantage_L=torch.from_numpy(_join([row.advantage for row in rows], np.float32)),
        policy_weight_L=torch.from_numpy(finite.astype(np.float32)),
        distill_index_D=torch.from_numpy(np.flatnonzero(distilled).astype(np.int64)),
        distill_weight_D=torch.from_numpy(_join(weights, np.float32)),
        teacher=_lay_out(teachers) if teachers else None,
    )


def _behavior_logprob(row: TrainRow) -> np.ndarray:
    return np.full(len(row.loss_positions), np.nan) if row.behavior_logprob is None else row.behavior_logprob


def _join(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    """Concatenation that also knows the type of nothing."""
    return np.concatenate([np.empty(0, dtype), *arrays], dtype=dtype)


def plan_minibatches(
    rows: Mapping[int, Sequence[TrainRow]],
    *,
    num_minibatches: int,
    max_tokens: int,
    seed: Sequence[int],
    reduce_sum: Reduce = lambda counts: counts,
    reduce_max: Reduce = lambda counts: counts,
) -> list[Minibatch]:
    """The optimiser steps of one pass over an iteration's rows, on this rank.

    Every task group deals its rows to the minibatches in a random order of its own, drawn from (seed, group). So each
    minibatch holds its share of every group, each row is in exactly one, and in which one does not depend on the ranks:
    the sum of a minibatch's gradients over all ranks is the same however groups are spread.

    Args:
        rows: this rank's rows by task group, in (member, step) order. A group lives on one rank.
        num_minibatches: optimiser steps a pass.
        max_tokens: most tokens of one packed batch.
        seed: non-negative integers, e.g. (run seed, iteration, epoch); the same on all ranks.
        reduce_sum: all-reduce over ranks. Called once, as is `reduce_max`, before anything runs on a device.
        reduce_max: likewise.

    Returns:
        At most `num_minibatches`; one that is empty on all ranks is left out. All ranks return equally many, with
        equally many micro-batches in each (the missing ones are empty), and the same global token counts.

    Raises:
        UserError: a row is longer than `max_tokens`. Only the rank that holds it raises, so a run must check
            `max_prompt_tokens + max_action_tokens <= max_tokens` beforehand: no row is longer than that sum.
    """
    dealt: list[list[TrainRow]] = [[] for _ in range(num_minibatches)]
    for group in sorted(rows):
        rng = np.random.default_rng((*seed, group))
        turn_to_deal = rng.permutation(len(rows[group])) + rng.integers(num_minibatches)
        for row, minibatch in zip(rows[group], (turn_to_deal % num_minibatches).tolist(), strict=True):
            dealt[minibatch].append(row)

    packed = [pack(share, max_tokens) for share in dealt]
    counts = [_token_counts(share, batches) for share, batches in zip(dealt, packed, strict=True)]
    tokens = reduce_sum(np.array(counts, dtype=np.int64))
    depth = reduce_max(np.array([len(batches) for batches in packed], dtype=np.int64))
    return [
        Minibatch(
            batches=(*batches, *(_lay_out([]) for _ in range(int(depth[m]) - len(batches)))),
            policy_tokens=int(tokens[m, 0]),
            distill_tokens=int(tokens[m, 1]),
        )
        for m, batches in enumerate(packed)
        if depth[m] > 0
    ]


def _token_counts(rows: Sequence[TrainRow], batches: Sequence[PackedBatch]) -> tuple[int, int]:
    """(tokens with a policy weight, tokens with m_t = 1) of rows and the batches they are packed in."""
    return sum(int((batch.policy_weight_L > 0).sum()) for batch in batches), sum(row.distill_tokens for row in rows)
