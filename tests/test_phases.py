"""Transitions between the phases, case by case, and paired trials by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from episodes import episode, turn
from test_guidance import guidance_of

from siri.config import PhasesConfig
from siri.engine.trajectory import Ended
from siri.phases import Evidence, first_phase, is_held_up, next_phase
from siri.run_record import pass_to_next_phase
from siri.trials import halves, solved_both_ways, trials_of

CONFIG = PhasesConfig(n_succ_required=10, min_tasks=3, max_warmup=5, mining_steps=4)


def decide(phase, *, config=CONFIG, no_internalisation=False, **facts):
    evidence = Evidence(**{"iterations": 1, "successes": 0, "tasks": 0, "usable_skills": 0, **facts})
    change = next_phase(phase, evidence, config, no_internalisation=no_internalisation)
    return None if change is None else (change.phase, change.warning)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"successes": 10, "tasks": 3}, ("mining", False)),
        ({"successes": 9, "tasks": 3}, None),
        ({"successes": 10, "tasks": 2}, None),
        ({"successes": 9, "tasks": 3, "iterations": 4}, None),
        ({"successes": 9, "tasks": 3, "iterations": 5}, ("mining", True)),
        ({"successes": 10, "tasks": 3, "iterations": 5}, ("mining", False)),
    ],
)
def test_the_warmup_ends_on_evidence_or_with_a_warning(facts, expected):
    assert decide("warmup", **facts) == expected


def test_a_late_end_of_the_warmup_names_the_count():
    evidence = Evidence(iterations=5, successes=7, tasks=2, usable_skills=0)
    change = next_phase("warmup", evidence, CONFIG, no_internalisation=False)
    assert change is not None
    assert "7 successes over 2 tasks; 10 over 3 were wanted" in change.reason


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"iterations": 4, "usable_skills": 1}, ("internalise", False)),
        ({"iterations": 3, "usable_skills": 1}, None),
        ({"iterations": 400, "usable_skills": 0}, None),
    ],
)
def test_mining_ends_when_it_is_done_and_a_skill_is_active(facts, expected):
    assert decide("mining", **facts) == expected


@pytest.mark.parametrize(
    ("phase", "iterations", "usable", "switches", "expected"),
    [
        ("mining", 4, 0, {}, True),
        ("mining", 3, 0, {}, False),
        ("mining", 5, 0, {}, False),  # said once
        ("mining", 4, 1, {}, False),
        ("warmup", 4, 0, {}, False),
        ("mining", 4, 0, {"no_internalisation": True}, False),
        ("mining", 4, 0, {"only": "mining"}, False),
    ],
)
def test_mining_that_must_go_on_is_told_once(phase, iterations, usable, switches, expected):
    config = CONFIG.model_copy(update={"only": switches.get("only")})
    evidence = Evidence(iterations=iterations, successes=99, tasks=99, usable_skills=usable)
    no_internalisation = switches.get("no_internalisation", False)
    assert is_held_up(phase, evidence, config, no_internalisation=no_internalisation) is expected


@pytest.mark.parametrize(
    ("skills", "no_validation", "told"),
    [
        ((), False, "none is active after 2 iterations (0 candidates, 0 retired)"),
        (("mug",), False, "none is active after 2 iterations (1 candidates, 0 retired)"),
        ((), True, "none is in use after 2 iterations (0 candidates, 0 retired)"),  # nothing has to prove itself there
        (("mug",), True, "internalise begins: 2 iterations of mining are over, 1 skills can be used"),
    ],
)
def test_what_a_run_says_when_mining_has_done_its_iterations(skills, no_validation, told):
    guidance, said = guidance_of(*skills, no_validation=no_validation, phases={"mining_steps": 2}), []
    log, state = SimpleNamespace(note=said.append), SimpleNamespace(step=2)
    pass_to_next_phase(SimpleNamespace(config=guidance.config, guidance=guidance, log=log, state=state))
    assert len(said) == 1
    assert told in said[0]


def test_switches_hold_a_run_in_a_phase():
    assert decide("mining", iterations=9, usable_skills=5, no_internalisation=True) is None
    for phase in ("warmup", "mining", "internalise"):
        only = CONFIG.model_copy(update={"only": phase})
        assert first_phase(only, no_warmup=False, no_internalisation=False) == phase
        assert decide(phase, config=only, iterations=99, successes=99, tasks=99, usable_skills=9) is None
    assert first_phase(CONFIG, no_warmup=True, no_internalisation=False) == "mining"
    assert first_phase(CONFIG, no_warmup=False, no_internalisation=False) == "warmup"
    assert decide("internalise", iterations=99, successes=99, tasks=99, usable_skills=9) is None


def test_mining_can_be_skipped_with_and_without_a_warmup():
    skipped = CONFIG.model_copy(update={"mining_steps": 0})
    assert decide("warmup", config=skipped, successes=10, tasks=3) == ("internalise", False)
    assert decide("warmup", config=skipped, iterations=5) == ("internalise", True)
    assert decide("warmup", config=skipped, successes=10, tasks=3, no_internalisation=True) == ("mining", False)
    assert first_phase(skipped, no_warmup=True, no_internalisation=False) == "internalise"
    assert first_phase(skipped, no_warmup=True, no_internalisation=True) == "mining"
    assert first_phase(skipped, no_warmup=False, no_internalisation=False) == "warmup"


def test_trials_are_the_difference_of_the_means_of_the_halves():
    def won(reward):
        return [turn(reward=0.0), turn(reward=reward)]

    trajectories = [
        episode(4, 0, won(1.0)),
        episode(4, 1, won(0.0)),
        episode(4, 2, won(1.0), condition=("s0001", "s0003")),
        episode(4, 3, won(0.5), condition=("s0001", "s0003")),
        episode(2, 0, won(1.0)),
        episode(2, 1, won(9.0), ended=Ended.ENV_ERROR),
        episode(2, 2, won(0.0), condition=("s0002",)),
        episode(7, 0, won(1.0)),  # no skill matched
        episode(8, 0, won(1.0), ended=Ended.ENV_ERROR),  # a half lost altogether
        episode(8, 1, won(1.0), condition=("s0002",)),
    ]
    first, second = trials_of(trajectories, iteration=6)
    assert (first.iteration, first.group, first.skills) == (6, 2, ("s0002",))
    assert (first.skill_mean, first.plain_mean, first.delta) == (0.0, 1.0, -1.0)
    assert (second.group, second.skills) == (4, ("s0001", "s0003"))
    assert (second.skill_mean, second.plain_mean, second.delta) == (0.75, 0.5, 0.25)
    assert trials_of(list(reversed(trajectories)), iteration=6) == [first, second]

    solved = [replace(trajectory, success=trajectory.total_reward == 1.0) for trajectory in trajectories]
    counts = solved_both_ways(solved, [first, second])
    assert counts.tolist() == [[2, 3], [1, 3]]  # plain: of 4, 0 and 2 were won, as was 2, 0; guided: of 4, 2 was


@pytest.mark.parametrize("size", [2, 8, 10])
def test_the_halves_are_the_whole_group(size):
    plain, guided = halves(size)
    assert len(plain) == len(guided)
    assert [*plain, *guided] == list(range(size))
