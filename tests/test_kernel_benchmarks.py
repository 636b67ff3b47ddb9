"""The comparison of the kernels, on tiny tasks: what is measured is right, and what is wrong gets no time."""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from conftest import REPO

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from gigpo_incumbent import careful, incumbent, make_rows
from import_peers import skip_init, stand_ins
from kernel_figures import write_results
from kernel_measure import GEMMS, measure, peak_of
from kernel_peers import CONTESTANTS, EAGER, INCUMBENT, OURS, Contestant, Unsupported
from kernel_speed import cases, surroundings
from kernel_tasks import Case, make_task
from rounds import interleave

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"tokens": 32, "width": 16, "vocabulary": 70}
CASES = [
    Case(name="logprob", op="linear_logprob", modes=("forward", "both"), **SMALL),
    Case(name="logprob, entropy", op="linear_logprob", entropy=True, modes=("forward", "both"), **SMALL),
    Case(name="policy", op="linear_policy_loss", kept=0.5, **SMALL),
    Case(name="policy, KL, entropy", op="linear_policy_loss", entropy=True, kept=0.5, **SMALL),
    Case(name="nll", op="masked_distill_loss", **SMALL),
    Case(name="forward_kl", op="masked_distill_loss", divergence="forward_kl", **SMALL),
    Case(name="reverse_kl", op="masked_distill_loss", divergence="reverse_kl", **SMALL),
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
    for result in measure(make_task(case, CPU, torch.float32), seconds=0, fewest=1):
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
    (result,) = measure(
        make_task(Case(name="x", op="linear_logprob", **SMALL), CPU, torch.float32), seconds=0, fewest=1
    )
    entries = {entry["name"]: entry for entry in result["contestants"]}
    assert entries["explodes"]["left_out"] == "failed: RuntimeError: no kernel image"
    assert entries["refuses"]["left_out"] == "needs an NVIDIA GPU"
    assert entries["absent"]["left_out"] == "No module named 'a_package_that_nobody_has'"
    assert not entries["wrong"]["right"]
    assert [name for name, entry in entries.items() if "ms" in entry] == [GEMMS]


def test_slow_peers_are_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [c for c in CONTESTANTS["linear_logprob"] if c.name in (OURS, EAGER, "F.linear_cross_entropy")]
    monkeypatch.setitem(CONTESTANTS, "linear_logprob", listed)
    task = make_task(Case(name="x", op="linear_logprob", **SMALL), CPU, torch.float32)
    (result,) = measure(task, seconds=0, fewest=2, patience=0.0)
    rounds = {entry["name"]: entry["rounds"] for entry in result["contestants"]}
    assert rounds == {OURS: 2, EAGER: 2, "F.linear_cross_entropy": 1, GEMMS: 2}


def test_a_part_of_a_package_is_imported_without_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inner = tmp_path / "a_large_package" / "ops"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text("import a_package_that_nobody_has")
    (inner / "fused.py").write_text("from a_package_that_nobody_has import Frame\nclass Mine(Frame): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("a_large_package", "a_large_package.ops", "a_large_package.ops.fused"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # afterwards too
    with pytest.raises(ModuleNotFoundError, match="nobody_has"):
        import a_large_package.ops.fused  # noqa: F401
    skip_init("a_large_package", "a_large_package.ops")
    with stand_ins("json", "a_package_that_nobody_has"):
        from a_large_package.ops.fused import Mine

        assert sys.modules["json"] is json  # what is there is itself
    assert Mine.__mro__[1].__name__ == "Frame"
    assert "a_package_that_nobody_has" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="No module named 'another_that_nobody_has'"):
        skip_init("another_that_nobody_has")


def test_rounds_turn_their_order() -> None:
    seen: list[str] = []
    timed = {name: lambda name=name: (seen.append(name), len(seen))[1] for name in "abc"}
    assert interleave(timed, fewest=3, most=9) == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    assert "".join(seen) == "abcbcacab"
    assert interleave(timed, fewest=1, most=9, warm=1)["a"] == [15]
    assert interleave(timed, seconds=60.0, fewest=1, most=2)["c"] == [18, 20]


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


def entry(name: str, ms: float) -> dict[str, Any]:
    return {
        "name": name, "value_error": 1e-6, "gradient_errors": [1e-5, 2e-5], "right": True, "peak_mib": 12.0,
        "rounds": 3, "ms": {"p20": 0.9 * ms, "p50": ms, "p80": 1.2 * ms}, "cpu_ms": ms, "teraflops": 0.5,
        "percent_of_gemms": 50.0,
    }  # fmt: skip


def test_tables_and_figures(tmp_path: Path) -> None:
    wrong = {"name": "wrong one", "value_error": 2.0, "gradient_errors": [0.5, None], "right": False, "peak_mib": 1.0}
    result = {
        "case": "logprob, T=4", "op": "linear_logprob", "mode": "both", "tokens": 4, "width": 2, "vocabulary": 8,
        "kept": 1.0, "dtype": "float32", "inputs": "made up", "flops": 1.0, "gradients_mib": 3.0,
    }  # fmt: skip
    listed = [entry(EAGER, 40.0), entry(OURS, 20.0), {"name": "absent", "left_out": "not installed"}, wrong]
    bare = {name: value for name, value in entry(GEMMS, 10.0).items() if "error" not in name}
    far = {**result, "case": "far apart", "contestants": [entry(OURS, 1.0), entry(EAGER, 1000.0)]}
    measured = {
        "command": "python benchmarks/kernel_speed.py", "commit": "0" * 40, "hardware": {"name": "a CPU"},
        "versions": {"torch": "2.13"}, "kernels": "reference", "left_out": [{"case": "B", "reason": "no time left"}],
        "results": [{**result, "contestants": [*listed, bare]}, far],
    }  # fmt: skip
    more = {"hardware": {"name": "a CPU", "threads": 2}, "commit": "1234567890", "versions": {"torch": "2.14"}}
    again = {**result, "contestants": [entry(OURS, 21.0), entry(EAGER, 4200.0)]}
    write_results({"first.json": measured, "more.json": {**more, "results": [again]}}, tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written.keys() == {"readme_table.md", "summary.md", "tables.md", "table.csv", "logprob-t-4-both.svg"}
    assert written["readme_table.md"].splitlines()[2:] == [
        "| logprob, T=4, forward and backward | 20 ms | 40 ms |  | 12 and 12 MiB |",
        "| the same in 3 rounds (`more.json`, commit 1234567) | 21 ms | 4.2 s |  | 12 and 12 MiB |",
        "| far apart, forward and backward | 1 ms | 1 s |  | 12 and 12 MiB |",
    ]
    assert f"| logprob, T=4 | both | 20 | 0.5 | 50% | {EAGER}: 40 | 2 | 12 | 12 |" in written["summary.md"]
    assert "Not measured: B (no time left)." in written["summary.md"]
    assert f"| {EAGER}: 1,000 | 1e+03 |" in written["summary.md"]
    rows = [line.split(" | ")[0] for line in written["tables.md"].splitlines() if line.startswith("| ")]
    assert rows[2:5] == [f"| {OURS}", f"| {EAGER}", f"| {GEMMS}"]  # fastest first, the roof last
    why = "absent (not installed); wrong one (wrong: off by 2, its gradients by \N{EN DASH} of their norm)"
    assert f"No time: {why}." in written["tables.md"]
    lines = list(csv.DictReader(written["table.csv"].splitlines()))
    assert [line["ms_p50"] for line in lines] == ["40.0", "20.0", "", "", "10.0", "1.0", "1000.0", "21.0", "4200.0"]
    assert [line["left_out"] for line in lines][2] == "not installed"
    told = [(line["device"], line["versions"], line["commit"]) for line in lines]
    assert set(told[:7]) == {("a CPU", "torch 2.13", "0" * 40)}
    assert set(told[7:]) == {("a CPU, 2 threads", "torch 2.14", "1234567890")}
    svg = ElementTree.fromstring(written["logprob-t-4-both.svg"])
    widths = [float(part.get("width", "")) for part in svg.iter() if "bar" in part.get("class", "").split()]
    assert widths == pytest.approx([widths[2] * 2, widths[2] * 4, widths[2]], rel=1e-3)


def test_what_is_published_is_what_was_measured(tmp_path: Path) -> None:
    """Tables and figures are those of the result files, and the README has its table and a figure from them."""
    results = REPO / "benchmarks" / "results"
    files = [results / f"{name}.json" for name in ("kernels-cpu", "kernels-cpu-two-threads")]
    write_results({path.name: json.loads(path.read_text()) for path in files}, tmp_path)
    made, kept = ({path.name: path.read_text() for path in f.iterdir()} for f in (tmp_path, results / "kernels-cpu"))
    assert made == kept
    page = (REPO / "README.md").read_text()
    assert f"\n\n{made['readme_table.md']}\n" in page
    figures = re.findall(r"!\[.+\]\(benchmarks/results/kernels-cpu/(.+\.svg)\)", page)
    assert figures
    assert set(figures) <= made.keys()


def test_published_results_keep_the_contract() -> None:
    """The bounds of a CPU, asked of medians on a free machine, of the case in more rounds where there is one."""
    results = REPO / "benchmarks" / "results"
    found: dict[str, Any] = {}
    for name in ("kernels-cpu", "kernels-cpu-two-threads"):
        for result in json.loads((results / f"{name}.json").read_text())["results"]:
            found[result["case"]] = {entry["name"]: entry for entry in result["contestants"]}
    large = found["linear_logprob, T=2048"]
    assert large[OURS]["ms"]["p50"] <= large[EAGER]["ms"]["p50"]
    assert large[OURS]["peak_mib"] <= 0.15 * large[EAGER]["peak_mib"]
    assert large[OURS]["value_error"] <= 2e-5
    rows = found["gigpo_advantage, 131072 rows, verl-agent's rule"]
    assert rows[INCUMBENT]["ms"]["p50"] >= 1000 * rows[OURS]["ms"]["p50"]


def test_a_machine_without_git_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert surroundings(CPU, tmp_path / "out.json")["commit"] == ""


def test_names_of_cases_differ() -> None:
    for device in (CPU, torch.device("cuda")):
        assert len({case.name for case in cases(device)}) == len(cases(device))
