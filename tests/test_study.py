"""The study of benchmarks/: tables and figures against direct computations, the oracle's skills, the commands."""

import csv
import itertools
import json
import sys
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from study_figures import bootstrap, summarise, write_results
from study_runs import Command
from study_siri import ARMS, PLACES, Planned, Study, oracle_skills, paying_places, train_and_compare

from siri.config import RunConfig
from siri.engine.config import dump_config, load_config
from siri.engine.distributed import World
from siri.engine.errors import UserError
from siri.envs.household.experts import likelihood
from siri.envs.household.rooms import BY_ROOM
from siri.envs.household.tasks import GOALS
from siri.guidance import open_guidance
from siri.report.parts import NONE
from siri.skills import BankRules, Origin, SkillBank

SVG = "{http://www.w3.org/2000/svg}"


def row(arm: str, seed: int, plain: float, bank: float | None = None, **more) -> dict:
    """What a run gives; `curve` runs in a straight line from 10% to `plain`."""
    return {
        "arm": arm,
        "seed": seed,
        "success_plain": plain,
        "success_with_bank": bank,
        "env_steps": 1000,
        "success_initial": 0.1,
        "tokens_internalised": 5.0,
        "minutes": 1.5,
        "split_hash": "a" * 64,
        "commit": "abc",
        "curve": {"evaluation": [(0, 0.1), (1000, plain)], "rollout": [(0, 0.1), (400, 0.1 + 0.4 * (plain - 0.1))]},
        **more,
    }


ROWS = [
    {**one, "max_env_steps": 1000, "settings": []}
    for one in (
        row("gigpo", 2, 0.60),
        row("siri", 1, 0.80, 0.90),
        row("siri", 0, 0.70, None),
        row("gigpo", 0, 0.50),
        row("siri", 7, 0.90, 0.94),
        row("gigpo", 1, 0.76),
        row("no_gate", 1, 0.75, 0.70),
    )
]


@pytest.mark.parametrize("values", [[0.61, 0.70, 0.74, 0.83], [0.2, 0.3, 0.35, 0.5, 0.9], [-0.04, 0.0, 0.09]])
def test_the_bootstrap_is_that_of_all_resamples(values):
    """Of so few values every resample can be written down: the interval cuts off 2.5% of them on each side."""
    means = sorted(fmean(drawn) for drawn in itertools.product(values, repeat=len(values)))
    low, high = bootstrap(values)
    for bound, tail in ((low, 0.025), (high, 0.975)):
        # Between the quantiles a little to each side, as 10,000 draws are not all of them.
        near = [means[round(share * (len(means) - 1))] for share in (max(0.0, tail - 0.006), min(1.0, tail + 0.006))]
        assert near[0] - 1e-4 <= bound <= near[1] + 1e-4
    assert bootstrap(values) == [low, high]


def test_the_summary_counts_what_there_is():
    gigpo, siri, no_gate = (dict(line) for line in summarise(ROWS, ["gigpo", "siri", "no_warmup", "no_gate"]))
    assert (gigpo["arm"], gigpo["runs"], gigpo["success_plain"]) == ("gigpo", 3, 0.62)
    assert gigpo["success_plain_interval"] == bootstrap([0.50, 0.76, 0.60])
    assert (gigpo["success_with_bank"], gigpo["success_with_bank_interval"]) == (None, None)
    assert gigpo["plain_minus_gigpo"] is None
    # The run without a bank is in no number with one.
    assert (siri["success_plain"], siri["success_with_bank"], siri["success_with_bank_runs"]) == (0.8, 0.92, 2)
    assert siri["success_with_bank_interval"] == bootstrap([0.90, 0.94])
    assert siri["with_bank_minus_plain"] == pytest.approx(fmean([0.90 - 0.80, 0.94 - 0.90]))
    # Seeds 0 and 1 have a partner; 7 has none, and the baseline's 2 has none either.
    assert siri["plain_minus_gigpo"] == pytest.approx(fmean([0.70 - 0.50, 0.80 - 0.76]))
    assert siri["plain_minus_gigpo_interval"] == bootstrap([0.70 - 0.50, 0.80 - 0.76])
    assert siri["plain_minus_gigpo_runs"] == 2
    assert (siri["with_bank_minus_gigpo"], siri["with_bank_minus_gigpo_runs"]) == (pytest.approx(0.14), 1)
    assert siri["with_bank_minus_gigpo_interval"] is None  # one run says nothing of the spread
    assert (no_gate["runs"], no_gate["plain_minus_gigpo"]) == (1, pytest.approx(-0.01))


