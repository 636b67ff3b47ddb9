"""The report of real runs: what the page says is what the files say, and a stopped run keeps the same samples."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from report_pages import Page, bank_of, page_of, read_lines
from test_siri_run import words

from siri import run_record
from siri.engine.distributed import World
from siri.engine.files import write_json_atomic
from siri.engine.trajectory import Ended, Trajectory, Turn
from siri.report.command import write_report
from siri.report.page import COLUMNS
from siri.train import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds `whole`, a run of the shipped tiny policy through all phases."""
    path = tmp_path_factory.mktemp("runs")
    assert main(words(path, name="whole", **{"checkpoint.every": 2})) == 0
    return path


def number(text: str) -> float:
    """What a cell shows."""
    return float(text.removesuffix("%").replace(",", "")) / (100 if text.endswith("%") else 1)


SHOWN = {
    "success": ("rollout/success_rate", 5e-4),
    "plain": ("rollout/plain_success_rate", 5e-4),
    "with skills": ("rollout/guided_success_rate", 5e-4),
    "return": ("rollout/return", 5e-4),
    "internalised tokens": ("distill/tokens", 0.5),
    "rollout tok/s": ("tokens_per_second/rollout", 0.5),
    "entropy": ("train/entropy", 5e-4),
    "seconds": ("time/iteration", 0.05),
}
"""Column of the table of iterations, its metric, and how far rounding may take it."""


def test_the_numbers_of_a_run_are_those_of_its_files(folder):
    run_dir = folder / "whole"
    page, lines = Page((run_dir / "report.html").read_text()), read_lines(run_dir / "metrics.jsonl")
    summary = json.loads((run_dir / "summary.json").read_text())

    rows = page.table("The numbers of metrics.jsonl")
    assert [row[:2] for row in rows] == [[str(line["step"]), line["phase"]] for line in lines]
    headings = [heading for heading, _, _ in COLUMNS]
    for heading, (metric, rounding) in SHOWN.items():
        column = [row[2 + headings.index(heading)] for row in rows]
        for text, line in zip(column, lines, strict=True):
            if metric in line:
                assert number(text) == pytest.approx(line[metric], abs=1.001 * rounding), heading
            else:
                assert text == "\N{EN DASH}"

    made = {name: result for name, result in summary["eval"].items() if result}
    rows = page.table("Each task once")
    assert {row[0] for row in rows} == made.keys() == {"initial", "after_warmup", "final"}
    for name, rate, interval, _, done, turns, split in rows:
        result = made[name]
        assert rate == f"{result['success_rate']:.1%}"
        assert interval.split() == [f"{result['low']:.1%}", "to", f"{result['high']:.1%},", "n", "=", "2"]
        assert number(turns) == pytest.approx(result["mean_turns"], abs=0.05)
        assert split == f"valid ({result['split_hash'][:12]})"
        assert done == {"initial": "0", "after_warmup": "1", "final": "4"}[name]
    for task_type, *cells in page.table("Success by task type"):
        for name, cell in zip(("initial", "after_warmup", "final"), cells, strict=True):
            assert cell.startswith(f"{made[name]['by_type'][task_type]['success_rate']:.1%}")

    phases = [[change["phase"], str(change["iteration"]), change["reason"]] for change in summary["phases"]]
    assert page.table("When each phase began") == phases
    assert summary["tokens_internalised"] > 0
    assert f"{summary['tokens_internalised']:,.0f}" in page.section("internalisation").text
    assert summary["device"] in page.section("settings").text
    for activity, seconds, _ in page.table("Wall-clock seconds"):
        assert number(seconds) == pytest.approx(summary["wall_seconds"][activity], abs=0.0501)
    assert (summary["git_commit"] or "not from a git checkout") in page.section("settings").text


def test_the_skills_of_a_run_are_those_of_its_bank(folder):
    page = Page((folder / "whole" / "report.html").read_text())
    skills = {skill["id"]: skill for skill in json.loads((folder / "whole" / "skills.json").read_text())["skills"]}
    rows = [row for status in ("active", "candidate", "retired") if status in {s["status"] for s in skills.values()}
            for row in page.table(f"Skills that are {status}")]  # fmt: skip
    assert len(rows) == len(skills) > 0
    for text, status, count, utility, origin, history in rows:
        id, _, shown = text.partition(" ")
        skill = skills[id]
        assert shown == f"when {skill['condition']}: {skill['strategy']}"
        assert (status, int(count)) == (skill["status"], len(skill["evaluations"]))
        deltas = [trial["skill_mean"] - trial["plain_mean"] for trial in skill["evaluations"]]
        assert utility == "untested" if not deltas else number(utility.split()[0]) == pytest.approx(
            np.mean(deltas), abs=5e-4
        )  # fmt: skip
        assert skill["origin"]["task_id"] in origin
        for change in skill["changes"]:
            assert f"{change['iteration']}: {change['status']}, {change['reason']}" in history


