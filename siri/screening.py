"""From the text a model wrote to a skill, or to the reason why it is none. Pure functions; no text makes them raise.

A skill that passes is one short line of plain text that neither imitates the parts of a prompt nor talks about the
task, the instructions or the model as such. No list of words stops every unwelcome text, and none has to: a skill is
tokenised with special tokens spelled out, stands on a line that begins with "Hint:", and loses its place in the bank if
it does harm (`siri.skills`).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum

from siri.engine.errors import UserError
from siri.prompts import skill_answer, skill_block, skill_text
from siri.skills import words


class Rejection(StrEnum):
    """Why a text gives no skill. The first that applies, in this order."""

    UNPARSED = "unparsed"
    """Not the two lines of `skill_answer`."""
    EMPTY = "empty"
    """Condition or strategy without a word."""
    TOO_LONG = "too_long"
    """More characters or tokens than allowed; or the answer did not end within the tokens it was given."""
    NOT_PLAIN_TEXT = "not_plain_text"
    """Control characters, markup, special tokens; other than printable ASCII, where that is asked for."""
    INJECTION = "injection"
    """Labels of the prompt, or words about the task, the instructions or the model as such."""
    INSTANCE_NUMBER = "instance_number"
    """A numbered thing, `mug 2`, where numbers mean nothing in another task."""
    DUPLICATE = "duplicate"
    """Too similar to a known skill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenRules:
    """What a skill may be."""

    max_chars: int
    """Most characters of condition and strategy together."""
    max_tokens: int
    """Most tokens of its line in the skill block."""
    dedup_threshold: float
    """`similarity` to a known skill from which a new one is a duplicate."""
    allow_numbers: bool
    """Numbered things may be named: the environment's numbers mean the same in every task."""
    ascii_only: bool
    """Printable ASCII only. Right where the environment speaks nothing else: what the policy cannot have read there is
    noise, and look-alike letters would slip past the other rules, the search for duplicates, and retrieval."""

    def __post_init__(self) -> None:
        for name in ("max_chars", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"mining.{name}: {getattr(self, name)} must be 1 or more")
        if not 0 < self.dedup_threshold <= 1:
            raise UserError(f"mining.dedup_threshold: {self.dedup_threshold} must be above 0 and at most 1")


_WHEN, _DO = (label.strip() for label in skill_answer("", "").split("\n"))

# No environment's words need these; every chat template, tag or code fence does.
_MARKUP = re.compile(r"[<>|{}`\\]|\[/?[A-Z_]+\]")
_NUMBERED = re.compile(r"[^\W\d_][\s_#(-]*\d")
_INJECTION = re.compile(
    r"""\b(?:
    # a label, as if the skill ended here and another part of the prompt began
      (?: tasks? | goal | hints? | observations? | actions? | step \s* \d* | solved | when | do
        | system | user | human | assistant | agent | model | instructions? | prompt ) \s* :
    # "ignore the task", "forget all previous instructions", "instead of your goal"
    | (?: ignor(?:e|ing) | disregard(?:ing)? | forget(?:ting)? | overrid(?:e|ing) | bypass(?:ing)? | instead\sof )
      (?: \W+ \w+ ){0,4}? \W+
      (?: tasks? | goals? | instructions? | prompts? | hints? | rules? | messages? | previous | prior | above | earlier
        | everything ) \b
    # "the real task is", "your new instructions"
    | (?: new | real | actual | true | different | other ) \s+ (?: task | goal | instruction | objective ) s? \b
    # about the model itself
    | (?: (?:language|ai) \s+ model | chatbot | jailbreak | system \s+ prompt | as \s+ an \s+ ai
        | pretend | you \s+ are \s+ (?:now \s+)? an? \s+ (?:ai|assistant|agent|model) ) \b
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def parse_skill(text: str) -> tuple[str, str] | Rejection:
    """(condition, strategy) of a text in the two-line form of `skill_answer`, else UNPARSED or EMPTY.

    Only spaces around the parts and blank lines around the whole are forgiven.
    """
    if not text.strip():
        return Rejection.EMPTY
    lines = text.strip(" \n").split("\n")
    if len(lines) != 2 or not lines[0].startswith(_WHEN) or not lines[1].startswith(_DO):
        return Rejection.UNPARSED
    condition, strategy = lines[0].removeprefix(_WHEN).strip(" "), lines[1].removeprefix(_DO).strip(" ")
    return (condition, strategy) if words(condition) and words(strategy) else Rejection.EMPTY


def similarity(known: tuple[str, str], new: tuple[str, str]) -> float:
    """How alike two skills (condition, strategy) are, in [0, 1]; 1 for equal words in equal order.

    `difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()`, a and b the lists of words (runs of letters and
    digits, in lower case) of the known and of the new skill, condition first. Words, not characters: "you need pen:
    look at desk" and "you need pan: look at desk" are different skills, but alike to 0.96 by characters.
    """
    return SequenceMatcher(None, _all_words(known), _all_words(new), autojunk=False).ratio()


def screen(
    text: str, rules: ScreenRules, *, known: Iterable[tuple[str, str]], count_tokens: Callable[[str], int]
) -> tuple[str, str] | Rejection:
    """The skill (condition, strategy) in `text`, or the first reason against it.

    `known` are the skills it must differ from, those that were retired included; `count_tokens` counts the tokens of
    plain text.
    """
    skill = parse_skill(text)
    if isinstance(skill, Rejection):
        return skill
    if sum(map(len, skill)) > rules.max_chars:
        return Rejection.TOO_LONG
    # As a reader sees them: full-width forms and ligatures of what the rules name are the same thing.
    seen = [unicodedata.normalize("NFKC", part) for part in skill]
    if not all(_is_plain(part, ascii_only=rules.ascii_only) for part in (*skill, *seen)) or _found(_MARKUP, seen):
        return Rejection.NOT_PLAIN_TEXT
    if count_tokens(skill_block([skill_text(*skill)])) > rules.max_tokens:
        return Rejection.TOO_LONG
    if _found(_INJECTION, seen):
        return Rejection.INJECTION
    if not rules.allow_numbers and _found(_NUMBERED, seen):
        return Rejection.INSTANCE_NUMBER
    if any(similarity(other, skill) >= rules.dedup_threshold for other in known):
        return Rejection.DUPLICATE
    return skill


def _is_plain(text: str, *, ascii_only: bool) -> bool:
    """Without control, format, surrogate, private and unassigned characters, and without separators but the space."""
    return text.isprintable() and "\ufffd" not in text and (text.isascii() or not ascii_only)


def _found(pattern: re.Pattern[str], parts: Iterable[str]) -> bool:
    return any(pattern.search(part) for part in parts)


def _all_words(skill: tuple[str, str]) -> list[str]:
    return words(skill[0]) + words(skill[1])