def test_the_tables_hold_the_rows_and_the_summary(tmp_path):
    write_results(tmp_path, ROWS, list(ARMS))
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["arms"] == summarise(ROWS, list(ARMS))
    by_run = {(one["arm"], one["seed"]): one for one in ROWS}
    assert [(one["arm"], one["seed"]) for one in table["rows"]] == [
        *[("siri", 0), ("siri", 1), ("siri", 7)], *[("gigpo", 0), ("gigpo", 1), ("gigpo", 2)], ("no_gate", 1)
    ]  # fmt: skip
    listed = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert list(listed[0])[:5] == ["arm", "seed", "success_plain", "success_with_bank", "env_steps"]
    for one in listed:
        expected = by_run[one["arm"], int(one["seed"])]
        assert float(one["success_plain"]) == expected["success_plain"]
        bank = expected["success_with_bank"]
        assert one["success_with_bank"] == ("" if bank is None else str(bank))
    told = (tmp_path / "table.md").read_text().splitlines()
    assert "| siri | 3 | 80.0% [70.0%, 90.0%] | 92.0% [90.0%, 94.0%] (2 of 3 runs) |" in "\n".join(told)
    assert any(
        line.startswith(f"| gigpo | 3 | 62.0% [50.0%, 76.0%] | {NONE} | {NONE} | {NONE} | {NONE} |") for line in told
    )
    assert f"| siri | 0 | 10.0% | 70.0% | {NONE} | 1,000 |" in told
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_results(tmp_path, ROWS[::-1], list(ARMS))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def drawing(path: Path) -> ElementTree.Element:
    return ElementTree.parse(path).getroot()


def ruler(figure: ElementTree.Element, axis: str):
    """From pixels back to values, by two labels of the axis (which end in %, or are points)."""
    ends = {"x": "middle", "y": "end"}[axis]
    labels = []
    for text in figure.iter(f"{SVG}text"):
        if text.get("text-anchor") == ends and text.text.rstrip("%k").lstrip("+-").replace(".", "").isdigit():
            size = 1000 if text.text.endswith("k") else 0.01 if text.text.endswith("%") else 1
            labels.append((float(text.get(axis)), float(text.text.rstrip("%k")) * size))
    (x0, v0), (x1, v1) = labels[0], labels[-1]
    assert v0 != v1
    return lambda x: v0 + (float(x) - x0) / (x1 - x0) * (v1 - v0)


def test_figures_are_whole_files_drawn_to_scale(tmp_path):
    write_results(tmp_path, ROWS, list(ARMS))
    figures = {path.stem: drawing(path) for path in tmp_path.glob("*.svg")}
    assert set(figures) == {"success_plain", "with_bank", "difference_to_gigpo", "success_over_steps"}
    for figure in figures.values():
        assert figure.tag == f"{SVG}svg"
        assert "http" not in ElementTree.tostring(figure, encoding="unicode").replace(SVG[1:-1], "")  # needs nothing
    dots = {name: [dot.get("cx") for dot in figures[name].iter(f"{SVG}circle")] for name in figures}
    expected = {
        "success_plain": [0.7, 0.8, 0.9, 0.5, 0.76, 0.6, 0.75],
        "with_bank": [0.7, 0.8, 0.9, 0.9, 0.94, 0.75, 0.7],
        "difference_to_gigpo": [20, 4, -1],
    }
    for name, values in expected.items():
        at = ruler(figures[name], "x")
        assert [at(x) for x in dots[name]] == pytest.approx(values, rel=1e-3, abs=2e-4)
        diamond = next(figures[name].iter(f"{SVG}path"))
        assert at(diamond.get("d")[1:].split(",")[0]) == pytest.approx(12 if "diff" in name else 0.8, rel=1e-3)
    desc = figures["with_bank"].findtext(f"{SVG}desc")
    assert "siri, with bank: mean 92.0% of 2 runs, 95% interval 90.0% to 94.0%" in desc
    texts = [text.text for text in figures["with_bank"].iter(f"{SVG}text")]
    assert "92.0% (2/3)" in texts  # not all runs have a bank
    assert "no_gate, with bank: mean 70.0% of 1 runs" in desc


