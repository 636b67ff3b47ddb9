"""`siri data webshop`: what it reports, what it writes, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
from conftest import shared_path
from shop_folder import write_files
from webshop_oracles import oracle

from siri import cli, data_command
from siri.envs.webshop.folder import load_folder
from siri.envs.webshop.stored import FOLDER_NAME, StoredProducts


def report(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """Name -> what stands beside it, of a run that must succeed; a line without a name belongs to the one above."""
    assert cli.main(["data", "webshop", *words]) == 0
    rows: dict[str, str] = {}
    name = ""
    for line in capsys.readouterr().out.splitlines():
        match = re.fullmatch(r"(\S.*?)?  +(.*)", line)
        assert match, line
        name, text = (match[1], match[2]) if match[1] else (name, f"{rows[name]}; {match[2]}")
        rows[name] = text
    return rows


def test_it_reports_and_indexes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_files(tmp_path)
    entry = {"instruction": "a red one.", "instruction_attributes": ["red"], "instruction_options": []}
    told = {"P1": [entry, entry], "P2": [entry], "P3": [entry | {"instruction_attributes": []}], "ELSE": [entry]}
    (folder / "items_human_ins.json").write_text(json.dumps(told))
    rows = report(capsys, "--dir", str(folder))
    loaded = load_folder(folder)
    assert isinstance(loaded.products, StoredProducts)
    assert rows["kept"] == "30 products"
    assert rows["skipped"].startswith("2 nameless (ASIN nan or of more than 10 characters), 1 repeated, 1 malformed;")
    assert "products[33]: pricing: 'cheap' has no amount" in rows["skipped"]
    goals = len(loaded.goals)
    assert rows["goals"].startswith(f"{goals:,} of 29 products, written by rule")  # without P3: no size, no goal
    assert rows["goals"].endswith("; 3 of 2 products, written by people")
    assert rows["split by goal"].startswith("none: num_valid, num_test: 500 and 500 leave none of")
    assert "valid 3 products" not in rows["split by product"]
    assert rows["split by product"].endswith("0 of the products of test are in train too")
    assert re.fullmatch(r"sha256 [0-9a-f]{64}", rows["goal list"])
    assert re.fullmatch(r"[\d.]+ s of CPU time, at most [\d,]+ MB of memory", rows["indexing"])
    assert re.fullmatch(r"opens the index and searches \d+ times in [\d.]+ s of CPU time, \d+ MB", rows["a run"])
    assert rows["index"].startswith(str(folder / FOLDER_NAME))


def test_it_counts_what_the_oracle_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The hash of the official goal list, and the counts of tests/test_webshop_source.py."""
    rows = report(capsys, "--dir", str(shared_path("data", "webshop")), "--out", str(tmp_path / "index"))
    assert rows["goal list"] == f"sha256 {oracle()['goals']['sha256']}"
    assert rows["goals"] == "6,173 of 216 products, written by rule"
    assert rows["cannot be won"] == "438 goals of 10 products"
    assert "test 500 goals of 95 products" in rows["split by goal"]
    assert rows["split by goal"].endswith("; 89 of the products of test are in train too")
    assert len(load_folder(tmp_path / "index").products) == 394


def test_many_goals_are_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_command, "CHECKED_GOALS", 50)
    rows = report(capsys, "--dir", str(write_files(tmp_path)))
    match = re.fullmatch(r"\d+ goals of \d+ products, of (\d+) goals looked at, an even sample", rows["cannot be won"])
    assert match
    assert 25 < int(match[1]) <= 50


def test_a_limit_checks_the_first_records_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_files(tmp_path / "data")
    rows = report(capsys, "--dir", str(folder), "--limit", "7")
    assert rows["kept"] == "7 products"
    assert not (folder / FOLDER_NAME).exists()
    rows = report(capsys, "--dir", str(folder), "--limit", "7", "--out", str(tmp_path / "seven"))
    assert [product.asin for product in load_folder(tmp_path / "seven").products] == [f"P{p}" for p in range(7)]


@pytest.mark.parametrize("missing", ["products.json", "attributes.json"])
def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    folder = write_files(tmp_path)
    (folder / missing).unlink()
    assert cli.main(["data", "webshop", "--dir", str(folder)]) == 2
    captured = capsys.readouterr()
    assert f"{missing} is there; point to the folder with the official files" in captured.err
    assert captured.out == ""
    assert not (folder / FOLDER_NAME).exists()


def test_broken_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_files(tmp_path)
    (folder / "products.json").write_text('[{"asin": "A"')
    assert cli.main(["data", "webshop", "--dir", str(folder)]) == 2
    assert "products: " in capsys.readouterr().err
    write_files(tmp_path)
    (folder / "items_human_ins.json").write_text("[]")
    assert cli.main(["data", "webshop", "--dir", str(folder)]) == 2
    assert "human_goals: " in capsys.readouterr().err
    assert not (folder / FOLDER_NAME).exists()
    (folder / "items_human_ins.json").write_text('{"P1": 3}')
    assert cli.main(["data", "webshop", "--dir", str(folder)]) == 2
    assert "human_goals: the entry of 'P1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: dataset"),
        (["alfworld"], "invalid choice: 'alfworld'"),
        (["webshop"], "the following arguments are required: --dir"),
        (["webshop", "--dir", "x", "--limit", "0"], "--limit: '0' is not a whole number of at least 1"),
        (["webshop", "--dir", "x", "--limit", "many"], "--limit: 'many' is not a whole number of at least 1"),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
