"""How an episode is shown to the policy, and how its answer is read back: prompt styles `compact` and `tagged`.

compact: a conversation that only grows. The first message holds the task, the skill block if there is one, and the
    first observation; the policy answers with the bare action; each later message is one observation in its short form.
    Every prompt extends the one before by exactly the tokens drawn and the tokens of the new observation, so an episode
    trains as one sequence and no token is computed twice.
tagged: one self-contained message a step (role, task, skills, the last records, observation, admissible actions),
    answered by `<think>...</think><action>...</action>`, in the structure of the published GiGPO prompts.

Text of environments and skills is tokenised with special tokens taken literally: an observation that spells an
end-of-turn marker cannot end a turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from siri.engine.dialogue import Dialogue, ParsedAction
from siri.engine.environment import Observation
from siri.engine.errors import UserError

PromptStyle = Literal["compact", "tagged"]
THINK_OPEN, THINK_CLOSE, ACTION_OPEN, ACTION_CLOSE = "<think>", "</think>", "<action>", "</action>"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnMarkup:
    """The text a chat template puts around messages, cut once from the template itself."""

    before_first: str
    """From the start of the conversation to the first user message."""
    before_action: str
    """Between a user message and the assistant's answer."""
    after_action: str
    """Between the assistant's answer and the next user message; begins with the end-of-turn marker."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "TurnMarkup":
        """Read the markup off `tokenizer.chat_template`.

        Raises UserError if the tokenizer has no template, or one that rewrites earlier messages (then a later prompt
        cannot extend an earlier one).
        """
        if not tokenizer.chat_template:
            raise UserError(
                f"policy: the tokenizer of {tokenizer.name_or_path!r} has no chat template, which prompts need; "
                "use an instruct model, or set `chat_template` in its tokenizer_config.json"
            )
        user, assistant, later = "\x01USER\x01", "\x01ACTION\x01", "\x01LATER\x01"

        def render(*contents: str) -> str:
            roles = ("user", "assistant", "user")
            messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

        first, second = render(user), render(user, assistant, later)
        before_first, _, before_action = first.partition(user)
        after_action, found, ending = second.removeprefix(first + assistant).partition(later)
        if not second.startswith(first + assistant) or not found or ending != before_action or not after_action:
            raise UserError(
                f"policy: the chat template of {tokenizer.name_or_path!r} rewrites earlier turns, so a conversation "
                "cannot grow token by token; use another model, or a template without that (its chat_template.jinja, "
                "or `chat_template` in its tokenizer_config.json)"
            )
        return cls(before_first=before_first, before_action=before_action, after_action=after_action)


class Renderer:
    """Tokeniser and markup of one policy; makes the dialogues of either style."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        style: PromptStyle,
        shorten: Callable[[str], str] = str,
        unchanged: tuple[str, str] | None = None,
        history_length: int = 2,
    ) -> None:
        """`shorten` maps an observation to its short form, and `unchanged` is what stands for one with the text of the
        one before, where its action was accepted and where it was refused (both in compact style only);
        `history_length` counts the records a tagged prompt shows."""
        self.tokenizer = tokenizer
        self.style = style
        self.shorten = shorten
        self.unchanged = unchanged
        self.history_length = history_length
        self.markup = TurnMarkup.of(tokenizer)
        self._literal = lru_cache(maxsize=65536)(self._encode_literal)
        self.before_first = self._encode_markup(self.markup.before_first)
        self.before_action = self._encode_markup(self.markup.before_action)
        self.after_action = self._encode_markup(self.markup.after_action)
        ends = {self.after_action[0]}
        if tokenizer.eos_token_id is not None:
            ends.add(int(tokenizer.eos_token_id))
        self.stop_token_ids = tuple(sorted(ends))
        self.special_ids = frozenset(tokenizer.all_special_ids)

    def dialogue(self, skills: Sequence[str] = ()) -> Dialogue:
        """A new conversation; `skills` are the texts of the skill block (none: the plain prompt)."""
        kind = CompactDialogue if self.style == "compact" else TaggedDialogue
        return kind(self, tuple(skills))

    def literal(self, text: str) -> tuple[int, ...]:
        """Tokens of text from outside: special tokens in it are spelled out, not obeyed."""
        return self._literal(text)

    def _encode_literal(self, text: str) -> tuple[int, ...]:
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair, as JSON may hold, is no text to encode
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def _encode_markup(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of drawn tokens, without special tokens."""
        return str(
            self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def without_end(self, action_ids: np.ndarray) -> np.ndarray:
        """The drawn tokens up to the first end-of-turn token."""
        ends = np.flatnonzero(np.isin(action_ids, self.stop_token_ids))
        return action_ids[: ends[0]] if len(ends) else action_ids

    def span_of(self, ids: np.ndarray, start: int, stop: int) -> tuple[int, int]:
        """Half-open range of the tokens that spell characters `[start, stop)` of the decoded text."""
        ends = np.array([len(self.decode(ids[: i + 1])) for i in range(len(ids))])
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        return first, min(last + 1, len(ids))


def skill_block(skills: Sequence[str]) -> str:
    """The block between the task line and the progress block; empty without skills."""
    return "".join(f"Hint: {skill}\n" for skill in skills)


def skill_text(condition: str, strategy: str) -> str:
    """A skill as the block shows it."""
    return f"when {condition}: {strategy}"


def skill_request(task: str, actions: Sequence[str]) -> str:
    """The message that asks for a skill from a solved episode; answered by `skill_answer`."""
    return f"Solved: {task}\n {'; '.join(actions)}\nWrite a skill."


def skill_answer(condition: str, strategy: str) -> str:
    """The two-line form a skill is written in."""
    return f"When: {condition}\nDo: {strategy}"


class CompactDialogue:
    """One growing conversation; each prompt is the one before plus drawn tokens plus the new observation."""

    def __init__(self, renderer: Renderer, skills: tuple[str, ...]) -> None:
        self._renderer = renderer
        self._skills = skills
        self._ids: list[int] = []
        self._last = ""
        self.stop_token_ids = renderer.stop_token_ids

    def start(self, task: str, observation: Observation) -> None:
        r = self._renderer
        self._last = observation.text
        opening = f"Task: {task}\n{skill_block(self._skills)}"
        self._ids = [
            *r.before_first,
            *r.literal(opening),
            *r.literal(r.shorten(observation.text)),
            *r.before_action,
        ]

    def prompt_ids(self) -> np.ndarray:
        return np.array(self._ids, dtype=np.int32)

    def parse(self, action_ids: np.ndarray) -> ParsedAction:
        ids = self._renderer.without_end(action_ids)
        line = self._renderer.decode(ids)
        text = line.strip()
        special = not self._renderer.special_ids.isdisjoint(ids.tolist())  # `line` does not show these
        if not text or special or "\n" in text or len(ids) == len(action_ids):
            return ParsedAction(text=text.partition("\n")[0].strip(), span=(0, 0), parsed=False)
        return ParsedAction(text=text, span=(0, len(ids)), parsed=True)

    def advance(self, action_ids: np.ndarray, parsed: ParsedAction, observation: Observation) -> None:
        r = self._renderer
        ended = len(action_ids) > 0 and int(action_ids[-1]) == r.after_action[0]
        self._ids += [
            *(int(i) for i in action_ids),
            *r.after_action[1 if ended else 0 :],
            *r.literal(self._short_form(observation)),
            *r.before_action,
        ]
        self._last = observation.text

    def _short_form(self, observation: Observation) -> str:
        r = self._renderer
        if r.unchanged is None or observation.text != self._last:
            return r.shorten(observation.text)
        accepted, refused = r.unchanged
        return refused if observation.action_valid is False else accepted


class TaggedDialogue:
    """A self-contained prompt a step, in the structure of the published GiGPO prompts."""

    def __init__(self, renderer: Renderer, skills: tuple[str, ...]) -> None:
        self._renderer = renderer
        self._skills = skills
        self._task = ""
        self._records: list[tuple[str, str]] = []
        self._observation: Observation | None = None
        self.stop_token_ids = renderer.stop_token_ids

    def start(self, task: str, observation: Observation) -> None:
        self._task, self._observation, self._records = task, observation, []

    def prompt_ids(self) -> np.ndarray:
        assert self._observation is not None, "start() comes first"
        r = self._renderer
        ids = [*r.before_first, *r.literal(self._text(self._observation)), *r.before_action]
        return np.array(ids, dtype=np.int32)

    def _text(self, observation: Observation) -> str:
        lines = [
            "You are an agent that acts in a text environment, one action at a time.",
            f"Your task is to: {self._task}",
        ]
        if self._skills:
            lines.append(skill_block(self._skills).rstrip("\n"))
        shown = self._records[-self._renderer.history_length :] if self._renderer.history_length else []
        if shown:
            first = len(self._records) - len(shown) + 1
            lines.append(f"You have taken {len(self._records)} step(s). The most recent ones:")
            lines += [f"[Step {first + i}] Observation: {seen} Action: {done}" for i, (seen, done) in enumerate(shown)]
        lines.append(f"You are now at step {len(self._records) + 1}. Current observation: {observation.text}")
        if observation.admissible is not None:
            lines.append("Admissible actions: " + ", ".join(f"'{action}'" for action in observation.admissible))
        lines.append(
            f"First reason about the situation inside {THINK_OPEN} {THINK_CLOSE}, "
            f"then give one admissible action inside {ACTION_OPEN} {ACTION_CLOSE}."
        )
        return "\n".join(lines)

    def parse(self, action_ids: np.ndarray) -> ParsedAction:
        ids = self._renderer.without_end(action_ids)
        text = self._renderer.decode(ids)
        start = text.find(ACTION_OPEN)
        stop = text.find(ACTION_CLOSE, start)
        if start < 0 or stop < 0:
            return ParsedAction(text=text.strip()[-20:], span=(0, 0), parsed=False)
        start += len(ACTION_OPEN)
        action = text[start:stop].strip().lower()
        lead = len(text[start:stop]) - len(text[start:stop].lstrip())
        thought = THINK_OPEN in text[:start] and THINK_CLOSE in text[:start]
        if not action:
            return ParsedAction(text="", span=(0, 0), parsed=False)
        span = self._renderer.span_of(ids, start + lead, start + lead + len(text[start:stop].strip()))
        if not self._renderer.special_ids.isdisjoint(ids[slice(*span)].tolist()):  # `text` does not show these
            return ParsedAction(text=action, span=(0, 0), parsed=False)
        return ParsedAction(text=action, span=span, parsed=thought)

    def advance(self, action_ids: np.ndarray, parsed: ParsedAction, observation: Observation) -> None:
        assert self._observation is not None, "start() comes first"
        self._records.append((self._observation.text, parsed.text))
        self._observation = observation
