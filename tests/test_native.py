"""Hashing and exact grouping of states, in C++ and by the Python twin; threads, memory and errors of both modes.

Recorded runs of verl-agent are in test_gigpo.py; `make sanitize` runs this file under sanitizers.
"""

import random
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_states import GROUPS, STATES, FakeText, OwnBytes, OwnText, as_buffer, fuzzed_states

from siri.engine import native, native_twin
from siri.engine.native import group_states, hash_states

# cli/xsum_sanity_check.c of xxHash: length of the prefix of its test buffer, low and high half of XXH3-128 with seed 0.
PUBLISHED = [
    (0, 0x6001C324468D497F, 0x99AA06D3014798D8),
    (1, 0xC44BDFF4074EECDB, 0xA6CD5E9392000F6A),
    (6, 0x3E7039BDDA43CFC6, 0x082AFE0B8162D12A),
    (12, 0x061A192713F69AD9, 0x6E3EFD8FC7802B18),
    (24, 0x1E7044D28B1B901D, 0x0CE966E4678D3761),
    (48, 0xF942219AED80F67B, 0xA002AC4E5478227E),
    (81, 0x5E8BAFB9F95FB803, 0x4952F58181AB0042),
    (222, 0xF1AEBD597CEC6B3A, 0x337E09641B948717),
    (403, 0xCDEB804D65C6DEA4, 0x1B6DE21E332DD73D),
    (512, 0x617E49599013CB6B, 0x18D2D110DCC9BCA1),
    (2048, 0xDD59E2C3A5F038E0, 0xF736557FD47073A5),
    (2240, 0x6E73A90539CF2948, 0xCCB134FBFA7CE49D),
    (2367, 0xCB37AEB9E5D361ED, 0xE89C0F6FF369B427),
]


both = pytest.mark.usefixtures("implementation")
# The examples of a property share the fixture, which is as it should be: it has no state.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def integers(hashed: np.ndarray) -> list[int]:
    assert hashed.dtype == np.uint64
    return [low + (high << 64) for low, high in hashed.tolist()]


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_the_extension_is_built_where_a_compiler_is() -> None:
    assert find_spec("siri._native") is not None, "make -B setup"


@both
@pytest.mark.parametrize(("length", "low", "high"), PUBLISHED)
def test_published_vectors(length: int, low: int, high: int) -> None:
    generator, data = 2654435761, bytearray()
    for _ in range(length):
        data.append(generator >> 56)
        generator = generator * 11400714785074694797 % 2**64
    assert hash_states([bytes(data)]).tolist() == [[low, high]]


@both
def test_every_length_hashes_as_the_xxhash_package_does() -> None:
    rng = random.Random(0)
    # Beyond 240 bytes what matters is the number of stripes (64 bytes) and of blocks (1024), and what is left over.
    lengths = [*range(600), *range(1000, 1100), *range(2040, 2060), *range(3060, 3080), 5000, 70_000]
    states = [rng.randbytes(length) for length in lengths for _ in range(2)]
    expected = [xxhash.xxh3_128_intdigest(state) for state in states]
    assert integers(hash_states(states)) == expected
    buffer, offsets = as_buffer(states)
    for form in (buffer, bytearray(buffer), memoryview(buffer), np.frombuffer(buffer, dtype=np.uint8)):
        assert integers(hash_states(form, offsets=offsets)) == expected


@both
@shared
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=200), max_size=10))
def test_a_text_is_hashed_as_its_utf8_lone_surrogates_included(texts: list[str]) -> None:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    assert integers(hash_states(texts)) == [xxhash.xxh3_128_intdigest(state) for state in encoded]
    assert np.array_equal(hash_states(texts), hash_states(encoded))


@both
@shared
@given(states=STATES, groups=GROUPS)
def test_exact_labels_count_new_keys_in_order(states: list[str], groups: list[int]) -> None:
    expected, seen = [], []
    groups = groups[: len(states)]
    for key in zip(groups, states, strict=True):
        if key not in seen:
            seen.append(key)
        expected.append(seen.index(key))
    assert group_states(states, groups).tolist() == expected
    encoded = [state.encode("utf-8", "surrogatepass") for state in states]
    assert group_states(encoded, np.array(groups)).tolist() == expected
    buffer, offsets = as_buffer(encoded)
    assert group_states(buffer, groups, offsets=offsets).tolist() == expected
    assert group_states(states, [0] * len(states)).tolist() == group_states(states).tolist()


