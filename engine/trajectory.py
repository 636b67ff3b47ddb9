"""The nouns of the engine. Everything that flows from rollout to loss is one of these.

    Turn         one environment step: prompt -> action tokens, with what the sampler said of them
    Trajectory   one episode: its turns, how it ended, whether it succeeded
    TurnTable    the turns of many trajectories as columns over N, ready for advantages
    TrainRow     one token sequence to train on, with the positions that carry loss
    PackedBatch  rows packed into one token axis; vectors over L, the trained tokens only, and over D
    Minibatch    packed batches of one optimiser step with their global token counts

Suffixes: N turns, S sequences, T packed tokens, L trained tokens, D those of L that are distilled, P prompt, A action,
H hidden, V vocabulary.
Tokens are the only truth: `prompt_ids` and `action_ids` are what the sampler saw and drew; text is not tokenised again.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch


class Ended(Enum):
    """Why an episode stopped."""

    DONE = "done"
    MAX_TURNS = "max_turns"
    PROMPT_TOO_LONG = "prompt_too_long"
    ENV_ERROR = "env_error"
    """The environment raised or its worker died. Such a trajectory is counted, and kept out of every statistic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One environment step."""

    prompt_ids: np.ndarray
    """i32[P], the prompt as sampled from."""
    action_ids: np.ndarray
    """i32[A], the tokens drawn, end-of-turn token included if it was drawn."""
    behavior_logprob: np.ndarray
    """f32[A], nats: the sampler's processed log-probability of each drawn token, at the training temperature."""
    action_span: tuple[int, int]
    """Half-open token range of the parsed action inside `action_ids`; empty `(0, 0)` if nothing parsed."""
    observation: str
    """Observation text before acting."""
    action: str
    """The action given to the environment ("" if nothing parsed)."""
    anchor: bytes
    """Canonical key of the state before acting."""
    reward: float
    """Reward of this step."""
    action_valid: bool
    """Parsed, and admissible where the environment lists admissible actions."""
    policy_version: int
    """Version of the weights that drew the tokens."""
    twin_prompt_ids: np.ndarray | None = None
    """i32[P'], what the episode's twin dialogue would have asked in this turn; None without a twin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One episode."""

    group: int
    """Index of its task group in this iteration; advantages compare only inside a group."""
    member: int
    """Index inside the group."""
    task_id: str
    task_type: str
    task: str
    """The task sentence."""
    condition: tuple[str, ...] = ()
    """Ids of the skills shown to the agent; empty for a plain rollout."""
    turns: tuple[Turn, ...]
    success: bool
    score: float | None = None
    """The environment's grade at the end, from 0 to 1; None where it gives none."""
    ended: Ended
    error: str = ""
    """The environment's exception, for `Ended.ENV_ERROR`."""

    @property
    def total_reward(self) -> float:
        """Undiscounted sum of rewards."""
        return float(sum(turn.reward for turn in self.turns))


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTable:
    """Turns of many trajectories as columns, in (group, member, step) order."""

    reward: np.ndarray
    """f64[N], reward of the step."""
    valid: np.ndarray
    """bool[N]"""
    trajectory: np.ndarray
    """i64[N], index into the trajectories the table was made from; rows of one are contiguous, in step order."""
    episode_group: np.ndarray
    """i64[N], label of the task group (of the half, where the statistics are kept apart)."""
    step_group: np.ndarray
    """i64[N], label of the anchor group: equal (episode_group, anchor), in order of first appearance."""
    step: np.ndarray
    """i64[N], index of the step inside its trajectory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRow:
    """One token sequence to train on: a turn, or several turns of which each prompt extends the one before.

    Worked example: prompt `[5, 6]`, action `[7, 8]`, then the observation `[9]` and action `[4]` of the next turn:
    `ids = [5, 6, 7, 8, 9, 4]`, `loss_positions = [2, 3, 5]`: the tokens 7, 8 and 4 are trained.
    """

    ids: np.ndarray
    """i32[n]"""
    loss_positions: np.ndarray
    """i64[l], ascending, each >= 1: the token at this position carries loss (predicted from position - 1)."""
    behavior_logprob: np.ndarray | None
    """f32[l]; None for a re-rendered row: its sampler log-probs belong to another prompt, so no ratio may be formed."""
    advantage: np.ndarray
    """f32[l]"""
    distill_weight: np.ndarray | None = None
    """f32[l], the weight w_t of each trained token in the internalisation loss; None: the row is not re-rendered."""
    distill_tokens: int = 0
    """Sum of m_t over the turns that were re-rendered: what the row adds to the denominator of the internalisation
    loss. More than `l` where tokens have m_t = 1 and w_t = 0: they need no forward pass, so they are not among the
    trained ones, and a row that has no others holds no token at all."""
    teacher: "TrainRow | None" = None
    """A re-rendered row's trained tokens, all of them in their order, under the prompts they were drawn from. Never
    trained itself: it gives the hidden states of the teacher. None for a divergence without one."""

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def longest_pass(self) -> int:
        """Tokens of its longest forward pass, the teacher's included: what the size of a batch has to bound."""
        return self.num_tokens if self.teacher is None else max(self.num_tokens, self.teacher.num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Rows laid end to end. Only trained tokens reach the vocabulary projection."""

    input_ids_T: torch.Tensor
    """i64[T]"""
    position_T: torch.Tensor
    """i64[T], restarts at 0 in each row."""
    cu_seqlens: torch.Tensor
    """i32[S + 1], row s is `[cu_seqlens[s], cu_seqlens[s + 1])`."""
    hidden_index_L: torch.Tensor
    """i64[L], index into T of the position that predicts the trained token (its position - 1: the one shift)."""
    target_L: torch.Tensor
    """i64[L], the trained token ids."""
    behavior_logprob_L: torch.Tensor
    """f32[L], nats; NaN where the row carries none."""
    advantage_L: torch.Tensor
    """f32[L]"""
    policy_weight_L: torch.Tensor
    """f32[L], 1 where the token enters the policy loss, else 0 (re-rendered rows, non-finite sampler log-probs)."""
    distill_index_D: torch.Tensor
    """i64[D], index into L of the tokens of re-rendered rows, ascending."""
    distill_weight_D: torch.Tensor
    """f32[D], their weight w_t in the internalisation loss."""
    teacher: "PackedBatch | None" = None
    """The D distilled tokens, in their order, under the prompts they were drawn from; None without a teacher."""

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids_T.numel())

    @property
    def num_trained(self) -> int:
        return int(self.target_L.numel())


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch:
    """The micro-batches of one optimiser step on this rank."""

    batches: tuple[PackedBatch, ...]
    """Every rank holds equally many; a rank that ran out holds empty ones (T = 0)."""
    policy_tokens: int
    """Sum of `policy_weight_L > 0` over all micro-batches of all ranks: the denominator of the policy loss."""
    distill_tokens: int
    """Sum of m_t over the rows of all ranks (those of weight 0 too): the denominator of the internalisation loss."""
