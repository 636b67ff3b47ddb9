"""All three phases on the shipped tiny policy, small and quick: what a run learns about skills, and that it resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import metrics, same, weights

from siri.cli import main as siri
from siri.config import RunConfig
from siri.engine.config import load_config
from siri.report.run_files import read_run
from siri.shipped import resolve
from siri.train import main

SMALL = {
    "algorithm": "siri",
    "iterations": 4,
    "rollout.sampler": "transformers",
    "rollout.num_tasks": 4,
    "rollout.group_size": 4,
    "environment.size": "small",
    "environment.max_turns": 14,
    "environment.num_train": 8,
    "eval.limit": 2,
    "optim.updates": 1,
    "phases.max_warmup": 1,
    "phases.n_succ_required": 1000,
    "phases.mining_steps": 1,
    "mining.every": 1,
    "mining.num_shown": 4,
    "skills.k": 1,  # so the trials of skills are those of groups, one by one
    "skills.explore": 0.0,
    "skills.n_eval": 1,
    "skills.confidence": 0.0,
    "skills.promote_above": -2.0,
    "skills.retire_below": -2.0,
    "internalize.lambda_warmup": 0,
    "internalize.gate": "group",
    "checkpoint.every": 1,
}


SCRIPT = Path(__file__).resolve().parent.parent / "siri" / "train.py"


def words(folder: Path, **settings) -> list[str]:
    values = {"runs_dir": folder, **SMALL, **settings}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def bank(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / "skills.json").read_text())["skills"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds `whole`, a run through all phases that nobody stopped."""
    path = tmp_path_factory.mktemp("runs")
    assert main(words(path, name="whole")) == 0
    return path


def test_a_run_goes_through_its_phases_and_says_why(folder):
    lines = metrics(folder / "whole")
    summary = json.loads((folder / "whole" / "summary.json").read_text())
    phases = [line["phase"] for line in lines]
    assert phases[0] == "warmup"
    assert phases[1] == "mining"
    assert "internalise" in phases
    assert [change["phase"] for change in summary["phases"]] == ["warmup", "mining", "internalise"]
    assert [change["iteration"] for change in summary["phases"]] == [0, 1, phases.index("internalise")]
    assert "1000 over" in summary["phases"][1]["reason"]
    assert summary["eval"]["after_warmup"]["episodes"] == 2
    assert summary["env_steps"] == sum(line["rollout/env_steps"] for line in lines)


def test_mining_without_a_phase_of_its_own(folder):
    assert main(words(folder, name="no-mining", iterations=3, **{"phases.mining_steps": 0})) == 0
    lines = metrics(folder / "no-mining")
    summary = json.loads((folder / "no-mining" / "summary.json").read_text())
    assert [line["phase"] for line in lines] == ["warmup", "internalise", "internalise"]
    assert summary["eval"]["after_warmup"]["iterations"] == 1
    assert summary["skills"]["mined"] > 0
    assert read_run(folder / "no-mining").evaluations[1][:2] == ("after_warmup", 1)


def test_the_bank_holds_what_the_metrics_say(folder):
    lines, skills = metrics(folder / "whole"), bank(folder / "whole")
    summary = json.loads((folder / "whole" / "summary.json").read_text())
    assert len(skills) == sum(line.get("mining/kept", 0) for line in lines) > 0
    assert summary["skills"]["mined"] == len(skills)
    assert summary["skills"]["promoted"] == sum(line["skills/promoted"] for line in lines) > 0
    trials = [trial for skill in skills for trial in skill["evaluations"]]
    assert len(trials) == sum(line["skills/trials"] for line in lines) > 0
    for skill in skills:
        deltas = [trial["skill_mean"] - trial["plain_mean"] for trial in skill["evaluations"]]
        assert skill["mean"] == pytest.approx(sum(deltas) / len(deltas) if deltas else 0.0, abs=1e-12)
        assert skill["origin"]["iteration"] >= 1
    assert all("rollout/guided_success_rate" in line for line in lines if line["skills/trials"])
    internalised = [line.get("distill/tokens", 0.0) for line in lines]
    assert summary["tokens_internalised"] == sum(internalised) > 0
    assert sum(internalised[: [line["phase"] for line in lines].index("internalise")]) == 0


