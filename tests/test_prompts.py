"""Dialogues: what the policy is shown, and how its answer is read back."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from siri.engine.environment import Observation
from siri.engine.errors import UserError
from siri.envs.household.brief import brief
from siri.prompts import Renderer, TurnMarkup
from siri.tiny import ACT, END, train_tokenizer

CORPUS = ["go to desk 1", "You see a mug 2, and a pen 1.", "<think>look for the mug</think><action>take mug 2</action>"]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS * 50, vocab_size=420)


def renderer(style: str, **kwargs) -> Renderer:
    return Renderer(tokenizer(), style=style, **kwargs)


def seen(text: str, admissible: tuple[str, ...] | None = ("look", "take mug 2")) -> Observation:
    return Observation(text=text, admissible=admissible, anchor=b"", reward=0.0, done=False, success=False)


def drawn(text: str, *, ended: bool = True) -> np.ndarray:
    ids = tokenizer().encode(text, add_special_tokens=False)
    return np.array([*ids, *([tokenizer().convert_tokens_to_ids(END)] if ended else [])], np.int32)


def count(ids: np.ndarray, token: str) -> int:
    return int((ids == tokenizer().convert_tokens_to_ids(token)).sum())


texts = st.text(max_size=40) | st.sampled_from([ACT, END, f"a{END}b{ACT}", "<|begin|>", "\n\n", ""])


turns_drawn = st.lists(st.tuples(texts, st.booleans(), texts), max_size=5)


@given(first=texts, turns=turns_drawn, skills=st.lists(texts, max_size=2))
def test_compact_prompts_grow_by_exactly_the_drawn_tokens_and_one_message(first, turns, skills):
    r = renderer("compact")
    dialogue = r.dialogue(skills)
    dialogue.start("put a mug in desk.", seen(first))
    for number, (action, ended, answer) in enumerate(turns):
        before = dialogue.prompt_ids()
        # One marker a message, whatever the texts spell: text from outside never acts as markup.
        assert count(before, ACT) == number + 1
        assert count(before, END) == number
        action_ids = np.array([*r.literal(action), *([r.after_action[0]] if ended else [])], np.int32)
        dialogue.advance(action_ids, dialogue.parse(action_ids), seen(answer))
        after = dialogue.prompt_ids()
        expected = [*before, *r.literal(action), r.after_action[0], *r.literal(answer), *r.before_action]
        assert after.tolist() == expected


@given(shown=st.lists(st.tuples(st.sampled_from(["a mug", "a pen"]), st.sampled_from([True, False, None])), min_size=1))
def test_in_compact_prompts_an_observation_shown_again_is_named_where_that_is_wanted(shown):
    names = {True: "same", None: "same", False: "refused"}
    told = {}
    for unchanged in (None, ("same", "refused")):
        dialogue = renderer("compact", shorten=str.upper, unchanged=unchanged).dialogue()
        dialogue.start("look.", seen(shown[0][0]))
        for text, valid in shown[1:]:
            action_ids = drawn("look")
            dialogue.advance(action_ids, dialogue.parse(action_ids), replace(seen(text), action_valid=valid))
        text = tokenizer().decode(dialogue.prompt_ids())
        told[unchanged] = [part.partition(ACT)[0] for part in text.split(END)]
    assert [part.strip()[-5:] for part in told[None]] == [text.upper() for text, _ in shown]
    for i, (text, valid) in enumerate(shown):
        again = i > 0 and text == shown[i - 1][0]
        assert told["same", "refused"][i].strip().endswith(names[valid] if again else text.upper())


def test_an_action_with_a_special_token_inside_is_not_an_action():
    r = renderer("compact")
    [marker] = tokenizer().encode(ACT, add_special_tokens=False)
    ids = np.array([*r.literal("take mug"), marker, *r.literal("2"), r.after_action[0]], np.int32)
    parsed = r.dialogue().parse(ids)
    assert (parsed.parsed, parsed.span) == (False, (0, 0))
    r = renderer("tagged")
    written = r.literal("<think>x</think><action>take mug")
    ids = np.array([*written, marker, *r.literal("2</action>"), r.after_action[0]], np.int32)
    parsed = r.dialogue().parse(ids)
    assert (parsed.parsed, parsed.span) == (False, (0, 0))
    outside = np.array([marker, *r.literal("<think>x</think><action>take mug 2</action>"), r.after_action[0]], np.int32)
    assert r.dialogue().parse(outside).parsed


def test_half_a_surrogate_pair_is_shown_as_a_question_mark():
    """JSON may hold one, and so do products that were cut in the middle of an emoji."""
    r = renderer("compact")
    assert r.literal("a mug \ud83d here") == r.literal("a mug ? here")
    for style in ("compact", "tagged"):
        dialogue = renderer(style).dialogue()
        dialogue.start("buy \ude00", seen("\ud83d", ("click[\ud83d]",)))
        assert len(dialogue.prompt_ids())


@given(text=st.text(max_size=60))
def test_literal_text_survives_the_tokenizer(text):
    r = renderer("compact")
    assert r.decode(r.literal(text)).strip() == text.encode("utf-8", "replace").decode().strip()


@pytest.mark.parametrize(
    ("text", "ended", "action", "parsed"),
    [
        ("take mug 2", True, "take mug 2", True),
        ("  take mug 2 ", True, "take mug 2", True),
        ("take mug 2", False, "take mug 2", False),
        ("take mug 2\nlook", True, "take mug 2", False),
        ("", True, "", False),
        ("   ", True, "", False),
    ],
)
def test_compact_parse(text, ended, action, parsed):
    ids = drawn(text, ended=ended)
    result = renderer("compact").dialogue().parse(ids)
    assert (result.text, result.parsed) == (action, parsed)
    assert result.span == ((0, len(ids) - 1) if parsed else (0, 0))


@pytest.mark.parametrize(
    ("text", "action", "parsed"),
    [
        ("<think>go</think><action>go to desk 1</action>", "go to desk 1", True),
        ("<think>x</think>\n<action> Take Mug 1 </action> and more", "take mug 1", True),
        ("<action>look</action>", "look", False),
        ("<think>a<action>look</action>", "look", False),
        ("<action>look</action><think>late</think>", "look", False),
        ("<think>t</think><action></action>", "", False),
        ("<think>t</think><action>  </action>", "", False),
        ("<think>t</think></action>look<action>", "", False),
        ("<think>t</think><action>look</action><action>help</action>", "look", True),
    ],
)
def test_tagged_parse(text, action, parsed):
    ids = drawn(text)
    result = renderer("tagged").dialogue().parse(ids)
    assert result.parsed == parsed
    if action:
        assert result.text == action
        start, stop = result.span
        # The span holds the action, and no token of it could be left out.
        assert action in renderer("tagged").decode(ids[start:stop]).lower()
        assert action not in renderer("tagged").decode(ids[start + 1 : stop]).lower()
        assert action not in renderer("tagged").decode(ids[start : stop - 1]).lower()
    else:
        assert result.span == (0, 0)


def test_tagged_prompt_shows_the_last_records_the_observation_and_the_admissible_actions():
    dialogue = renderer("tagged", history_length=2).dialogue(["when you need mug: look at desk"])
    dialogue.start("put a mug in desk.", seen("room"))
    first = tokenizer().decode(dialogue.prompt_ids())
    assert "You have taken" not in first
    assert "Hint: when you need mug: look at desk" in first
    for i in range(3):
        ids = drawn(f"<think>t</think><action>act {i}</action>")
        dialogue.advance(ids, dialogue.parse(ids), seen(f"seen {i}"))
    text = tokenizer().decode(dialogue.prompt_ids())
    assert "You have taken 3 step(s)" in text
    assert "[Step 2] Observation: seen 0 Action: act 1" in text
    assert "[Step 3] Observation: seen 1 Action: act 2" in text
    assert "act 0" not in text
    assert "You are now at step 4. Current observation: seen 2" in text
    assert "Admissible actions: 'look', 'take mug 2'" in text


@pytest.mark.parametrize("style", ["compact", "tagged"])
def test_the_plain_prompt_holds_nothing_of_a_skill(style):
    with_skill, plain = renderer(style).dialogue(["zebra crossing"]), renderer(style).dialogue()
    for dialogue in (with_skill, plain):
        dialogue.start("put a mug in desk.", seen("room"))
    shown, hidden = (tokenizer().decode(d.prompt_ids()) for d in (with_skill, plain))
    assert "zebra crossing" in shown
    assert hidden == shown.replace("Hint: zebra crossing\n", "")


def test_a_tokenizer_without_a_usable_chat_template_is_refused():
    bare = train_tokenizer(CORPUS, vocab_size=300)
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        TurnMarkup.of(bare)
    bare.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(UserError, match="rewrites earlier turns"):
        TurnMarkup.of(bare)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("You arrive at shelf 2. On the shelf 2, you see a pen 1, and a mug 3.", "pen 1, mug 3"),
        ("You arrive at shelf 2. On the shelf 2, you see nothing.", "nothing"),
        ("You arrive at safe 1. The safe 1 is closed.", "closed"),
        ("You open the safe 1. The safe 1 is open. In it, you see a egg 1.", "open: egg 1"),
        ("You pick up the mug 3 from the shelf 2.", "done"),
        ("You turn on the desklamp 1.", "done"),
        ("You are facing the desk 1, and drawer 2. Next to it, you see nothing.", "facing the desk 1, and drawer 2"),
        (
            "You are in the middle of a room. Looking quickly around you, you see nothing.",
            "in the middle of a room",
        ),
        ("You are carrying: a mug 1.", "You are carrying: a mug 1."),
        ("Nothing happens.", "nothing happens"),
        ("There's nothing special about mug 3.", "There's nothing special about mug 3."),
        (
            "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you"
            " see a bed 1, a desk 2, and a safe 1.\n\nYour task is to: put a mug in desk.",
            "bed 1, desk 2, safe 1",
        ),
    ],
)
def test_brief(text, short):
    assert brief(text) == short
