"""Measures the official train games: prints the tables of the household generator, or compares generated games.

    python benchmarks/household_statistics.py tables TRAIN.jsonl.xz
    python benchmarks/household_statistics.py compare TRAIN.jsonl.xz --games 500 --out FILE.json

`tables` prints the text blocks of `siri/envs/household/rooms.py` and `tasks.py`. Rates are rounded to what 3553 games
can tell: numbers of receptacles to twentieths, placement rates to thousandths, other chances to hundredths.
"""

import argparse
import json
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean as mean

from siri.envs.household.generator import VERSION, generate_game
from siri.envs.household.official import load_games
from siri.envs.household.problem import Game, Goal, Problem, Receptacle
from siri.envs.household.rooms import BY_ROOM, ROOMS
from siri.envs.household.tasks import GOALS, TOOL

FLAGS = ("pickupable", "cleanable", "heatable", "coolable", "sliceable", "container", "toggleable")


@dataclass(frozen=True, slots=True)
class Scene:
    """One game with what the measurements share."""

    room: str
    problem: Problem
    walkthrough: tuple[str, ...]

    @property
    def goal(self) -> Goal:
        return self.problem.goal

    @property
    def placed(self) -> list[tuple[str, Receptacle]]:
        """Types of the things that stand in receptacles, with the first receptacle that lists each."""
        by_id = {r.id: r for r in self.problem.receptacles}
        return [(t.type, by_id[t.receptacles[0]]) for t in self.problem.things if t.type and t.receptacles]

    @property
    def sought(self) -> list[Receptacle]:
        """Where the things of the sought type are, one entry for each."""
        return [receptacle for kind, receptacle in self.placed if kind == self.goal.object_type]

    def forbidden(self) -> set[str]:
        """Receptacle types where official games never start the sought thing: the tool, and the target of placing."""
        tool = {TOOL[self.goal.task_type]} if self.goal.task_type in TOOL else set()
        placing = self.goal.task_type in ("pick_and_place_simple", "pick_two_obj_and_place")
        return tool | ({self.goal.target_type} if placing else set())