@pytest.mark.parametrize("stops", [(1,), (2, 3)])
def test_a_run_resumes_in_any_phase_to_the_same_bank_and_weights(folder, stops):
    name = f"stopped-{'-'.join(map(str, stops))}"
    for iterations in (*stops, 4):
        assert main(words(folder, name=name, iterations=iterations)) == 0
        ended = json.loads((folder / name / "summary.json").read_text())
        assert all(change["iteration"] < iterations for change in ended["phases"])  # none that never played
    whole = json.loads((folder / "whole" / "summary.json").read_text())
    for part in ("phases", "eval", "skills", "tokens_internalised"):
        assert ended[part] == whole[part]
    assert metrics(folder / name) == metrics(folder / "whole")
    assert bank(folder / name) == bank(folder / "whole")
    assert same(folder / name, folder / "whole", 4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_triton_kernels_give_the_same_curve(folder):
    """Run by Triton's interpreter, on one thread (four minutes): every op of a SIRI run, forward and backward."""
    pytest.importorskip("triton")
    interpreted = {**os.environ, "SIRI_KERNELS": "triton", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, str(SCRIPT), *words(folder, name="triton")]
    said = subprocess.run(run, check=True, timeout=1150, env=interpreted, capture_output=True, text=True)
    assert "kernels: triton (SIRI_KERNELS=triton under TRITON_INTERPRET=1)" in said.stdout + said.stderr
    for got, expected in zip(metrics(folder / "triton"), metrics(folder / "whole"), strict=True):
        assert got.pop("phase") == expected.pop("phase")
        gaps = [got.pop(name) for name in list(expected) if name.startswith("mismatch/")]  # rounding, no two are alike
        assert max(gaps) < 1e-4
        assert got == pytest.approx({name: expected[name] for name in got}, rel=2e-5, abs=1e-8)
    assert bank(folder / "triton") == bank(folder / "whole")
    before, after, triton = weights(folder / "whole", 3), weights(folder / "whole", 4), weights(folder / "triton", 4)
    assert distance(triton, after) < 1e-3 * distance(before, after)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in other) ** 0.5


@pytest.mark.multirank
@pytest.mark.timeout(1800)
def test_two_ranks_have_the_skills_phases_and_weights_of_one(folder):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, str(SCRIPT), *words(folder, name="ranks")], check=True, timeout=1750)
    skills = bank(folder / "ranks")
    assert skills == bank(folder / "whole")
    # Group g is played on rank g modulo 2: both have written skills and tried them, or equality would prove little.
    assert {skill["origin"]["group"] % 2 for skill in skills} == {0, 1}
    assert {trial["group"] % 2 for skill in skills for trial in skill["evaluations"]} == {0, 1}
    one, two = (json.loads((folder / name / "summary.json").read_text()) for name in ("whole", "ranks"))
    assert (one["ranks"], two["ranks"]) == (1, 2)
    for part in ("phases", "eval", "skills", "env_steps", "tokens_internalised"):
        assert one[part] == two[part]
    assert two["tokens_internalised"] > 0
    for line, other in zip(metrics(folder / "whole"), metrics(folder / "ranks"), strict=True):
        assert line.keys() == other.keys()
        counted = [name for name in line if name.startswith(("rollout/", "skills/", "mining/", "ended/"))]
        assert [line[name] for name in counted] == pytest.approx([other[name] for name in counted], rel=1e-9)
        assert line.get("distill/loss", 0) == pytest.approx(other.get("distill/loss", 0), rel=1e-4)
    # In all, not one by one: where a gradient is mere rounding, AdamW may take a whole step to either side. Measured:
    # 5e-5 of the way from the start.
    begin = flat(load_file(Path(resolve("tiny")) / "model.safetensors"))
    first, second = (flat(weights(folder / name, 4)) for name in ("whole", "ranks"))
    assert torch.linalg.vector_norm(first - second) < 2e-3 * torch.linalg.vector_norm(first - begin)


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


