import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from safetensors.torch import load_file, save_file

from siri.engine import checkpoint, files
from siri.engine.checkpoint import checkpoint_folders, load_checkpoint, load_latest, save_checkpoint
from siri.engine.distributed import World
from siri.engine.errors import UserError

WORLD = World()


def weights(step):
    return {"w": torch.full((50, 7), float(step))}


def save(run_dir, step, *, keep_last=2, score=None, save_policy=None):
    def write_policy(folder):
        save_file(weights(step), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"step": step}))

    save_checkpoint(
        run_dir,
        step,
        world=WORLD,
        save_policy=save_policy or write_policy,
        optimizer_state={"steps": torch.tensor(step), "w/exp_avg": torch.full((50, 7), step / 2)},
        state={"cursor": step * 10, "phase": "warm-up", "nested": {"bad_steps": [step]}},
        keep_last=keep_last,
        score=score,
    )


def assert_is(found, step):
    """The checkpoint is that of `step` in all its parts."""
    assert found.step == step
    assert found.path.name == f"step-{step}"
    assert found.state == {"cursor": step * 10, "phase": "warm-up", "nested": {"bad_steps": [step]}}
    assert torch.equal(load_file(found.policy / "model.safetensors")["w"], weights(step)["w"])
    state = found.optimizer_state()
    assert int(state["steps"]) == step
    assert torch.equal(state["w/exp_avg"], torch.full((50, 7), step / 2))


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(run_dir):
    return [int(path.name.removeprefix("step-")) for path in checkpoint_folders(run_dir)]


def test_a_run_without_checkpoints_starts_anew(tmp_path):
    assert load_latest(tmp_path, WORLD) is None
    assert checkpoint_folders(tmp_path / "absent") == []


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path, 5)
    save(tmp_path, 10)
    assert_is(load_latest(tmp_path, WORLD), 10)
    assert_is(load_checkpoint(tmp_path / "checkpoints" / "step-5"), 5)
    assert_is(load_checkpoint(tmp_path / "checkpoints" / "latest"), 10)


def test_the_newest_is_the_highest_number_not_the_last_in_the_alphabet(tmp_path):
    for step in (8, 9, 10):
        save(tmp_path, step, keep_last=3)
    assert load_latest(tmp_path, WORLD).step == 10


def test_random_state_goes_on_where_it_was(tmp_path):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    save(tmp_path, 1)

    def draws():
        return [random.random(), float(np.random.rand()), float(torch.rand(())), random.gauss(0, 1)]

    expected = draws()
    draws()
    assert load_latest(tmp_path, WORLD).restore_random_state(WORLD)
    assert draws() == expected
    assert not load_latest(tmp_path, WORLD).restore_random_state(World(rank=1, size=2))


@settings(max_examples=25, deadline=None)
@given(
    saves=st.lists(
        st.tuples(st.one_of(st.none(), st.floats(-1, 1), st.just(float("nan"))), st.booleans()), min_size=1, max_size=7
    ),
    keep_last=st.integers(1, 3),
)
def test_the_last_ones_and_the_best_are_kept_whatever_fails_in_between(tmp_path_factory, saves, keep_last):
    run_dir = tmp_path_factory.mktemp("run")

    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    kept: dict[int, float | None] = {}
    for step, (score, fails) in enumerate(saves):
        if fails:
            before = tree(run_dir)
            with pytest.raises(UserError, match=f"step-{step}: cannot be written .Input/output error"):
                save(run_dir, step, save_policy=fail)
            assert tree(run_dir) == before
            continue
        save(run_dir, step, keep_last=keep_last, score=score)
        kept[step] = None if score is None or np.isnan(score) else score
        scored = [(value, at) for at, value in kept.items() if value is not None]
        best = max(scored)[1] if scored else None
        kept = {at: value for at, value in kept.items() if at in sorted(kept)[-keep_last:] or at == best}
        assert steps(run_dir) == sorted(kept)
        assert_is(load_latest(run_dir, WORLD), step)
        assert os.readlink(run_dir / "checkpoints" / "latest") == f"step-{step}"
        if best is not None:
            assert_is(load_checkpoint(run_dir / "checkpoints" / "best"), best)
        else:
            assert not (run_dir / "checkpoints" / "best").exists()


