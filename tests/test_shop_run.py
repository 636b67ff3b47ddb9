"""A run of the shop's own configuration, small and quick, with the shipped shopping policy."""

import json
from pathlib import Path

import numpy as np
import pytest

from siri.cli import main as siri
from siri.config import RunConfig
from siri.engine.config import load_config
from siri.engine.distributed import World
from siri.session import open_session
from siri.shipped import resolve
from siri.train import main

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "webshop_tiny.yaml"
SMALL = {
    "name": "shop",
    "iterations": 3,
    "rollout.sampler": "transformers",
    "rollout.num_tasks": 6,
    "rollout.temperature": 0.4,  # at 1 it solves too few to write a skill from
    "rollout.group_size": 4,
    "eval.limit": 4,
    "optim.updates": 1,
    "phases.max_warmup": 1,
    "phases.n_succ_required": 1000,
    "phases.mining_steps": 1,
    "mining.num_shown": 4,
    "skills.n_eval": 1,
    "skills.confidence": 0.0,
    "skills.promote_above": -2.0,
    "skills.retire_below": -2.0,
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    settings = {"runs_dir": folder, **SMALL}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert main(["--config", str(CONFIG), *words]) == 0
    return folder / "shop"


def test_all_three_phases_are_played_and_scored(run_dir: Path) -> None:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["warmup", "mining", "internalise"]
    assert all(0 < line["rollout/score"] < 1 for line in lines)
    assert all(line["rollout/success_rate"] < line["rollout/score"] for line in lines)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert 0 < summary["eval"]["final"]["mean_score"] <= 1
    assert summary["environment"]["name"] == "webshop"
    assert "Mean score of the episodes" in (run_dir / "report.html").read_text()


def test_its_prompts_name_a_page_that_is_shown_again() -> None:
    config = load_config(RunConfig, str(CONFIG), ["--rollout.sampler", "transformers"])
    with open_session(config, World(), splits={"eval.split": "valid"}) as session:
        task = session.source.tasks("valid")[0]
        env, dialogue, renderer = session.source.make(task), session.renderer.dialogue(), session.renderer
        dialogue.start(task, env.reset())
        for action in ("search[shirt]", "click[nothing]", "search[shirt]"):
            ids = np.array([*renderer.literal(action), renderer.after_action[0]], np.int32)
            dialogue.advance(ids, dialogue.parse(ids), env.step(action))
        messages = renderer.tokenizer.decode(dialogue.prompt_ids()).split("<|end|>")
        assert [message.partition("<|act|>")[0].strip() for message in messages[2:]] == ["not possible", "same page"]


def test_it_writes_skills_in_the_form_it_was_taught(run_dir: Path) -> None:
    skills = json.loads((run_dir / "skills.json").read_text())["skills"]
    assert skills
    assert all(skill["condition"].startswith("you shop for ") for skill in skills)
    assert all(skill["strategy"].startswith("choose ") for skill in skills)


def test_eval_prints_the_score_too(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--run", str(run_dir), "--split", "test", "--limit", "3"]
    assert siri(words) == 0
    assert ", score 0." in capsys.readouterr().out
    assert siri([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["episodes"] == 3
    assert 0 <= result["mean_score"] <= 1


def test_without_a_run_the_shipped_policy_shops(capsys: pytest.CaptureFixture[str]) -> None:
    """`--env webshop` alone is what the run of the shop's configuration starts from."""
    words = ["--split", "test", "--limit", "3", "--json", "--rollout.sampler", "transformers"]
    assert siri(["eval", "--env", "webshop", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert siri(["eval", "--config", str(CONFIG), *words]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert (result["split"], result["prompt"], result["episodes"]) == ("test", "plain", 3)
    assert 0 <= result["mean_score"] <= 1


def test_the_shipped_policy_is_small_and_fits_its_configuration() -> None:
    folder = Path(resolve("tiny-webshop"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    made = json.loads((folder / "warmstart.json").read_text())
    assert "--env webshop" in made["command"]
    config = load_config(RunConfig, str(CONFIG))
    positions = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    assert config.policy.max_prompt_tokens + config.policy.max_action_tokens <= positions