@pytest.mark.parametrize("evaluated", [False, True])
def test_the_curve_is_the_mean_over_runs_that_stopped_at_different_steps(tmp_path, evaluated):
    """Straight lines, so that their mean is one too, up to where the shortest run ends."""
    slopes = {("siri", 0): (0.2, 900), ("siri", 1): (0.6, 700), ("gigpo", 0): (0.1, 1200)}
    rows = []
    for (arm, seed), (slope, end) in slopes.items():
        line = [(x, 0.1 + slope * x / 1000) for x in (0, 300 + 50 * seed, end)]
        other = [(0, 0.0), (end, 1.0)]
        curves = {"evaluation": line, "rollout": other} if evaluated else {"evaluation": other, "rollout": line}
        rows.append({**row(arm, seed, 0.5, curve=curves), "max_env_steps": 1000, "settings": []})
    write_results(tmp_path, rows, list(ARMS))
    figure = drawing(tmp_path / "success_over_steps.svg")
    x, y = ruler(figure, "x"), ruler(figure, "y")
    siri, gigpo = (line.get("points").split() for line in figure.iter(f"{SVG}polyline"))
    for points, slope in ((siri, 0.4), (gigpo, 0.1)):
        steps, values = zip(*((x(a), y(b)) for a, b in (point.split(",") for point in points)), strict=True)
        assert (steps[0], steps[-1]) == (pytest.approx(0, abs=1), pytest.approx(700, abs=1))
        assert values == pytest.approx([0.1 + slope * step / 1000 for step in steps], abs=2e-3)
    area = next(figure.iter(f"{SVG}polygon")).get("points").split()
    ends = [y(point.split(",")[1]) for point in area if abs(x(point.split(",")[0]) - 700) < 1]
    assert ends == pytest.approx([0.1 + 0.2 * 0.7, 0.1 + 0.6 * 0.7], abs=2e-3)  # of two runs: from one to the other
    assert ("evaluations on the way" in "".join(figure.itertext())) is evaluated


def test_paying_places_are_likelihood_over_rooms_with_every_number_of_receptacles():
    marks = {"kitchen": "fridge 1", "bathroom": "toilet 1", "bedroom": "bed 1", "living": "sofa 1"}
    for room, mark in marks.items():
        for thing in BY_ROOM[room].things:
            found, expected = paying_places(BY_ROOM[room], thing), {}
            for place in BY_ROOM[room].things[thing].places:
                kind, values = place.lower(), []
                for number in BY_ROOM[room].receptacles[place]:
                    names = [f"{kind} {i + 1}" for i in range(number)]
                    values.append(
                        likelihood(thing.lower(), [*names, *{mark}.difference(names)])[names[0]] if names else 0.0
                    )
                if any(values):
                    expected[place] = fmean(values)
            scale = sum(found.values()) / sum(expected.values())  # likelihood's values mean their order only
            assert found == pytest.approx({place: scale * value for place, value in expected.items()})
    shares = paying_places(BY_ROOM["bathroom"], "HandTowel")
    holders = BY_ROOM["bathroom"].receptacles["HandTowelHolder"]
    assert shares["HandTowelHolder"] == pytest.approx(fmean(1 / n for n in holders) * 961 / (961 + 46 * 0.85))


def test_oracle_skills_are_the_best_places_of_everything_that_is_asked_for():
    skills = oracle_skills()
    asked = {goal.object_type.lower() for _, goal in GOALS} | {"desklamp"}
    places: dict[str, list[str]] = {}
    for skill in skills:
        assert set(skill) == {"condition", "strategy"}
        thing, place = skill["condition"].removeprefix("you need "), skill["strategy"].removeprefix("look at ")
        assert " " not in thing + place  # one thing, one place
        places.setdefault(thing, []).append(place)
    assert set(places) == asked
    assert all(2 <= len(set(found)) == len(found) <= PLACES == 3 for found in places.values())
    # By hand, from the tables: 524 of 1773 books lie on one of 1 or 2 beds, 292 on the desk that 13 of 20 rooms have.
    assert places["book"][0] == "bed"
    assert places["handtowel"] == ["handtowelholder", "countertop"]
    assert places["pan"][:2] == ["countertop", "stoveburner"]  # on one of 2 counters, not on one of 4 burners
    assert "cabinet" not in places["plate"]  # the likeliest kind of place in a kitchen, but there are 13 of them
    firsts = [skill["condition"] for skill in skills[: len(asked)]]
    assert len(set(firsts)) == len(asked)
    assert firsts[-1] == "you need desklamp"


def test_a_run_takes_every_oracle_skill_from_the_file(tmp_path: Path) -> None:
    """They differ in one word, mostly."""
    listed = oracle_skills()
    path = tmp_path / "oracle.json"
    path.write_text(json.dumps(listed))
    settings = {"oracle_skills": str(path), "skills": {"max_size": len(listed)}}
    bank = open_guidance(RunConfig.model_validate(settings), World(), {}).bank
    assert [{"condition": skill.condition, "strategy": skill.strategy} for skill in bank.live] == listed
    with pytest.raises(UserError, match=f"holds {len(listed)} skills, more than skills.max_size: {len(listed) - 1}"):
        open_guidance(RunConfig.model_validate({**settings, "skills": {"max_size": len(listed) - 1}}), World(), {})


