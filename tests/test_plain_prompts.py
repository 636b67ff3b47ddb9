"""Evaluations show no skill, however many the bank has for their tasks; the comparison that is asked for shows them."""

import json
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from models import policy
from rollout_fakes import VERSION, FakeSampler
from test_skills import bank_of, evaluate

from siri import cli, eval_command
from siri.config import RunConfig
from siri.engine.checkpoint import Checkpoint
from siri.engine.config import dump_config
from siri.engine.distributed import World
from siri.envs.household.brief import brief
from siri.envs.household.source import ProceduralGames
from siri.guidance import open_guidance
from siri.prompts import Renderer
from siri.run_dir import RunState
from siri.run_record import evaluate_now
from siri.session import Session
from siri.skills import SkillBank

NUM_VALID, TURNS = 8, 2
GAMES = ProceduralGames(size="small", num_train=1, num_valid=NUM_VALID, seed=0)
TASKS = GAMES.tasks("valid")


class Listener(FakeSampler):
    """A sampler that keeps the prompts, and lets itself be handled as one with weights."""

    def load_weights(self, named_tensors: object, *, version: int) -> None:
        self.held_version = version

    def wake(self) -> None:
        pass

    def sleep(self) -> None:
        pass

    def prompts(self) -> list[tuple[str, str]]:
        """(task id, text) of each prompt; an evaluation's requests carry the index of their task."""
        return [(TASKS[request.id], renderer().decode(request.prompt_ids)) for request in self.requests]


@cache
def renderer() -> Renderer:
    return Renderer(policy().tokenizer, style="compact", shorten=brief)


def session_with(sampler: Listener) -> Session:
    return Session(source=GAMES, policy=policy(), renderer=renderer(), sampler=sampler)


def config_of(folder: Path) -> RunConfig:
    environment = {"size": "small", "num_train": 1, "num_valid": NUM_VALID, "max_turns": TURNS}
    return RunConfig.model_validate({"runs_dir": str(folder), "name": "run", "environment": environment})


def target(task_id: str) -> str:
    """The last word of the task, which says where to put things."""
    return GAMES.task(task_id).strip(".").split()[-1]


SHOWN = sorted({target(task_id) for task_id in TASKS[:4]})
"""Conditions of the skills."""


def skilled_bank() -> SkillBank:
    """Active skills that match the first tasks at least."""
    bank = bank_of(*SHOWN, n_eval=1)
    for iteration, skill in enumerate(bank.skills, 1):
        assert evaluate(bank, 1.0, id=skill.id, start=iteration) == ["active"]
    return bank


def is_matched(task_id: str) -> bool:
    return bool(set(GAMES.task(task_id).strip(".").split()) & set(SHOWN))


def assert_plain(prompts: list[tuple[str, str]]) -> None:
    assert len(prompts) == NUM_VALID * TURNS
    assert {task_id for task_id, _ in prompts} == set(TASKS)
    assert not [text for _, text in prompts if "Hint" in text or "strategy" in text]


def test_some_tasks_match_the_bank_and_some_do_not():
    assert 4 <= sum(map(is_matched, TASKS)) < NUM_VALID


def test_an_evaluation_inside_a_run_shows_no_skill(tmp_path):
    config, sampler = config_of(tmp_path), Listener()
    guidance = open_guidance(config, World(), {})
    guidance.bank, guidance.phase = skilled_bank(), "internalise"
    log = SimpleNamespace(timed=lambda _: nullcontext(), progress=lambda *_: None, note=lambda _: None)
    state = RunState(policy_version=VERSION, step=7)
    run = SimpleNamespace(
        config=config, world=World(), session=session_with(sampler), state=state, guidance=guidance, log=log
    )
    evaluate_now(run, "step-7")
    assert_plain(sampler.prompts())
    assert (state.evaluations["step-7"]["episodes"], state.evaluations["step-7"]["iterations"]) == (NUM_VALID, 7)


@pytest.fixture
def command(tmp_path, monkeypatch) -> tuple[list[str], Listener]:
    """`siri eval` on a checkpoint with that bank, and the sampler it will draw from."""
    sampler = Listener()

    @contextmanager
    def opened(*_: Any, **__: Any):
        yield session_with(sampler)

    state = {"guidance": {"bank": json.loads(json.dumps(skilled_bank().as_dict()))}}
    checkpoint = Checkpoint(step=3, path=tmp_path, state=state, random_states=())
    monkeypatch.setattr(eval_command, "open_session", opened)
    monkeypatch.setattr(eval_command, "find_checkpoint", lambda *_: checkpoint)
    (tmp_path / "config.yaml").write_text(dump_config(config_of(tmp_path)))
    return ["eval", "--run", str(tmp_path), "--split", "valid", "--json"], sampler


def test_siri_eval_shows_no_skill(command, capsys):
    words, sampler = command
    assert cli.main(words) == 0
    assert_plain(sampler.prompts())
    assert json.loads(capsys.readouterr().out)["episodes"] == NUM_VALID


def test_siri_eval_with_skills_plays_once_without_and_once_with_them(command, capsys):
    words, sampler = command
    assert cli.main([*words, "--with-skills"]) == 0
    prompts = sampler.prompts()
    assert_plain(prompts[: NUM_VALID * TURNS])
    helped = prompts[NUM_VALID * TURNS :]
    assert len(helped) == NUM_VALID * TURNS
    for task_id, text in helped:
        assert ("Hint: when " in text) == ("strategy" in text) == is_matched(task_id)
        if target(task_id) in SHOWN:
            assert f"Hint: when {target(task_id)}: strategy {1 + SHOWN.index(target(task_id))}\n" in text
    assert json.loads(capsys.readouterr().out)["skills"] == len(SHOWN)