def in_child(function):
    """Runs `function` in a forked process (no second start of python) and returns how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:  # nothing of a failed child may go on as a second test run
            os._exit(1)
    return pid


COMMITTING = {"save_checkpoint", "_commit", "_link", "_prune", "sync_directory"}


def save_killed_at_line(run_dir, step, line):
    """Saves, but SIGKILL comes before the `line`-th line that runs in the functions that touch the disk's names."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        code = frame.f_code
        if code.co_name not in COMMITTING or code.co_filename not in (checkpoint.__file__, files.__file__):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    save(run_dir, step, keep_last=1, score=step)


def test_killed_before_any_line_the_newest_checkpoint_is_whole(tmp_path):
    """Each line in turn. With keep_last 1 and a rising score every save also moves both links and prunes."""
    save(tmp_path / "start", 1, keep_last=1, score=1)
    found_steps = []
    for line in range(1, 1000):
        run_dir = tmp_path / str(line)
        shutil.copytree(tmp_path / "start", run_dir, symlinks=True)
        child = in_child(lambda run_dir=run_dir, line=line: save_killed_at_line(run_dir, 2, line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = load_latest(run_dir, WORLD)
        assert_is(found, found.step)
        found_steps.append(found.step)
        save(run_dir, 3, keep_last=1, score=3)
        left = {path.name for path in (run_dir / "checkpoints").iterdir()}
        assert left == {"step-3", "latest", "best"}, "the next save clears what the kill left behind"
        shutil.rmtree(run_dir)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert len(found_steps) > 40, "the trace saw the lines of a save"
    assert found_steps == sorted(found_steps), "before the commit the old one, after it the new one"
    assert set(found_steps) == {1, 2}


def test_killed_at_random_moments_the_newest_checkpoint_is_whole(tmp_path):
    draw = random.Random(0)
    newest = 0

    def save_for_ever():
        for step in range(newest + 1, 10**6):
            save(tmp_path, step, keep_last=2)

    for _ in range(20):
        pid = in_child(save_for_ever)
        time.sleep(draw.uniform(0.0, 0.4))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = load_latest(tmp_path, WORLD)
        if found is not None:
            assert found.step >= newest
            assert_is(found, found.step)
            newest = found.step
    assert newest >= 3, "some saves got through"


class RustError(Exception):
    """What safetensors and tokenizers raise: no errno, only the text."""


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("policy", FULL),
        ("policy", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))),
        ("policy", RustError("Error while serializing: I/O error: No space left on device (os error 28)")),
        ("optimizer", RustError("Error while serializing: I/O error: No space left on device (os error 28)")),
        ("fsync", FULL),
        ("rename", FULL),
    ],
)
def test_a_full_disk_leaves_the_checkpoints_before_it(tmp_path, monkeypatch, where, error):
    save(tmp_path, 1)
    before = tree(tmp_path)

    def fail(*_):
        raise error

    if where == "optimizer":
        monkeypatch.setattr(checkpoint, "save_file", fail)
    if where in ("fsync", "rename"):
        monkeypatch.setattr(os, where, fail)
    with pytest.raises(UserError) as caught:
        save(tmp_path, 2, save_policy=fail if where == "policy" else None)
    monkeypatch.undo()
    assert "checkpoints/step-2: cannot be written" in str(caught.value)
    assert "free some space, then give the same command again" in str(caught.value)
    assert tree(tmp_path) == before
    assert_is(load_latest(tmp_path, WORLD), 1)
    save(tmp_path, 2)
    assert_is(load_latest(tmp_path, WORLD), 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="make that place writable"):
        save(tmp_path, 1)


