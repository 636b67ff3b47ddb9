"""The comparison of the kernels, on tiny tasks: what is measured is right, and what is wrong gets no time."""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from gigpo_incumbent import careful, incumbent, make_rows
from kernel_figures import write_results
from kernel_measure import GEMMS, interleave, measure, peak_of
from kernel_peers import CONTESTANTS, EAGER, OURS, Contestant, Unsupported
from kernel_speed import CPU_CASES, GPU_CASES
from kernel_tasks import Case, make_task

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"tokens": 32, "width": 16, "vocabulary": 70}
CASES = [
    Case(name="logprob", op="linear_logprob", modes=("forward", "both"), **SMALL),
    Case(name="policy", op="linear_policy_loss", kept=0.5, **SMALL),
    Case(name="nll", op="masked_distill_loss", **SMALL),
    Case(name="forward_kl", op="masked_distill_loss", divergence="forward_kl", **SMALL),
    Case(name="jsd", op="masked_distill_loss", divergence="jsd", **SMALL),
    Case(name="selective", op="selective_logprob", **SMALL),
    Case(name="advantage", op="gigpo_advantage", tokens=400, modes=("forward",)),
    Case(name="advantage, theirs", op="gigpo_advantage", tokens=400, modes=("forward",), parity=True),
]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the contestants that are compiled, which takes half a minute each."""
    for op, listed in CONTESTANTS.items():
        monkeypatch.setitem(CONTESTANTS, op, [contestant for contestant in listed if not contestant.compiles])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ours_and_pytorchs_are_right(case: Case) -> None:
    for result in measure(make_task(case, CPU, torch.float32), seconds=0, most=1):
        entries = {entry["name"]: entry for entry in result["contestants"]}
        right = {name for name, entry in entries.items() if entry.get("right")}
        assert OURS in right
        assert not [entry for entry in entries.values() if entry.get("right") is False]
        assert len(right) >= 2
        assert (GEMMS in entries) == case.op.startswith(("linear", "masked"))
        leaves = 1 if case.op == "selective_logprob" else 2
        assert len(entries[OURS]["gradient_errors"]) == (0 if result["mode"] == "forward" else leaves)
        assert all(entries[name]["ms"]["p50"] > 0 for name in right)


def test_who_is_wrong_or_fails_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(_: Any) -> Any:
        raise RuntimeError("no kernel image")

    def refuse(_: Any) -> Any:
        raise Unsupported("needs an NVIDIA GPU")

    def import_it(_: Any) -> Any:
        import a_package_that_nobody_has  # noqa: F401

    def wrong(task: Any) -> Any:
        return lambda: (task.tokens.hidden @ task.tokens.weight.t())[:, 0]

    makers = {"explodes": explode, "refuses": refuse, "absent": import_it, "wrong": wrong}
    listed = [Contestant(name=name, make=make) for name, make in makers.items()]
    monkeypatch.setitem(CONTESTANTS, "linear_logprob", listed)
    (result,) = measure(make_task(Case(name="x", op="linear_logprob", **SMALL), CPU, torch.float32), seconds=0, most=1)
    entries = {entry["name"]: entry for entry in result["contestants"]}
    assert entries["explodes"]["left_out"] == "failed: RuntimeError: no kernel image"
    assert entries["refuses"]["left_out"] == "needs an NVIDIA GPU"
    assert entries["absent"]["left_out"] == "No module named 'a_package_that_nobody_has'"
    assert not entries["wrong"]["right"]
    assert [name for name, entry in entries.items() if "ms" in entry] == [GEMMS]


def test_rounds_turn_their_order() -> None:
    seen: list[str] = []
    runs = {name: lambda name=name: (seen.append(name), (None, ()))[1] for name in "abc"}
    times = interleave(runs, CPU, seconds=0.0, most=3)
    assert "".join(seen) == "abcbcacab"
    assert [len(found) for found in times.values()] == [3, 3, 3]


def test_peak_memory_is_that_of_the_call() -> None:
    """Three tensors of 4 MiB, two of them at a time."""
    task = make_task(CASES[0], CPU, torch.float32)

    def run() -> Any:
        a = torch.ones(2**20)
        b = a + 1
        del a
        return b * 2, ()

    assert peak_of(run, task)[1] == pytest.approx(8.0, abs=0.1)


def test_incumbents_algorithm_is_the_careful_one() -> None:
    rows = make_rows(700)
    expected, got = careful(rows, own_rule=False), incumbent(rows).double()
    claimed = ~expected.isnan()
    assert 0.2 < claimed.double().mean() < 1.0
    torch.testing.assert_close(got[claimed], expected[claimed], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("interpreted")
def test_tables_and_figures(tmp_path: Path) -> None:
    results = measure(make_task(CASES[0], CPU, torch.float32), seconds=0, most=1)
    measured = {
        "command": "python benchmarks/kernel_speed.py", "commit": "0" * 40, "hardware": {"name": "a CPU"},
        "versions": {"torch": "2.13"}, "kernels": "reference", "left_out": [{"case": "B", "reason": "no time left"}],
        "results": json.loads(json.dumps(results)),
    }  # fmt: skip
    write_results(measured, tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {"summary.md", "tables.md", "table.csv"} < written.keys()
    assert f"| {OURS} | " in written["tables.md"]
    assert f"| {EAGER} | " in written["tables.md"]
    assert "cut-cross-entropy" not in written["summary.md"]
    assert "Not measured: B (no time left)." in written["summary.md"]
    lines = written["table.csv"].splitlines()
    assert len(lines) == 1 + sum(len(result["contestants"]) for result in results)
    drawn = [ElementTree.fromstring(text) for name, text in written.items() if name.endswith(".svg")]
    for svg in drawn:
        bars = [part for part in svg.iter() if "bar" in part.get("class", "").split()]
        assert all(float(bar.get("width", "-1")) > 0 for bar in bars)


def test_names_of_cases_differ() -> None:
    for listed in (CPU_CASES, GPU_CASES):
        assert len({case.name for case in listed}) == len(listed)
