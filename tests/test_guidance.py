"""Skills in the loop: which episodes play with them, what is learnt of them, and whose tokens are distilled."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from episodes import episode, turn
from models import tokenizer
from rollout_fakes import VERSION, FakeSampler
from test_skills import bank_of, trial

from siri import guidance as guidance_module
from siri.config import RunConfig
from siri.engine.distributed import World
from siri.engine.rollout import Episode, collect
from siri.engine.sampling import SampleRequest, request_seed
from siri.engine.trajectory import Trajectory
from siri.envs.household.brief import brief
from siri.envs.household.source import ProceduralGames
from siri.guidance import Guidance, mining_rules, open_guidance
from siri.prompts import Renderer, skill_answer, skill_text
from siri.run import group_episodes
from siri.screening import Rejection, screen

GAMES = ProceduralGames(size="small", num_train=4, num_valid=1, seed=0)
TASK, OTHER = GAMES.tasks("train")[:2]
SEED, STEP, GROUP, TURNS = 3, 5, 2, 3
RULES = {"n_eval": 50, "max_eval": 50, "promote_above": 0.0, "retire_below": -9.0}
"""No skill is judged yet."""


@cache
def renderer() -> Renderer:
    return Renderer(tokenizer(), style="compact", shorten=brief)


def guidance_of(*conditions: str, phase: str = "mining", world: World | None = None, **settings: Any) -> Guidance:
    """With a bank of untested skills that have these conditions."""
    fields: dict[str, Any] = {"seed": SEED, "rollout": {"group_size": 4}, "skills": {"explore": 0.0}}
    config = RunConfig.model_validate({**fields, **settings})
    guidance = open_guidance(config, world or World(), {})
    guidance.bank, guidance.phase = bank_of(*conditions, **RULES), phase
    return guidance


def group_of(guidance: Guidance, task_id: str = TASK) -> list[Episode]:
    session = SimpleNamespace(source=GAMES, renderer=renderer())
    run = SimpleNamespace(config=guidance.config, session=session, guidance=guidance)
    return group_episodes(run, STEP, GROUP, task_id)


def play(episodes: Sequence[Episode]) -> tuple[list[Trajectory], list[list[SampleRequest]]]:
    """What was played, and the requests of each episode in turn order."""
    sampler = FakeSampler()
    trajectories = collect(
        sampler, episodes, max_turns=TURNS, max_prompt_tokens=10**6, max_action_tokens=4, temperature=1.0,
        run_seed=SEED, step=STEP, policy_version=VERSION,
    )  # fmt: skip
    return trajectories, [[r for r in sampler.requests if r.id == index] for index in range(len(episodes))]


def things(task_id: str) -> str:
    """Words of the task that a condition can match."""
    return " ".join(word for word in GAMES.task(task_id).strip(".").split() if word not in ("put", "a", "some", "in"))


def test_the_halves_of_a_pair_start_alike_and_draw_with_the_same_seeds():
    guidance = guidance_of(things(TASK))
    trajectories, requests = play(group_of(guidance))
    assert [t.member for t in trajectories] == [0, 1, 2, 3]
    assert {(t.group, t.task_id, t.task) for t in trajectories} == {(GROUP, TASK, GAMES.task(TASK))}
    start = GAMES.make(TASK).reset()
    assert {(t.turns[0].observation, t.turns[0].anchor) for t in trajectories} == {(start.text, start.anchor)}
    assert start.text != GAMES.make(OTHER).reset().text
    for member in range(2):
        expected = [
            request_seed(run_seed=SEED, step=STEP, group=GROUP, member=member, turn=number) for number in range(TURNS)
        ]
        assert [r.seed for r in requests[member]] == [r.seed for r in requests[member + 2]] == expected


def test_only_the_skill_half_is_shown_the_skills_and_has_the_plain_prompt_beside():
    guidance = guidance_of("zeppelin", things(TASK))
    episodes = group_of(guidance)
    (first, second, third, fourth), requests = play(episodes)
    assert [t.condition for t in (first, second, third, fourth)] == [(), (), ("s0002",), ("s0002",)]
    assert [e.twin is None for e in episodes] == [True, True, False, False]
    plain, hinted = (renderer().decode(requests[index][0].prompt_ids) for index in (0, 2))
    hint = f"Hint: {skill_text(things(TASK), 'strategy 2')}\n"
    assert (plain.count("Hint"), hinted.count("Hint"), hinted.count(hint)) == (0, 1, 1)
    assert hinted.replace(hint, "") == plain
    for without, beside in ((first, third), (second, fourth)):
        assert beside.turns[0].twin_prompt_ids.tolist() == without.turns[0].prompt_ids.tolist()


@pytest.mark.parametrize(
    ("conditions", "phase"), [(("zeppelin",), "mining"), ((), "internalise"), ((things(TASK),), "warmup")]
)
def test_a_group_without_a_skill_to_show_is_plain_altogether(conditions, phase):
    episodes = group_of(guidance_of(*conditions, phase=phase))
    trajectories, requests = play(episodes)
    assert [(t.member, t.condition) for t in trajectories] == [(member, ()) for member in range(4)]
    assert all(e.twin is None for e in episodes)
    assert all(turn.twin_prompt_ids is None for t in trajectories for turn in t.turns)
    assert len({r.seed for some in requests for r in some}) == 4 * TURNS
    assert not any("Hint" in renderer().decode(r.prompt_ids) for some in requests for r in some)


@pytest.mark.parametrize(
    ("share", "groups"),
    [(0.0, []), (0.25, [3, 7, 11, 15]), (0.5, [1, 3, 5, 7, 9, 11, 13, 15]), (1.0, list(range(16)))],
)
def test_the_share_of_groups_that_are_paired(share, groups):
    guidance = guidance_of(things(TASK), skills={"explore": 0.0, "paired": share})
    shown = [guidance.skills_for(things(TASK), step=3, group=group) for group in range(16)]
    assert [group for group, skills in enumerate(shown) if skills] == groups


def test_skills_that_are_shown_together_all_get_the_trial():
    first, *_, last = things(TASK).split()
    guidance = guidance_of(first, "zeppelin", last)
    assert guidance.config.skills.k == 3
    trajectories, _ = play(group_of(guidance))
    assert {frozenset(t.condition) for t in trajectories if t.condition} == {frozenset({"s0001", "s0003"})}
    _, metrics = guidance.learn(trajectories, renderer(), step=STEP)
    tried = [skill.evaluations for skill in guidance.bank.skills]
    assert [len(trials) for trials in tried] == [1, 0, 1]
    assert tried[0] == tried[2]
    assert metrics["skills/trials"] == 1  # a task group is one, however many skills it was shown


PLAIN_REWARD = 2.0
EFFECT = {0: 1.0, 1: 1.0, 2: -1.0, 3: -1.0, 4: 1.0}
"""Delta of this iteration by group. Group g shows skill g + 1."""
EARLIER = {"s0001": 0.25, "s0002": -0.25, "s0003": 0.25, "s0004": -0.25}
"""Utility by skill before: in groups 1, 2 and 4 (an untested skill) it is of the other sign, or 0, once this
iteration's effect is counted too."""


