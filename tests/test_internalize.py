"""Which tokens are internalised, how much, and under which prompt."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial

import numpy as np
import pytest
from episodes import episode, turn
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from siri.engine.batch import rows_by_group
from siri.engine.environment import Observation
from siri.engine.rollout import Episode, collect
from siri.engine.sampling import Completion, SampleRequest
from siri.engine.trajectory import Ended, TrainRow, Trajectory, Turn
from siri.internalize import distill_spans, distill_weights, is_beneficial, lambda_at, rerendered_rows
from siri.prompts import Renderer
from siri.tiny import ACT, END, train_tokenizer

OPEN = {"gate": "group", "utility": {}, "delta": {0: 1.0, 1: 1.0, 2: 1.0}}
CORPUS = ["go to desk 1", "You see a mug 2.", "<think>look for it</think><action>take mug 2</action>", "Hint: αβγδ"]


def guided(prompt: Sequence[int], twin: Sequence[int], action: Sequence[int], span: tuple[int, int]) -> Turn:
    """A turn that was shown more than its twin."""
    return replace(turn(prompt=prompt, action=action), action_span=span, twin_prompt_ids=np.array(twin, np.int32))


def described(row: TrainRow) -> tuple[list[int], list[int], list[float], int]:
    assert row.behavior_logprob is None
    assert not row.advantage.any()
    assert row.distill_weight is not None
    assert len(row.advantage) == len(row.loss_positions)
    return row.ids.tolist(), row.loss_positions.tolist(), row.distill_weight.tolist(), row.distill_tokens


@pytest.mark.parametrize(
    ("condition", "utility", "delta", "expected"),
    [
        # expected: bank, group, both, none
        (("a",), {"a": 0.5}, {7: 0.25}, (True, True, True, True)),
        (("a",), {"a": 0.5}, {7: 0.0}, (True, False, False, True)),
        (("a",), {"a": 0.5}, {7: -1.0}, (True, False, False, True)),
        (("a",), {"a": 0.0}, {7: 0.25}, (False, True, False, True)),
        (("a", "b"), {"a": 0.5, "b": -0.25}, {7: 1.0}, (True, True, True, True)),  # mean 0.125
        (("a", "b"), {"a": 0.5, "b": -0.5}, {7: 1.0}, (False, True, False, True)),  # mean 0
        (("a", "new"), {"a": -0.5}, {7: 1.0}, (False, True, False, True)),  # (-0.5 + 0) / 2
        (("a", "new"), {"a": 0.5}, {6: 1.0}, (True, False, False, True)),  # the benefit was another group's
        (("new",), {}, {7: 1.0}, (False, True, False, True)),
        (("a",), {"a": float("nan")}, {7: float("nan")}, (False, False, False, True)),
        ((), {"a": 0.5}, {7: 1.0}, (False, False, False, False)),
    ],
)
def test_gate(condition, utility, delta, expected):
    trajectory = episode(7, 0, [turn()], condition=condition)
    gates = ("bank", "group", "both", "none")
    assert tuple(is_beneficial(trajectory, gate=g, utility=utility, delta=delta) for g in gates) == expected


def test_lambda_rises_from_nothing_and_stays():
    values = [lambda_at(step, lambda_max=0.5, lambda_warmup=4) for step in range(7)]
    assert values == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert lambda_at(0, lambda_max=0.5, lambda_warmup=0) == 0.5


def test_weights_are_advantages_between_0_and_the_cap():
    assert distill_weights(np.array([-3.0, 0.0, 0.5, 2.0, 7.0]), c_adv=2.0).tolist() == [0.0, 0.0, 0.5, 2.0, 2.0]


def test_a_growing_conversation_token_by_token():
    """Compact: 9 is the skill, 0 ends a turn. One row; the second turn did not parse, the third was a bad one."""
    trajectory = episode(
        2, 1,
        [
            guided([1, 9, 2], [1, 2], [3, 4, 0], (0, 2)),
            guided([1, 9, 2, 3, 4, 0, 5], [1, 2, 3, 4, 0, 5], [6, 0], (0, 0)),
            guided([1, 9, 2, 3, 4, 0, 5, 6, 0, 5], [1, 2, 3, 4, 0, 5, 6, 0, 5], [7, 8, 0], (0, 2)),
            guided([1, 9, 2, 3, 4, 0, 5, 6, 0, 5, 7, 8, 0, 5], [1, 2, 3, 4, 0, 5, 6, 0, 5, 7, 8, 0, 5], [3, 0], (0, 1)),
        ],
        condition=("a",),
    )  # fmt: skip
    made = rerendered_rows(
        [trajectory], [np.array([1.5, 9.0, -1.0, 5.0])],
        gate="both", utility={"a": 0.1}, delta={2: 0.1}, c_adv=2.0, distill_reasoning=False, with_teacher=True,
    )  # fmt: skip
    [row] = made[2]
    # m: 3 4 | - | 7 8 | 3; w: 1.5 1.5 | - | 0 0 | 2. No end of a turn is distilled, nor kept after the last.
    assert described(row) == ([1, 2, 3, 4, 0, 5, 6, 0, 5, 7, 8, 0, 5, 3], [2, 3, 13], [1.5, 1.5, 2.0], 5)
    assert row.teacher.ids.tolist() == [1, 9, 2, 3, 4, 0, 5, 6, 0, 5, 7, 8, 0, 5, 3]
    assert row.teacher.loss_positions.tolist() == [3, 4, 14]
    assert (row.teacher.distill_weight, row.teacher.distill_tokens) == (None, 0)
    assert row.longest_pass == 15


@pytest.mark.parametrize("gate", ["bank", "group", "both", "none"])
def test_a_refused_action_is_distilled_only_without_a_gate_whatever_its_advantage(gate):
    turns = [
        guided([1, 9, 2], [1, 2], [3, 4, 0], (0, 2)),
        replace(guided([1, 9, 5], [1, 5], [6, 0], (0, 1)), action_valid=False),
        replace(guided([1, 9, 6], [1, 6], [7, 0], (0, 1)), action_valid=False),
        replace(guided([1, 9, 8], [1, 8], [4, 0], (0, 0)), action_valid=False),  # nothing parsed: no action at all
        guided([1, 9, 7], [1, 7], [8, 0], (0, 1)),
    ]
    rows = rerendered_rows(
        [episode(0, 0, turns, condition=("a",))], [np.array([1.0, 1.5, -1.0, 1.0, 0.5])],
        gate=gate, utility={"a": 1.0}, delta={0: 1.0}, c_adv=2.0, distill_reasoning=True, with_teacher=False,
    )[0]  # fmt: skip
    first, refused, last = ([1, 2, 3, 4], [2, 3], [1.0, 1.0], 2), ([1, 5, 6], [2], [1.5], 1), ([1, 7, 8], [2], [0.5], 1)
    counted_only = ([], [], [], 1)
    assert [described(row) for row in rows if row.distill_tokens] == (
        [first, refused, counted_only, last] if gate == "none" else [first, last]
    )


@pytest.mark.parametrize(("reasoning", "first"), [(False, 2), (True, 0)])
def test_prompts_written_anew_token_by_token(reasoning, first):
    """Tagged: action ids are think, open tag, two tokens of the action, close tag, end."""
    said, span = [20, 21, 3, 4, 22, 0], (2, 4)
    turns = [
        guided([1, 9, 2], [1, 2], said, span),
        guided([1, 9, 5], [1, 5], said, span),
        guided([1, 9, 6], [1, 6], [20, 0], (0, 0)),
        guided([1, 9, 7, 7], [1, 7, 7], said, span),
    ]
    trajectory = episode(0, 0, turns, condition=("a",))
    assert distill_spans(trajectory, gate="both", distill_reasoning=reasoning) == [
        (first, 4),
        (first, 4),
        (0, 0),
        (first, 4),
    ]
    rows = rerendered_rows(
        [trajectory], [np.array([0.5, -0.5, 1.0, 3.0])],
        **OPEN, c_adv=1.0, distill_reasoning=reasoning, with_teacher=False,
    )[0]  # fmt: skip
    tokens = 4 - first
    assert [described(row) for row in rows] == [
        ([1, 2, 20, 21, 3, 4], list(range(2 + first, 6)), [0.5] * tokens, tokens),
        ([], [], [], tokens),  # weight 0: counts, and costs no forward pass
        ([1, 7, 7, 20, 21, 3, 4], list(range(3 + first, 7)), [1.0] * tokens, tokens),
    ]
    assert all(row.teacher is None for row in rows)


@pytest.mark.parametrize(
    ("prompt", "twin", "with_teacher", "rows"),
    [
        ([8, 5], [1, 3, 5], False, [([1, 3, 5, 4], [1, 3])]),
        ([8, 5], [1, 3, 5], True, [([1, 3], [1]), ([1, 3, 5, 4], [3])]),
        ([9, 3, 5], [8, 5], False, [([1, 3], [1]), ([8, 5, 4], [2])]),
        ([9, 3, 5], [8, 5], True, [([1, 3], [1]), ([8, 5, 4], [2])]),
        ([9, 3, 5], [1, 3, 5], True, [([1, 3, 5, 4], [1, 3])]),
    ],
)
def test_turns_share_a_row_where_each_prompt_that_is_needed_grows(prompt, twin, with_teacher, rows):
    turns = [guided([9], [1], [3], (0, 1)), guided(prompt, twin, [4], (0, 1))]
    made = rerendered_rows(
        [episode(0, 0, turns, condition=("a",))], [np.ones(2)],
        **OPEN, c_adv=1.0, distill_reasoning=False, with_teacher=with_teacher,
    )[0]  # fmt: skip
    assert [described(row)[:2] for row in made] == rows
    if with_teacher:
        drawn = [((9,), 3), ((*prompt,), 4)]
        assert [pair for row in made if row.teacher is not None for pair in contexts_of(row.teacher)] == drawn


def test_what_is_left_out():
    plain = episode(0, 0, [turn()])
    lost = episode(0, 1, [guided([1, 9], [1], [3], (0, 1))], ended=Ended.ENV_ERROR, condition=("a",))
    closed = episode(1, 0, [guided([1, 9], [1], [3], (0, 1))], condition=("a",))
    mute = episode(2, 0, [guided([1, 9], [1], [3], (0, 0))], condition=("a",))
    never_began = episode(2, 1, [], ended=Ended.PROMPT_TOO_LONG, condition=("a",))
    made = rerendered_rows(
        [plain, lost, closed, mute, never_began],
        [np.ones(1), None, np.ones(1), np.ones(1), np.ones(0)],
        gate="group", utility={}, delta={0: 1.0, 1: -1.0, 2: 1.0}, c_adv=1.0, distill_reasoning=False,
        with_teacher=True,
    )  # fmt: skip
    assert [row for rows in made.values() for row in rows] == []


def test_a_guided_turn_without_its_plain_prompt_is_a_bug():
    trajectory = episode(0, 0, [turn()], condition=("a",))
    with pytest.raises(AssertionError, match="twin"):
        rerendered_rows([trajectory], [np.ones(1)], **OPEN, c_adv=1.0, distill_reasoning=False, with_teacher=False)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS * 50, vocab_size=420)


@dataclass
class ScriptedGame:
    """Says its texts one after the other, whatever it is told."""

    texts: Sequence[str]
    admissible: tuple[str, ...] | None
    task: str = "put a mug in desk."
    said: int = -1

    def reset(self) -> Observation:
        self.said = -1
        return self.step("")

    def step(self, action: str) -> Observation:
        self.said += 1
        done = self.said == len(self.texts) - 1
        return Observation(
            text=self.texts[self.said], admissible=self.admissible, anchor=b"", reward=0.0, done=done, success=done
        )


@dataclass
class ScriptedSampler:
    """Draws the same actions for every episode, whatever its prompt."""

    actions: Sequence[np.ndarray]
    held_version: int = 0
    turns: dict[int, int] = field(default_factory=dict)
    waiting: list[SampleRequest] = field(default_factory=list)

    def submit(self, request: SampleRequest) -> None:
        self.waiting.append(request)

    def poll(self) -> list[Completion]:
        ready, self.waiting = self.waiting, []
        return [self._draw(request) for request in ready]

    def _draw(self, request: SampleRequest) -> Completion:
        turn = self.turns.get(request.id, 0)
        self.turns[request.id] = turn + 1
        ids = self.actions[turn]
        return Completion(id=request.id, action_ids=ids, logprob=np.zeros(len(ids), np.float32), finished_by="stop")


plain_texts = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=25)
seen_texts = plain_texts | st.sampled_from([ACT, END, f"a{END}b{ACT}", "\n\n", "", "You see a mug 2."])
said_texts = seen_texts | st.builds("<think>{}</think><action>{}</action>{}".format, *[plain_texts] * 3)
skill_texts = st.lists(st.text(alphabet="αβγδεζηθ", min_size=1, max_size=12), min_size=1, max_size=3)


def play(style: str, skills: Sequence[str], start: str, script: Sequence[tuple]) -> list[Trajectory]:
    """The guided episode and the plain one of a script of (action, ended, answer)."""
    renderer = Renderer(tokenizer(), style=style)
    drawn = [
        np.array([*renderer.literal(said or "x"), *([renderer.after_action[0]] if ended else [])], np.int32)
        for said, ended, _ in script
    ]
    texts = [start, *(answer for *_, answer in script)]
    shared = {"group": 0, "task_id": "", "task_type": ""}
    episodes = [
        Episode(
            **shared, member=0, environment=ScriptedGame(texts, ("look", "take mug 2")), condition=tuple(skills),
            dialogue=partial(renderer.dialogue, skills), twin=renderer.dialogue,
        ),
        Episode(
            **shared, member=1, environment=ScriptedGame(texts, ("look", "take mug 2")), dialogue=renderer.dialogue
        ),
    ]  # fmt: skip
    return collect(
        ScriptedSampler(drawn), episodes, max_turns=100, max_prompt_tokens=10**6, max_action_tokens=10**6,
        temperature=1.0, run_seed=0, step=0, policy_version=0,
    )  # fmt: skip


def before_each(prompt_ids: np.ndarray, action_ids: np.ndarray, place: int) -> tuple[int, ...]:
    return (*prompt_ids.tolist(), *action_ids[:place].tolist())


def contexts_of(row: TrainRow) -> list[tuple[tuple[int, ...], int]]:
    return [(tuple(row.ids[:p].tolist()), int(row.ids[p])) for p in row.loss_positions.tolist()]


scripts = st.lists(st.tuples(said_texts, st.booleans(), seen_texts), min_size=1, max_size=5)


@pytest.mark.parametrize("style", ["compact", "tagged"])
@settings(max_examples=60)
@given(skills=skill_texts, start=seen_texts, script=scripts)
def test_the_twin_is_prompted_as_a_plain_episode_would_be(style, skills, start, script):
    shown, plain = play(style, skills, start, script)
    assert len(shown.turns) == len(plain.turns) == len(script)
    for one, other in zip(shown.turns, plain.turns, strict=True):
        assert one.twin_prompt_ids.tolist() == other.prompt_ids.tolist()
        assert other.twin_prompt_ids is None
        # Skills are the only text here that is not ASCII: not a byte of one is left, and all of it was there.
        hidden, prompted = (tokenizer().decode(ids) for ids in (one.twin_prompt_ids, one.prompt_ids))
        assert hidden.isascii()
        assert all(skill in prompted for skill in skills)
        assert len(one.twin_prompt_ids) < len(one.prompt_ids)


@pytest.mark.parametrize("style", ["compact", "tagged"])
@settings(max_examples=60)
@given(skills=skill_texts, start=seen_texts, script=scripts, reasoning=st.booleans(), data=st.data())
def test_rerendering_trains_the_tokens_that_were_drawn_after_the_plain_prompt(
    style, skills, start, script, reasoning, data
):
    shown, plain = play(style, skills, start, script)
    quarters = st.lists(st.integers(-6, 12), min_size=len(script), max_size=len(script))
    advantage = np.array(data.draw(quarters)) / 4
    rows = rerendered_rows(
        [plain, shown], [advantage, advantage], **OPEN, c_adv=2.0, distill_reasoning=reasoning, with_teacher=True
    ).get(0, [])
    student, teacher, weights, counted = [], [], [], 0
    for one, a in zip(shown.turns, advantage.tolist(), strict=True):
        start_of_span, stop = one.action_span if one.action_valid else (0, 0)
        for place in range(0 if reasoning else start_of_span, stop):
            counted += 1
            if a > 0:
                token = int(one.action_ids[place])
                student.append((before_each(one.twin_prompt_ids, one.action_ids, place), token))
                teacher.append((before_each(one.prompt_ids, one.action_ids, place), token))
                weights.append(min(a, 2.0))
    assert [pair for row in rows for pair in contexts_of(row)] == student
    assert [pair for row in rows if row.teacher is not None for pair in contexts_of(row.teacher)] == teacher
    assert [w for row in rows for w in described(row)[2]] == weights
    assert sum(row.distill_tokens for row in rows) == counted
    assert all(tokenizer().decode(row.ids).isascii() for row in rows)
    if style == "compact":
        assert len(rows) <= 1


def test_neither_the_order_of_trajectories_nor_the_policys_rows_change_it():
    def conversation(group: int, member: int) -> Trajectory:
        turns = [guided([1, 9, group], [1, group], [member, 3], (0, 2)), guided([4], [5], [member], (0, 1))]
        return episode(group, member, turns, condition=("a",))

    trajectories = [conversation(group, member) for group in range(3) for member in range(3)]
    advantages = [np.array([1.0, t.member + 0.5]) for t in trajectories]

    def made(order: Sequence[int]) -> dict[int, list]:
        rows = rerendered_rows(
            [trajectories[i] for i in order], [advantages[i] for i in order],
            **OPEN, c_adv=9.0, distill_reasoning=False, with_teacher=False,
        )  # fmt: skip
        return {group: [described(row) for row in some] for group, some in sorted(rows.items())}

    shuffled = random.Random(0).sample(range(9), 9)
    assert made(shuffled) == made(range(9))
    assert all(len(rows) == 6 for rows in made(range(9)).values())
    own = rows_by_group(trajectories, advantages)
    assert all(row.distill_weight is None and row.distill_tokens == 0 for rows in own.values() for row in rows)
