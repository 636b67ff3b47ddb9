"""How fast our shop is, and what its catalogues cost.

    python benchmarks/webshop_speed.py --data FOLDER --full SCRATCH --out benchmarks/results/webshop_speed.json

Steps: episodes like those of an agent that can shop: it searches for words of the goal, pages, opens products, reads,
chooses options, buys; all environments share one catalogue. With `repeated` queries, as in groups that play one task, a
search is found among the last 4096; `fresh` queries were never seen before. Without --data an invented shop of 394
products is played.

Memory: of a process with a catalogue of 1000 products (the given ones, repeated under other ASINs) and 1000
environments in the middle of an episode, beside what the interpreter and its modules take.

--full makes files of 1,181,436 invented products in the folder SCRATCH (1.6 GB with the index; deleted afterwards),
indexes them, opens the index, and searches. It takes minutes.

Times are CPU seconds of the process, so that a busy machine does not count; memory is what the process itself reports.
"""

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import random
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from siri.envs.webshop import Catalogue, WebShopEnv, load_catalogue, procedural_catalogue
from siri.envs.webshop.files import read_records
from siri.envs.webshop.folder import find_files, indexed_files, load_folder
from siri.envs.webshop.procedural import ProceduralAttributes, procedural_records
from siri.envs.webshop.stored import open_index, write_index

ALL_PRODUCTS = 1_181_436
OFFICIAL_STEPS = {
    "steps_per_second": 29,
    "where": "measured elsewhere, not on this machine: the official code with Lucene and its page parser, one core",
}
EPISODES = 1500
ROUNDS = 5


def open_catalogue(data: Path | None) -> Catalogue:
    return procedural_catalogue(394) if data is None else load_folder(data)


def script(catalogue: Catalogue, rng: random.Random, number: int) -> tuple[int, list[str]]:
    """Goal and actions of one episode of 7 to 14 steps: two searches, pages, products, an item's text, options, buying.

    The query holds the number of the episode, which no product does: it is a new one and finds the same.
    """
    index = rng.randrange(len(catalogue.goals))
    goal = catalogue.goals[index]
    words = goal.name.lower().split()
    actions = [f"search[{goal.query} {' '.join(rng.sample(words, min(3, len(words))))} qx{number}]"]
    if rng.random() < 0.5:
        actions += ["click[next >]", "click[< prev]"]
    actions += ["OPEN", f"click[{rng.choice(('description', 'features'))}]", "click[< prev]", "click[back to search]"]
    actions += [f"search[{goal.name.replace(']', ' ')} qx{number}]", "OPEN"]
    actions += [f"click[{option[1]}]" for option in goal.options if not isinstance(option, str)]
    return index, [*actions, "click[buy now]"]


def record_episodes(catalogue: Catalogue, episodes: int, seed: int = 0) -> list[tuple[int, list[str]]]:
    """Episodes whose `OPEN` is a click on a product of the page that is open then."""
    rng = random.Random(seed)
    recorded = []
    for number in range(episodes):
        index, actions = script(catalogue, rng, seed * 1_000_000 + number)
        env = WebShopEnv(catalogue, catalogue.goals[index])
        seen = env.reset()
        for place, action in enumerate(actions):
            if action == "OPEN":
                asins = [thing for thing in env.clickables if thing.upper() in catalogue.number]
                actions[place] = f"click[{rng.choice(asins[:3])}]" if asins else "click[next >]"
            seen = env.step(actions[place])
        assert seen.done
        recorded.append((index, actions))
    return recorded


def play(catalogue: Catalogue, episodes: Iterable[tuple[int, list[str]]]) -> int:
    """Plays them; how many steps were made."""
    steps = 0
    for index, actions in episodes:
        env = WebShopEnv(catalogue, catalogue.goals[index])
        env.reset()
        for action in actions:
            env.step(action)
        steps += len(actions)
    return steps