@pytest.mark.parametrize("hash_bits", [0, 1, 3, 34])
def test_states_whose_hashes_collide_are_told_apart_by_their_bytes(extension: ModuleType, hash_bits: int) -> None:
    rng = random.Random(hash_bits)
    states = tuple(rng.randbytes(rng.choice([0, 3, 20, 400])) for _ in range(300)) * 3
    groups = np.array([rng.randrange(3) for _ in states])
    expected = native_twin.group_states(states, None, groups, None, 1)
    for threads in (1, 4):
        labels = extension.group_states(states, None, groups, None, threads, hash_bits=hash_bits)
        assert np.array_equal(labels, expected)


def colliding_states(count: int) -> list[bytes]:
    """States of 32 bytes that XXH3 gives one low half: a word equal to the secret's takes a factor of 0 into a product.

    What is left of the low half is the sum of two numbers, each of which a word of the state can choose.
    """
    zeroed, added = native_twin._secret(0), native_twin._secret(16)
    start = 32 * native_twin._PRIME64_1 % 2**64
    states = []
    for n in range(1, count + 1):
        high = (zeroed + n) % 2**64
        last = ((-high % 2**64 ^ start) - added) % 2**64
        states.append(b"".join(word.to_bytes(8, "little") for word in (zeroed, n, added, last)))
    return states


@pytest.mark.usefixtures("extension")
def test_states_made_to_collide_do_not_slow_the_grouping_down() -> None:
    """CPU time, beside as many others. It was some 600 times as long: each state was compared with all before it."""
    states = colliding_states(20_000)
    assert len(set(hash_states(states)[:, 0].tolist())) == 1
    rng = random.Random(0)
    times = []
    for sample in (states, [rng.randbytes(32) for _ in states]):
        start = time.process_time()
        assert group_states(sample, threads=1).tolist() == list(range(len(sample)))
        times.append(time.process_time() - start)
    assert times[0] < 30 * times[1]


@pytest.mark.usefixtures("extension")
def test_every_number_of_threads_gives_the_same() -> None:
    rng = random.Random(0)
    pool = [rng.randbytes(rng.choice([1, 300, 5000])) for _ in range(700)]
    states = [rng.choice(pool) for _ in range(3000)]  # 5 MB: a thread pays from 256 kB on
    groups = np.array([rng.randrange(9) for _ in states])
    texts = [fuzzed_states(random.Random(seed), 12) for seed in range(9)]
    near, near_groups = [text for many in texts for text in many], np.repeat(np.arange(9), 12)[::-1].copy()
    for threads in (1, 2, 3, 16):
        assert np.array_equal(hash_states(states, threads=threads), hash_states(states, threads=1))
        labels = group_states(states, groups, threads=threads)
        assert np.array_equal(labels, native_twin.group_states(tuple(states), None, groups, None, 1))
        labels = group_states(near, near_groups, similarity=0.8, threads=threads)
        assert np.array_equal(labels, native_twin.group_states(tuple(near), None, near_groups, 0.8, 1))


@pytest.mark.usefixtures("extension")
def test_other_threads_of_python_run_meanwhile_and_may_empty_the_list() -> None:
    rng = random.Random(0)
    states = ["".join(rng.choices("abcdefgh", k=190)) for _ in range(250)]
    expected = group_states(states, similarity=0.99)
    started, done, labels = threading.Event(), threading.Event(), []

    def work() -> None:
        started.set()
        labels.append(group_states(states, similarity=0.6, threads=2))
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    time.sleep(0.02)  # longer than the switch interval: the worker is in C++ by now
    states.clear()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    worker.join()
    assert turns > 3
    assert len(labels[0]) == len(expected)


