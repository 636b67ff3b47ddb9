"""The page of the report: text stays text, it says what is not there, and its drawings are to scale."""

import math
import re
from pathlib import Path
from xml.etree.ElementTree import tostring

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from report_pages import BANK, EVALUATION, LINE, RATE, SAMPLE, SUMMARY, Page, bank_of, page_of, walk, write_run

from siri import cli
from siri.config import RunConfig
from siri.report.charts import MOST_POINTS, Chart, Mark, Series, draw, nice_ticks, thinned
from siri.report.command import write_report
from siri.report.parts import node
from siri.screening import Rejection
from siri.skills import SkillBank

HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "&lt;b&gt; &amp;",
    "</style><style>*{display:none}</style>",
    "]]><!--",
    "{{ 7 * 7 }}",
    "\u202egnp.exe \u00e9\u4e16\U0001f600",
]


SKILLED = ("rollout/guided_success_rate", "skills/plain_success", "skills/guided_success")
PLAIN = {name: value for name, value in LINE.items() if name not in SKILLED}


def printable(text: str) -> str:
    """What of a text can be in a bank: `SkillBank.from_dict` refuses the rest."""
    return "".join(char for char in text if char.isprintable())


def written_everywhere(run_dir: Path, text: str) -> Page:
    """The page of a run in which a model and an environment wrote `text` wherever they can."""
    half = {"success": True, "ended": text, "turns": [[f"obs {text}", f"act {text}", False]]}
    sample = {**SAMPLE, "task": f"task {text}", "task_id": text, "skills": [f"skill {text}"], "plain": half}
    reason = [{"iteration": 0, "phase": text, "reason": f"reason {text}"}]
    evaluated = {text: {**EVALUATION, "split": text, "by_type": {text: RATE}}}
    run = write_run(
        run_dir,
        config={"policy": {"model": text}},
        lines=[{**LINE, "phase": text}] * 2,
        bank=bank_of((f"when {printable(text)}", printable(text))),
        samples=[{**sample, "guided": half}],
        summary={**SUMMARY, "phases": reason, "device": text, "eval": evaluated},
    )
    return page_of(run)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_or_an_environment_wrote_is_text(tmp_path, text):
    harmless, page = (written_everywhere(tmp_path / name, words) for name, words in (("a", "harmless"), ("b", text)))
    assert [element.tag for element in walk(page.root)] == [element.tag for element in walk(harmless.root)]
    assert [sorted(e.attributes) for e in walk(page.root)] == [sorted(e.attributes) for e in walk(harmless.root)]
    for before in ("obs ", "act ", "task ", "skill ", "reason "):
        assert before + text in page.root.text
    assert "when when " + printable(text) in page.root.text


