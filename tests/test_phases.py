"""Transitions between the phases, case by case, and paired trials by hand."""

import pytest
from episodes import episode, turn

from siri.config import PhasesConfig
from siri.engine.trajectory import Ended
from siri.phases import Evidence, first_phase, is_held_up, next_phase
from siri.trials import halves, trials_of

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


@pytest.mark.parametrize("size", [2, 8, 10])
def test_the_halves_are_the_whole_group(size):
    plain, guided = halves(size)
    assert len(plain) == len(guided)
    assert [*plain, *guided] == list(range(size))