def test_all_oracle_skills_fit_into_the_bank_and_a_lamp_is_among_three_that_are_shown():
    rules = config_of(next(train_and_compare(study_in(Path()), Planned(arm="oracle_skills", seed=0)))).skills
    bank = SkillBank(BankRules(n_eval=4, max_eval=12, promote_above=0.05, retire_below=-0.02, max_size=rules.max_size))
    origin = Origin(task_id="", task_type="", iteration=0, policy_version=0, played=0, group=0, member=0)
    for skill in oracle_skills():
        bank.add(skill["condition"], skill["strategy"], origin)
    assert len(bank.live) == len(oracle_skills())
    for thing in ("alarmclock", "pillow", "watch"):
        shown = bank.retrieve(f"examine the {thing} with the desklamp.", k=3, explore=0.0, seed=0)
        assert {skill.condition for skill in shown} == {f"you need {thing}", "you need desklamp"}
        assert shown[0].condition == f"you need {thing}"


def study_in(folder: Path, *settings: str) -> Study:
    return Study(out=folder / "out", runs_dir=folder / "runs", env_steps=900, settings=settings)


def config_of(command: Command) -> RunConfig:
    script = next(place for place, word in enumerate(command.words) if word.endswith("train.py"))
    return load_config(RunConfig, None, command.words[script + 1 :])


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_run_that_training_accepts(tmp_path, arm):
    config = config_of(next(train_and_compare(study_in(tmp_path, "--eval.limit", "7"), Planned(arm=arm, seed=3))))
    assert (config.name, config.seed, config.max_env_steps, config.eval.limit) == (f"{arm}-3", 3, 900, 7)
    assert config.algorithm == ("gigpo" if arm == "gigpo" else "siri")
    switches = [name for name in ARMS if name not in ("siri", "gigpo")]
    assert [name for name in switches if getattr(config, name)] == [name for name in switches if name == arm]


def leave_run(study: Study, run: Planned, *, skills: dict[str, int], config: RunConfig) -> None:
    """What training leaves of a run of three iterations."""
    folder = study.runs_dir / run.name
    folder.mkdir(parents=True)
    rate = {"split": "valid", "split_hash": "a" * 64}
    summary = {
        "eval": {
            "initial": {"success_rate": 0.1, **rate},
            "after_warmup": None,
            "step-2": {"success_rate": 0.3, **rate},
            "final": {"success_rate": 0.5, **rate},
        },
        "skills": skills, "env_steps": 60, "tokens_internalised": 8.0, "wall_seconds": {"total": 90.0},
        "git_commit": "abc",
    }  # fmt: skip
    lines = [{"rollout/env_steps": 10.0 * (i + 1), "rollout/plain_success_rate": 0.2 * i} for i in range(3)]
    lines[2]["skills/effect"] = 0.25
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(dump_config(config))


@pytest.mark.parametrize(
    ("arm", "active", "candidate", "hash_of_bank", "compared"),
    [
        ("siri", 0, 3, "a", False),  # candidates are no part of what the run stands for
        ("siri", 2, 0, "a", True),
        ("siri", 2, 0, "b", True),
        ("no_validation", 0, 3, "a", True),  # unless none is ever judged
        ("no_validation", 0, 0, "a", False),
    ],
)
def test_a_run_is_trained_and_compared_on_the_games_it_was_evaluated_on(
    tmp_path, arm, active, candidate, hash_of_bank, compared
):
    study, run = study_in(tmp_path, "--eval.limit", "7"), Planned(arm=arm, seed=1)
    steps = train_and_compare(study, run)
    leave_run(study, run, skills={"active": active, "candidate": candidate}, config=config_of(next(steps)))
    if compared:
        command = next(steps)
        words = " ".join(command.words)
        assert f"eval --run {study.runs_dir / run.name} --split valid --with-skills --json --limit 7" in words
        command.output.write_text(json.dumps({"with_bank": {"success_rate": 0.6, "split_hash": 64 * hash_of_bank}}))
    if hash_of_bank != "a":
        with pytest.raises(ValueError, match="other games"):
            next(steps)
        return
    with pytest.raises(StopIteration) as end:
        next(steps)
    found = end.value.value
    assert (found["success_plain"], found["success_with_bank"]) == (0.5, 0.6 if compared else None)
    assert (found["env_steps"], found["success_initial"], found["minutes"]) == (60, 0.1, 1.5)
    # Success belongs to the weights that played: those of before the iteration, or of after so many of them.
    assert found["curve"] == {
        "evaluation": [(0, 0.1), (30, 0.3), (60, 0.5)],
        "rollout": [(0, 0.0), (10, 0.2), (30, 0.4)],
    }
    # An iteration that tried no skill has no effect.
    assert found["by_iteration"]["skills/effect"] == [None, None, 0.25]
    assert found["by_iteration"]["rollout/env_steps"] == [10, 20, 30]
