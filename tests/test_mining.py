"""Mining: which successes are shown, what the policy is asked, and what becomes of its answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import policy, tokenizer
from rollout_fakes import VERSION, FakeSampler

from siri import mining
from siri.engine.distributed import World
from siri.engine.errors import UserError
from siri.engine.policy import load_policy
from siri.engine.rollout_hf import HfSampler
from siri.engine.sampling import Completion, Sampler, SampleRequest, StaleWeightsError, request_seed
from siri.engine.trajectory import Ended, Trajectory, Turn
from siri.mining import MiningRules, Repeat, Success, SuccessBuffer, mine, successes
from siri.prompts import Renderer, skill_answer
from siri.screening import ScreenRules, screen
from siri.shipped import resolve

SCREEN = ScreenRules(max_chars=120, max_tokens=80, dedup_threshold=0.9, allow_numbers=False, ascii_only=True)
RULES = MiningRules(
    num_shown=3, num_candidates=2, temperature=1.0, max_answer_tokens=96, request="short", screen=SCREEN
)


def renderer(style: str = "compact") -> Renderer:
    return Renderer(tokenizer(), style=style)


def success(task_id: str, iteration: int = 1, num_steps: int = 2, **changes: object) -> Success:
    fields = {
        "task_id": task_id,
        "task_type": "pick",
        "task": f"put {task_id} in desk.",
        "start": "desk 1, shelf 1",
        "steps": tuple((f"go to shelf {n}", f"{task_id} 1") for n in range(num_steps)),
        "iteration": iteration,
        "group": 0,
        "member": 0,
    }
    return Success(**{**fields, **changes})


def filled(*found: Success, max_size: int = 9) -> SuccessBuffer:
    buffer = SuccessBuffer(max_size)
    buffer.add(found)
    return buffer


@dataclass
class Writer(FakeSampler):
    """A sampler that writes what `answer` says; texts end with the end-of-turn token, token lists as they are."""

    answer: Callable[[SampleRequest], str | list[int]] = field(default=lambda request: "")

    def poll(self) -> list[Completion]:
        by_id = {request.id: request for request in self.requests}
        return [self._written(completion, by_id[completion.id]) for completion in super().poll()]

    def _written(self, completion: Completion, request: SampleRequest) -> Completion:
        said = self.answer(request)
        r = renderer()
        ids = [*r.literal(said), r.stop_token_ids[0]] if isinstance(said, str) else said
        ids = ids[: request.max_tokens]
        return replace(
            completion,
            action_ids=np.array(ids, np.int32),
            logprob=np.zeros(len(ids), np.float32),
            finished_by="stop" if ids[-1] in request.stop_token_ids else "length",
        )


def mined(
    sampler: Sampler, buffer: SuccessBuffer, style: str = "compact", **changes: object
) -> tuple[list, dict, list]:
    arguments = {
        "known": [],
        "rules": RULES,
        "run_seed": 5,
        "iteration": 7,
        "policy_version": VERSION,
        "max_prompt_tokens": 500,
    }
    candidates, repeats, counts = mine(sampler, renderer(style), buffer, **{**arguments, **changes})
    assert counts["duplicate"] == len(repeats)
    return candidates, counts, repeats


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(RULES, num_shown=0), "mining.num_shown: 0 must be 1 or more"),
        (lambda: replace(RULES, temperature=float("nan")), "mining.temperature: nan must be a finite number"),
        (lambda: replace(RULES, temperature=0.0), "mining.num_candidates: 2 answers would all be the same"),
        (lambda: SuccessBuffer(0), "mining.buffer_size: 0 must be 1 or more"),
    ],
)
def test_impossible_rules(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def trajectory(*actions: tuple[str, bool], solved: bool = True, condition: tuple[str, ...] = ()) -> Trajectory:
    turns = tuple(
        Turn(
            prompt_ids=np.array([1], np.int32),
            action_ids=np.array([2], np.int32),
            behavior_logprob=np.zeros(1, np.float32),
            action_span=(0, 1),
            observation=f"SEEN {number}",
            action=action,
            anchor=b"",
            reward=0.0,
            action_valid=valid,
            policy_version=2,
        )
        for number, (action, valid) in enumerate(actions)
    )
    return Trajectory(
        group=4,
        member=6,
        task_id="game",
        task_type="pick",
        task="put mug in desk.",
        condition=condition,
        turns=turns,
        success=solved,
        ended=Ended.DONE,
    )


def test_only_solved_plain_episodes_are_shown_with_their_valid_actions() -> None:
    solved = trajectory(("go to shelf 1", True), ("sing", False), ("take mug 1", True))
    others = [
        trajectory(("look", True), solved=False),
        trajectory(("look", True), condition=("s0001",)),
        trajectory(("sing", False)),
        trajectory(),
    ]
    (found,) = successes([solved, *others], iteration=9, shorten=str.lower)
    assert found == Success(
        task_id="game",
        task_type="pick",
        task="put mug in desk.",
        start="seen 0",
        steps=(("go to shelf 1", "seen 1"), ("take mug 1", "")),
        iteration=9,
        group=4,
        member=6,
    )


def test_the_buffer_keeps_the_newest_of_each_task_and_is_bounded() -> None:
    buffer = filled(success("mug", 1, group=1), success("pan", 1, group=2), max_size=3)
    buffer.add(
        [
            success("mug", 2, num_steps=5, member=1),
            success("mug", 2, num_steps=3, member=2),
            success("cup", 2, num_steps=4),
        ]
    )
    assert [(s.task_id, s.iteration, len(s.steps)) for s in buffer.choose(9, seed=0)] == [
        ("mug", 2, 3),
        ("cup", 2, 4),
        ("pan", 1, 2),
    ]
    buffer.add([success("egg", 3)])
    assert [s.task_id for s in buffer.choose(9, seed=0)] == ["egg", "mug", "cup"]
    assert (len(buffer), buffer.seen) == (3, 6)


FOUND = st.lists(
    st.builds(
        success,
        st.sampled_from(["mug", "pan", "cup", "egg"]),
        st.just(3),
        st.integers(1, 3),
        group=st.integers(0, 2),
        member=st.integers(0, 2),
        task_type=st.sampled_from("abc"),
    ),
    unique_by=lambda s: (s.group, s.member),
)


@given(FOUND, st.randoms(use_true_random=False), st.integers(1, 4))
def test_the_buffer_depends_on_no_order_and_survives_json(found: list, rng: Random, max_size: int) -> None:
    first, second = filled(success("mug", 1), max_size=max_size), filled(success("mug", 1), max_size=max_size)
    first.add(found)
    second.add(rng.sample(found, len(found)))
    text = json.dumps(second.as_dict())
    second = SuccessBuffer.from_dict(json.loads(text), max_size)
    assert first.as_dict() == second.as_dict() == json.loads(text)
    assert first.choose(3, seed=1) == second.choose(3, seed=1)
    assert len(first) <= max_size


def test_task_types_take_turns() -> None:
    kinds = {"mug": "a", "pan": "a", "cup": "a", "egg": "b", "pot": "c"}
    buffer = filled(*(success(name, 1 + n, task_type=kind) for n, (name, kind) in enumerate(kinds.items())))
    orders = {tuple(s.task_id for s in buffer.choose(4, seed=seed)) for seed in range(40)}
    assert {frozenset(order[:3]) for order in orders} == {frozenset({"cup", "egg", "pot"})}
    assert {order[3] for order in orders} == {"pan"}
    assert len(orders) == 6
    assert buffer.choose(4, seed=3) == buffer.choose(4, seed=3)


def test_candidates_and_counts() -> None:
    """Three successes, the newest first, with two answers each; what each answer becomes is counted."""
    found = [
        success(name, iteration, group=iteration, member=2) for iteration, name in enumerate(["mug", "pan", "cup"])
    ]
    answers = {
        0: skill_answer("you need cup", "look at desk"),
        1: skill_answer("you need cup", "take cup 1"),
        2: skill_answer("You need cup", "look at desk."),
        3: skill_answer("you need pan", "look at desk"),
        4: "no idea",
        5: skill_answer("you need mug", "look at shelf"),
    }
    sampler = Writer(answer=lambda request: answers[request.id])
    candidates, counts, repeats = mined(sampler, filled(*found), known=[("you need mug", "look at shelf")])
    assert repeats == [Repeat(index=1, task_id="pan"), Repeat(index=0, task_id="mug")]
    assert [(c.condition, c.strategy) for c in candidates] == [
        ("you need cup", "look at desk"),
        ("you need pan", "look at desk"),
    ]
    assert [(c.origin.task_id, c.origin.group, c.origin.played) for c in candidates] == [("cup", 2, 2), ("pan", 1, 1)]
    assert {(c.origin.iteration, c.origin.policy_version) for c in candidates} == {(7, VERSION)}
    assert counts == {
        "unshown": 0,
        "drawn": 6,
        "kept": 2,
        "unparsed": 1,
        "empty": 0,
        "too_long": 0,
        "not_plain_text": 0,
        "injection": 0,
        "instance_number": 1,
        "unknown_words": 0,
        "duplicate": 2,
    }


def test_the_words_of_its_own_success_make_a_skill_known() -> None:
    written = skill_answer("ladle", "desk, shelf")
    for task_id, kept in (("ladle", 1), ("mug", 0)):
        candidates, counts, _ = mined(Writer(answer=lambda request: written), filled(success(task_id)))
        assert len(candidates) == kept
        assert (counts["unknown_words"], counts["duplicate"]) == ((0, 1) if kept else (2, 0))


def test_nothing_to_show_asks_nothing() -> None:
    sampler = Writer()
    assert mined(sampler, SuccessBuffer(3))[0] == []
    assert sampler.requests == []


def test_successes_too_long_to_show_are_counted() -> None:
    long, short = success("mug", num_steps=200), success("pan")
    _, counts, _ = mined(Writer(), filled(long), max_prompt_tokens=100)
    assert (counts["unshown"], counts["drawn"]) == (1, 0)
    _, counts, _ = mined(Writer(answer=lambda request: "no"), filled(long, short), max_prompt_tokens=100)
    assert (counts["unshown"], counts["drawn"]) == (1, 2)


def test_requests_share_no_seed_with_rollouts() -> None:
    sampler = Writer(answer=lambda request: "no")
    mined(sampler, filled(success("mug"), success("pan"), success("cup")))
    asked = {request.seed for request in sampler.requests}
    assert len(asked) == 6
    played = {
        request_seed(run_seed=5, step=step, group=group, member=member, turn=turn)
        for step, group, member, turn in product((6, 7, 8), range(4), range(4), range(20))
    }
    assert not asked & played
    assert {(r.temperature, r.max_tokens, r.policy_version) for r in sampler.requests} == {(1.0, 96, VERSION)}


def test_stale_weights_are_refused() -> None:
    with pytest.raises(StaleWeightsError):
        mined(Writer(), filled(success("mug")), policy_version=VERSION + 1)


def test_ranks_share_the_work_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: SampleRequest) -> str:
        rng = Random(request.seed)
        return skill_answer(f"you need {rng.choice(['mug', 'pan'])}", f"look at {rng.choice(['desk', 'shelf 1'])}")

    found = [success(name) for name in ("mug", "pan", "cup")]
    alone = mined(Writer(answer=answer), filled(*found))
    parts: list[list] = []
    monkeypatch.setattr(mining, "all_gather_object", lambda world, own: parts.append(own) or [own])
    for rank in range(2):
        mined(Writer(answer=answer), filled(*found), world=World(rank=rank, size=2))
    assert [len(part) for part in parts] == [4, 2]
    monkeypatch.setattr(mining, "all_gather_object", lambda world, own: parts)
    for rank in range(2):
        delays = Random(rank)
        assert mined(Writer(answer=answer, delays=delays), filled(*found), world=World(rank=rank, size=2)) == alone


def test_special_tokens_and_endless_answers_are_dropped() -> None:
    """What decoding hides, and what was cut off in the middle of a good skill."""
    r = renderer()
    whole = [*r.literal(skill_answer("you need cup", "look at desk")), r.stop_token_ids[0]]
    special = min(r.special_ids - set(r.stop_token_ids))
    answers = [whole, [special, *whole], whole[:-1], [r.stop_token_ids[0]], [whole[0]] * 500]
    for said, reason in zip(answers, ["kept", "not_plain_text", "too_long", "empty", "too_long"], strict=True):
        _, counts, _ = mined(Writer(answer=lambda request, said=said: said), filled(success("mug")))
        assert {name for name, count in counts.items() if count} <= {"drawn", reason, "duplicate"}
        assert counts[reason] >= 1


@given(st.lists(st.lists(st.integers(0, len(tokenizer()) - 1), min_size=1, max_size=30), min_size=6, max_size=6))
def test_no_sequence_of_tokens_raises(answers: list[list[int]]) -> None:
    sampler = Writer(answer=lambda request: answers[request.id])
    candidates, counts, _ = mined(sampler, filled(success("mug"), success("pan"), success("cup")))
    assert counts["drawn"] == 6 == sum(counts.values()) - 6
    assert counts["kept"] == len(candidates)


@pytest.mark.parametrize("shipped", [False, True])
def test_a_model_is_asked(shipped: bool) -> None:
    """A random model, which writes anything, and the shipped one, whatever it has learnt."""
    model = load_policy(resolve("tiny"), dtype=torch.float32, device=torch.device("cpu")) if shipped else policy()
    sampler = HfSampler(model.model)
    sampler.load_weights(model.model.state_dict().items(), version=VERSION)
    own = Renderer(model.tokenizer, style="compact")
    outcomes = []
    for _ in range(2):
        outcome = mine(
            sampler,
            own,
            filled(success("mug"), success("pan"), success("cup")),
            known=[],
            rules=replace(RULES, max_answer_tokens=24),
            run_seed=0,
            iteration=1,
            policy_version=VERSION,
            max_prompt_tokens=300,
        )
        outcomes.append(outcome)
    candidates, _, counts = outcomes[0]
    assert outcomes[1] == outcomes[0]
    assert counts["drawn"] == 6 == sum(counts.values()) - 6
    for candidate in candidates:
        pair = candidate.condition, candidate.strategy
        assert screen(skill_answer(*pair), SCREEN, known=(), count_tokens=lambda line: len(own.literal(line))) == pair