def test_the_page_asks_for_nothing_and_runs_nothing(tmp_path):
    text = write_report(write_run(tmp_path / "run", bank=bank_of(("cold", "heat")))).read_text()
    page = Page(text)
    elements = [element for element in walk(page.root)]
    assert not {"script", "img", "iframe", "object", "embed", "form", "base"} & {element.tag for element in elements}
    for element in elements:
        assert not any(name.startswith("on") or name in ("src", "srcset", "xlink:href") for name in element.attributes)
        target = element.attributes.get("href", "#")
        assert target.startswith("#") or target == "data:,"
        assert "url(" not in element.attributes.get("style", "")
    assert "url(" not in text
    assert "@import" not in text
    [policy] = page.root.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_the_page_can_be_read_without_seeing_it(tmp_path):
    page = page_of(write_run(tmp_path / "run", bank=bank_of(("cold", "heat"))))
    assert page.root.all("html")[0].attributes["lang"] == "en"
    ids = [element.attributes["id"] for element in walk(page.root) if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert {a.attributes["href"][1:] for a in page.root.all("a")} <= set(ids)
    drawings = page.root.all("svg", role="img")
    assert len(drawings) >= 10
    for drawing in drawings:
        named = [page_id for page_id in drawing.attributes.get("aria-labelledby", "").split()]
        assert drawing.attributes.get("aria-label") or (len(named) == 2 and set(named) <= set(ids))
    for table in page.root.all("table"):
        assert table.all("caption")[0].text
        assert all(cell.text for cell in table.all("th", scope="col"))
        for row in table.all("tbody")[0].all("tr"):
            assert len(row.all("th", scope="row")) == 1


@given(st.text(alphabet=st.characters(exclude_characters="\r")))
def test_any_text_is_shown_as_it_is(text):
    element = node("p", text, node("b", text), text, title=text)
    [found] = Page(tostring(element, encoding="unicode", method="html").encode("utf-8").decode()).root.all("p")
    shown = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", text)
    assert found.text == 3 * shown
    assert found.attributes["title"] == shown


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"lines": None, "bank": None, "samples": None, "summary": None},
            ["0 of 2 iterations", "No iteration has ended"],
        ),
        ({"lines": (), "summary": None}, ["0 of 2 iterations are done", "No values yet"]),
        ({"summary": None}, ["2 of 2 iterations are done", "They are written with the first checkpoint", "240"]),
        ({"bank": None}, ["Finished: 2 iterations", "skills.json comes with the first checkpoint"]),
        ({"bank": SkillBank(BANK)}, ["No skill has been mined"]),
        ({"samples": None}, ["There is no pair of episodes to show"]),
        ({"samples": [SAMPLE, {**SAMPLE, "step": 5}]}, ["1 of the 1 pairs"]),
        ({"summary": {**SUMMARY, "iterations": 1}}, ["2 of 2 iterations are done"]),
        ({"config": {"iterations": 9}}, ["2 of 9 iterations are done"]),
        ({"config": {"iterations": 9, "max_env_steps": 50}}, ["Finished: 2 iterations"]),
        ({"config": {"iterations": 9, "max_env_steps": 51}}, ["2 of at most 9 iterations"]),
        ({"lines": [PLAIN, PLAIN]}, ["No task group was played both without and with skills."]),
        (
            {"config": {"algorithm": "gigpo"}, "lines": [PLAIN]},
            ["algorithm gigpo has none", "plain episodes only"],
        ),
        ({"config": {"no_validation": True}, "bank": bank_of(("a", "b"))}, ["This run does not validate"]),
        ({"config": {"no_internalisation": True}}, ["None: no_internalisation"]),
        ({"lines": [{"rollout/success_rate": None}, LINE]}, ["50.0% in iteration 1", "55.0% in iteration 1"]),
        ({"summary": {**SUMMARY, "git_commit": None}}, ["not from a git checkout"]),
        (
            {
                "summary": {
                    **SUMMARY,
                    "eval": {"final": {**EVALUATION, "success_rate": None, "episodes": 0, "errors": 3}},
                }
            },
            ["no episodes", "Episodes lost to the environment, in no rate: final: 3"],
        ),
    ],
)
def test_a_page_says_what_is_not_there(tmp_path, parts, said):
    text = page_of(write_run(tmp_path / "run", **{"bank": bank_of(("cold", "heat")), **parts})).root.text
    for words_said in said:
        assert words_said.casefold() in text.casefold()


MINED = {"mining/drawn": 6.0, "mining/kept": 2.0, "mining/unparsed": 1.0, "mining/duplicate": 3.0}


@pytest.mark.parametrize("bank", [bank_of(("cold", "heat")), SkillBank(BANK)])
def test_answers_are_counted_by_what_became_of_them_over_the_run(tmp_path, bank):
    page = page_of(write_run(tmp_path / "run", bank=bank, lines=[LINE, {**LINE, **MINED}, {**LINE, **MINED}]))
    rows = {name: (number, share) for name, number, share in page.table("Answers to requests for a skill")}
    assert list(rows)[:3] == ["drawn", "kept as new skills", "rejected: not in the form of a skill"]
    assert len(rows) == 2 + len(Rejection)
    counted = {name: found for name, found in rows.items() if found[0] != "0"}
    assert list(counted.values()) == [("12", "100.0%"), ("4", "33.3%"), ("2", "16.7%"), ("6", "50.0%")]
    assert "too similar" in list(counted)[-1]


def test_skills_are_compared_on_the_groups_that_were_played_both_ways(tmp_path):
    """And not with plain episodes of other tasks, whose success (0.4) is no part of the drawing."""
    page = page_of(write_run(tmp_path / "run", bank=bank_of(("cold", "heat"))))
    [told] = [desc.text for desc in page.section("success").all("desc") if "without skills" in desc.text]
    assert "45.0%" in told
    assert "55.0%" in told
    assert "groups that are plain altogether are in neither" in page.section("success").text


def test_settings_that_differ_are_listed(tmp_path):
    page = page_of(write_run(tmp_path / "run", config={"seed": 7, "skills": {"k": 2}, "oracle_skills": "best.yaml"}))
    assert page.table("Settings that differ") == [
        ["seed", "7", "0"], ["oracle_skills", '"best.yaml"', "null"],
        ["iterations", "2", str(RunConfig().iterations)], ["skills.k", "2", "3"],
    ]  # fmt: skip


