"""docs/webshop.md: its code runs, and its numbers are those of the result file."""

import json
import re

from conftest import REPO

PAGE = (REPO / "docs" / "webshop.md").read_text()
RESULTS = json.loads((REPO / "benchmarks" / "results" / "webshop_speed.json").read_text())


def test_its_code_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/webshop.md", "exec"), {})


def test_its_numbers_are_measured() -> None:
    full, memory = RESULTS["full_size"], RESULTS["memory"]
    for number in (
        RESULTS["steps"]["fresh_queries"]["steps_per_second"],
        RESULTS["steps"]["repeated_queries"]["steps_per_second"],
        memory["with_environments_and_full_caches_mb"],
        full["products"],
        full["indexing"]["cpu_seconds"],
        full["indexing"]["peak_mb"],
        full["index_mb"],
        full["opening"]["cpu_seconds"],
        full["opening"]["after_300_searches_mb"],
        full["opening"]["search_ms"]["p50"],
        full["opening"]["search_ms"]["p95"],
        full["opening"]["fresh_queries_steps_per_second"],
    ):
        assert re.search(rf"(?<![\d.,]){re.escape(f'{number:,}')}(?![\d,]|\.\d)", PAGE), f"{number:,}"
    for section in ("README.md", "docs/webshop.md"):
        assert f"{RESULTS['steps']['fresh_queries']['steps_per_second']:,}" in (REPO / section).read_text()
