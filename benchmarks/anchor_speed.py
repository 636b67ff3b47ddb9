"""How fast anchors are hashed and grouped in C++, beside Python: the twin, a dict, the xxhash package, difflib.

    python benchmarks/anchor_speed.py --data FOLDER --out benchmarks/results/anchors.json

Every result of ours is compared with the other's before a time counts. Rounds are those of `rounds.py`, the same for
everybody. A turn is as many calls as take 20 ms together: alone, a call of half a millisecond would tell what the
others left in the caches. How many times faster is a ratio of medians of CPU time, of all threads of this process
together, so that other work on the machine does not count as ours; `ms` beside it is the median of wall time. Each
call gets new bytes, because Python keeps the hash of a bytes object in it.

`synthetic` are 64 task groups of 2048 states of 300 random bytes, a quarter of them distinct. `household` are rollouts
as training has them: a searching expert that errs plays each game several times. `shop` are rollouts in WebShop, for
each goal by several shoppers who search for words of it and click at random: in the shop of the files in --data, or in
an invented one. Anchors are the environments' state keys, observations and pages their texts.
"""

import argparse
import json
import platform
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from rounds import interleave, percentiles
from webshop_speed import open_catalogue

import siri._native
from siri.engine import native_twin
from siri.engine.native import group_states, hash_states
from siri.envs.household import HouseholdEnv
from siri.envs.household.experts import SearchingExpert
from siri.envs.household.generator import generate_game
from siri.envs.webshop import Catalogue, WebShopEnv