def official_scene(game: Game) -> Scene:
    """The room kind follows from the AI2-THOR scene number in the id: 1-30, 201-230, 301-330, 401-430."""
    number = int(game.id.split("/")[0].rsplit("-", 1)[1])
    room = {0: "kitchen", 2: "living", 3: "bedroom", 4: "bathroom"}[number // 100]
    return Scene(room, game.problem, game.walkthrough)


def generated_scene(game: Game) -> Scene:
    """The room kind follows from furniture that only one kind has, or in small games without it from the goal."""
    kinds = {r.type for r in game.problem.receptacles}
    fits = [room for room in ROOMS if (room, game.problem.goal) in GOALS and kinds <= BY_ROOM[room].receptacles.keys()]
    marks = {"kitchen": "Fridge", "bathroom": "Toilet", "bedroom": "Bed", "living": "Sofa"}
    return Scene(next((room for room in fits if marks[room] in kinds), fits[0]), game.problem, game.walkthrough)


def percent(counter: Counter[int], upto: int) -> str:
    total = sum(counter.values())
    return " ".join(str(round(100 * counter[n] / total)) for n in range(upto + 1))


def wrap(head: str, entries: Iterable[tuple[str, object]]) -> str:
    line = f"{head}: " + " ".join(f"{name}={value}" for name, value in entries)
    return "\n".join(textwrap.wrap(line, 118, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def table_tasks(scenes: Sequence[Scene]) -> list[str]:
    """Games per (room, task type, object, target)."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for s in scenes:
        found[s.room, s.goal.task_type][f"{s.goal.object_type}>{s.goal.target_type}"] += 1
    return [wrap(f"{room} {task}", sorted(pairs.items())) for (room, task), pairs in sorted(found.items())]


def table_receptacles(scenes: Sequence[Scene]) -> list[str]:
    """Twenty equally likely numbers of receptacles of a type, over the games whose task does not ask for that type."""
    rows = []
    for room in ROOMS:
        here = [(s, Counter(r.type for r in s.problem.receptacles)) for s in scenes if s.room == room]
        for kind in sorted({k for _, counts in here for k in counts}):
            values = sorted(counts[kind] for s, counts in here if s.goal.target_type != kind)
            twentieths = (values[(2 * i + 1) * len(values) // 40] for i in range(20))
            rows.append(f"{room} {kind}: " + " ".join(map(str, twentieths)))
    return rows


def table_things(scenes: Sequence[Scene]) -> list[str]:
    """For each thing type: percent of games with 0, 1, 2.. of it where it is not sought, then placement rates.

    A rate is how many of 1000 things of the type start in a receptacle of that type, in the games that have such
    receptacles (and, for sought things, may start them there). Rates under 5 are dropped.
    """
    rows = []
    for room in ROOMS:
        here = [s for s in scenes if s.room == room]
        copies: dict[str, list[int]] = defaultdict(list)
        placed: dict[str, Counter[str]] = defaultdict(Counter)
        could: dict[str, Counter[str]] = defaultdict(Counter)
        types = {kind for s in here for kind, _ in s.placed}
        for s in here:
            kinds = {r.type for r in s.problem.receptacles}
            counts = Counter(kind for kind, _ in s.placed)
            for kind in types:
                asked = kind in (s.goal.object_type, s.goal.target_type)
                if not asked:
                    copies[kind].append(counts[kind])
            for kind, receptacle in s.placed:
                placed[kind][receptacle.type] += 1
                could[kind].update(kinds - s.forbidden() if kind == s.goal.object_type else kinds)
        for kind in sorted(types):
            upto = max(n for n in range(8) if n == 0 or copies[kind].count(n) * 200 >= len(copies[kind]))
            rates = {k: round(1000 * n / could[kind][k]) for k, n in placed[kind].items()}
            chances = percent(Counter(copies[kind]), upto).replace(" ", "/")
            kept = [(k, v) for k, v in sorted(rates.items(), key=lambda kv: -kv[1]) if v >= 5]
            rows.append(wrap(f"{room} {kind} {chances}", kept))
    return rows


def table_sought_copies(scenes: Sequence[Scene]) -> list[str]:
    found: dict[str, Counter[int]] = defaultdict(Counter)
    for s in scenes:
        found[s.goal.task_type][min(4, len(s.sought))] += 1
    return [f"{task}: {percent(counter, 4)}" for task, counter in sorted(found.items())]


def table_openable(scenes: Sequence[Scene]) -> list[str]:
    total: Counter[str] = Counter()
    openable: Counter[str] = Counter()
    for s in scenes:
        for r in s.problem.receptacles:
            total[r.type] += 1
            openable[r.type] += r.openable
    return [f"{kind}={round(100 * n / total[kind])}" for kind, n in sorted(openable.items()) if n]


def table_joins(scenes: Sequence[Scene]) -> list[str]:
    """Percent of receptacles (taken by type, then id) standing where an earlier one of the second type stands."""
    joined: Counter[tuple[str, str]] = Counter()
    could: Counter[tuple[str, str]] = Counter()
    for s in scenes:
        first_at: dict[str, str] = {}
        seen: set[str] = set()
        for r in sorted(s.problem.receptacles, key=lambda r: (r.type, r.id)):
            could.update((r.type, kind) for kind in seen)
            if r.location in first_at:
                joined[r.type, first_at[r.location]] += 1
            first_at.setdefault(r.location, r.type)
            seen.add(r.type)
    rates = {pair: round(100 * n / could[pair]) for pair, n in joined.items()}
    return [f"{a}+{b}={rate}" for (a, b), rate in sorted(rates.items()) if rate >= 3]


def table_can_contain(scenes: Sequence[Scene]) -> list[str]:
    pairs: dict[str, set[str]] = defaultdict(set)
    for s in scenes:
        for receptacle_type, thing_type in s.problem.can_contain:
            pairs[receptacle_type].add(thing_type)
    rows = (f"{kind}: " + " ".join(sorted(things)) for kind, things in sorted(pairs.items()))
    return ["\n".join(textwrap.wrap(row, 118, subsequent_indent="  ")) for row in rows]


def table_flags(scenes: Sequence[Scene]) -> list[str]:
    """Types by the set of things one can do with them. In official games every thing of a type has the same flags."""
    flags: dict[str, Counter[str]] = defaultdict(Counter)
    for s in scenes:
        for thing in s.problem.things:
            if thing.type and thing.receptacles:
                flags[thing.type][" ".join(f for f in FLAGS if getattr(thing, f)) or "fixed"] += 1
    groups: dict[str, list[str]] = defaultdict(list)
    for kind, counter in sorted(flags.items()):
        groups[counter.most_common(1)[0][0]].append(kind)
    rows = (f"{flag}: " + " ".join(kinds) for flag, kinds in sorted(groups.items()))
    return ["\n".join(textwrap.wrap(row, 118, subsequent_indent="  ")) for row in rows]


TABLES = {
    "_RECEPTACLES": table_receptacles,
    "_THINGS": table_things,
    "_OPENABLE": table_openable,
    "_JOINS": table_joins,
    "_CAN_CONTAIN": table_can_contain,
    "_FLAGS": table_flags,
    "_PAIRS": table_tasks,
    "_COPIES": table_sought_copies,
}


def summarise(scenes: Sequence[Scene]) -> dict[str, float]:
    """Key numbers of a set of games: shares in 0..1 (`share ...`) and means (`mean ...`)."""
    games = len(scenes)
    summary: dict[str, float] = {}
    for label, value in (
        ("task", lambda s: s.goal.task_type),
        ("room", lambda s: s.room),
        ("plan length", lambda s: str(len(s.walkthrough))),
    ):
        summary |= {f"share {label} {key}": n / games for key, n in Counter(map(value, scenes)).items()}
    for room in ROOMS:
        here = [s for s in scenes if s.room == room]
        summary[f"mean receptacles {room}"] = mean(len(s.problem.receptacles) for s in here)
        summary[f"mean things {room}"] = mean(len(s.placed) for s in here)
        summary[f"share empty receptacles {room}"] = mean(_empty_share(s) for s in here)
    receptacles = [r for s in scenes for r in s.problem.receptacles]
    sought = [(s, r) for s in scenes for r in s.sought]
    pairs = [a.id == b.id for s in scenes for a, b in combinations(s.sought, 2)]
    summary["share openable receptacles"] = mean(r.openable for r in receptacles)
    summary["share receptacles beside another"] = sum(_beside_another(s.problem) for s in scenes) / len(receptacles)
    summary["share sought things shut away"] = mean(r.openable for _, r in sought)
    summary["share sought things in target type"] = mean(r.type == s.goal.target_type for s, r in sought)
    summary["share pairs of sought things together"] = mean(pairs)
    summary["mean sought things"] = len(sought) / games
    homes = Counter((s.room, r.type) for s, r in sought)
    summary |= {f"share sought things {room} {kind}": n / len(sought) for (room, kind), n in homes.items()}
    return summary


def _empty_share(scene: Scene) -> float:
    used = {r.id for _, r in scene.placed}
    return 1 - len(used) / len(scene.problem.receptacles)


def _beside_another(problem: Problem) -> int:
    return sum(n for n in Counter(r.location for r in problem.receptacles).values() if n > 1)


def compare(official: Sequence[Scene], games: int) -> dict[str, dict[str, float]]:
    """Key numbers of the official games beside those of generated ones, except those under 0.02 in official games."""
    full = summarise([generated_scene(generate_game(seed, size="full")) for seed in range(games)])
    small = summarise([generated_scene(generate_game(seed, size="small")) for seed in range(games)])
    reference = summarise(official)
    keys = sorted(key for key, value in reference.items() if value >= 0.02)
    summaries = (("official", reference), ("full", full), ("small", small))
    return {key: {name: round(summary.get(key, 0.0), 3) for name, summary in summaries} for key in keys}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("tables", "compare"))
    parser.add_argument("archive", type=Path, help="official train games, as read by load_games")
    parser.add_argument("--games", type=int, default=500, help="generated games of each size")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    scenes = [official_scene(game) for game in load_games(arguments.archive)]
    if arguments.mode == "tables":
        for name, table in TABLES.items():
            print(f"{name}\n" + "\n".join(table(scenes)) + "\n")
        return
    result = compare(scenes, arguments.games)
    for key, row in result.items():
        print(f"{key:48} " + " ".join(f"{name} {value:8.3f}" for name, value in row.items()))
    if arguments.out:
        head = {"official_games": len(scenes), "generated_games": arguments.games, "generator_version": VERSION}
        arguments.out.write_text(json.dumps(head | {"rows": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
