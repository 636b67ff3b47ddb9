"""The whole loop on a minuscule model: what a run leaves, and that a stopped run is as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import model_directory, policy
from safetensors.torch import load_file

from siri.config import LossConfig, OptimConfig, RunConfig
from siri.engine.distributed import World
from siri.engine.errors import UserError
from siri.engine.metrics import without_clock
from siri.engine.optim import BadStepGuard, ShardedAdamW
from siri.engine.rollout_vllm import vllm_is_installed
from siri.envs.household import HouseholdEnv
from siri.kernels import linear_policy_loss
from siri.run import Run, collect_episodes, draw_tasks
from siri.run_dir import RunState, check_run_dir
from siri.shipped import _move_into_place
from siri.train import main
from siri.update import update

SMALL = {
    "iterations": 4,
    "rollout.sampler": "transformers",
    "rollout.num_tasks": 4,
    "rollout.group_size": 2,
    "environment.size": "small",
    "environment.max_turns": 3,
    "environment.num_train": 6,
    "environment.num_valid": 4,
    "policy.max_prompt_tokens": 300,
    "policy.max_action_tokens": 6,
    "optim.max_batch_tokens": 512,
    "optim.lr": 1e-3,
    "loss.kl_coef": 0.01,
    "checkpoint.every": 1,
}


def words(folder: Path, **settings) -> list[str]:
    model = folder / "model"
    if not model.exists():
        model_directory(model, hidden=16, layers=1)
    values = {"runs_dir": folder, "policy.model": model, **SMALL, **settings}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def metrics(run_dir: Path) -> list[dict]:
    return [without_clock(json.loads(line)) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"step-{step}" / "policy" / "model.safetensors")


def same(one: Path, other: Path, step: int) -> bool:
    first, second = weights(one, step), weights(other, step)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds `whole`, a run of four iterations that nobody stopped."""
    path = tmp_path_factory.mktemp("runs")
    assert main(words(path, name="whole")) == 0
    return path


def test_a_run_leaves_its_configuration_metrics_checkpoints_and_summary(folder):
    run_dir = folder / "whole"
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(line["rollout/episodes"] == 8 for line in lines)
    assert all(line["mismatch/mean"] < 1e-3 for line in lines)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir() if not path.is_symlink())[-1] == "step-4"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["eval"]["initial"]["episodes"] == summary["eval"]["final"]["episodes"] == 4
    assert summary["eval"]["final"]["split_hash"] == summary["eval"]["initial"]["split_hash"]
    assert summary["skills"] == {
        "mined": 0, "promoted": 0, "candidate": 0, "active": 0, "retired": 0,
        "effect_since_promotion": None, "groups_since_promotion": 0,
    }  # fmt: skip
    assert summary["phases"] == [{"iteration": 0, "phase": "warmup", "reason": "the run begins"}]
    assert summary["tokens_per_second"]["rollout"] > 0
    assert summary["wall_seconds"]["train"] > 0
    gaps = [line["mismatch/mean"] for line in lines]
    assert summary["mismatch"]["mean"] == pytest.approx(sum(gaps) / 4, rel=1e-6)
    assert summary["mismatch"]["max"] == max(line["mismatch/max"] for line in lines)
    assert [line["rollout/nonfinite_logprobs"] for line in lines] == [0] * 4
    assert os.readlink(run_dir / "checkpoints" / "best") == "step-4"
    assert summary["seed"] == 0
    assert {"algorithm", "environment", "policy", "git_commit", "versions", "device"} <= summary.keys()


def test_weights_change_and_the_seed_decides_how(folder):
    before, after = weights(folder / "whole", 3), weights(folder / "whole", 4)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert main(words(folder, name="again")) == 0
    assert same(folder / "again", folder / "whole", 4)
    assert metrics(folder / "again") == metrics(folder / "whole")
    assert main(words(folder, name="other", seed=1)) == 0
    assert not same(folder / "other", folder / "whole", 4)


def test_a_run_that_ended_is_not_run_again(folder, capsys):
    names = ("metrics.jsonl", "summary.json", "skills.json")
    before = [(folder / "whole" / name).read_bytes() for name in names]
    assert main(words(folder, name="whole")) == 0
    assert [(folder / "whole" / name).read_bytes() for name in names] == before
    assert "this run is over (4 iterations)" in capsys.readouterr().out


