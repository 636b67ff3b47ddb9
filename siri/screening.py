"""From the text a model wrote to a skill, or to the reason why it is none. Pure functions; no text makes them raise.

A skill that passes is one short line of plain text that neither imitates the parts of a prompt, nor leads away from the
task or the instructions, nor talks about the model as such. No list of words stops every unwelcome text, and none has
to: a skill is tokenised with special tokens spelled out, stands on a line that begins with "Hint:", and loses its place
in the bank if it does harm (`siri.skills`).
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
    """Labels of the prompt, or words that lead away from the task or the instructions, or about the model as such."""
    INSTANCE_NUMBER = "instance_number"
    """A numbered thing, `mug 2` or `2 mug`, where numbers mean nothing in another task."""
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
# "mug 2", "mug (2", "mug_2"; and "2 mug", "2-mug". Not "it, 2. take it": full stops and commas end a thing's name.
_NUMBERED = re.compile(r"[^\W\d_][\s_#(-]*\d|\d[\s_-]*[^\W\d_]")

# Verbose patterns, put together below. Skills speak of the task too ("the task is to heat something", "stop when the
# task is done", "ignore mugs that the task does not name"), so its name alone is no reason.
_LABEL = r"""(?: tasks? | goals? | hints? | observations? | actions? | step \s* \d* | solved | when | do | system | user
    | human | assistant | agent | model | instructions? | prompt | objectives? | you \s saw | recent \s ones ) \s* :"""
_DEFINED = r"\b (?: tasks? | goals? | objectives? | instructions? ) \s+ (?: is | was | are | were )"
_GOAL = r"""(?: tasks? | goals? | objectives? | instructions? | prompts? ) \b
    (?! \s+ (?: do | does | did ) (?: \s+ not | n't ) | \s+ (?: before | until | unless | without ) \b )"""
_NOT = r"\b (?: do \s+ not | don't | never | no \s+ longer | not \s+ to | need \s+ not | needn't )"
_THE = r"(?: \s+ (?: the | your | this | that | these | those | its | my | our | any | all | every | of | previous"
_THE += r" | prior | earlier | above | given | current | original | first | whole | entire ) \b )*"
_WORK = r"""(?: \s+ (?: to | on | with | at | about | work(?:ing)? | do(?:ing)? | follow(?:ing)? | obey(?:ing)?
    | try(?:ing)? | pursu(?:e|ing) | solv(?:e|ing) | complet(?:e|ing) | finish(?:ing)? | perform(?:ing)?
    | car(?:e|ing) ) \b )*"""
_INJECTION = re.compile(
    rf"""\b {_LABEL}
    # a label in other words: "your task is to:"
    | {_DEFINED} (?: \s+ now )? (?: \s+ to )? \s* :
    # "ignore the task", "forget all previous instructions", "never mind the hint"; "do not forget the goal" is honest
    | (?<! not \s ) (?<! n't \s ) (?<! never \s )
      \b (?: ignor(?:e|ing) | disregard(?:ing)? | forget(?:ting)? | overrid(?:e|ing) | bypass(?:ing)?
        | disobey(?:ing)? | neglect(?:ing)? | abandon(?:ing)? | never \s* mind )
      (?: \W+ (?: (?: everything | anything | whatever ) \W+ in | (?! (?: not | in | from ) \b ) \w+ ) ){{0,4}}? \W+
      (?: {_GOAL} | (?: hints? | rules? | messages? ) \b
        # "products above the price", "everything else" are things
        | (?: previous | prior | above | earlier | everything (?: \s+ (?: above | before | so \s+ far ) )? )
          \b \s* (?: $ | \band\b | [^\w\s] ) )
    # "skip the task", "stop working on the task", "sing instead of doing the task"; "stop when the task is done" is not
    | (?<! not \s ) (?<! n't \s ) (?<! never \s )
      \b (?: skip(?:ping)? | stop(?:ping)? | quit(?:ting)? | ceas(?:e|ing) | cancel | giv(?:e|ing) \s+ up
        | refus(?:e|ing) | reject(?:ing)? | declin(?:e|ing) | avoid(?:ing)?
        | (?: instead \s+ of | rather \s+ than ) (?: \s+ what(?:ever)? )? )
      {_WORK} {_THE} \s+ {_GOAL}
    # "do not do the task"
    | {_NOT} \s+ (?: do | follow | obey | try | attempt | pursue | solve | complete | finish | perform | work | care
        | mind | read | heed ) {_WORK} {_THE} \s+ {_GOAL}
    # "the real task is", "your new instructions"
    | \b (?: new | real | actual | true | different | other ) \s+ (?: task | goal | instruction | objective ) s? \b
    # about the model itself
    | \b (?: (?:language|ai) \s+ model | chatbot | jailbreak | system \s+ prompt | as \s+ an \s+ ai
        | pretend | you \s+ are \s+ (?:now \s+)? an? \s+ (?:ai|assistant|agent|model) ) \b""",
    re.IGNORECASE | re.VERBOSE,
)
# Of the whole line "when CONDITION: STRATEGY", which makes a label of a condition that ends in "your task is to". One
# that ends in "a task" is honest: there a label is one only where a sentence begins, which is also where a strategy
# says anew what the task is.
_LINE = re.compile(
    rf"""(?: ^ | [.!?;:] ) \s* {_LABEL}
    | {_DEFINED} (?: \s+ now )? \s+ to \s* :
    | [.!?;:] \s* (?: the | your | my | our ) \s+ (?: tasks? | goals? ) \s+ (?: is | was ) (?: \s+ now )? \s+ to \b""",
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
    if _found(_INJECTION, seen) or _found(_LINE, [skill_text(*seen)]):
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
