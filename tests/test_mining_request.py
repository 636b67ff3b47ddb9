"""How a policy is asked for a skill, and which policy is asked how."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_mining import RULES, Writer, filled, mined, renderer, success
from transformers import AutoTokenizer

from siri.config import RunConfig
from siri.demonstrations import skill_example
from siri.guidance import skill_request_of
from siri.household_plays import play, skill_of
from siri.mining import request_ids
from siri.prompts import Renderer, skill_answer, skill_block, skill_text
from siri.shipped import resolve


def test_the_request_is_the_one_the_policy_was_taught() -> None:
    """Token for token what `siri warmstart` demonstrates, up to the answer."""
    played = play(3, size="small", max_turns=20)
    steps = tuple((action, "") for action in played.actions)
    asked = request_ids(renderer(), success("game", task=played.task, steps=steps), "short")
    example = skill_example(played, skill_of(played), renderer())
    np.testing.assert_array_equal(asked, example.ids[: len(asked)])
    assert not example.weight[: len(asked)].any()
    assert example.weight[len(asked) :].all()


@pytest.mark.parametrize("style", ["compact", "tagged"])
def test_a_model_that_was_not_taught_is_told_the_form(style: str) -> None:
    text = renderer().decode(request_ids(renderer(style), success("mug"), "instruction"))
    assert "The task was to: put mug in desk.\n" in text
    assert "[Step 2] Action: go to shelf 1 Observation: mug 1\n" in text
    assert text.endswith("\nWhen: <in which situation the skill helps>\nDo: <what to do then, in one sentence>")


def test_the_answer_asked_for_fits_where_its_skill_does() -> None:
    """An answer has as many tokens as the line that shows its skill, so one limit serves for both."""
    own = Renderer(AutoTokenizer.from_pretrained(resolve("tiny")), style="compact")
    for skill in (("you need mug", "look at desk"), ("the task is to heat egg", "take it, go to microwave, heat it")):
        answer = [*own.literal(skill_answer(*skill)), own.stop_token_ids[0]]
        assert len(answer) <= len(own.literal(skill_block([skill_text(*skill)])))
    mining = RunConfig().mining
    assert mining.max_answer_tokens >= mining.max_skill_tokens


@pytest.mark.parametrize("request_", ["short", "instruction"])
def test_the_model_is_asked_as_the_rules_say(request_: str) -> None:
    sampler = Writer(answer=lambda request: "no")
    mined(sampler, filled(success("mug")), rules=replace(RULES, request=request_))
    asked = {request.prompt_ids.tobytes() for request in sampler.requests}
    assert asked == {request_ids(renderer(), success("mug"), request_).tobytes()}
    assert len({request_ids(renderer(), success("mug"), each).tobytes() for each in ("short", "instruction")}) == 2


def test_auto_asks_shortly_only_a_policy_that_was_taught(tmp_path: Path) -> None:
    def asked(model: object, **settings: object) -> str | None:
        mining = {"request": settings.pop("request", "auto")}
        policy = {"model": str(model)}
        return skill_request_of(RunConfig.model_validate({"policy": policy, "mining": mining, **settings}))

    (tmp_path / "config.json").write_text("{}")
    assert asked("tiny") == "short"
    assert asked(tmp_path) == "instruction"
    assert asked(tmp_path, request="short") == "short"
    assert asked("tiny", request="instruction") == "instruction"
    (tmp_path / "warmstart.json").write_text("{}")
    assert asked(tmp_path) == "short"
    assert asked("no/such/policy", algorithm="gigpo") is None, "the policy is not looked for where nothing is mined"
    assert asked("no/such/policy", oracle_skills="skills.json") is None
