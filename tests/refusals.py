"""A sound place to run `siri` in, ways to damage it, and what every refusal must be like.

The sound place is a working directory with

    base.yaml    settings of a small run on official games
    model/       a minuscule policy
    games/       an archive of each split
    runs/old/    a finished run of base.yaml with one iteration
"""

import errno
import json
import lzma
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml
from models import model_directory

from siri import cli
from siri.envs.household.generator import generate_game
from siri.envs.household.official_format import game_file
from siri.envs.household.pddl import format_problem
from siri.envs.household.problem import Game

BASE = {
    "iterations": 1,
    "environment": {"games": "official", "path": "games", "max_turns": 2},
    "policy": {"model": "model", "max_prompt_tokens": 500, "max_action_tokens": 4},
    "rollout": {"sampler": "transformers", "num_tasks": 2, "group_size": 2},
    "optim": {"max_batch_tokens": 1024},
    "eval": {"split": "valid_seen"},
    "checkpoint": {"every": 1},
}
TRAIN = "train --config base.yaml "
RESUME = "train --config base.yaml --name old --iterations 2"
STEP = "runs/old/checkpoints/step-1"

Arrange = Callable[[pytest.MonkeyPatch], object]
"""Does the damage, in the working directory or to what the process believes of its machine."""


def make_sound_place(folder: Path) -> None:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    model_directory(folder / "model", hidden=16, layers=1)
    (folder / "games").mkdir()
    for split, seeds in (("train", (1, 2)), ("valid_seen", (3,))):
        records = [record(generate_game(seed, size="small")) for seed in seeds]
        write_archive(folder / "games" / f"{split}.jsonl.xz", *map(json.dumps, records))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert exit_code(TRAIN + "--name old") == 0


def record(game: Game) -> dict[str, object]:
    """A generated game as a line of an archive."""
    text = format_problem(game.problem)
    identity = f"{game.task_type}-{game.id.rpartition('/')[2]}"
    return {"id": identity, "task": game.task, "pddl_problem": text, "walkthrough": list(game.walkthrough)}


def write_archive(path: Path, *lines: str) -> None:
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def tree(folder: Path = Path()) -> dict[str, bytes | str | None]:
    """Every name below a folder, with the content of a file and the target of a link."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def exit_code(command: str) -> object:
    try:
        return cli.main(shlex.split(command))
    except SystemExit as stopped:  # argparse
        return stopped.code


def assert_refused(command: str, message: str, captured: pytest.CaptureFixture[str]) -> None:
    before = tree()
    captured.readouterr()
    assert exit_code(command) == 2
    shown = captured.readouterr()
    *usage, line = shown.err.splitlines()
    assert re.search(message, line), line
    assert line.startswith(f"siri {command.split()[0]}: ")
    assert not usage or usage[0].startswith("usage: "), shown.err
    assert len(line) < 700
    assert shown.out == ""
    assert tree() == before


def cut(path: str, kept: float) -> Arrange:
    return lambda _: os.truncate(path, int(os.stat(path).st_size * kept))


def remove(path: str) -> Arrange:
    return lambda _: shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def write(path: str, text: str) -> Arrange:
    def act(_: pytest.MonkeyPatch) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)

    return act


def change(path: str, old: str, new: str) -> Arrange:
    """Replace text, which must be there, in a file or in every line of an archive."""

    def act(_: pytest.MonkeyPatch) -> None:
        archive = path.endswith(".xz")
        with lzma.open(path, "rt") if archive else open(path) as file:
            text = file.read()
        assert old in text
        with lzma.open(path, "wt") if archive else open(path, "w") as file:
            file.write(text.replace(old, new))

    return act


def flip_a_bit(path: str) -> Arrange:
    def act(_: pytest.MonkeyPatch) -> None:
        content = bytearray(Path(path).read_bytes())
        content[len(content) // 2] ^= 1
        Path(path).write_bytes(content)

    return act


def game_files(text: str) -> Arrange:
    """The games as ALFWorld ships them, the first train game with this text."""

    def act(_: pytest.MonkeyPatch) -> None:
        shutil.rmtree("games")
        for split in ("train", "valid_seen"):
            folder = Path("games/json_2.1.1") / split / "pick_and_place_simple-A" / "trial_1"
            folder.mkdir(parents=True)
            game = generate_game(1, size="small")
            whole = json.dumps(game_file(game))
            (folder / "game.tw-pddl").write_text(text if split == "train" else whole)

    return act


def full_disk(patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", fail)


def unreachable_hub(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    patch.setenv("NO_PROXY", "127.0.0.1")