def both_ways(effects: dict[int, float]) -> list[Trajectory]:
    """A plain episode and a guided one for each group; tokens 10 x group + 1 and + 2 are the actions."""
    found = []
    for group, effect in effects.items():
        shown = turn(prompt=[1, 9], action=[10 * group + 2], reward=PLAIN_REWARD + effect)
        shown = replace(shown, twin_prompt_ids=np.array([1], np.int32))
        plain = turn(prompt=[1], action=[10 * group + 1], reward=PLAIN_REWARD)
        found += [episode(group, 0, [plain]), episode(group, 1, [shown], condition=(f"s{group + 1:04d}",))]
    return found


def distilled_groups(phase: str, **settings: Any) -> set[int]:
    """Groups of which something is distilled after an iteration with `EFFECT` and skills worth `EARLIER`."""
    guidance = guidance_of(*("mug",) * 5, phase=phase, **settings)
    guidance.bank.record([trial(1, g, delta, id) for g, (id, delta) in enumerate(EARLIER.items())], iteration=1)
    trajectories = both_ways(EFFECT)
    effects, _ = guidance.learn(trajectories, renderer(), step=2)
    rows = guidance.rows(trajectories, [np.ones(1) for _ in trajectories], effects=effects, step=2)
    assert sorted(rows) == sorted(EFFECT)
    found = set()
    for group, some in rows.items():
        own = [row for row in some if row.distill_weight is None]
        assert [row.ids.tolist() for row in own] == [[1, 10 * group + 1], [1, 9, 10 * group + 2]]
        for row in some[len(own) :]:
            assert (row.ids.tolist(), row.distill_weight.tolist()) == ([1, 10 * group + 2], [1.0])
            found.add(group)
    return found


@pytest.mark.parametrize(
    ("gate", "settings", "groups"),
    [
        ("bank", {}, {0, 2}),
        ("group", {}, {0, 1, 4}),
        ("both", {}, {0}),
        ("bank", {"no_validation": True}, {0, 1, 4}),  # no skill is judged: the effect in the group decides alone
        ("group", {"no_validation": True}, {0, 1, 4}),
        ("both", {"no_validation": True}, {0, 1, 4}),
        ("bank", {"no_gate": True}, {0, 1, 2, 3, 4}),
        ("group", {"no_gate": True}, {0, 1, 2, 3, 4}),
        ("both", {"no_gate": True}, {0, 1, 2, 3, 4}),
        ("both", {"no_gate": True, "no_validation": True}, {0, 1, 2, 3, 4}),
    ],
)
def test_whose_tokens_are_distilled(gate, settings, groups):
    assert distilled_groups("internalise", internalize={"gate": gate}, **settings) == groups
    assert distilled_groups("mining", internalize={"gate": gate}, **settings) == set()


