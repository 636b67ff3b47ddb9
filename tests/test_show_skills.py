"""`siri skills`: the bank as a table and as JSON, and the interval of a utility."""

import json
import math
import re

import numpy as np
import pytest
from report_pages import bank_of, write_run

from siri import cli
from siri.show_skills import mean_interval, t_quantile


def t_below(x: float, freedom: int, parts: int = 20000) -> float:
    """Student's t distribution at x, by Simpson's rule over its density."""
    t = np.linspace(0, x, 2 * parts + 1)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = scale * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    weights = np.ones_like(t)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return 0.5 + float(weights @ density) * x / (6 * parts)


@pytest.mark.parametrize("freedom", [*range(1, 35), 60, 120, 1000])
def test_the_quantile_is_that_of_students_t(freedom):
    assert t_below(t_quantile(freedom), freedom) == pytest.approx(0.975, abs=5e-5)


def test_the_interval_of_a_mean_by_hand():
    bank = bank_of(("cold", "heat"), ("warm", "cool"))
    first, second = bank.skills
    # effects 0, 1, 0.5: mean 0.5, standard deviation 0.5, over sqrt(3), times 4.303
    assert mean_interval(first) == pytest.approx((0.5 - 1.24217, 0.5 + 1.24217), abs=1e-4)
    assert mean_interval(second) is None


@pytest.mark.parametrize("columns", [40, 100])
def test_siri_skills_prints_the_bank(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    run_dir = write_run(tmp_path / "run", bank=bank_of(("cold [red]", "heat [31m it"), ("warm", "cool")))
    assert cli.main(["skills", "--run", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    assert " ".join(shown.split()).startswith("2 skills: 1 active, 1 candidate, 0 retired")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    columns_read = [" ".join(" ".join(column).split()) for column in zip(*cells, strict=True)]
    if columns == 40:  # longer words are broken
        columns_read = [text.replace(" ", "") for text in columns_read]
    assert columns_read == [
        text.replace(" ", "") if columns == 40 else text
        for text in [
            "s0001 when cold [red]: heat [31m it s0002 when warm: cool",
            "active, iteration 1: mean utility 0.5 > 0.1 after 2 evaluations candidate, iteration 1: mined",
            "3 0",
            "+0.500 [-0.742, +1.742] untested",
        ]
    ]


def test_siri_skills_as_json_and_by_status(tmp_path, capsys):
    run_dir = write_run(tmp_path / "run", bank=bank_of(("cold", "heat"), ("warm", "cool")))
    whole = json.loads((run_dir / "skills.json").read_text())["skills"]
    assert cli.main(["skills", "--run", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == whole
    assert cli.main(["skills", "--run", str(run_dir), "--json", "--status", "candidate"]) == 0
    assert json.loads(capsys.readouterr().out) == whole[1:]
    assert cli.main(["skills", "--run", str(run_dir), "--status", "retired"]) == 0
    assert capsys.readouterr().out == "2 skills: 1 active, 1 candidate, 0 retired\n"


@pytest.mark.parametrize("command", ["report", "skills"])
@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda path: None, "does not exist; give one like runs/default"),
        (lambda path: path.write_text(""), "is not a directory; give one like"),
        (lambda path: path.mkdir(), r"is not a run directory \(no config.yaml in it\); give one like"),
    ],
)
def test_what_is_not_a_run_is_refused(tmp_path, capsys, command, arrange, message):
    arrange(tmp_path / "run")
    assert cli.main([command, "--run", str(tmp_path / "run")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_siri_skills_before_the_first_checkpoint(tmp_path, capsys):
    assert cli.main(["skills", "--run", str(write_run(tmp_path / "run"))]) == 2
    assert "holds no skills.json yet; a run writes it with each checkpoint" in capsys.readouterr().err
