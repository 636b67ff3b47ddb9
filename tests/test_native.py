"""Hashing and grouping of states. Exactness on recorded runs of verl-agent is in test_gigpo.py."""

from difflib import SequenceMatcher
from hashlib import blake2b

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from siri.engine.native import group_states, hash_states

STATES = st.lists(st.sampled_from(["", "a", "ab", "abc", "abd", "xyz", "xyzabc", "ü", "u\u0308"]), max_size=25)


@settings(deadline=None)
@given(states=STATES, groups=st.lists(st.integers(-2, 2), min_size=25, max_size=25))
def test_exact_labels_count_new_keys_in_order(states: list[str], groups: list[int]) -> None:
    expected, seen = [], []
    for key in zip(groups, states, strict=False):
        if key not in seen:
            seen.append(key)
        expected.append(seen.index(key))
    assert group_states(states, groups[: len(states)]).tolist() == expected
    assert group_states([s.encode() for s in states], np.array(groups[: len(states)])).tolist() == expected


@settings(deadline=None)
@given(states=STATES, groups=st.lists(st.integers(0, 1), min_size=25, max_size=25), threshold=st.floats(0, 1))
def test_similarity_joins_the_first_cluster_that_is_near(
    states: list[str], groups: list[int], threshold: float
) -> None:
    clusters: list[tuple[int, str]] = []
    expected = []
    for group, state in zip(groups, states, strict=False):
        near = [
            label
            for label, (other, representative) in enumerate(clusters)
            if other == group and SequenceMatcher(None, state, representative).ratio() >= threshold
        ]
        if not near:
            near = [len(clusters)]
            clusters.append((group, state))
        expected.append(near[0])
    assert group_states(states, groups[: len(states)], similarity=threshold).tolist() == expected


def test_similarity_is_asymmetric_as_difflib_is() -> None:
    """Autojunk drops frequent characters of the representative only, and only if it has 200 or more."""
    long, short = "c" + "ab" * 100, "ab" * 50
    assert SequenceMatcher(None, short, long).ratio() < 0.5 < SequenceMatcher(None, long, short).ratio()
    assert group_states([long, short], similarity=0.5).tolist() == [0, 1]
    assert group_states([short, long], similarity=0.5).tolist() == [0, 0]


def test_equal_states_share_a_cluster_even_if_all_their_characters_are_junk() -> None:
    junk_only = "ab" * 200
    assert SequenceMatcher(None, junk_only, junk_only).ratio() == 1.0
    assert group_states([junk_only, "other", junk_only], similarity=1.0).tolist() == [0, 1, 0]


def test_hashes_are_little_endian_halves_of_blake2b() -> None:
    states = [b"", b"\x00", "ü".encode(), b"x" * 1000]
    hashed = hash_states(states)
    assert hashed.dtype == np.uint64
    for state, (low, high) in zip(states, hashed.tolist(), strict=True):
        assert low + (high << 64) == int.from_bytes(blake2b(state, digest_size=16).digest(), "little")
    assert np.array_equal(hash_states(["ü"]), hashed[2:3])
    assert hash_states([]).shape == (0, 2)
