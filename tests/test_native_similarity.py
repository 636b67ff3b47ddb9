"""Clusters of similar states, in C++ and by the Python twin, against difflib; both modes fuzzed against the twin."""

import random
import time
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_states import GROUPS, STATES, as_buffer, fuzzed_states

from siri.engine import native_twin
from siri.engine.native import group_states, hash_states

both = pytest.mark.usefixtures("implementation")
# The examples of a property share the fixture, which is as it should be: it has no state.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def clusters(states: Sequence, groups: Sequence[int], threshold: float) -> list[int]:
    """ALGORITHM.md section 2, word by word."""
    founders: list[tuple[int, Sequence]] = []
    labels = []
    for group, state in zip(groups, states, strict=True):
        near = [
            label
            for label, (other, founder) in enumerate(founders)
            if other == group and SequenceMatcher(None, state, founder).ratio() >= threshold
        ]
        if not near:
            near = [len(founders)]
            founders.append((group, state))
        labels.append(near[0])
    return labels


@both
@shared
@given(states=STATES, groups=GROUPS, threshold=st.floats(0, 1))
def test_similarity_joins_the_first_cluster_that_is_near(
    states: list[str], groups: list[int], threshold: float
) -> None:
    groups = groups[: len(states)]
    assert group_states(states, groups, similarity=threshold).tolist() == clusters(states, groups, threshold)
    encoded = [state.encode("utf-8", "surrogatepass") for state in states]
    expected = clusters(encoded, groups, threshold)
    assert group_states(encoded, groups, similarity=threshold).tolist() == expected
    buffer, offsets = as_buffer(encoded)
    assert group_states(buffer, groups, offsets=offsets, similarity=threshold).tolist() == expected


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """Two texts of the same few pieces, of up to 600 characters: from 200 on, frequent characters are junk."""
    alphabet = draw(st.sampled_from(["ab", "abcdefgh", "abcdefghijklmnopqrstuvwxyz 0123", "aé漢\U0001f600b\udcfc"]))
    pieces = draw(st.lists(st.text(alphabet, min_size=1, max_size=12), min_size=1, max_size=8))
    texts = st.lists(st.sampled_from(pieces), max_size=50).map("".join)
    return draw(texts), draw(texts)


def check_ratio(state: str | bytes, founder: str | bytes) -> None:
    """The pair is joined at the ratio that difflib gives, and not at the next larger number."""
    ratio = SequenceMatcher(None, state, founder).ratio()
    assert group_states([founder, state], similarity=ratio).tolist() == [0, 0]
    if ratio < 1:
        assert group_states([founder, state], similarity=np.nextafter(ratio, 1)).tolist() == [0, 1]


@both
@settings(shared, max_examples=200)
@given(pairs())
def test_ratios_are_those_of_difflib_to_the_last_bit(pair: tuple[str, str]) -> None:
    check_ratio(*pair)
    state, founder = (text.encode("utf-8", "surrogatepass") for text in pair)
    check_ratio(state, founder)


@both
@pytest.mark.parametrize(
    ("state", "founder"),
    [
        ("", ""),
        ("a" * 199, "a" * 150),
        ("a" * 250, "a" * 199),
        ("ab" * 100, "ba" * 100),  # all of the founder is junk: only a block at the very start is found
        ("xab" * 70 + "y", "y" + "abx" * 70),
        ("abcab", "ab"),  # of equally long blocks the first in the state
        ("ab", "abcab"),  # and of these the first in the founder
        ("ab" + "c" * 5 + "abd", "abd" + "c" * 5),
        ("é" * 3 + "a", "a" + "\U0001f600" * 3),
    ],
)
def test_ratios_of_repetitive_texts(state: str, founder: str) -> None:
    check_ratio(state, founder)
    check_ratio(founder, state)


@both
def test_similarity_is_asymmetric_as_difflib_is() -> None:
    """Autojunk drops frequent characters of the representative only, and only if it has 200 or more."""
    long, short = "c" + "ab" * 100, "ab" * 50
    assert SequenceMatcher(None, short, long).ratio() < 0.5 < SequenceMatcher(None, long, short).ratio()
    assert group_states([long, short], similarity=0.5).tolist() == [0, 1]
    assert group_states([short, long], similarity=0.5).tolist() == [0, 0]


@both
def test_equal_states_share_a_cluster_even_if_all_their_characters_are_junk() -> None:
    junk_only = "ab" * 200
    assert SequenceMatcher(None, junk_only, junk_only).ratio() == 1.0
    assert group_states([junk_only, "other", junk_only], similarity=1.0).tolist() == [0, 1, 0]


def fuzz(seed: int) -> None:
    """One batch of states through both modes, as texts and as bytes, against the twin."""
    rng = random.Random(seed)
    texts = fuzzed_states(rng, rng.randrange(1, 60))
    groups = np.array([rng.randrange(rng.choice([1, 2, 5])) for _ in texts])
    threads = rng.choice([1, 2, 5])
    for states in (texts, [text.encode() for text in texts]):
        for similarity in (None, rng.random(), rng.choice([0.0, 0.5, 0.9, 0.95, 1.0])):
            expected = native_twin.group_states(tuple(states), None, groups, similarity, 1)
            labels = group_states(states, groups, similarity=similarity, threads=threads)
            assert np.array_equal(labels, expected), f"fuzz({seed})"
        expected = native_twin.hash_states(tuple(states), None, 1)
        assert np.array_equal(hash_states(states, threads=threads), expected), f"fuzz({seed})"


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("seed", range(20))
def test_fuzz(seed: int) -> None:
    fuzz(seed)


@pytest.mark.slow
@pytest.mark.usefixtures("extension")
def test_fuzz_for_a_minute() -> None:
    seed, end = 1000, time.monotonic() + 60
    while time.monotonic() < end:
        fuzz(seed)
        seed += 1
