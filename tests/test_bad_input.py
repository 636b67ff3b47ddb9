"""Wrong settings: one clear message, exit code 2, and every file on disk as it was. Damage is in test_damaged_input.py.

Each case is a command line (as typed after `siri`) and a pattern of the message: the field, the value, the rule, the
remedy.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from models import policy
from refusals import RESUME, TRAIN, assert_refused, exit_code, tree

from siri import session
from siri.config import PolicyConfig, RunConfig
from siri.engine.distributed import World
from siri.engine.errors import UserError
from siri.engine.files import hold_folder
from siri.kernels import dispatch
from siri.run import check_sizes
from siri.session import check_context

pytestmark = pytest.mark.usefixtures("place")


def test_without_damage_the_same_commands_succeed() -> None:
    """Else every case below might be refused for another reason than its own."""
    assert exit_code(TRAIN + "--name other --environment.max_turns 1") == 0
    assert exit_code(RESUME) == 0
    assert json.loads(Path("runs/old/summary.json").read_text())["iterations"] == 2
    assert exit_code("eval --run runs/old --split valid_seen --checkpoint step-1") == 0


CONFIG_FILES = {
    "unknown_key": ("iteration: 3", r"run\.yaml: iteration: there is no such field; did you mean iterations\?"),
    "unknown_nested_key": ("optim: {lrr: 1}", r"optim\.lrr: there is no such field; did you mean optim\.lr\?"),
    "key_of_another_section": ("group_size: 8", r"group_size: .*did you mean rollout\.group_size\?"),
    "unknown_section": ("gipgo: {gamma: 1}", r"gipgo: .*did you mean gigpo\?"),
    "text_for_a_number": ("optim: {lr: fast}", r'optim\.lr: "fast" .*number; give number >= 0 \(default 0\.0003\)'),
    "fraction_for_an_integer": ("iterations: 1.5", r"iterations: 1\.5 .*integer; give integer >= 1"),
    "boolean_for_an_integer": ("seed: true", r"seed: true .*integer"),
    "list_for_text": ("name: [a, b]", r'name: \["a", "b"\] .*string; give text'),
    "section_is_a_number": ("optim: 3", r"optim: 3 is not a section; write its fields, indented"),
    "below_range": ("optim: {lr: -1}", r"optim\.lr: -1 should be greater than or equal to 0"),
    "above_range": ("gigpo: {gamma: 1.5}", r"gigpo\.gamma: 1\.5 should be less than or equal to 1"),
    "decay_of_one": ("optim: {beta2: 1}", r"optim\.beta2: 1 should be less than 1"),
    "nothing_to_evaluate": ("eval: {limit: 0}", r"eval\.limit: 0 should be greater than or equal to 1"),
    "nan": ("optim: {lr: .nan}", r"optim\.lr: NaN .*finite number; give number >= 0"),
    "infinite": ("rollout: {temperature: .inf}", r"rollout\.temperature: Infinity .*finite"),
    "nan_within_bounds": ("gigpo: {gamma: .nan}", r"gigpo\.gamma: NaN should be"),
    "nan_clip": ("loss: {dual_clip: .nan}", r"loss\.dual_clip: NaN should be greater than 1"),
    "not_a_choice": ("algorithm: gigop", r'algorithm: "gigop" .*did you mean gigpo\?'),
    "duplicate": ("seed: 1\nname: a\nseed: 2", r"seed is set twice \(lines 1 and 3\); keep one"),
    "duplicate_nested": ("optim:\n  lr: 1\n  lr: 2", r"optim\.lr is set twice \(lines 2 and 3\)"),
    "not_a_mapping": ("- seed\n- 1", r"run\.yaml: .*not a mapping; write one `field: value` a line"),
    "not_yaml": ("optim: {lr: 1", r"run\.yaml: not valid YAML: .*line 1"),
    "binary": (b"\x7fELF\x02\xff\x00", r"run\.yaml: byte 5 is not UTF-8; save the file as UTF-8"),
    "group_of_one": ("rollout: {group_size: 1}", r"rollout\.group_size: 1 .*use 2 or more"),
    "parity_with_grpo": (
        "algorithm: grpo\ngigpo: {parity: verl_agent}",
        r"gigpo\.parity: verl_agent needs algorithm: gigpo, not grpo; change one",
    ),
    "path_of_procedural_games": (
        "environment: {path: games}",
        r"environment\.path: 'games' is for official games only; set environment\.games: official",
    ),
    "name_with_a_slash": ("name: a/b", r"name: 'a/b' is not a plain folder name; use up to 100 letters.*runs_dir"),
    "name_of_the_folder_above": ("name: ..", r"name: '\.\.' is not a plain folder name"),
    "endless_name": ("name: " + "x" * 300, r"name: 'x+' is not a plain folder name; use up to 100"),
    "batch_smaller_than_a_sequence": (
        "optim: {max_batch_tokens: 100}",
        r"optim\.max_batch_tokens: 100 is less than the longest sequence.*= 1040; raise it to 1040 or more",
    ),
    "no_such_split": ("eval: {split: test}", r"eval\.split: these games have no split 'test'; there are train, valid"),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_configuration_file(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    text, message = CONFIG_FILES[case]
    Path("run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused("train --config run.yaml", message, capfd)


COMMAND_LINES = [
    ("train --optm.lr 1", r"--optm\.lr: there is no such field; did you mean optim\.lr\?|--optm.*did you mean optim\?"),
    ("train --optim.lr=-1", r"--optim\.lr: -1 should be greater than or equal to 0; give number >= 0"),
    ("train --optim.lr nan", r'--optim\.lr: "nan" .*number'),
    ("train --optim.lr", r"--optim\.lr: the value is missing; write --optim\.lr VALUE"),
    ("train seed=1", r"'seed=1' is not an option; write --field value"),
    (
        TRAIN + "--optim.schedule cosine --max_env_steps 1000",
        r"optim\.schedule: cosine ends at the last of `iterations`, but max_env_steps: 1000 ends the run; use constant",
    ),
    (TRAIN + "--no_warmup true --phases.only mining", r"no_warmup: phases\.only: mining fixes the phase; leave one of"),
    ("train --config absent.yaml", r"--config absent\.yaml: no such file; give the path of one, or .*household_tiny"),
    ("train --config games", r"--config games: no such file"),
    (TRAIN + "--eval.split valid", r"eval\.split: these games have no split 'valid'; there are train, valid_seen"),
    (TRAIN + "--environment.path nowhere", r"nowhere: none of the splits .* is there.*point to ALFWORLD_DATA"),
    (TRAIN + "--environment.path null", r"environment\.path: .*neither this nor \$ALFWORLD_DATA is set;.*procedural"),
    (TRAIN + "--environment.path model", r"model: none of the splits train.*point to"),
    (TRAIN + "--policy.max_prompt_tokens 509", r"make 513 tokens, .*'model' has a context of 512.*to 508 or less"),
    (TRAIN + "--policy.model no/such/thing", r"policy\.model: 'no/such/thing' is not a directory here.*give `tiny`"),
    (TRAIN + "--policy.model base.yaml", r"policy\.model: 'base\.yaml' has no config\.json; give a directory"),
    (TRAIN + "--name old --optim.lr 0.5", r"runs/old holds a run with other settings \(optim\.lr: 0\.0003 -> 0\.5\)"),
    (TRAIN + "--runs_dir base.yaml", r"runs_dir: base\.yaml: .*base\.yaml is a file; set runs_dir to a folder"),
    (TRAIN + "--runs_dir /proc", r"/proc.* cannot be written"),
    ("eval --run runs/absent --split valid", r"--run: runs/absent is not a run directory \(no config\.yaml"),
    ("eval --run runs/old --split test", r"--split: these games have no split 'test'; there are train, valid_seen"),
    ("eval --run runs/old --split train --limit 0", r"--limit: 0 tasks cannot be played; give 1 or more"),
    ("eval --run runs/old --split train --limit ten", r"argument --limit: invalid int value: 'ten'"),
    ("eval --run runs/old --split train --checkpoint step-9", r"--checkpoint: .*no 'step-9'; it has initial, step-1"),
    ("eval --split train", r"--config and --env: both say which .*; give --run DIR, --config FILE or --env NAME"),
    ("eval --env kitchen", r"argument --env: invalid choice: 'kitchen'"),
    ("play --split test", r"split: 'test' does not exist; this source has train, valid"),
    ("play --index -1", r"--index -1: split 'train' has 1 games; choose 0 to 0"),
    ("play --game proc9/small/train/0", r"'proc9/small/train/0': this version makes ids of the form"),
    ("play --official nowhere", r"nowhere: none of the splits"),
    ("play --size huge", r"argument --size: invalid choice: 'huge'"),
    ("warmstart --out model", r"--out: model is not an empty directory; give a new one, or delete it"),
    ("warmstart --out base.yaml", r"--out: base\.yaml is not an empty directory"),
    ("warmstart --out new --steps 0", r"--steps: 0 is too small; give 1 or more"),
    ("warmstart --out new --row-tokens -5", r"--row-tokens: -5 is too small; give 1 or more"),
    ("warmstart --out new --vocab-size 100", r"--vocab-size: 100 is too small; give 260 or more"),
    ("warmstart --out new --size huge", r"--size: 'huge' is not a size of games or shops; use small or full"),
    ("warmstart --out new --lr nan", r"--lr: nan is not a learning rate; give a number above 0"),
    ("warmstart --out new --waste 1", r"--waste: 1\.0 is no share of turns; give 0 or more, less than 1, such as"),
    ("warmstart --out new --waste -0.1", r"--waste: -0\.1 is no share of turns"),
    ("warmstart --out new --waste nan", r"--waste: nan is no share of turns"),
    ("warmstart --out new --hidden 100", r"--hidden: 100 does not divide into 3 heads.*give a multiple of 6"),
    ("warmstart --out base.yaml/new", r"base\.yaml/new: cannot be written \(Not a directory\)"),
]


@pytest.mark.parametrize(("command", "message"), COMMAND_LINES, ids=[command for command, _ in COMMAND_LINES])
def test_command_line(command: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(command, message, capfd)


def test_a_model_that_attends_to_less_than_an_episode() -> None:
    short = policy()
    short.model.config.sliding_window = 100
    config = PolicyConfig(model="mistral", max_prompt_tokens=120, max_action_tokens=8)
    with pytest.raises(UserError, match=r"128 tokens, but 'mistral' attends to the last 100 only.*_tokens to 92 or"):
        check_context(config, short)


def test_groups_that_do_not_divide_over_the_ranks() -> None:
    config = RunConfig.model_validate({"rollout": {"num_tasks": 16, "group_size": 4}})
    check_sizes(config, World(size=4))
    with pytest.raises(UserError, match=r"rollout\.num_tasks: 16 task groups do not divide over 3 ranks.*use a multip"):
        check_sizes(config, World(size=3))


@pytest.mark.parametrize(
    ("settings", "never_called"),
    [
        ("--eval.split test", ["load_policy", "make_sampler"]),
        ("--environment.path nowhere", ["load_policy", "make_sampler"]),
        ("--policy.model no/such/thing", ["load_policy", "make_sampler"]),
        ("--policy.max_prompt_tokens 509", ["make_sampler"]),
    ],
)
def test_what_is_cheap_to_check_is_checked_first(
    settings: str, never_called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in never_called:
        monkeypatch.setattr(session, name, lambda *_, **__: pytest.fail("called too early"))
    assert exit_code(TRAIN + settings) == 2


def test_kernels_that_cannot_be_had_are_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "load_policy", lambda *_, **__: pytest.fail("called too early"))
    monkeypatch.setenv("SIRI_KERNELS", "cuda")
    dispatch.decide.cache_clear()
    assert_refused(TRAIN, r"SIRI_KERNELS = 'cuda' must be one of auto, reference, triton; .*see `siri doctor`", capfd)
    monkeypatch.undo()
    dispatch.decide.cache_clear()


def test_a_run_that_another_process_works_on(capfd: pytest.CaptureFixture[str]) -> None:
    with hold_folder(Path("runs/old")):
        assert_refused(RESUME, r"runs/old: another process is at work in this folder; wait for its end, or stop", capfd)
    assert exit_code(RESUME) == 0


SIRI = [sys.executable, "-c", "import sys; from siri.cli import main; sys.exit(main())"]
SCRIPT = [sys.executable, str(Path(session.__file__).parent / "train.py")]
PROCESSES = {
    "train": ([*SCRIPT, "--optim.lrr", "1"], r"siri/train\.py: --optim\.lrr: .*did you mean optim\.lr\?"),
    "hub": (
        [*SCRIPT, "--config", "base.yaml", "--policy.model", "org/absent"],
        r"siri/train\.py: policy\.model: 'org/absent' is not a directory here.*Connect",
    ),
    "eval": ([*SIRI, "eval", "--run", "nowhere", "--split", "valid"], r"siri eval: --run: nowhere is not a run"),
    "play": ([*SIRI, "play"], r"siri play: standard input is closed"),
}


@pytest.mark.parametrize("case", PROCESSES)
def test_a_process_ends_with_2_and_one_line(case: str) -> None:
    command, message = PROCESSES[case]
    before = tree()
    quick = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, text=True, env=quick, timeout=100
    )
    assert ended.returncode == 2
    assert re.match(message, ended.stderr), ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert tree() == before


@pytest.mark.multirank
def test_the_report_of_torchrun_ends_with_the_reason() -> None:
    """Its exit code is 1 whatever a rank ends with, and its traceback is its own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, SCRIPT[1], "--config", "base.yaml", "--rollout.num_tasks", "3"]
    before = tree()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert re.search(r"Root Cause[^=]*exitcode *: 2[^=]*rollout\.num_tasks: 3 task groups do not divide", ended.stderr)
    assert tree() == before
