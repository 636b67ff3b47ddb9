"""What verl-agent puts around the official environment: its reading of answers, its observations, its prompts.

For comparisons with published runs; this engine's own prompts are in `siri.prompts`.
"""

import re
from collections.abc import Sequence

from siri.envs.webshop.pages import SEPARATOR

MAX_PROMPT_CHARACTERS = 13_000
"""A longer prompt is replaced by the one without history."""
SUCCESS_REWARD = 10.0

_CHINESE = re.compile("[\u4e00-\u9fff]")
_OPENING = (
    "\nYou are an expert autonomous agent operating in the WebShop e\u2011commerce environment.{space}\n"
    "Your task is to: {task}.\n"
)
_FIRST = "Your current observation is: {observation}.\n"
_LATER = (
    "Prior to this step, you have already taken {taken} step(s). Below are the most recent {shown} observations and the"
    " corresponding actions you took: {history}\nYou are now at step {step} and your current observation is:"
    " {observation}.\n"
)
_CLOSING = (
    "Your admissible actions of the current situation are: \n[\n{actions}\n].\n\n"
    "Now it's your turn to take one action for the current step.\n"
    "You should first reason step-by-step about the current situation, then think carefully which admissible action"
    " best advances the shopping goal. This reasoning process MUST be enclosed within <think> </think> tags. \n"
    "Once you've finished your reasoning, you should choose an admissible action for current step and present it within"
    " <action> </action> tags.\n"
)


def project(text: str) -> tuple[str, bool]:
    """The action in a model's answer, and whether the answer has the form asked for.

    The action may be carried out all the same. Whether it is admissible plays no part.
    """
    lower = text.lower()
    start, stop = lower.find("<action>"), lower.find("</action>")
    if start < 0 or stop < 0:
        return lower[-20:], False
    valid = "<think>" in text and "</think>" in text and not _CHINESE.search(text)
    return lower[start + len("<action>") : stop].strip(), valid


def task_of(text: str) -> str:
    """The instruction in the first observation of an episode (mode `text`)."""
    return text.split(SEPARATOR)[2]


def shown(text: str, task: str) -> str:
    """An observation as prompts and state keys have it: what follows the task, each piece in quotes."""
    parts = text.split(SEPARATOR)
    if task not in parts:
        return text
    return SEPARATOR.join(f"'{part}'" for part in parts[parts.index(task) + 1 :])


def prompt(
    task: str, observations: Sequence[str], actions: Sequence[str], admissible: Sequence[str], records: int
) -> str:
    """The user message of a step.

    Args:
        observations: all so far in their `shown` form, the current one last.
        actions: all that were taken, one fewer.
        admissible: what can be done now.
        records: steps of history to show.
    """
    taken, current = len(actions), observations[-1]
    closing = _CLOSING.format(actions="\n".join(f"'{action}'," for action in admissible))
    if taken and records:
        first = max(0, taken - records)
        history = "\n".join(
            f"[Observation {i + 1}: '{observations[i]}', Action {i + 1}: '{actions[i]}']" for i in range(first, taken)
        )
        middle = _LATER.format(taken=taken, shown=taken - first, history=history, step=taken + 1, observation=current)
        text = _OPENING.format(task=task, space="") + middle + closing
        if len(text) <= MAX_PROMPT_CHARACTERS:
            return text
    return _OPENING.format(task=task, space=" ") + _FIRST.format(observation=current) + closing