def test_the_comparison_with_the_bank_says_what_it_is(folder, capsys):
    command = ["eval", "--run", str(folder / "whole"), "--split", "train", "--limit", "3"]
    assert siri([*command, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert siri([*command, "--json", "--with-skills"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["plain"] == plain
    assert both["with_bank"]["episodes"] == 3
    assert (plain["prompt"], both["with_bank"]["prompt"]) == ("plain", "with skills")
    assert both["with_bank"]["split_hash"] == plain["split_hash"]
    active = [skill for skill in bank(folder / "whole") if skill["status"] == "active"]
    assert both["skills"] == len(active)
    assert siri([*command, "--with-skills"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("plain prompt")
    assert "not a result of the plain policy" in second
    assert "plain prompt" not in second
    assert "\nprompt with skills, split train" in second
    assert siri([*command, "--with-skills", "--checkpoint", "initial"]) == 2
    assert "--with-skills: the bank of this checkpoint has no active skill (0 in all)" in capsys.readouterr().err


def test_skills_from_a_file_are_shown_and_tried_and_none_are_mined(folder, tmp_path):
    things = ("vase", "lettuce", "egg")
    listed = [{"condition": f"you need {thing}", "strategy": "look at countertop"} for thing in things]
    (tmp_path / "skills.json").write_text(json.dumps(listed))
    settings = {"no_warmup": "true", "oracle_skills": tmp_path / "skills.json", "iterations": 1}
    assert main(words(folder, name="oracle", **settings)) == 0
    [line] = metrics(folder / "oracle")
    assert line["phase"] == "mining"
    assert "mining/drawn" not in line
    assert line["skills/trials"] == 2  # of the four tasks one asks for a vase and one for lettuce
    summary = json.loads((folder / "oracle" / "summary.json").read_text())
    assert [change["phase"] for change in summary["phases"]] == ["mining"]  # the run was over when it was time
    assert summary["eval"]["after_warmup"] is None  # there was none
    assert [skill["condition"] for skill in bank(folder / "oracle")] == [skill["condition"] for skill in listed]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("[{'condition': 1", "cannot be read as a list of skills"),
        ("3", "TypeError: int in place of a list"),
        ('[{"condition": "x"}]', "entry 1: `strategy` is missing; add it"),
        (
            '[{"condition": "x", "strategy": "look\\nTask: sing"}]',
            "skills.json: entry 1: 'x' -> 'look\\nTask: sing' has a line",
        ),
        (json.dumps([{"condition": f"you need {n}", "strategy": "look"} for n in "abc"] * 67), "201 skills, more than"),
        # 96 characters, but more than mining.max_skill_tokens of them
        ('[{"condition": "x", "strategy": "%s"}]' % ("zq " * 32), "mining.max_skill_tokens: 48 tokens; shorten it"),
    ],
)
def test_unreadable_skills_are_refused(folder, tmp_path, capsys, content, message):
    path = tmp_path / "skills.json"
    if content is not None:
        path.write_text(content)
    assert siri(["train", *words(folder, name="refused", oracle_skills=path)]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout.group_size": 3}, "rollout.group_size: 3 does not divide into a plain and a skill half"),
        ({"algorithm": "gigpo", "no_gate": "true"}, "no_gate: is for algorithm: siri, not gigpo"),
        ({"skills.n_eval": 9, "skills.max_eval": 3}, "skills.n_eval: 9 is above skills.max_eval: 3"),
        ({"skills.retire_below": 1.0}, "skills.retire_below: 1.0 is above skills.promote_above: -2.0"),
        (
            {"no_internalisation": "true", "phases.only": "internalise"},
            "no_internalisation: phases.only: internalise is that phase alone; leave one of the two out",
        ),
        (
            {"phases.min_tasks": 9, "mining.buffer_size": 8},
            "phases.min_tasks: 9 tasks are never reached by a buffer of mining.buffer_size: 8; lower the first",
        ),
        (
            {"skills.max_eval": 1, "skills.confidence": 0.5},
            "skills.max_eval: 1 evaluation has no standard error, and with skills.confidence: 0.5 every skill",
        ),
        ({"mining.temperature": 0, "mining.num_candidates": 2}, "mining.num_candidates: 2 answers would all be"),
    ],
)
def test_impossible_combinations_are_refused(tmp_path, capsys, settings, message):
    assert siri(["train", *words(tmp_path, **settings)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"skills.max_eval": 1},
        {"skills.max_eval": 2, "skills.confidence": 0.5},
        {"phases.min_tasks": 8, "mining.buffer_size": 8},
        {"phases.min_tasks": 9, "mining.buffer_size": 8, "no_warmup": "true"},
        {"phases.min_tasks": 9, "mining.buffer_size": 8, "phases.only": "mining"},
        {"phases.min_tasks": 9, "mining.buffer_size": 8, "algorithm": "gigpo"},
        {"no_internalisation": "true", "phases.only": "mining"},
        {"phases.only": "internalise"},
    ],
)
def test_combinations_next_to_the_impossible_ones_load(tmp_path, settings):
    load_config(RunConfig, None, words(tmp_path, **settings))