def steps_per_second(data: Path | None, *, episodes: int = EPISODES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Medians over rounds; `fresh` rounds are played with a catalogue that has not seen their queries."""
    recorder = open_catalogue(data)
    recorded = record_episodes(recorder, episodes)
    speeds: dict[str, list[float]] = {"fresh": [], "repeated": []}
    for _ in range(rounds):
        catalogue = open_catalogue(data)
        play(catalogue, record_episodes(catalogue, 50, seed=1))  # other queries; terms, colours and pages are warm
        for name in ("fresh", "repeated"):
            start = time.process_time()
            steps = play(catalogue, recorded)
            speeds[name].append(steps / (time.process_time() - start))
    return {
        "products": len(recorder.products),
        "episodes": len(recorded),
        "steps_an_episode": round(sum(len(actions) for _, actions in recorded) / len(recorded), 1),
        **{
            f"{name}_queries": {"steps_per_second": round(median(values)), "rounds": [round(value) for value in values]}
            for name, values in speeds.items()
        },
    }


def memory_of_thousand(data: Path | None) -> dict[str, float]:
    """Megabytes that a fresh process takes for 1000 products and 1000 environments in the middle of an episode."""
    return _in_process(_thousand, data)


def _thousand(data: Path | None) -> dict[str, float]:
    records, notes, nouns = _thousand_records(data)
    before = _rss()
    start = time.process_time()
    catalogue = load_catalogue(records(), notes, title_nouns=nouns)
    load, loaded = time.process_time() - start, _rss()
    environments = []
    for index, actions in record_episodes(catalogue, 1000):
        env = WebShopEnv(catalogue, catalogue.goals[index])
        env.reset()
        for action in actions[: len(actions) // 2]:
            env.step(action)
        environments.append(env)
    return {
        "products": len(catalogue.products),
        "environments": len(environments),
        "load_seconds": round(load, 2),
        "catalogue_mb": round((loaded - before) / 1e6, 1),
        "with_environments_and_full_caches_mb": round((_rss() - before) / 1e6, 1),
    }


def _thousand_records(data: Path | None) -> tuple[Callable[[], Iterator[dict[str, Any]]], Any, Any]:
    """Records are read from a file one by one: what the measurement counts is the catalogue."""
    if data is None:
        return lambda: procedural_records(1000), ProceduralAttributes(1000), None
    files = find_files(data)
    told = json.loads(files["attributes"].read_bytes())
    notes = {_copied(asin, copy): note for asin, note in told.items() for copy in range(1 + 1000 // len(told))}

    def records() -> Iterator[dict[str, Any]]:
        passes = (read_records(files["products"], "products") for _ in count())
        copies = (
            record | {"asin": _copied(record["asin"], copy)} for copy, some in enumerate(passes) for record in some
        )
        return islice(copies, 1000)

    return records, notes, files.get("title_nouns")


def _copied(asin: str, copy: int) -> str:
    # No ASIN has a small letter in front.
    return asin if copy == 0 else f"{chr(ord('a') + copy)}{asin[1:]}"


def full_size(scratch: Path, number: int = ALL_PRODUCTS) -> dict[str, Any]:
    """Files of so many invented products, indexed and opened, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        _write_files(folder, number)
        sizes = {file.name: round(file.stat().st_size / 1e6, 1) for file in folder.iterdir()}
        indexing = _in_process(_index, folder)
        index = folder / "index"
        return {
            "products": number,
            "files_mb": sizes,
            "indexing": indexing,
            "index_mb": round(sum(file.stat().st_size for file in index.iterdir()) / 1e6, 1),
            "opening": _in_process(_open, index),
        }


def _write_files(folder: Path, number: int) -> None:
    with (folder / "products.json").open("w") as file:
        for place, record in enumerate(procedural_records(number)):
            file.write(("[" if place == 0 else ",\n") + json.dumps(record))
        file.write("]\n")
    with (folder / "attributes.json").open("w") as file:
        for place, (asin, note) in enumerate(ProceduralAttributes(number).items()):
            file.write(("{" if place == 0 else ",\n") + f"{json.dumps(asin)}: {json.dumps(note)}")
        file.write("}\n")


def _index(folder: Path) -> dict[str, Any]:
    start, wall = time.process_time(), time.perf_counter()
    write_index(indexed_files(find_files(folder)), folder / "index")
    return {
        "cpu_seconds": round(time.process_time() - start, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "peak_mb": round(_peak_kb() / 1e3),
    }


def _peak_kb() -> int:
    """Most memory that this process had. `ru_maxrss` is at least what its parent had when it began: Linux carries that
    over from a fork to the program that takes its place."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _open(index: Path) -> dict[str, Any]:
    before, start = _rss(), time.process_time()
    catalogue = open_index(index)
    opened, after = time.process_time() - start, _rss()
    rng = random.Random(0)
    milliseconds = []
    for _ in range(300):
        query = catalogue.goals[rng.randrange(len(catalogue.goals))].instruction.lower()
        start = time.process_time()
        catalogue.search(query)
        milliseconds.append((time.process_time() - start) * 1e3)
    searched = _rss()
    recorded = record_episodes(catalogue, 40)
    catalogue = open_index(index)
    start = time.process_time()
    steps = play(catalogue, recorded)
    return {
        "cpu_seconds": round(opened, 2),
        "memory_mb": round((after - before) / 1e6),
        "after_300_searches_mb": round((searched - before) / 1e6),
        "goals": len(catalogue.goals),
        "postings": len(catalogue.index.documents),
        "search_ms": {"p50": round(median(milliseconds), 1), "p95": round(quantiles(milliseconds, n=20)[-1], 1)},
        "fresh_queries_steps_per_second": round(steps / (time.process_time() - start)),
    }


def _in_process(measure: Callable[[Any], dict[str, Any]], argument: Any) -> dict[str, Any]:
    """What a fresh process measures, so that memory of other measurements does not count."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (argument,))


def _rss() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def surroundings() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?: ?"
    )
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "rapidfuzz", "regex")},
        "cpu": cpu.split(":")[1].strip(),
        "cores": cores,
        "load_average": round(load, 1),
        "machine_busy": load > 0.5,
        "commit": commit.strip(),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with products, as `siri data webshop` reads it")
    parser.add_argument("--full", type=Path, metavar="SCRATCH", help="measure a catalogue of full size, in this folder")
    parser.add_argument("--products", type=int, default=ALL_PRODUCTS, help="the number of products of --full")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args(words)
    result = surroundings() | {
        "times": "CPU time of the process, medians",
        "steps": steps_per_second(arguments.data, episodes=arguments.episodes),
        "official": OFFICIAL_STEPS,
        "memory": memory_of_thousand(arguments.data),
    }
    if arguments.full:
        result["full_size"] = full_size(arguments.full, arguments.products)
    command = "python benchmarks/webshop_speed.py" + (" --data FOLDER" if arguments.data else "")
    command += " --full SCRATCH" if arguments.full else ""
    text = json.dumps({"command": command} | result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
