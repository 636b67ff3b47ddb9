"""Loads the official games: an `.jsonl.xz` archive, or a directory of `game.tw-pddl` files as ALFWorld ships them."""

import json
import lzma
import re
from functools import partial
from pathlib import Path
from typing import Any

from siri.engine.errors import UserError
from siri.envs.household.pddl import parse_problem
from siri.envs.household.problem import TASK_TYPES, Game

# Where the grammar of a game file holds the task sentence.
_TASK = re.compile(r'Your task is to: ([^"\\]*)"')
# Only the grammar of alfworld >= 0.4 has this command; before, it was "put X in/on Y".
_MOVE_COMMAND = 'template :: "move {o} to {r}"'


def load_games(path: str | Path) -> list[Game]:
    """Games of an archive in its order, or of a directory and everything below it in the order of their paths.

    `path` is an `.jsonl.xz` archive (one object a line with `id`, `task`, `pddl_problem`, `walkthrough`), an
    `ALFWORLD_DATA` directory, or any directory or `game.tw-pddl` file inside one. Left out of directories is what
    ALFWorld leaves out: games marked as not solvable, and those of ALFRED's tasks with movable receptacles or slices.
    Problem texts are parsed when a game is first played.

    Raises UserError for a missing, empty, truncated or malformed file, naming it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = (file for file in sorted(path.rglob("game.tw-pddl")) if _in_alfworld(file))
        games = [game for file in files for game in _read_game_file(file)]
        if not games:
            raise UserError(
                f"{path}: no game.tw-pddl below this directory; point to ALFWORLD_DATA or a split inside it"
            )
        return games
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; give an .jsonl.xz archive or an ALFWORLD_DATA directory")
    if path.name == "game.tw-pddl":
        return _read_game_file(path)
    return _read_archive(path)


def _read_archive(path: Path) -> list[Game]:
    games = []
    try:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                source = f"{path}: line {number}"
                record = _parse_json(line, source)
                games.append(
                    _game(
                        id=_field(record, "id", source),
                        task=_field(record, "task", source),
                        text=_field(record, "pddl_problem", source),
                        walkthrough=_walkthrough(record, source),
                        source=source,
                    )
                )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file that can") from error
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole .jsonl.xz archive ({error}); copy or download it again") from error
    if not games:
        raise UserError(f"{path}: the archive holds no games; copy or download it again")
    return games


def _in_alfworld(path: Path) -> bool:
    task = path.parent.parent.name
    return "movable" not in task and "Sliced" not in task


def _read_game_file(path: Path) -> list[Game]:
    """The game of a file; none where the file says that it cannot be solved."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file that can") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); download it again") from error
    record = _parse_json(text, str(path))
    if record.get("solvable") is False:
        return []
    grammar = _field(record, "grammar", str(path))
    task = _TASK.search(grammar)
    if task is None:
        raise UserError(f"{path}: the grammar holds no 'Your task is to: ...'; download it again")
    if _MOVE_COMMAND not in grammar:
        raise UserError(f"{path}: the grammar has no 'move X to Y' command; it is of alfworld < 0.4, download it again")
    trial = path.parent
    game = _game(
        id=f"{trial.parent.name}/{trial.name}",
        task=task[1].strip(),
        text=_field(record, "pddl_problem", str(path)),
        walkthrough=_walkthrough(record, str(path)),
        source=str(path),
    )
    return [game]


def _game(*, id: str, task: str, text: str, walkthrough: tuple[str, ...], source: str) -> Game:
    task_type = id.partition("-")[0]
    if task_type not in TASK_TYPES:
        raise UserError(
            f"{source}: id '{id}' must begin with a task type and '-'; the types are {', '.join(TASK_TYPES)}"
        )
    return Game(
        id=id,
        task=task,
        task_type=task_type,
        walkthrough=walkthrough,
        problem=partial(parse_problem, text, f"{source} ({id})"),
    )


def _parse_json(text: str, source: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: malformed JSON ({error}); copy or download it again") from error
    if not isinstance(record, dict):
        raise UserError(f"{source}: expected a JSON object, found {type(record).__name__}; copy or download it again")
    return record


def _field(record: dict[str, Any], key: str, source: str) -> str:
    if key not in record:
        raise UserError(f"{source}: key '{key}' is missing; it has {', '.join(sorted(record)) or 'none'}")
    if not isinstance(record[key], str):
        raise UserError(f"{source}: key '{key}' must be a string, found {type(record[key]).__name__}")
    return record[key]


def _walkthrough(record: dict[str, Any], source: str) -> tuple[str, ...]:
    actions = record.get("walkthrough")
    if not isinstance(actions, list) or not all(isinstance(action, str) for action in actions):
        raise UserError(f"{source}: key 'walkthrough' must be a list of strings")
    return tuple(actions)