def test_generators_of_the_process_go_on_where_they_were(folder, monkeypatch):
    """Nothing of ours draws from them; an environment may."""
    step = HouseholdEnv.step

    def noisy(self, action):
        noise = random.random() + torch.rand(()).item() + float(np.random.rand())
        return replace(step(self, action), reward=noise)

    monkeypatch.setattr(HouseholdEnv, "step", noisy)
    assert main(words(folder, name="noisy")) == 0
    assert main(words(folder, name="noisy-other", seed=1)) == 0
    assert metrics(folder / "noisy")[0]["rollout/return"] != metrics(folder / "noisy-other")[0]["rollout/return"]
    calls = []

    def stopped(run, step):
        calls.append(step)
        if calls == [0, 1, 2]:
            raise KeyboardInterrupt
        return collect_episodes(run, step)

    monkeypatch.setattr("siri.train.collect_episodes", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(words(folder, name="noisy-stopped"))
    assert main(words(folder, name="noisy-stopped")) == 0
    assert calls == [0, 1, 2, 2, 3]
    assert metrics(folder / "noisy-stopped") == metrics(folder / "noisy")
    assert same(folder / "noisy-stopped", folder / "noisy", 4)


def test_evaluated_weights_are_kept_and_the_best_of_them_is_best(folder):
    settings = {"name": "evaluated", "eval.every": 2, "checkpoint.every": 3, "checkpoint.keep_last": 9}
    assert main(words(folder, **settings)) == 0
    kept = [path.name for path in (folder / "evaluated" / "checkpoints").iterdir() if not path.is_symlink()]
    assert sorted(kept) == ["step-2", "step-3", "step-4"]
    assert os.readlink(folder / "evaluated" / "checkpoints" / "best") in ("step-2", "step-4")


def test_more_iterations_go_on_where_the_run_ended(folder):
    assert main(words(folder, name="longer", iterations=2)) == 0
    assert main(words(folder, name="longer")) == 0
    assert same(folder / "longer", folder / "whole", 4)
    assert metrics(folder / "longer") == metrics(folder / "whole")


@pytest.mark.parametrize("ended_before", [False, True])
def test_a_run_that_is_told_to_end_where_it_was_stopped_reports_the_weights_of_then(folder, monkeypatch, ended_before):
    name = f"shortened-{ended_before}"
    if ended_before:
        assert main(words(folder, name=name, iterations=2)) == 0
        assert ends_with(folder / name) == (2, 2)

    def stopped(run, step):
        if step == 3:
            raise KeyboardInterrupt
        return collect_episodes(run, step)

    with monkeypatch.context() as patch:
        patch.setattr("siri.train.collect_episodes", stopped)
        with pytest.raises(KeyboardInterrupt):
            main(words(folder, name=name))
    assert main(words(folder, name=name, iterations=3)) == 0
    assert ends_with(folder / name) == (3, 3)
    assert [line["step"] for line in metrics(folder / name)] == [0, 1, 2]


def ends_with(run_dir: Path) -> tuple[int, int]:
    """Iterations of the run, and of the weights that its final evaluation is of."""
    summary = json.loads((run_dir / "summary.json").read_text())
    return summary["iterations"], summary["eval"]["final"]["iterations"]


def start(folder: Path, name: str, **settings) -> subprocess.Popen:
    script = Path(__file__).resolve().parent.parent / "siri" / "train.py"
    command = [sys.executable, str(script), *words(folder, name=name, **settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def processes_of(session: int) -> list[int]:
    """Live processes of a session: what a run could leave behind."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("sampler", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_killed_at_random_moments_is_the_same_as_never_stopped(tmp_path, sampler):
    """20 SIGKILLs, each a random while after the start of its sitting: from start-up to the last checkpoint.

    A run that came to its end between two kills is compared, and the next one is begun.
    """
    if sampler == "vllm" and not vllm_is_installed():
        pytest.skip("vllm is not installed")
    model_directory(tmp_path / "model", hidden=128, layers=1)  # heads of 32: vLLM's CPU kernels have none of 4
    settings = {"rollout.sampler": sampler, "iterations": 6}
    began = time.monotonic()
    whole = start(tmp_path, "whole", **settings)
    assert whole.wait() == 0, whole.stdout.read()
    duration = time.monotonic() - began
    chance = random.Random(0)
    kills = runs = 0
    while kills < 20:
        began = time.monotonic()
        process = start(tmp_path, f"killed-{runs}", **settings)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(0.2, 1.0) * duration)
        if process.poll() is not None:
            duration = min(duration, time.monotonic() - began)  # the machine was busier before
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        assert processes_of(process.pid) == []
        if kills == 20 and process.returncode != 0:
            process = start(tmp_path, f"killed-{runs}", **settings)
            process.wait()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, process.stdout.read()
            assert same(tmp_path / f"killed-{runs}", tmp_path / "whole", 6)
            assert metrics(tmp_path / f"killed-{runs}") == metrics(tmp_path / "whole")
            runs += 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_ends_the_run_with_its_code_and_no_process_left(folder, number, code):
    process = start(folder, f"stopped-{int(number)}")
    deadline = time.monotonic() + 90
    while not (folder / f"stopped-{int(number)}" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert processes_of(process.pid) == []


@pytest.mark.multirank
@pytest.mark.timeout(600)
def test_two_ranks_train_as_one(folder):
    script = Path(__file__).resolve().parent.parent / "siri" / "train.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, str(script), *words(folder, name="ranks")], check=True, timeout=550)
    one, two = metrics(folder / "whole"), metrics(folder / "ranks")
    assert [line["rollout/success_rate"] for line in one] == [line["rollout/success_rate"] for line in two]
    for line, other in zip(one, two, strict=True):
        assert line["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-4)
    first, second = weights(folder / "whole", 4), weights(folder / "ranks", 4)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


def test_tasks_are_drawn_without_repeats_until_the_split_is_through():
    tasks = [f"t{i}" for i in range(7)]
    stream = draw_tasks(tasks, 0, 21, seed=3)
    for epoch in range(3):
        assert sorted(stream[7 * epoch : 7 * epoch + 7]) == tasks
    assert stream[:7] != stream[7:14]
    assert draw_tasks(tasks, 5, 6, seed=3) == stream[5:11]


def test_an_iteration_whose_every_episode_was_lost_changes_nothing():
    subject = policy()
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    optimizer = ShardedAdamW(subject.model.named_parameters(), World(), schedule=lambda step: 1.0)
    metrics_of_it = update(
        subject, None, optimizer, [],
        loss_config=LossConfig(), optim_config=OptimConfig(), temperature=1.0, world=World(),
        guard=BadStepGuard(max_in_a_row=1), dump=lambda minibatch: None,
    )  # fmt: skip
    assert metrics_of_it == {"train/skipped_steps": 0.0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.model.state_dict().items())


def test_gradients_that_stay_nonfinite_stop_the_run_with_the_reason(folder, monkeypatch, capsys):
    def poisoned(*args, **kwargs):
        loss, stats = linear_policy_loss(*args, **kwargs)
        return loss * float("nan"), stats

    monkeypatch.setattr("siri.update.linear_policy_loss", poisoned)
    settings = {"name": "poisoned", "optim.max_bad_steps": 6, "optim.updates": 4, "checkpoint.every": 1}
    assert main(words(folder, **settings)) == 1
    assert "not finite 6 steps in a row (max_bad_steps: 6)" in capsys.readouterr().err
    run_dir = folder / "poisoned"
    [line] = metrics(run_dir)
    assert line["train/skipped_steps"] == 4
    start = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(tensor, start[name]) for name, tensor in weights(run_dir, 1).items())
    dumped = [f"{i}-iteration-{i // 4}-rank-0.pt" for i in range(6)]
    assert sorted(path.name for path in (run_dir / "bad_steps").iterdir()) == dumped
    [batch, *_] = torch.load(run_dir / "bad_steps" / dumped[0], weights_only=False)
    assert batch.num_tokens > 0


def test_a_run_killed_while_it_wrote_its_first_file_can_be_started_again(tmp_path):
    config = RunConfig(name="first", runs_dir=str(tmp_path))
    config.run_dir.mkdir()
    (config.run_dir / ".config.yaml.writing").write_text("name: fi")
    check_run_dir(config)
    (config.run_dir / "notes.txt").write_text("something else")
    with pytest.raises(UserError, match="is not empty and holds no"):
        check_run_dir(config)


def test_the_second_rank_that_unpacks_a_model_takes_what_the_first_has_left(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "target" / "other").touch()
    with pytest.raises(OSError, match="not empty"):
        _move_into_place(tmp_path / "scratch", tmp_path / "target")
    (tmp_path / "target" / "config.json").write_text("first")
    _move_into_place(tmp_path / "scratch", tmp_path / "target")
    assert (tmp_path / "target" / "config.json").read_text() == "first"


@pytest.mark.parametrize(
    ("iterations", "max_env_steps", "step", "env_steps", "left"),
    [
        (12, None, 0, 0, 12),
        (12, None, 5, 900, 7),
        (12, None, 12, 900, 0),
        (12, 1000, 0, 0, 12),  # nothing is known of how many an iteration takes
        (10_000, 1000, 2, 400, 3),
        (10_000, 1000, 2, 364, 3),  # 5 iterations at 182 are 910, and the sixth would go 92 beyond
        (10_000, 1000, 2, 363, 4),
        (10_000, 1000, 5, 1000, 0),
        (10_000, 1000, 5, 1100, 0),
        (10_000, 1000, 5, 910, 0),  # 90 too few; with one more 92 too many
        (10_000, 1000, 5, 909, 1),
        (10_000, 10, 0, 0, 10_000),
        (10_000, 10, 1, 200, 0),  # one iteration is the least
        (6, 1000, 5, 600, 1),
    ],
)
def test_iterations_left(iterations, max_env_steps, step, env_steps, left):
    config = RunConfig(iterations=iterations, max_env_steps=max_env_steps)
    state = RunState(step=step, env_steps=env_steps)
    run = SimpleNamespace(config=config, state=state, iterations_left=lambda: Run.iterations_left(run))
    assert run.iterations_left() == left
    assert Run.is_over(run) == (left == 0)