def test_pairs_of_episodes_stand_side_by_side(folder):
    page, samples = Page((folder / "whole" / "report.html").read_text()), read_lines(folder / "whole" / "samples.jsonl")
    pairs = page.section("episodes").all("details")
    assert len(pairs) == len(samples) > 1
    for pair, sample in zip(pairs, samples, strict=True):
        assert sample["task"] in pair.text
        assert sample["skills"][0] in pair.text
        for half, name in zip(pair.all("ol"), ("plain", "guided"), strict=True):
            turns = half.all("li")
            assert len(turns) == len(sample[name]["turns"])
            for turn, (observation, action, valid) in zip(turns, sample[name]["turns"], strict=True):
                assert turn.all("div")[0].text == observation
                assert action in turn.text
                assert ("not valid" in turn.text) is not valid


def test_a_sample_is_the_first_pair_of_the_first_group_that_was_played_both_ways(folder):
    lines = {line["step"]: line for line in read_lines(folder / "whole" / "metrics.jsonl")}
    skills = json.loads((folder / "whole" / "skills.json").read_text())["skills"]
    samples = read_lines(folder / "whole" / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [step for step, line in lines.items() if line["skills/trials"]]
    for sample in samples:
        trials = [trial for skill in skills for trial in skill["evaluations"] if trial["iteration"] == sample["step"]]
        first = min(trials, key=lambda trial: trial["group"])
        assert (sample["task_id"], sample["delta"]) == (first["task_id"], first["skill_mean"] - first["plain_mean"])
        assert sample["skills"] == [
            f"when {s['condition']}: {s['strategy']}" for s in skills if s["id"] in first["skills"]
        ]


def copy_run(whole: Path, name: str, *without: str) -> Path:
    """The run under another name, without some of its files."""
    run_dir = whole.parent / name
    shutil.copytree(whole, run_dir, symlinks=True)
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("name: whole", f"name: {name}", 1))
    for file in without:
        (run_dir / file).unlink()
    return run_dir


