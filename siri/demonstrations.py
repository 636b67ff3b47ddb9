"""What the tiny policy imitates before reinforcement learning. Each example is a function of its index alone.

play     a searching expert's episodes in procedural games, with random actions mixed in (shown, not imitated). Its
         search order is uniform: the policy learns to look, to remember and to use what it finds, and no prior about
         where things are; that is left to reinforcement learning. Some episodes carry hints, right and wrong alike,
         which the expert follows: the policy learns to act on a skill block, not which skills are true.
copying  a random word sequence, repeated: forms the copying circuit early.
skills   a played episode as the mining request shows it, answered with a skill: where the sought thing was found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from siri.cloning import Example
from siri.engine.environment import Observation
from siri.envs.household import HouseholdEnv
from siri.envs.household.brief import brief
from siri.envs.household.experts import SearchingExpert
from siri.envs.household.generator import Size, generate_game
from siri.envs.household.tasks import read_sentence
from siri.prompts import Renderer, skill_answer, skill_request, skill_text

HINTED = 0.4
"""Share of played episodes with a hint."""
NOISE = 0.05
"""Share of random actions. At 0 a policy that slips once never gets back on its way."""
DITHER = 0.5
"""Share of turns on which the demonstrator looks around, or at what it holds, to no purpose. It is imitated in this
too: what is cloned is an agent that can do every task and wastes half its turns. That this does not pay is left to
reinforcement learning to find out, as is where things are."""
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


def play(index: int, *, size: Size, max_turns: int) -> Play:
    """The expert's episode number `index` (train games only)."""
    rng = Random(f"play/{size}/{index}")
    game = generate_game(f"warmstart-{index}", size=size, split="train")
    env = HouseholdEnv(game)
    observation = env.reset()
    first: list[str] = []
    hints: tuple[str, ...] = ()
    if rng.random() < HINTED:
        kinds = sorted({name.partition(" ")[0] for name in brief(observation.text).split(", ")})
        first = rng.sample(kinds, min(len(kinds), rng.choice((1, 1, 2, 3))))
        hints = (skill_text(*_skill(game.task, first)),)
    expert = SearchingExpert(game.task, seed=index, first=first, noise=NOISE, dither=DITHER)
    observations = [observation]
    actions: list[str] = []
    imitate: list[bool] = []
    while len(actions) < max_turns and not observation.done:
        action = expert.act(observation)
        observation = env.step(action)
        observations.append(observation)
        actions.append(action)
        imitate.append(not expert.noisy)
    return Play(
        task=game.task,
        hints=hints,
        observations=tuple(observations),
        actions=tuple(actions),
        imitate=tuple(imitate),
    )


def _skill(task: str, kinds: Sequence[str]) -> tuple[str, str]:
    """(condition, strategy) of "look there first"."""
    return f"you need {read_sentence(task).thing}", f"look at {', '.join(kinds)}"


def play_example(played: Play, renderer: Renderer) -> Example:
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
        weights.append(np.full(len(rest), OBSERVATION_WEIGHT, np.float32))
        weights[-1][-len(renderer.before_action) :] = 0
        length += len(rest)
    return Example(ids=np.concatenate(pieces), weight=np.concatenate(weights))


def skill_example(played: Play, renderer: Renderer) -> Example:
    """Asks for a skill from the episode and answers where the first sought thing was taken."""
    sought = read_sentence(played.task).thing
    found = [a.rpartition(" from ")[2].partition(" ")[0] for a in played.actions if a.startswith(f"take {sought} ")]
    answer = skill_answer(*_skill(played.task, list(dict.fromkeys(found)) or ["everything"]))
    prompt = [
        *renderer.before_first,
        *renderer.literal(skill_request(played.task, played.actions)),
        *renderer.before_action,
    ]
    reply = [*renderer.literal(answer), renderer.after_action[0]]
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


def corpus_text(played: Play) -> list[str]:
    """Every text of an episode as the dialogue writes it, for the tokenizer."""
    condition, strategy = _skill(played.task, ["everything"])
    return [
        f"Task: {played.task}\n" + "".join(f"Hint: {hint}\n" for hint in played.hints),
        skill_request(played.task, played.actions),
        skill_answer(condition, strategy),
        *played.actions,
        *(brief(observation.text) for observation in played.observations),
        *(observation.text for observation in played.observations[1:3]),
    ]
