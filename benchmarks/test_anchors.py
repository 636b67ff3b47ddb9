"""Anchors in C++ beside Python: `pytest benchmarks/test_anchors.py`.

Rounds time ours; what the others take for the same is in `extra_info`, and every result is compared with theirs. The
bounds are what a training run needs, in CPU time of all threads, so that a busy machine does not fail them.
"""

from typing import Any

import pytest
from anchor_speed import Rows, household, measure_exact, measure_similarity, pages, synthetic

from siri.engine.native import group_states, hash_states

ROUNDS = 10


@pytest.fixture(scope="module")
def played() -> Rows:
    return household()


@pytest.fixture(scope="module")
def random_bytes() -> Rows:
    return synthetic()


def test_exact_groups_of_131072_states(benchmark: Any, random_bytes: Rows) -> None:
    result = measure_exact(random_bytes, ROUNDS)
    benchmark.extra_info.update(result)
    # Two threads share this, so on two free cores it is about half of that.
    assert result["states"] == 131072
    assert result["group_ours_2"]["least"] < 50
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
@pytest.mark.parametrize("kind", ["anchors", "observations", "pages"])
def test_similar_states(benchmark: Any, played: Rows, kind: str, threshold: float) -> None:
    rows = pages() if kind == "pages" else played
    texts = [anchor.decode() for anchor in rows.anchors] if kind == "anchors" else rows.texts
    result = measure_similarity(texts, rows.groups, threshold, ROUNDS)
    benchmark.extra_info.update(result)
    assert result["times_faster_than_twin"] >= 50
    benchmark.pedantic(
        lambda: group_states(texts, rows.groups, similarity=threshold, threads=1), rounds=ROUNDS, warmup_rounds=1
    )