def killed_after_iteration_2(whole: Path, name: str) -> Path:
    """The run as if it had been killed while it wrote the line of iteration 3."""
    run_dir = copy_run(whole, name, "summary.json", "report.html", "checkpoints/latest", "checkpoints/best")
    shutil.rmtree(run_dir / "checkpoints" / "step-4")
    state = json.loads((run_dir / "checkpoints" / "step-2" / "state.json").read_text())["state"]
    write_json_atomic(run_dir / "skills.json", state["guidance"]["bank"])
    lines = (whole / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_bytes(b"".join(lines[:3]) + b'{"step": 3, "phase": "\xc3')
    return run_dir


def test_a_run_that_was_stopped_twice_has_a_page_each_time_and_the_same_samples_in_the_end(folder, monkeypatch):
    whole = folder / "whole"
    run_dir = killed_after_iteration_2(whole, "stopped")
    page = page_of(run_dir)
    assert "3 of 4 iterations are done" in page.root.text
    assert "cut off while it was written" in page.root.text
    assert [row[0] for row in page.table("The numbers of metrics.jsonl")] == ["0", "1", "2"]
    assert {row[0] for row in page.table("Each task once")} == {"initial", "after_warmup"}
    assert "written when the run ends" in page.section("settings").text
    assert len(page.section("episodes").all("details")) == 2  # that of iteration 3 belongs to a future

    def stop(*_):
        raise KeyboardInterrupt

    resume = words(folder, name="stopped", **{"checkpoint.every": 2})
    with monkeypatch.context() as patch:
        patch.setattr("siri.train.keep_sample", stop)
        with pytest.raises(KeyboardInterrupt):
            main(resume)
    assert "2 of 4 iterations are done" in page_of(run_dir).root.text
    assert main(resume) == 0
    assert (run_dir / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    page, other = (Page((path / "report.html").read_text()) for path in (run_dir, whole))
    assert "Finished: 4 iterations" in page.root.text
    for section in ("success", "evaluations", "phases", "skills", "internalisation", "episodes"):
        assert page.section(section).text == other.section(section).text


def test_a_report_that_cannot_be_drawn_does_not_fail_the_run(folder, monkeypatch, capsys):
    run_dir = copy_run(folder / "whole", "undrawn", "summary.json", "report.html")  # so these two are written again

    def fail(run_dir):
        raise ZeroDivisionError("no room for the axis")

    monkeypatch.setattr(run_record, "write_report", fail)
    assert main(words(folder, name="undrawn", **{"checkpoint.every": 2})) == 0
    assert json.loads((run_dir / "summary.json").read_text())["iterations"] == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "no report (ZeroDivisionError: no room for the axis)" in said
    assert f"siri report --run {run_dir}" in said


def test_the_same_files_give_the_same_bytes(folder, tmp_path):
    before = (folder / "whole" / "report.html").read_bytes()
    assert write_report(folder / "whole").read_bytes() == before
    moved = tmp_path / "whole"
    shutil.copytree(folder / "whole", moved, copy_function=shutil.copyfile)  # without the times of the files
    assert write_report(moved).read_bytes() == before


def played(group: int, member: int, *, guided: bool, ended: Ended = Ended.DONE, text: str = "a room") -> Trajectory:
    turn = Turn(
        prompt_ids=np.zeros(1, np.int32), action_ids=np.zeros(1, np.int32), behavior_logprob=np.zeros(1, np.float32),
        action_span=(0, 1), observation=text, action=f"go {group}.{member}", anchor=b"", reward=0.0, action_valid=True,
        policy_version=0,
    )  # fmt: skip
    return Trajectory(
        group=group, member=member, task_id=f"t/{group}", task_type="heat", task=f"task {group}",
        condition=("s0001",) if guided else (), turns=(turn,), success=guided, ended=ended,
    )  # fmt: skip


def test_samples_are_few_short_and_of_episodes_that_ended(tmp_path):
    run = SimpleNamespace(
        world=World(),
        config=SimpleNamespace(run_dir=tmp_path),
        guidance=SimpleNamespace(bank=bank_of(("cold", "heat"))),
    )
    episodes = [
        played(1, 0, guided=False), played(1, 1, guided=False),  # no skill matched: not in `effect`
        played(2, 0, guided=False, ended=Ended.ENV_ERROR), played(2, 1, guided=False, text="x" * 5000),
        played(2, 2, guided=True), played(2, 3, guided=True), played(4, 0, guided=False), played(4, 2, guided=True),
    ]  # fmt: skip
    for step in range(1024):
        run_record.keep_sample(run, step, episodes if step else [], {4: 0.25, 2: 0.5} if step else {})
    samples = read_lines(tmp_path / "samples.jsonl")
    steps = [sample["step"] for sample in samples]
    assert steps == [*range(1, 64), *range(64, 128, 2), *range(128, 256, 4), *range(256, 512, 8), *range(512, 1024, 16)]
    sample = samples[0]
    assert (sample["task_id"], sample["task"], sample["delta"]) == ("t/2", "task 2", 0.5)
    assert sample["skills"] == ["when cold: heat"]
    [[observation, action, valid]] = sample["plain"]["turns"]
    assert (len(observation), action, valid) == (1201, "go 2.1", True)
    assert sample["guided"] == {"success": True, "ended": "done", "turns": [["a room", "go 2.2", True]]}
    run_record.keep_sample(run, 100, [], {})  # iteration 100 is run again, and has no pair now
    assert [sample["step"] for sample in read_lines(tmp_path / "samples.jsonl")] == [
        step for step in steps if step < 100
    ]


@pytest.mark.parametrize(("effects", "task"), [([{}, {3: 0.25, 1: 0.5}], "t/1"), ([{4: 0.125}, {3: 0.25}], "t/3")])
def test_the_sample_is_the_first_group_of_all_ranks(tmp_path, monkeypatch, effects, task):
    """With half of the groups paired, rank 0 of two has no pair at all: groups 1, 3, 5, ... are played on rank 1."""

    def keep(gather):
        monkeypatch.setattr(run_record, "all_gather_object", lambda world, own: gather(own))
        for rank, effect in enumerate(effects):
            config, guidance = SimpleNamespace(run_dir=tmp_path), SimpleNamespace(bank=bank_of(("cold", "heat")))
            run = SimpleNamespace(world=World(rank=rank, size=2), config=config, guidance=guidance)
            episodes = [played(group, member, guided=bool(member)) for group in effect for member in range(2)]
            run_record.keep_sample(run, 7, episodes, effect)

    parts: list = []
    keep(lambda own: parts.append(own) or [])
    keep(lambda own: parts[:2])
    assert [sample["task_id"] for sample in read_lines(tmp_path / "samples.jsonl")] == [task]
