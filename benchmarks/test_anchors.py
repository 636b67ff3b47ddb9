"""Anchors in C++ beside Python: `pytest benchmarks/test_anchors.py`.

Rounds of pytest-benchmark time ours; the comparison, measured in interleaved rounds before, is in `extra_info`, in the
form that `anchor_speed.py` writes, and every result in it is equal to the others'. The bounds are what a training run
needs, in medians of CPU time of all threads, so that a busy machine does not fail them.
"""

from typing import Any

import pytest
from anchor_speed import Rows, household, measure_exact, measure_similarity, shop, synthetic

from siri.engine.native import group_states, hash_states
from siri.envs.webshop import procedural_catalogue

ROUNDS = 10


@pytest.fixture(scope="module")
def played() -> Rows:
    return household()


@pytest.fixture(scope="module")
def shopped() -> Rows:
    return shop(procedural_catalogue(394))


@pytest.fixture(scope="module")
def random_bytes() -> Rows:
    return synthetic()


def test_exact_groups_of_131072_states(benchmark: Any, random_bytes: Rows) -> None:
    result = measure_exact(random_bytes, ROUNDS)
    benchmark.extra_info.update(result)
    assert result["states"] == 131072
    assert result["group_ours_1"]["cpu_ms"]["p50"] < 50
    # Two threads share this, so on two free cores it is about half of that.
    assert result["group_ours_2"]["cpu_ms"]["p50"] < 50
    call = lambda states: group_states(states, random_bytes.groups, threads=2)  # noqa: E731
    benchmark.pedantic(call, setup=lambda: ((random_bytes.fresh(),), {}), rounds=ROUNDS)


def test_hashes_of_131072_states(benchmark: Any, random_bytes: Rows) -> None:
    call = lambda states: hash_states(states, threads=2)  # noqa: E731
    benchmark.pedantic(call, setup=lambda: ((random_bytes.fresh(),), {}), rounds=ROUNDS)


def test_exact_groups_of_household_anchors(benchmark: Any, played: Rows) -> None:
    benchmark.extra_info.update(measure_exact(played, ROUNDS))
    benchmark.pedantic(
        lambda states: group_states(states, played.groups), setup=lambda: ((played.fresh(),), {}), rounds=ROUNDS
    )


@pytest.mark.parametrize("threshold", [0.95, 0.8])
@pytest.mark.parametrize("kind", ["anchors", "texts"])
@pytest.mark.parametrize("where", ["household", "shop"])
def test_similar_states(benchmark: Any, played: Rows, shopped: Rows, where: str, kind: str, threshold: float) -> None:
    """Beside difflib at its best only: as it is published it is 2 to 40 times slower still."""
    rows = played if where == "household" else shopped
    texts = [anchor.decode() for anchor in rows.anchors] if kind == "anchors" else rows.texts
    result = measure_similarity(texts, rows.groups, threshold, ROUNDS, published=False)
    benchmark.extra_info.update(result)
    assert result["times_faster_than_twin"] >= 50
    benchmark.pedantic(
        lambda: group_states(texts, rows.groups, similarity=threshold, threads=1), rounds=ROUNDS, warmup_rounds=1
    )