TURN_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Turns of a batch in (task, trajectory, step) order."""

    anchors: list[bytes]
    texts: list[str]
    groups: np.ndarray
    """i64[N], the task group of each."""

    def fresh(self) -> list[bytes]:
        """The anchors as new objects, whose hashes Python has not computed yet."""
        return [bytes(bytearray(anchor)) for anchor in self.anchors]


def synthetic(groups: int = 64, rows: int = 2048, size: int = 300) -> Rows:
    rng = random.Random(0)
    anchors = []
    for _ in range(groups):
        pool = [rng.randbytes(size) for _ in range(rows // 4)]
        anchors += rng.choices(pool, k=rows)
    return Rows(anchors=anchors, texts=[], groups=np.repeat(np.arange(groups), rows))


def household(games: int = 16, members: int = 16, steps: int = 30) -> Rows:
    anchors, texts, groups = [], [], []
    for index in range(games):
        game = generate_game(f"anchors/{index}", size="full")
        for member in range(members):
            env = HouseholdEnv(game)
            seen = env.reset()
            expert = SearchingExpert(game.task, seed=f"{game.id}/{member}", noise=0.2, dither=0.2)
            for _ in range(steps):
                anchors.append(seen.anchor)
                texts.append(seen.text)
                groups.append(index)
                if (seen := env.step(expert.act(seen))).done:
                    break
    return Rows(anchors=anchors, texts=texts, groups=np.array(groups))


def shop(catalogue: Catalogue, goals: int = 2, members: int = 8, steps: int = 12) -> Rows:
    anchors, texts, groups = [], [], []
    for index, goal in enumerate(random.Random(0).sample(catalogue.goals, goals)):
        words = goal.name.lower().split()
        for member in range(members):
            rng = random.Random(f"{index}/{member}")
            env = WebShopEnv(catalogue, goal)
            seen = env.reset()
            for _ in range(steps):
                anchors.append(seen.anchor)
                texts.append(seen.text)
                groups.append(index)
                query = f"search[{' '.join(rng.sample(words, min(3, len(words))))}]"
                seen = env.step(query if env.state.kind == "search" else rng.choice(seen.admissible[1:]))
                if seen.done:
                    break
    return Rows(anchors=anchors, texts=texts, groups=np.array(groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    call: Callable[[Any], Any]
    make: Callable[[], Any]
    """Its argument, made anew for each call and not timed."""

    def timed(self) -> tuple[float, float]:
        """(CPU, wall) milliseconds of a call, on average over its turn."""
        calls, cpu, wall = 0, 0.0, 0.0
        while cpu < TURN_SECONDS:
            argument = self.make()
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            self.call(argument)
            cpu += time.process_time() - cpu_start
            wall += time.perf_counter() - wall_start
            calls += 1
        return 1e3 * cpu / calls, 1e3 * wall / calls


def race(contestants: dict[str, Contestant], rounds: int) -> dict[str, Any]:
    """Times of all of them, in rounds."""
    times = interleave({name: c.timed for name, c in contestants.items()}, fewest=rounds, most=rounds)
    told: dict[str, Any] = {"rounds": rounds}
    for name, found in times.items():
        cpu, wall = zip(*found, strict=True)
        told[name] = {"cpu_ms": percentiles(cpu), "ms": percentiles(wall)["p50"]}
    return told


def dict_groups(states: Sequence[Any], groups: np.ndarray) -> np.ndarray:
    return native_twin.group_states(tuple(states), None, groups, None, 1)


def measure_exact(rows: Rows, rounds: int) -> dict[str, Any]:
    """Hashing and exact grouping. One thread and two; from a list, and from one buffer."""
    states, groups = rows.fresh(), rows.groups
    digests = [xxhash.xxh3_128_intdigest(state) for state in states]
    assert [low + (high << 64) for low, high in hash_states(states).tolist()] == digests
    expected = dict_groups(states, groups)
    buffer, offsets = b"".join(states), np.cumsum([0, *map(len, states)])
    assert np.array_equal(group_states(buffer, groups, offsets=offsets), expected)
    result: dict[str, Any] = {"states": len(states), "bytes": len(buffer), "labels": int(expected.max()) + 1}
    contestants = {
        "group_ours_buffer_1": Contestant(
            call=lambda data: group_states(data, groups, offsets=offsets, threads=1), make=lambda: buffer
        ),
        "group_twin": Contestant(call=lambda fresh: dict_groups(fresh, groups), make=rows.fresh),
        "hash_twin": Contestant(call=lambda fresh: native_twin.hash_states(tuple(fresh), None, 1), make=rows.fresh),
        "hash_xxhash_loop": Contestant(
            call=lambda fresh: [xxhash.xxh3_128_digest(state) for state in fresh], make=rows.fresh
        ),
    }
    for threads in (1, 2):
        assert np.array_equal(group_states(states, groups, threads=threads), expected)
        contestants[f"group_ours_{threads}"] = Contestant(
            call=lambda fresh, threads=threads: group_states(fresh, groups, threads=threads), make=rows.fresh
        )
        contestants[f"hash_ours_{threads}"] = Contestant(
            call=lambda fresh, threads=threads: hash_states(fresh, threads=threads), make=rows.fresh
        )
    return result | race(contestants, rounds)


def measure_similarity(
    states: Sequence[str], groups: np.ndarray, threshold: float, rounds: int, *, published: bool = True
) -> dict[str, Any]:
    """Clustering with one thread. The twin is difflib at its best: quick upper bounds, one index a cluster.

    `difflib_plain`, with `published`, is how it is published: a matcher for each pair, though of distinct states only.
    """
    states = tuple(states)
    expected = native_twin.group_states(states, None, groups, threshold, 1)
    contestants = {
        "ours_1": Contestant(
            call=lambda s: group_states(s, groups, similarity=threshold, threads=1), make=lambda: states
        ),
        "difflib_twin": Contestant(
            call=lambda s: native_twin.group_states(s, None, groups, threshold, 1), make=lambda: states
        ),
    }
    if published:
        contestants["difflib_plain"] = Contestant(
            call=lambda s: plain_groups(s, groups, threshold), make=lambda: states
        )
    for name, contestant in contestants.items():
        assert np.array_equal(contestant.call(states), expected), name
    told = race(contestants, rounds)
    middle = {name: told[name]["cpu_ms"]["p50"] for name in contestants}
    return {
        "states": len(states),
        "distinct": len(set(zip(groups.tolist(), states, strict=True))),
        "labels": int(expected.max()) + 1,
        "mean_characters": round(sum(map(len, states)) / len(states)),
        "threshold": threshold,
        **told,
        **{
            f"times_faster_than_{name.removeprefix('difflib_')}": round(middle[name] / middle["ours_1"], 1)
            for name in contestants
            if name != "ours_1"
        },
    }


def plain_groups(states: Sequence[str], groups: np.ndarray, threshold: float) -> np.ndarray:
    founders: list[tuple[int, str]] = []
    labels: dict[tuple[int, str], int] = {}
    keys = list(zip(groups.tolist(), states, strict=True))
    for group, state in dict.fromkeys(keys):
        for label, (other, founder) in enumerate(founders):
            if other == group and SequenceMatcher(None, state, founder).ratio() >= threshold:
                labels[group, state] = label
                break
        else:
            labels[group, state] = len(founders)
            founders.append((group, state))
    return np.array([labels[key] for key in keys])


def measure(rounds: int, data: Path | None) -> dict[str, Any]:
    played, shopped = household(), shop(open_catalogue(data))
    result = {
        "exact_synthetic": measure_exact(synthetic(), rounds),
        "exact_household": measure_exact(played, rounds),
    }
    for name, rows in (("household", played), ("shop", shopped)):
        keys = [anchor.decode() for anchor in rows.anchors]
        for kind, states in (("anchors", keys), ("texts", rows.texts)):
            for threshold in (0.95, 0.8):
                found = measure_similarity(states, rows.groups, threshold, rounds)
                result[f"similarity_{name}_{kind}_{threshold}"] = found
    return result


def surroundings() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line for line in lines if line.startswith("model name")), "?: ?").split(":")[1].strip()
    versions = {"python": platform.python_version(), "compiler": siri._native.COMPILER, "xxhash": xxhash.VERSION}
    return {**versions, "cpu": cpu, "commit": commit.strip()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--data", type=Path, help="folder of the official files of the shop; without it one is invented"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    given = " --data FOLDER" if arguments.data else ""
    head = {
        "command": f"python benchmarks/anchor_speed.py --rounds {arguments.rounds}{given}",
        "times": "cpu_ms: CPU milliseconds of all threads together; ms: median of wall time",
        "shop": "real products" if arguments.data else "invented products",
    }
    text = json.dumps(head | surroundings() | measure(arguments.rounds, arguments.data), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