def test_the_number_of_threads_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, threads in (("3", 3), ("4,2", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert native._checked_threads(None) == threads
    for value in ("2147483648", str(2**64), "9" * 5000, "0" * 5000 + "4294967296"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert native._checked_threads(None) == 2**31 - 1
        assert group_states(["a"]).tolist() == [0]
    monkeypatch.setenv("OMP_NUM_THREADS", "0" * 5000 + "3")
    assert native._checked_threads(None) == 3
    for value in ("", "0", "0" * 5000, "many", "-3", "2.5", "\u0663"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert native._checked_threads(None) >= 1
    assert native._checked_threads(7) == 7
    assert group_states(["a"], threads=2**70).tolist() == [0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_runs_out_in_a_thread_is_an_error_of_the_call() -> None:
    """Two task groups of 64 MB states, which similarity copies to 4 bytes a character, and 100 MB more to be had."""
    script = """
import resource, sys
import siri._native as native
import numpy as np
states = (b"a" * 2**26, b"b" * 2**26)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 100 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for threads in (1, 2):
    try:
        native.group_states(states, None, np.array([0, 1]), 0.5, threads)
    except MemoryError:
        print("caught")
print(native.group_states((b"a", b"a"), None, None, 0.5, 2).tolist())
"""
    pytest.importorskip("siri._native", reason="the C++ extension is not built")
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert result.stdout.split("\n") == ["caught", "caught", "[0, 0]", ""], result.stderr


@both
def test_nothing_and_empty_states() -> None:
    for nothing in ([], ()):
        assert hash_states(nothing).shape == (0, 2)
        assert group_states(nothing, []).tolist() == group_states(nothing, similarity=0.5).tolist() == []
    assert group_states(b"", offsets=[0]).tolist() == []
    assert group_states(b"", offsets=[0, 0, 0], similarity=1.0).tolist() == [0, 0]
    assert group_states(["", "", "a"], similarity=1.0).tolist() == [0, 0, 1]
    assert hash_states([b"", b""]).tolist() == [[0x6001C324468D497F, 0x99AA06D3014798D8]] * 2


@both
def test_labels_of_any_integer_type_and_size() -> None:
    states = ["a"] * 4
    for dtype in (np.int8, np.uint32, np.int64):
        assert group_states(states, np.array([1, 2, 1, 2], dtype=dtype)).tolist() == [0, 1, 0, 1]
    large = np.array([2**64 - 1, 2**63, 0, 2**63], dtype=np.uint64)
    assert group_states(states, large).tolist() == [0, 1, 2, 1]
    assert group_states(states, np.arange(8)[::2] % 4).tolist() == [0, 1, 0, 1]
    mixed = [np.uint64(3), np.int64(3), 3, np.int8(-3)]  # NumPy makes floats of these
    assert group_states(states, mixed).tolist() == [0, 0, 0, 1]
    large = [2**53 + 1, np.uint64(2**53), np.int64(2**53 + 1), np.uint64(2**53)]
    assert group_states(states, large).tolist() == [0, 1, 0, 1]


@both
@pytest.mark.parametrize("similarity", [None, 0.7])
def test_of_a_subclass_the_content_counts(similarity: float | None) -> None:
    texts = ["drawer 1", "drawer 2", "désk", "drawer 1"]
    for kind, states in ((OwnText, texts), (OwnBytes, [text.encode() for text in texts])):
        own = [kind(state) for state in states]
        expected = [0, 1, 2, 0] if similarity is None else [0, 0, 1, 0]
        for mixture in (own, [*own[:2], *states[2:]], [*states[:2], *own[2:]], np.array(own, dtype=object)):
            assert group_states(mixture, similarity=similarity).tolist() == expected
            assert np.array_equal(hash_states(mixture), hash_states(states))
    assert group_states(np.array(texts), similarity=similarity).tolist() == expected  # numpy.str_ is such a subclass


@both
def test_a_faked_class_is_no_text() -> None:
    for states in ([FakeText()], ["a", FakeText()], ["a", OwnBytes(b"a")]):
        with pytest.raises(TypeError, match="are all bytes or all str"):
            group_states(states)
        with pytest.raises(TypeError, match="are all bytes or all str"):
            hash_states(states)


def test_states_too_long_for_similarity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "implementation", native_twin)
    monkeypatch.setattr(native_twin, "_SIMILARITY_CHARACTERS", 4)
    assert group_states(["abc", "abd"], similarity=0.5).tolist() == [0, 0]
    assert group_states(["abc", "abcd"]).tolist() == [0, 1]
    with pytest.raises(ValueError, match="states holds one of 4 characters: similarity takes fewer than 2"):
        group_states(["abc", "abcd"], similarity=0.5)


@pytest.mark.usefixtures("extension")
def test_two_gigabytes_of_memory_are_too_long_for_similarity() -> None:
    """Pages that nobody has written to take no memory."""
    nothing = np.zeros(2**31, dtype=np.uint8)
    with pytest.raises(ValueError, match=rf"states holds one of {2**31} characters: similarity takes fewer than 2"):
        group_states(nothing, offsets=[0, 2**31], similarity=0.5)


@both
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"states": ["a", b"a"]}, TypeError, r"states\[1\] is of type bytes and states\[0\] of type str: .* all bytes"),
        ({"states": [b"a", bytearray(b"a")]}, TypeError, r"states\[1\] is of type bytearray"),
        ({"states": [None]}, TypeError, r"states\[0\] is of type NoneType: "),
        ({"states": "abc"}, TypeError, "states is one str: give a list of states$"),
        ({"states": b"abc"}, TypeError, "states is one bytes: give"),
        ({"states": {"a", "b"}}, TypeError, "states is a set, which has no order: give a list"),
        ({"states": np.zeros(3, np.uint8)}, TypeError, "states is one ndarray: give"),
        ({"states": ["a"], "offsets": [0, 1]}, TypeError, "states is a list: with offsets it must be one contiguous"),
        (
            {"states": np.zeros(3), "offsets": [0, 1]},
            TypeError,
            "ndarray of format 'd' and .*; np.ascontiguousarray",
        ),
        ({"states": np.zeros(6, np.uint8)[::2], "offsets": [0, 1]}, TypeError, "contiguous"),
        ({"states": b"abc", "offsets": []}, ValueError, "offsets is empty"),
        ({"states": b"abc", "offsets": [0, 4]}, ValueError, r"offsets\[1\] is 4: it must lie in the buffer, 0 to 3"),
        ({"states": b"abc", "offsets": [-1, 2]}, ValueError, r"offsets\[0\] is -1"),
        ({"states": b"abc", "offsets": [0, 2, 1]}, ValueError, r"offsets\[2\] is 1, after 2: offsets must not fall"),
        (
            {"states": b"abc", "offsets": np.array([0, 2**64 - 1], np.uint64)},
            ValueError,
            rf"\[1\] is {2**64 - 1}: it must",
        ),
        ({"states": b"abc", "offsets": [0, 2**70]}, ValueError, rf"offsets\[1\] is {2**70}: .* in \[-2\^63, 2\^63\)"),
        ({"states": b"abc", "offsets": [[0], [1, 2]]}, TypeError, "offsets has entries of different lengths"),
        ({"states": b"abc", "offsets": [0.0, 2.0]}, TypeError, r"offsets is float64\(2,\): .* integers"),
        ({"states": ["a"], "task_group": [0, 1]}, ValueError, "task_group has 2 labels, states has 1"),
        ({"states": ["a"] * 2, "task_group": [-1, 2**63]}, ValueError, rf"task_group\[1\] is {2**63}: in a list"),
        ({"states": ["a"], "task_group": [[0], [1, 2]]}, TypeError, "task_group has entries of different lengths"),
        ({"states": ["a"] * 2, "task_group": [np.int64(-1), np.uint64(2**63)]}, ValueError, rf"\[1\] is {2**63}: in"),
        ({"states": ["a"], "task_group": [0.5]}, TypeError, "task_group is float64"),
        ({"states": ["a"] * 2, "task_group": [np.int64(1), 0.5]}, TypeError, "task_group is float64"),
        ({"states": ["a"], "task_group": [[0]]}, TypeError, r"task_group is int64\(1, 1\)"),
        ({"states": ["a"], "similarity": 1.5}, ValueError, r"similarity is 1.5: it must be in \[0, 1\]"),
        ({"states": ["a"], "similarity": float("nan")}, ValueError, "similarity is nan"),
        ({"states": ["a"], "similarity": True}, TypeError, "similarity is True: it must be a number"),
        ({"states": ["a"], "similarity": np.complex64(1)}, TypeError, "similarity is .* it must be a number"),
        ({"states": ["a"], "threads": 0}, ValueError, "threads is 0"),
        ({"states": ["a"], "threads": 1.5}, TypeError, "threads is 1.5: it must be an integer"),
        ({"states": None}, TypeError, "states is of type NoneType: give a list, or a buffer"),
        ({"states": ["a"], "similarity": "0.9"}, TypeError, r"similarity is '0.9': it must be a number in \[0, 1\]"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        group_states(**arguments)
    if not arguments.keys() & {"task_group", "similarity"}:
        with pytest.raises(error, match=message):
            hash_states(**arguments)
