"""How fast anchors are hashed and grouped in C++, beside Python: the twin, a dict, the xxhash package, difflib.

    python benchmarks/anchor_speed.py --out benchmarks/results/anchors.json

Every result of ours is compared with the other's before a time counts. Times are CPU milliseconds of this process, of
all its threads together, least and median of the rounds: other work on the machine does not count as ours. Each round
gets new objects, because Python keeps the hash of a bytes object in it. `synthetic` are 64 task groups of 2048 states
of 300 random bytes, a quarter of them distinct. `household` are rollouts as training has them: a searching expert that
errs plays each game several times; anchors are the environment's state keys, observations its texts. `pages` are long
texts, made up.
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
from statistics import median
from typing import Any

import numpy as np
import xxhash

import siri._native
from siri.engine import native_twin
from siri.engine.native import group_states, hash_states
from siri.envs.household import HouseholdEnv
from siri.envs.household.experts import SearchingExpert
from siri.envs.household.generator import generate_game


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


def pages(groups: int = 4, rows: int = 40, words: int = 250) -> Rows:
    """Texts of some 1500 characters, as of a shop: pages of one group differ in a few words."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("eeeaaiottnrsldhucmpgb", k=rng.randrange(2, 10))) for _ in range(600)]
    texts = []
    for _ in range(groups):
        bases = [rng.choices(vocabulary, k=words) for _ in range(4)]
        for _ in range(rows):
            page = list(rng.choice(bases))
            for _ in range(rng.randrange(30)):
                page[rng.randrange(words)] = rng.choice(vocabulary)
            texts.append(" ".join(page))
    return Rows(anchors=[text.encode() for text in texts], texts=texts, groups=np.repeat(np.arange(groups), rows))


def milliseconds(call: Callable[..., Any], make: Callable[[], Any], rounds: int) -> dict[str, float]:
    """CPU time of `call(make())`, without that of `make`."""
    times = []
    for _ in range(rounds):
        argument = make()
        start = time.process_time()
        call(argument)
        times.append(1e3 * (time.process_time() - start))
    return {"least": round(min(times), 3), "median": round(median(times), 3)}


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
    for threads in (1, 2):
        assert np.array_equal(group_states(states, groups, threads=threads), expected)
        result[f"group_ours_{threads}"] = milliseconds(
            lambda fresh, threads=threads: group_states(fresh, groups, threads=threads), rows.fresh, rounds
        )
        result[f"hash_ours_{threads}"] = milliseconds(
            lambda fresh, threads=threads: hash_states(fresh, threads=threads), rows.fresh, rounds
        )
    result["group_ours_buffer_1"] = milliseconds(
        lambda data: group_states(data, groups, offsets=offsets, threads=1), lambda: buffer, rounds
    )
    result["group_twin"] = milliseconds(lambda fresh: dict_groups(fresh, groups), rows.fresh, rounds)
    result["hash_twin"] = milliseconds(
        lambda fresh: native_twin.hash_states(tuple(fresh), None, 1), rows.fresh, max(1, rounds // 5)
    )
    result["hash_xxhash_loop"] = milliseconds(
        lambda fresh: [xxhash.xxh3_128_digest(state) for state in fresh], rows.fresh, rounds
    )
    return result


def measure_similarity(states: Sequence[str], groups: np.ndarray, threshold: float, rounds: int) -> dict[str, Any]:
    """Clustering with one thread. The twin is difflib at its best: quick upper bounds, one index a cluster.

    `difflib_plain` is how it is published: a matcher for each pair, though of distinct states only.
    """
    states = tuple(states)
    expected = native_twin.group_states(states, None, groups, threshold, 1)
    assert np.array_equal(group_states(states, groups, similarity=threshold, threads=1), expected)
    assert np.array_equal(plain_groups(states, groups, threshold), expected)
    ours = milliseconds(lambda s: group_states(s, groups, similarity=threshold, threads=1), lambda: states, rounds)
    twin = milliseconds(lambda s: native_twin.group_states(s, None, groups, threshold, 1), lambda: states, 3)
    plain = milliseconds(lambda s: plain_groups(s, groups, threshold), lambda: states, 1)
    return {
        "states": len(states),
        "mean_characters": round(sum(map(len, states)) / len(states)),
        "threshold": threshold,
        "labels": int(expected.max()) + 1,
        "ours_1": ours,
        "difflib_twin": twin,
        "difflib_plain": plain["least"],
        "times_faster_than_twin": round(twin["least"] / ours["least"]),
        "times_faster_than_plain": round(plain["least"] / ours["least"]),
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


def measure(rounds: int = 20) -> dict[str, Any]:
    played, edited = household(), pages()
    keys = [anchor.decode("utf-8", "surrogateescape") for anchor in played.anchors]
    return {
        "exact_synthetic": measure_exact(synthetic(), rounds),
        "exact_household": measure_exact(played, rounds),
        "similarity_household_anchors": measure_similarity(keys, played.groups, 0.95, rounds),
        "similarity_household_observations": measure_similarity(played.texts, played.groups, 0.95, rounds),
        "similarity_household_observations_0.8": measure_similarity(played.texts, played.groups, 0.8, rounds),
        "similarity_pages": measure_similarity(edited.texts, edited.groups, 0.95, rounds),
    }


def surroundings() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line for line in lines if line.startswith("model name")), "?: ?").split(":")[1].strip()
    versions = {"python": platform.python_version(), "compiler": siri._native.COMPILER, "xxhash": xxhash.VERSION}
    return {**versions, "cpu": cpu, "commit": commit.strip()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    head = {
        "command": f"python benchmarks/anchor_speed.py --rounds {arguments.rounds}",
        "times": "CPU milliseconds of all threads together",
    }
    text = json.dumps(head | surroundings() | measure(arguments.rounds), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