def test_points_lie_where_their_values_are():
    series = [
        Series(label="a", points=[(0, 0.25), (1, None), (2, 0.5), (3, 1.0)]),
        Series(label="b", points=[(2, 0.0)]),
    ]
    mark = Mark(label="final", done=4, value=0.5, low=0.25, high=0.75)
    figure = Page(tostring(draw(Chart(title="T", series=series, marks=[mark])), encoding="unicode")).root
    [plot] = figure.all("svg", role="img")
    lines = [line.attributes["points"] for line in plot.all("polyline")]
    assert lines == ["62.5,50 87.5,0"]  # the gap leaves the first point alone
    places = [(at.attributes["x"], at.attributes["y"]) for at in plot.all("svg", **{"class": "at"})]
    assert places == [("12.5%", "75%"), ("62.5%", "50%"), ("87.5%", "0%"), ("62.5%", "100%"),
                      ("100%", "75%"), ("100%", "25%"), ("100%", "50%")]  # fmt: skip
    assert "a: 0.25 in iteration 0, 1 in iteration 3, lowest 0.25, highest 1." in plot.all("desc")[0].text


@given(st.floats(-1e30, 0), st.floats(0, 1e30))
def test_ticks_are_round_and_hold_the_values(low, high):
    assume(high - low > 1e-99)
    ticks = nice_ticks(low, high)
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step
    assert 2 <= len(ticks) <= 8
    leading = step / 10 ** math.floor(math.log10(step * 1.000001))
    assert min(abs(leading - digit) for digit in (1, 2, 5)) < 1e-6


def test_a_long_run_has_a_page_of_bounded_size(tmp_path):
    lines = [{**LINE, "rollout/success_rate": step / 5000} for step in range(5000)]
    run_dir = write_run(tmp_path / "run", config={"iterations": 5000}, lines=lines, summary=None)
    page = page_of(run_dir)
    assert len(page.table("The numbers of metrics.jsonl")) <= MOST_POINTS
    assert (run_dir / "report.html").stat().st_size < 1_000_000
    points = [(step, step / 5000) for step in range(5000)]
    assert [
        point for point in thinned(points) if point[1] is not None and abs(point[1] - point[0] / 5000) > 1e-12
    ] == []
    assert "means of several iterations" in page.section("success").text
    assert not page.root.all("rect", **{"class": "bar s0"})


def test_siri_report_prints_the_path(tmp_path, capsys):
    run_dir = write_run(tmp_path / "run", summary=None)
    assert cli.main(["report", "--run", str(run_dir)]) == 0
    assert capsys.readouterr().out == f"{run_dir / 'report.html'}\n"


DAMAGE = {
    "no_metrics_line": (
        "metrics.jsonl",
        '{"step": 0}\nhello\n',
        r"metrics\.jsonl: line 2 is not a JSON object; remove",
    ),
    "a_list": ("metrics.jsonl", "[1]\n", r"metrics\.jsonl: line 1 is not a JSON object"),
    "order": (
        "metrics.jsonl",
        '{"step": 1}\n{"step": 0}\n',
        r"metrics\.jsonl: the `step` of each line must be .*above",
    ),
    "no_step": ("metrics.jsonl", "{}\n", r"metrics\.jsonl: the `step` of each line must be an integer"),
    "sample": ("samples.jsonl", '{"step": 0}\n', r"samples\.jsonl: line 1: is not as runs write it \(task_id: .*copy"),
    "summary": ("summary.json", '{"iterations": "two"}', r"summary\.json: is not as runs write it \(iterations: "),
    "summary_cut": ("summary.json", '{"iterations": ', r"summary\.json: is not JSON \(.*copy of the run"),
    "bank": ("skills.json", '{"version": 1}', r"skills\.json: skills: this is not a skill bank"),
    "bank_cut": ("skills.json", "{", r"skills\.json: is not JSON"),
    "config": ("config.yaml", "iterashuns: 3", r"config\.yaml: iterashuns: there is no such field; known here"),
    "state": (
        "checkpoints/step-1/state.json",
        '{"random_states": []}',
        r"state\.json: is not as runs write it \(state: ",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_refused_and_the_old_page_stays(tmp_path, capsys, case):
    name, text, message = DAMAGE[case]
    run_dir = write_run(tmp_path / "run", bank=bank_of(("cold", "heat")))
    before = write_report(run_dir).read_bytes()
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (run_dir / name).write_text(text)
    commands = ["report", "skills"] if name == "skills.json" else ["report"]
    for command in commands:
        assert cli.main([command, "--run", str(run_dir)]) == 2
        captured = capsys.readouterr()
        assert re.search(message, captured.err), captured.err
        assert captured.err.startswith(f"siri {command}: ")
        assert captured.out == ""
    assert (run_dir / "report.html").read_bytes() == before