@pytest.mark.parametrize(("no_validation", "counts"), [(False, [1, 1, 1, 1, 1]), (True, [0, 0, 0, 0, 0])])
def test_without_validation_no_trial_is_recorded(no_validation, counts):
    guidance = guidance_of(*("mug",) * 5, no_validation=no_validation)
    before = guidance.bank.as_dict()
    effects, metrics = guidance.learn(both_ways(EFFECT), renderer(), step=2)
    assert [skill.count for skill in guidance.bank.skills] == counts
    assert (guidance.bank.as_dict() == before) is no_validation
    assert effects.delta == EFFECT
    assert metrics["skills/trials"] == 5
    assert metrics["skills/effect"] == pytest.approx(0.2)


@pytest.mark.parametrize(("no_internalisation", "phases"), [(True, ["mining"]), (False, ["mining", "internalise"])])
def test_without_internalisation_mining_lasts_until_the_run_ends(no_internalisation, phases):
    guidance = guidance_of("mug", no_internalisation=no_internalisation, no_validation=True)
    weights = []
    for step in range(20):
        weights.append(guidance.distill_lambda(step))
        guidance.change_phase(step + 1)
        if guidance.phase not in phases:
            break
    assert list(dict.fromkeys(["mining", guidance.phase])) == phases
    assert len(weights) == 20
    assert any(weights) is not no_internalisation


def test_without_internalisation_nothing_is_distilled_in_any_phase():
    guidance = guidance_of("mug", no_internalisation=True)
    guidance.phase = "internalise"
    assert [guidance.distill_lambda(step) for step in range(5)] == [0.0] * 5


@pytest.mark.parametrize(
    ("lambda_warmup", "weights"),
    [(0, [0.5, 0.5, 0.5, 0.5, 0.5]), (1, [0, 0.5, 0.5, 0.5, 0.5]), (3, [0, 0.5 / 3, 1 / 3, 0.5, 0.5])],
)
def test_the_weight_of_distilling_rises_from_the_iteration_that_the_phase_begins_with(lambda_warmup, weights):
    settings = {"internalize": {"lambda_max": 0.5, "lambda_warmup": lambda_warmup}, "phases": {"mining_steps": 2}}
    guidance = guidance_of("mug", no_validation=True, **settings)
    guidance.began = 5
    found = []
    for step in range(5, 12):
        found.append(guidance.distill_lambda(step))
        guidance.change_phase(step + 1)
    assert [change["iteration"] for change in guidance.transitions] == [0, 7]
    assert found == pytest.approx([0, 0, *weights])


@pytest.mark.parametrize(
    ("condition", "strategy", "reason"),
    [
        ("you need mug", "look at countertop", None),
        ("you need mug", "go to shelf 2", Rejection.INSTANCE_NUMBER),
        ("you need mug 1", "look at countertop", Rejection.INSTANCE_NUMBER),
        ("you need mug", "look at caf\u00e9", Rejection.NOT_PLAIN_TEXT),
        ("you need m\u0443g", "look at countertop", Rejection.NOT_PLAIN_TEXT),  # Cyrillic
    ],
)
def test_the_skills_of_a_run_name_no_numbered_thing_and_are_ascii(condition, strategy, reason):
    rules = mining_rules(RunConfig(), "short").screen
    found = screen(skill_answer(condition, strategy), rules, known=(), count_tokens=lambda text: len(text.split()))
    assert found == (reason or (condition, strategy))


def played_by(rank: int | None) -> list[Trajectory]:
    """The episodes of a rank of two, or all; those of group 4 are solved."""
    return [
        replace(t, success=t.group in (3, 4), task_id=f"task {t.group}")
        for t in both_ways(EFFECT)
        if rank is None or t.group % 2 == rank
    ]


def learnt(world: World, trajectories: list[Trajectory]) -> tuple[Guidance, dict[int, float], dict[str, float]]:
    guidance = guidance_of(*("mug",) * 5, world=world)
    trajectories = [replace(t, condition=("s0001",)) if t.condition else t for t in trajectories]
    effects, metrics = guidance.learn(trajectories, renderer(), step=2)
    return guidance, effects.delta, metrics


def test_every_rank_learns_from_the_episodes_of_all(monkeypatch):
    alone, _, expected = learnt(World(), played_by(None))
    assert [t.group for t in alone.bank["s0001"].evaluations] == [0, 1, 2, 3, 4]
    assert {s.task_id for s in alone.buffer.choose(9, seed=0)} == {"task 3", "task 4"}
    parts: list[Any] = []
    monkeypatch.setattr(guidance_module, "all_gather_object", lambda world, own: parts.append(own) or [own])
    for rank in range(2):
        learnt(World(rank=rank, size=2), played_by(rank))
    for gathered in (parts, parts[::-1]):
        monkeypatch.setattr(guidance_module, "all_gather_object", lambda world, own, all=gathered: all)
        for rank in range(2):
            guidance, delta, metrics = learnt(World(rank=rank, size=2), played_by(rank))
            assert guidance.as_dict() == alone.as_dict()
            assert delta == {group: effect for group, effect in EFFECT.items() if group % 2 == rank}
            assert metrics == pytest.approx(expected)
