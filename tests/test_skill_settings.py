"""Settings of skills reach what they are for, and a run restored is one that was not: each away from its default."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from episodes import episode, turn
from rollout_fakes import VERSION
from test_guidance import GAMES, PLAIN_REWARD, TASK, both_ways, guidance_of, renderer, things
from test_mining import Writer, success
from test_skills import RULES, bank_of, evaluate

from siri import run as run_module
from siri.config import RunConfig
from siri.engine.distributed import World
from siri.engine.trajectory import TrainRow
from siri.eval_command import _with_skills
from siri.guidance import Effects, Guidance, bank_rules, open_guidance, screen_rules
from siri.mining import origin_of
from siri.prompts import skill_answer
from siri.run import update_policy
from siri.skills import BankRules, SkillBank


def test_the_rules_of_the_bank_are_those_of_the_run() -> None:
    rules = {"n_eval": 3, "max_eval": 5, "promote_above": 0.5, "retire_below": -0.5, "confidence": 0.25, "max_size": 9}
    found = bank_rules(RunConfig.model_validate({"skills": rules}))
    assert {name: getattr(found, name) for name in rules} == rules
    screened = {"max_chars": 77, "max_skill_tokens": 33, "dedup_threshold": 0.7}
    screen = screen_rules(RunConfig.model_validate({"mining": screened}))
    assert (screen.max_chars, screen.max_tokens, screen.dedup_threshold) == (77, 33, 0.7)


def test_mining_is_due_every_so_many_iterations_from_where_its_phase_began() -> None:
    guidance = guidance_of("mug", mining={"every": 3})
    guidance.began = 5
    assert not any(guidance.is_mining_due(step) for step in range(5, 15)), "there is no success to show"
    guidance.buffer.add([success("mug")])
    assert [step for step in range(5, 15) if guidance.is_mining_due(step)] == [5, 8, 11, 14]
    guidance.phase = "warmup"
    assert not guidance.is_mining_due(5)


def test_exploration_is_drawn_anew_for_each_iteration_and_group() -> None:
    conditions = [things(TASK)] * 6
    places = [{"step": step, "group": 0} for step in range(40)], [{"step": 0, "group": group} for group in range(40)]
    for share, number in ((0.0, 1), (1.0, 6)):
        guidance = guidance_of(*conditions, skills={"explore": share, "k": 1})
        for some in places:
            assert len({guidance.skills_for(GAMES.task(TASK), **place) for place in some}) == number


def distilled(guidance: Guidance) -> list[TrainRow]:
    """The re-rendered rows of one guided turn with an advantage of 3, of which the last two tokens are the action."""
    shown = turn(prompt=[1, 9], action=[20, 21, 22])
    shown = replace(shown, twin_prompt_ids=np.array([1], np.int32), action_span=(1, 3))
    trajectories = [episode(0, 0, [shown], condition=("s0001",))]
    effects = Effects(delta={0: 1.0}, utility={"s0001": 1.0})
    rows = guidance.rows(trajectories, [np.full(1, 3.0)], effects=effects, step=9)
    return [row for row in rows[0] if row.distill_tokens]


@pytest.mark.parametrize(
    ("settings", "weights", "has_teacher"),
    [
        ({"c_adv": 2.5}, [2.5, 2.5], False),
        ({"c_adv": 7.0}, [3.0, 3.0], False),
        ({"c_adv": 7.0, "distill_reasoning": True}, [3.0, 3.0, 3.0], False),
        ({"c_adv": 7.0, "divergence": "forward_kl"}, [3.0, 3.0], True),
        ({"c_adv": 7.0, "divergence": "reverse_kl"}, [3.0, 3.0], True),
        ({"c_adv": 7.0, "divergence": "jsd"}, [3.0, 3.0], True),
    ],
)
def test_what_is_distilled_is_as_the_settings_say(settings: dict, weights: list[float], has_teacher: bool) -> None:
    [row] = distilled(guidance_of("mug", phase="internalise", internalize=settings))
    assert row.distill_weight is not None
    assert row.distill_weight.tolist() == weights
    assert (row.teacher is not None) is has_teacher


@pytest.mark.parametrize("divergence", ["nll", "jsd"])
def test_an_update_is_told_the_divergence_and_the_weight_of_its_iteration(
    monkeypatch: pytest.MonkeyPatch, divergence: str
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(run_module, "update", lambda *args, **settings: told.update(settings) or {"distill/tokens": 4})
    internalize = {"divergence": divergence, "lambda_max": 0.5, "lambda_warmup": 2}
    guidance = guidance_of("mug", phase="internalise", internalize=internalize)
    guidance.began = 7
    state = SimpleNamespace(tokens={"internalised": 2.0}, bad_steps_in_a_row=0, bad_steps=0, mismatch={})
    run = SimpleNamespace(
        config=guidance.config, guidance=guidance, state=state, world=World(), reference=None, optimizer=None,
        session=SimpleNamespace(policy=None), guard=SimpleNamespace(in_a_row=0, total=0),
    )  # fmt: skip
    update_policy(run, 8, [])
    assert (told["divergence"], told["distill_lambda"]) == (divergence, 0.25)
    assert state.tokens["internalised"] == 6.0


def test_what_an_iteration_tells_of_its_pairs() -> None:
    guidance = guidance_of("mug", "mug", skills={"explore": 0.0})
    guidance.bank = bank_of("mug", "mug", **{**RULES, "n_eval": 1, "max_eval": 9})
    played = both_ways({0: 1.0, 1: -0.5})
    trajectories = [replace(t, success=t.group == 0 and bool(t.condition)) for t in played]
    _, metrics = guidance.learn(trajectories, renderer(), step=2)
    told = {name.removeprefix("skills/"): value for name, value in metrics.items() if name.startswith("skills/")}
    assert told == {
        "candidate": 0.0, "active": 1.0, "retired": 1.0, "promoted": 1.0, "given_up": 1.0, "trials": 2.0,
        "effect": 0.25, "plain_return": PLAIN_REWARD, "guided_return": PLAIN_REWARD + 0.25,
        "plain_success": 0.0, "guided_success": 0.5,
    }  # fmt: skip


def mined(guidance: Guidance, sampler: Writer) -> dict[str, float]:
    return guidance.mine(sampler, renderer(), request="short", step=7, policy_version=VERSION, max_prompt_tokens=500)


def test_the_model_is_asked_as_often_and_as_warmly_as_the_settings_say() -> None:
    settings = {"num_shown": 3, "num_candidates": 4, "temperature": 0.5, "max_answer_tokens": 7}
    guidance = guidance_of(mining=settings)
    guidance.buffer.add([success(f"game {number}", member=number) for number in range(5)])
    sampler = Writer(answer=lambda request: "no")
    assert mined(guidance, sampler)["mining/drawn"] == 12
    assert {(request.temperature, request.max_tokens) for request in sampler.requests} == {(0.5, 7)}


def test_a_skill_written_again_is_a_witness_of_the_first_and_one_that_was_given_up_stays_so() -> None:
    """Answers: a new skill, the retired one, the new one once more from another success."""
    guidance = guidance_of(mining={"num_candidates": 1, "max_answer_tokens": 96, "max_skill_tokens": 96})
    origin = origin_of(success("elsewhere"), iteration=0, policy_version=0)
    bank = guidance.bank = SkillBank(BankRules(**RULES | {"n_eval": 1}))
    bank.add("you need mug", "look at shelf", origin)
    bank.add("you need pan", "look at shelf", origin)
    assert evaluate(bank, -10, id="s0001") == ["retired"]
    guidance.buffer.add([success(f"game {number}", iteration=number) for number in range(3)])
    new = skill_answer("you need cup", "look at desk")
    answers = [new, skill_answer("you need mug", "look at shelf"), new]
    metrics = mined(guidance, Writer(answer=lambda request: answers[request.id]))
    assert (metrics["mining/kept"], metrics["mining/duplicate"]) == (1, 2)
    assert [skill.condition for skill in bank.skills] == ["you need mug", "you need pan", "you need cup"]
    assert [skill.status for skill in bank.skills] == ["retired", "candidate", "candidate"]
    assert [skill.witnesses for skill in bank.skills] == [("game 1",), (), ("game 0",)]
    origin = bank["s0003"].origin
    assert (origin.task_id, origin.iteration, origin.policy_version, origin.played) == ("game 2", 7, VERSION, 2)


@pytest.mark.parametrize(("k", "number"), [(1, 1), (2, 2), (9, 4)])
def test_the_comparison_shows_the_best_k_and_explores_nothing(k: int, number: int) -> None:
    bank, shown = bank_of(*[things(TASK)] * 4, n_eval=9, max_eval=9), []
    config = RunConfig.model_validate({"skills": {"k": k, "explore": 1.0}})
    fake = SimpleNamespace(dialogue=lambda skills: shown.append(skills))
    _with_skills(SimpleNamespace(source=GAMES, renderer=fake), config, bank, TASK)()
    assert shown == [[f"when {skill.condition}: {skill.strategy}" for skill in bank.skills[:number]]]


def test_a_restored_run_counts_from_where_its_phase_began_and_keeps_its_buffer_bounded() -> None:
    guidance = guidance_of("mug", mining={"buffer_size": 2}, phases={"min_tasks": 1})
    guidance.began = 5
    guidance.buffer.add([success("mug"), success("pan")])
    again = open_guidance(guidance.config, World(), guidance.as_dict())
    assert (again.phase, again.began, again.num_usable) == ("mining", 5, guidance.num_usable)
    again.buffer.add([success("cup", iteration=2)])
    assert (len(again.buffer), again.buffer.seen) == (2, 3)
