"""Warm-up, mining, internalisation: when a run passes from one to the next, and why (arXiv 2606.02355).

    warmup        plain GiGPO. Left with enough successes over enough tasks, or after `max_warmup` iterations.
    mining        skills are written, and validated by paired rollouts. Left after `mining_steps` iterations, with at
                  least one active skill; left out altogether where that is 0.
    internalise   as mining, and what helped is distilled into the plain policy. Lasts until the run ends.

Decisions are taken between iterations, on evidence that every rank has, by a pure function.
"""

from dataclasses import dataclass
from typing import Literal

from siri.config import PhasesConfig

Phase = Literal["warmup", "mining", "internalise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a decision rests on."""

    iterations: int
    """Done in the present phase."""
    successes: int
    """Solved plain episodes so far."""
    tasks: int
    """Distinct tasks among them."""
    usable_skills: int
    """Active ones; where skills are not validated, all that are in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    phase: Phase
    """The one that begins."""
    reason: str
    warning: bool = False
    """The evidence asked for was not there in time."""


def first_phase(config: PhasesConfig, *, no_warmup: bool, no_internalisation: bool) -> Phase:
    return config.only or (_after_warmup(config, no_internalisation) if no_warmup else "warmup")


def _after_warmup(config: PhasesConfig, no_internalisation: bool) -> Phase:
    return "mining" if config.mining_steps or no_internalisation else "internalise"


def next_phase(
    phase: Phase, evidence: Evidence, config: PhasesConfig, *, no_internalisation: bool
) -> Transition | None:
    """The phase that follows, if it is time; None to go on as before."""
    if config.only is not None:
        return None
    if phase == "warmup":
        after = _after_warmup(config, no_internalisation)
        have = f"{evidence.successes} successes over {evidence.tasks} tasks"
        if evidence.successes >= config.n_succ_required and evidence.tasks >= config.min_tasks:
            return Transition(phase=after, reason=f"there are {have}")
        if evidence.iterations >= config.max_warmup:
            wanted = f"{config.n_succ_required} over {config.min_tasks} were wanted"
            reason = f"{config.max_warmup} iterations of warm-up are over with {have}; {wanted}"
            return Transition(phase=after, reason=reason, warning=True)
    mined = evidence.iterations >= config.mining_steps and evidence.usable_skills > 0
    if phase == "mining" and mined and not no_internalisation:
        reason = f"{evidence.iterations} iterations of mining are over, {evidence.usable_skills} skills can be used"
        return Transition(phase="internalise", reason=reason)
    return None


def is_held_up(phase: Phase, evidence: Evidence, config: PhasesConfig, *, no_internalisation: bool) -> bool:
    """Mining has just done its iterations, and there is no skill to go on with: worth a word, once. It goes on until
    there is one, however long that takes."""
    waits = phase == "mining" and config.only is None and not no_internalisation
    return waits and evidence.iterations == config.mining_steps and evidence.usable_skills == 0
