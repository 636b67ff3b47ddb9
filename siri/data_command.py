"""`siri data webshop`: checks the official files of WebShop and indexes them, so that a run opens them in a moment."""

import argparse
import hashlib
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from siri.engine.errors import UserError
from siri.envs.webshop.catalogue import Catalogue
from siri.envs.webshop.files import read_object
from siri.envs.webshop.folder import find_files, indexed_files
from siri.envs.webshop.goals import Goal, human_written_goals
from siri.envs.webshop.official import goal_line
from siri.envs.webshop.splits import SplitBy, split_goals, winnable_goals
from siri.envs.webshop.stored import FOLDER_NAME, write_index

# At 0.2 ms a goal 20 s; of more goals, an even sample of that many is checked.
CHECKED_GOALS = 100_000
_PART = 2000
_SPLITS: tuple[SplitBy, ...] = ("goal", "product", "official")

# Opens the index as a run does, in a process of its own: this one's memory holds what indexing left behind.
_OPEN = """
import json, sys, time
from pathlib import Path
import psutil
from siri.envs.webshop.stored import open_index
before, start = psutil.Process().memory_info().rss, time.process_time()
catalogue = open_index(Path(sys.argv[1]))
for query in json.loads(sys.argv[2]):
    catalogue.search(query)
print(time.process_time() - start, psutil.Process().memory_info().rss - before)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="dataset")
    shop = datasets.add_parser(
        "webshop",
        help="products, attributes and goals of WebShop, 1000 products or all of them",
        description="Check the official files of WebShop in a local folder and index them for runs.",
    )
    shop.add_argument(
        "--dir", type=Path, required=True, help="folder with items_shuffle.json and items_ins_v2.json, or their _1000"
    )
    shop.add_argument(
        "--out", type=Path, help=f"folder for the index, to be given to runs (default: {FOLDER_NAME} in --dir)"
    )
    shop.add_argument(
        "--limit", type=_positive, metavar="N", help="read the first N records only; writes no index without --out"
    )


def run(args: argparse.Namespace) -> int:
    found = find_files(args.dir)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    with TemporaryDirectory() as scratch, _progress() as progress:
        if args.out:
            target = args.out.expanduser()
        else:
            target = (args.dir.expanduser() if args.limit is None else Path(scratch)) / FOLDER_NAME
        rows = _check(found, target, args.limit, progress)
        if target.is_relative_to(scratch):
            rows.append(("not kept", "--limit without --out checks only"))
        else:
            rows.append(("index", f"{target}, {_megabytes(target):,.1f} MB"))
    for name, value in rows:
        console.print(Text(f"{name:<{max(len(name) for name, _ in rows)}}  {value}"))
    return 0


def _check(found: dict[str, Path], target: Path, limit: int | None, progress: Progress) -> list[tuple[str, str]]:
    """Reads and indexes the files; what to print: a name and what is known of it."""
    rows = [(kind, f"{file.name}, {file.stat().st_size / 1e6:,.1f} MB") for kind, file in found.items()]
    # Before minutes of indexing: where it is not what it must be, nothing is written.
    told = read_object(found["human_goals"], "human_goals") if "human_goals" in found else None
    bar = progress.add_task("reading and indexing", total=found["products"].stat().st_size)
    start = time.process_time()
    catalogue = write_index(
        indexed_files(found), target, limit=limit, watch=lambda position: progress.update(bar, completed=position)
    )
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kilobytes, but for macOS, where it is bytes.
    peak_mb = peak / (1e6 if sys.platform == "darwin" else 1e3)
    goals = catalogue.goals
    rows += [("kept", f"{len(catalogue.products):,} products"), *_skipped_rows(catalogue)]
    rows.append(("goals", f"{len(goals):,} of {len(set(goals.product.tolist())):,} products, written by rule"))
    if told is not None:
        human = human_written_goals(catalogue.products, told, Random(0))
        rows.append(("", f"{len(human):,} of {len(set(human.product.tolist())):,} products, written by people"))
    rows += [("cannot be won", _unwinnable(catalogue, progress)), *_split_rows(catalogue)]
    rows.append(("goal list", f"sha256 {_goal_list_hash(goals, progress)}"))
    rows.append(("indexing", f"{seconds:,.1f} s of CPU time, at most {peak_mb:,.0f} MB of memory"))
    rows.append(("a run", _opening(target, catalogue)))
    return rows


def _skipped_rows(catalogue: Catalogue) -> list[tuple[str, str]]:
    skipped = catalogue.skipped
    counts = {
        "nameless (ASIN nan or of more than 10 characters)": skipped.nameless,
        "repeated": skipped.repeated,
        "malformed": skipped.malformed,
    }
    rows = [("skipped", ", ".join(f"{count:,} {reason}" for reason, count in counts.items()))]
    return rows + ([("", f"the first malformed one: {skipped.first_malformed}")] if skipped.malformed else [])


def _unwinnable(catalogue: Catalogue, progress: Progress) -> str:
    """How many goals no choice of options wins, of how many products."""
    looked_at = range(0, len(catalogue.goals), max(1, math.ceil(len(catalogue.goals) / CHECKED_GOALS)))
    lost: list[int] = []
    bar = progress.add_task("goals that cannot be won", total=len(looked_at))
    for first in range(0, len(looked_at), _PART):
        part = looked_at[first : first + _PART]
        lost += set(part).difference(winnable_goals(catalogue, part))
        progress.update(bar, advance=len(part))
    products = len({catalogue.goals[index].product for index in lost})
    text = f"{len(lost):,} goals of {products:,} products"
    return text if looked_at.step == 1 else f"{text}, of {len(looked_at):,} goals looked at, an even sample"


def _split_rows(catalogue: Catalogue) -> list[tuple[str, str]]:
    rows = []
    for by in _SPLITS:
        try:
            splits = split_goals(catalogue, by=by)
        except UserError as error:
            rows.append((f"split by {by}", f"none: {error}"))
            continue
        products = {
            name: set(catalogue.goals.product[np.fromiter(goals, np.int64)].tolist()) for name, goals in splits.items()
        }
        text = ", ".join(
            f"{name} {len(goals):,} goals of {len(products[name]):,} products" for name, goals in splits.items()
        )
        shared = len(products["test"] & products["train"])
        rows.append((f"split by {by}", f"{text}; {shared:,} of the products of test are in train too"))
    return rows


def _goal_list_hash(goals: Sequence[Goal], progress: Progress) -> str:
    digest = hashlib.sha256()
    for index, goal in enumerate(progress.track(goals, total=len(goals), description="hash of the goals")):
        digest.update(f"{chr(10) if index else ''}{goal_line(goal)}".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _opening(index: Path, catalogue: Catalogue) -> str:
    """What opening the index and a few searches cost a process."""
    goals = catalogue.goals[:: max(1, len(catalogue.goals) // 10)]
    queries = json.dumps([goal.name.lower() for goal in goals])
    command = [sys.executable, "-P", "-c", _OPEN, str(index.resolve()), queries]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory = map(float, result.stdout.split())
    return f"opens the index and searches {len(goals)} times in {seconds:.2f} s of CPU time, {memory / 1e6:,.0f} MB"


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)
