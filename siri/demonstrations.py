"""What a tiny policy imitates before reinforcement learning, as weighted tokens.

play     an expert's episode (siri.household_plays, siri.shop_plays)
copying  a random word sequence, repeated: forms the copying circuit early
skills   a solved episode as the mining request shows it, answered with a skill
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from siri.cloning import Example
from siri.engine.environment import Observation
from siri.prompts import Renderer, skill_answer, skill_request

Sizes = Literal["small", "full", "both"]
"""Sizes of the games or shops played in; both: one or the other, half the time each."""
WASTE = 0.4
"""How far from its best an expert plays, unless told otherwise, in the way of its environment: the share of turns it
wastes, or the chance that it decides badly. It is imitated in this too: that it does not pay is left to reinforcement
learning to find out."""
OBSERVATION_WEIGHT = 0.2
"""Loss weight of observation tokens: what they repeat of the action trains copying too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One expert episode."""

    task: str
    hints: tuple[str, ...]
    observations: tuple[Observation, ...]
    """Before each action; one more than actions."""
    actions: tuple[str, ...]
    imitate: tuple[bool, ...]


def play_example(played: Play, renderer: Renderer, *, observation_weight: float = OBSERVATION_WEIGHT) -> Example:
    """The episode as the compact dialogue would show it, token for token."""
    dialogue = renderer.dialogue(played.hints)
    dialogue.start(played.task, played.observations[0])
    ids = dialogue.prompt_ids()
    pieces, weights = [ids], [np.zeros(len(ids), np.float32)]
    length = len(ids)
    for action, imitate, observation in zip(played.actions, played.imitate, played.observations[1:], strict=True):
        action_ids = np.array([*renderer.literal(action), renderer.after_action[0]], np.int32)
        pieces.append(action_ids)
        weights.append(np.full(len(action_ids), float(imitate), np.float32))
        length += len(action_ids)
        if observation.done:
            break
        dialogue.advance(action_ids, dialogue.parse(action_ids), observation)
        rest = dialogue.prompt_ids()[length:]
        pieces.append(rest)
        weights.append(np.full(len(rest), observation_weight, np.float32))
        weights[-1][-len(renderer.before_action) :] = 0
        length += len(rest)
    return Example(ids=np.concatenate(pieces), weight=np.concatenate(weights))


def skill_example(played: Play, skill: tuple[str, str], renderer: Renderer) -> Example:
    """Asks for a skill from a solved episode; the answer is `skill`, a condition and a strategy."""
    prompt = [
        *renderer.before_first,
        *renderer.literal(skill_request(played.task, played.actions)),
        *renderer.before_action,
    ]
    reply = [*renderer.literal(skill_answer(*skill)), renderer.after_action[0]]
    weight = np.concatenate([np.zeros(len(prompt), np.float32), np.ones(len(reply), np.float32)])
    return Example(ids=np.array([*prompt, *reply], np.int32), weight=weight)


def copy_example(index: int, vocabulary: np.ndarray, renderer: Renderer) -> Example:
    """3 to 39 random tokens of `vocabulary`, then the same again; only the second time is imitated."""
    rng = np.random.default_rng(index)
    words = rng.choice(vocabulary, int(rng.integers(3, 40)))
    prompt = [*renderer.before_first, *words, *renderer.before_action]
    reply = [*words, renderer.after_action[0]]
    weight = np.concatenate([np.zeros(len(prompt), np.float32), np.ones(len(reply), np.float32)])
    return Example(ids=np.array([*prompt, *reply], np.int32), weight=weight)
