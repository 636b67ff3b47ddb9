"""Skills from a file in place of mined ones (`oracle_skills`): read, and held to the rules of mined text."""

import json
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import yaml

from siri.engine.errors import UserError
from siri.prompts import skill_answer
from siri.screening import Rejection, ScreenRules, screen
from siri.skills import words

_SHOWN_CHARS = 60
"""Most characters of a text in a message."""


def read_skills(
    path: str,
    *,
    rules: ScreenRules,
    max_size: int,
    count_tokens: Callable[[str], int],
    vocabulary: Set[str] = frozenset(),
) -> list[tuple[str, str]]:
    """(condition, strategy) of each skill in a JSON or YAML file: a list, or the `skills.json` of a run.

    Retired skills of a run are left out. All others must pass `screen`, but may be as similar as the writer of the file
    wants; the same words twice are a slip, and refused. `vocabulary` is that of `screen`. Raises UserError for any
    entry that does not pass, for more than `max_size` (the bank would retire the first of them), for none at all, and
    for a file that is something else.
    """
    listed = enumerate(_entries(path), 1)
    entries = {number: entry for number, entry in listed if not (isinstance(entry, dict) and _is_retired(entry))}
    if not entries:
        raise UserError(f"oracle_skills: {path} holds no skill that is not retired; give a file with one or more")
    if len(entries) > max_size:
        raise UserError(
            f"oracle_skills: {path} holds {len(entries)} skills, more than skills.max_size: {max_size}; "
            f"raise skills.max_size to {len(entries)}, or take skills out of the file"
        )
    found: dict[tuple[str, ...], int] = {}
    skills = []
    for number, entry in entries.items():
        where = f"oracle_skills: {path}: entry {number}"
        skill = _screened(_texts(entry, where), where, rules, count_tokens, vocabulary)
        same = found.setdefault((*words(skill[0]), "->", *words(skill[1])), number)
        if same != number:
            raise UserError(f"{where}: {_shown(skill)} has the words of entry {same}; take one of the two out")
        skills.append(skill)
    return skills


def _entries(path: str) -> list[Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
        listed = content["skills"] if isinstance(content, dict) else content
        if not isinstance(listed, list):
            raise TypeError(f"{type(listed).__name__} in place of a list")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
        raise UserError(
            f"oracle_skills: {path} cannot be read as a list of skills ({reason}); give a JSON or YAML file with "
            "`condition` and `strategy` in each entry, or the skills.json of a run"
        ) from error
    return listed


def _is_retired(entry: dict[str, Any]) -> bool:
    return entry.get("status") == "retired"


def _texts(entry: Any, where: str) -> tuple[str, str]:
    """Condition and strategy of an entry, as they stand there."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {_shown(entry)} is not a skill; give it a `condition` and a `strategy`")
    for name in ("condition", "strategy"):
        if name not in entry:
            raise UserError(f"{where}: `{name}` is missing; add it")
        if not isinstance(entry[name], str):
            raise UserError(f"{where}: {name}: {_shown(entry[name])} is not text; write it in words, or in quotes")
    return entry["condition"], entry["strategy"]


def _screened(
    texts: tuple[str, str],
    where: str,
    rules: ScreenRules,
    count_tokens: Callable[[str], int],
    vocabulary: Set[str],
) -> tuple[str, str]:
    skill = screen(skill_answer(*texts), rules, known=(), count_tokens=count_tokens, vocabulary=vocabulary)
    if not isinstance(skill, Rejection):
        return skill
    broken = {
        Rejection.UNPARSED: "has a line break; write condition and strategy on one line each",
        Rejection.EMPTY: "has a condition or a strategy without a word; write both, or take the entry out",
        Rejection.TOO_LONG: (
            f"has more than mining.max_chars: {rules.max_chars} characters or mining.max_skill_tokens: "
            f"{rules.max_tokens} tokens; shorten it, or raise these settings"
        ),
        Rejection.NOT_PLAIN_TEXT: "is not plain text (printable ASCII without markup); write it in plain words",
        Rejection.INJECTION: (
            "has a label of the prompt, or words that lead away from the task or are about the model; say only what to "
            "do in which situation"
        ),
        Rejection.INSTANCE_NUMBER: (
            "names a thing by its number, which means another thing in another task; name the kind of thing alone"
        ),
        Rejection.UNKNOWN_WORDS: (
            f"has a condition or a strategy with fewer than {rules.min_known:.0%} words that are plain English or the "
            "environment's; write it in such words"
        ),
    }
    raise UserError(f"{where}: {_shown(texts)} {broken[skill]}")


def _shown(value: Any) -> str:
    """Safe to print, and short: a pair as condition and strategy."""
    if isinstance(value, tuple):
        return " -> ".join(map(_shown, value))
    text = ascii(value[: _SHOWN_CHARS + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARS + 2 else f"{text[:_SHOWN_CHARS]}..."