def test_a_bug_in_saving_is_not_called_a_full_disk(tmp_path):
    def bug(folder):
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        save(tmp_path, 1, save_policy=bug)
    assert tree(tmp_path) == {}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "bit": (lambda p: flip_a_bit(p / "policy" / "model.safetensors"), "policy/model.safetensors: the content is not"),
    "optimizer": (lambda p: flip_a_bit(p / "optimizer.safetensors"), "optimizer.safetensors: the content is not"),
    "cut": (lambda p: os.truncate(p / "optimizer.safetensors", 100), "optimizer.safetensors: 100 bytes on disk"),
    "empty": (lambda p: os.truncate(p / "state.json", 0), "state.json: 0 bytes on disk"),
    "missing": (lambda p: (p / "policy" / "config.json").unlink(), "policy/config.json: No such file"),
    "no_policy": (lambda p: shutil.rmtree(p / "policy"), "policy/config.json: No such file"),
    "no_manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json cannot be read"),
    "manifest_not_json": (lambda p: os.truncate(p / "manifest.json", 30), "manifest.json cannot be read"),
    "manifest_not_ours": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    "manifest_binary": (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_with_the_way_out_and_the_way_out_works(tmp_path, case):
    damage, expected = DAMAGE[case]
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = tmp_path / "checkpoints" / "step-2"
    damage(newest)
    with pytest.raises(UserError) as caught:
        load_latest(tmp_path, WORLD)
    assert f"checkpoint {newest} is damaged: {expected}" in str(caught.value)
    assert "delete that folder to resume from step-1" in str(caught.value)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(newest)
    save(tmp_path, 3)  # an old damaged one does not stop a run that goes on
    assert_is(load_latest(tmp_path, WORLD), 3)
    shutil.rmtree(tmp_path / "checkpoints" / "step-3")
    shutil.rmtree(newest)
    found = load_latest(tmp_path, WORLD)
    assert found is None or found.step == 1


def test_damage_of_the_only_checkpoint(tmp_path):
    save(tmp_path, 4)
    flip_a_bit(tmp_path / "checkpoints" / "step-4" / "state.json")
    with pytest.raises(UserError, match=r"state\.json: the content is not.*delete that folder to start the run anew"):
        load_latest(tmp_path, WORLD)


def test_another_format_and_no_checkpoint_at_all(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step-1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(UserError, match="its format is 2, this version of siri reads 1; go on with the version"):
        load_latest(tmp_path, WORLD)
    with pytest.raises(UserError, match="there is none; give a folder like"):
        load_checkpoint(tmp_path)
    with pytest.raises(UserError, match="there is none"):
        load_checkpoint(tmp_path / "absent")


def test_a_copied_checkpoint_loads_under_any_name(tmp_path):
    save(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoints" / "step-3", tmp_path / "keep-this")
    assert load_checkpoint(tmp_path / "keep-this").step == 3


def two_rank_life(world, run_dir):
    """Each rank draws its own numbers, saves, draws on, and finds them again after loading; then the disk is full."""
    run_dir = Path(run_dir)
    torch.manual_seed(100 + world.rank)

    def commit(step, save_policy):
        save_checkpoint(
            run_dir,
            step,
            world=world,
            save_policy=save_policy,
            optimizer_state={"steps": torch.tensor(step)} if world.is_main else {},
            state={"wrote": world.rank},
            keep_last=2,
        )

    commit(1, lambda folder: (folder / "writer").write_text(str(world.rank)))
    expected = torch.rand(3)
    found = load_latest(run_dir, world)
    assert found.restore_random_state(world)

    def full(_):
        raise FULL

    with pytest.raises(UserError, match="No space left"):
        commit(2, full)
    (found.policy / "writer").write_text("other")
    torch.distributed.barrier()
    with pytest.raises(UserError, match="policy/writer: 5 bytes on disk, 1 were written"):
        load_latest(run_dir, world)
    return {"draws": torch.equal(torch.rand(3), expected), "state": found.state, "states": len(found.random_states)}


@pytest.mark.multirank
def test_two_ranks_save_and_fail_together(tmp_path):
    results = on_ranks(2, two_rank_life, str(tmp_path / "run"), folder=tmp_path)
    assert results == [{"draws": True, "state": {"wrote": 0}, "states": 2}] * 2
