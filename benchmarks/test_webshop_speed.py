"""Our shop beside what a training run needs: `pytest benchmarks/test_webshop_speed.py`.

Rounds time our engine with real products, which are skipped where they are absent, and with invented ones; numbers of
CPU time are in `extra_info`. The bounds are those the shop was built to: see `docs/webshop.md`.
"""

from pathlib import Path
from typing import Any

import pytest
from webshop_speed import full_size, memory_of_thousand, open_catalogue, play, record_episodes, steps_per_second

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "webshop"
SHOPS = [
    pytest.param(None, id="invented"),
    pytest.param(DATA, id="real", marks=pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/webshop")),
]


@pytest.mark.parametrize("data", SHOPS)
def test_steps_with_repeated_queries(benchmark: Any, data: Path | None) -> None:
    """One round: 100 episodes that were played before."""
    catalogue = open_catalogue(data)
    episodes = record_episodes(catalogue, 100)
    benchmark.extra_info["steps_a_round"] = play(catalogue, episodes)
    benchmark(play, catalogue, episodes)


@pytest.mark.parametrize("data", SHOPS)
def test_steps_a_second(benchmark: Any, data: Path | None) -> None:
    result = benchmark.pedantic(steps_per_second, args=(data,), kwargs={"episodes": 300, "rounds": 3}, rounds=1)
    benchmark.extra_info.update(result)
    assert result["fresh_queries"]["steps_per_second"] >= 5000
    assert result["repeated_queries"]["steps_per_second"] >= 10_000


@pytest.mark.parametrize("data", SHOPS)
def test_memory_of_a_thousand_products(benchmark: Any, data: Path | None) -> None:
    result = benchmark.pedantic(memory_of_thousand, args=(data,), rounds=1)
    benchmark.extra_info.update(result)
    assert result["products"] == result["environments"] == 1000
    assert 1 < result["with_environments_and_full_caches_mb"] < 60


def test_a_large_index(benchmark: Any, tmp_path: Path) -> None:
    """A fiftieth of the full size, to see that nothing grows faster than the number of products."""
    result = benchmark.pedantic(full_size, args=(tmp_path, 24_000), rounds=1)
    benchmark.extra_info.update(result)
    assert result["indexing"]["cpu_seconds"] < 60
    assert result["indexing"]["peak_mb"] < 600
    assert result["opening"]["cpu_seconds"] < 1
    assert result["opening"]["search_ms"]["p50"] < 10
