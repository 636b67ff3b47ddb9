"""The Python twin of the C++ extension: its oracle in tests, and what runs where the extension is not built.

The functions have the signatures of `siri._native`; `siri.engine.native` checks what they get and documents what they
return. Groups come from Python's dict and difflib. The hash is XXH3-128 with seed 0 as xxHash's doc/xxhash_spec.md
(0.2.0) describes it, in NumPy, for all states of one length at a time.

Names: a row is a state, R of one length. Words are u64[R], of which a scalar is a broadcast constant; all arithmetic
is modulo 2^64.
"""

from collections import defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

import numpy as np

_States = tuple[bytes, ...] | tuple[str, ...]

_PRIME32_1, _PRIME32_2, _PRIME32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_PRIME64_1, _PRIME64_2, _PRIME64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_PRIME64_4, _PRIME64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_PRIME_MX1, _PRIME_MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25
_STRIPE, _BLOCK = 64, 1024
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
# Rows hashed at a time hold at most this many bytes (or are one row): some temporaries are as large.
_BATCH_BYTES = 1 << 22
# The limit of csrc/similarity.cpp, which counts characters in 32 bits.
_SIMILARITY_CHARACTERS = 2**31


def hash_states(states: _States | np.ndarray, offsets: np.ndarray | None, threads: int) -> np.ndarray:
    """u64[N, 2]; `threads` is of no use here."""
    encoded = [s.encode("utf-8", "surrogatepass") if isinstance(s, str) else s for s in _objects(states, offsets)]
    keys = np.empty((len(encoded), 2), dtype=np.uint64)
    lengths = np.array([len(state) for state in encoded], dtype=np.int64)
    for length in np.unique(lengths).tolist():
        for rows in _batches(np.flatnonzero(lengths == length), max(1, _BATCH_BYTES // max(1, length))):
            data = np.frombuffer(b"".join([encoded[row] for row in rows]), dtype=np.uint8).reshape(len(rows), length)
            keys[rows, 0], keys[rows, 1] = _xxh3_128(data)
    return keys


def group_states(
    states: _States | np.ndarray,
    offsets: np.ndarray | None,
    task_group: np.ndarray | None,
    similarity: float | None,
    threads: int,
) -> np.ndarray:
    """i64[N]; `threads` is of no use here."""
    objects = _objects(states, offsets)
    groups = [0] * len(objects) if task_group is None else task_group.tolist()
    keys = list(zip(groups, objects, strict=True))
    labels = {key: label for label, key in enumerate(dict.fromkeys(keys))}
    if similarity is not None:
        labels = _cluster(list(labels), similarity)
    return np.fromiter((labels[key] for key in keys), dtype=np.int64, count=len(keys))


def _objects(states: _States | np.ndarray, offsets: np.ndarray | None) -> _States:
    """The states one by one, all bytes or all str. As in C++, a subclass has no say in what its content is."""
    if offsets is not None:
        assert isinstance(states, np.ndarray)
        whole, bounds = states.tobytes(), offsets.tolist()
        return tuple(whole[begin:end] for begin, end in pairwise(bounds))
    assert isinstance(states, tuple)
    kind = str if states and issubclass(type(states[0]), str) else bytes
    exact: list[Any] = list(states)
    for n, state in enumerate(exact):
        if type(state) is kind:
            continue
        if not issubclass(type(state), kind):
            first = f" and states[0] of type {type(states[0]).__name__}" if n else ""
            raise TypeError(
                f"states[{n}] is of type {type(state).__name__}{first}: "
                "states are all bytes or all str, or one buffer with offsets"
            )
        exact[n] = kind.__getitem__(state, slice(None))
    return tuple(exact)


def _cluster(keys: list, threshold: float) -> dict:
    """Labels of distinct (task group, state) keys; clusters in order of creation."""
    labels: dict = {}
    num_clusters = 0
    # One matcher a cluster: difflib indexes its second argument, so the representative is indexed once.
    clusters: defaultdict[int, list[tuple[int, SequenceMatcher]]] = defaultdict(list)
    for group, state in keys:
        if len(state) >= _SIMILARITY_CHARACTERS:
            raise ValueError(
                f"states holds one of {len(state)} characters: similarity takes fewer than 2^31. "
                "Group equal states instead"
            )
        for label, matcher in clusters[group]:
            matcher.set_seq1(state)
            # The quick ratios are upper bounds computed by the same expression, so they never change the outcome.
            if (
                matcher.real_quick_ratio() >= threshold
                and matcher.quick_ratio() >= threshold
                and matcher.ratio() >= threshold
            ):
                labels[group, state] = label
                break
        else:
            labels[group, state] = num_clusters
            clusters[group].append((num_clusters, SequenceMatcher(None, "", state)))
            num_clusters += 1
    return labels


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _words(data: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The bytes from `begin` to `end` of each row as little-endian words, u64[R, ...]."""
    return np.ascontiguousarray(data[..., begin:end]).view("<u8").astype(np.uint64)


def _word(data: np.ndarray, begin: int) -> np.ndarray:
    return _words(data, begin, begin + 8)[..., 0]


def _secret(begin: int, size: int = 8) -> int:
    return int.from_bytes(_SECRET[begin : begin + size], "little")


def _product(a: np.ndarray, b: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Low and high half of the 128-bit products, from products of 32-bit halves."""
    low_a, high_a, low_b, high_b = a & 0xFFFFFFFF, a >> 32, b & 0xFFFFFFFF, b >> 32
    low, cross = low_a * low_b, high_a * low_b
    middle = low_a * high_b + (low >> 32) + (cross & 0xFFFFFFFF)
    return (middle << 32) | (low & 0xFFFFFFFF), high_a * high_b + (cross >> 32) + (middle >> 32)


def _folded(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = _product(a, b)
    return low ^ high


def _avalanche(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> 37)) * _PRIME_MX1
    return x ^ (x >> 32)


def _avalanche_xxh64(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> 33)) * _PRIME64_2
    x = (x ^ (x >> 29)) * _PRIME64_3
    return x ^ (x >> 32)


def _xxh3_128(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high half for rows u8[R, length]."""
    length = data.shape[1]
    if length > 240:
        return _long(data, length)
    if length > 16:
        return _17_to_240(data, length)
    if length > 8:
        return _9_to_16(data, length)
    if length > 3:
        return _4_to_8(data, length)
    if length > 0:
        return _1_to_3(data, length)
    empty = np.zeros(len(data), dtype=np.uint64)
    return _avalanche_xxh64(empty ^ _secret(64) ^ _secret(72)), _avalanche_xxh64(empty ^ _secret(80) ^ _secret(88))


def _1_to_3(data: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    first, middle, last = (data[:, i].astype(np.uint64) for i in (0, length >> 1, length - 1))
    low = last | length << 8 | first << 16 | middle << 24
    swapped = low.astype(np.uint32).byteswap().astype(np.uint64)
    high = (swapped << 13 | swapped >> 19) & 0xFFFFFFFF
    low, high = low ^ _secret(0, 4) ^ _secret(4, 4), high ^ _secret(8, 4) ^ _secret(12, 4)
    return _avalanche_xxh64(low), _avalanche_xxh64(high)


def _4_to_8(data: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    ends = np.concatenate([data[:, :4], data[:, length - 4 :]], axis=1)
    low, high = _product(_word(ends, 0) ^ _secret(16) ^ _secret(24), _PRIME64_1 + (length << 2))
    high = high + (low << 1)
    low = low ^ (high >> 3)
    low = (low ^ (low >> 35)) * _PRIME_MX2
    return low ^ (low >> 28), _avalanche(high)


def _9_to_16(data: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    last = _word(data, length - 8)
    one = last ^ _secret(48) ^ _secret(56)
    low, high = _product(_word(data, 0) ^ last ^ _secret(32) ^ _secret(40), _PRIME64_1)
    high = high + one + (one & 0xFFFFFFFF) * (_PRIME32_2 - 1)
    low = (low + (length - 1 << 54)) ^ high.byteswap()
    low, carried = _product(low, _PRIME64_2)
    return _avalanche(low), _avalanche(carried + high * _PRIME64_2)


def _17_to_240(data: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    low = np.full(len(data), length * _PRIME64_1 % 2**64, dtype=np.uint64)
    high = np.zeros_like(low)
    if length <= 128:
        rounds = [(16 * i, length - 16 * i - 16, 32 * i) for i in reversed(range((length - 1) // 32 + 1))]
    else:
        rounds = [(32 * i, 32 * i + 16, 32 * i) for i in range(4)]
        rounds += [(32 * i, 32 * i + 16, 32 * (i - 4) + 3) for i in range(4, length // 32)]
        rounds += [(length - 16, length - 32, 103)]
    for number, (one, two, key) in enumerate(rounds):
        if length > 128 and number == 4:
            low, high = _avalanche(low), _avalanche(high)
        one_0, one_1, two_0, two_1 = (_word(data, at) for at in (one, one + 8, two, two + 8))
        low = (low + _folded(one_0 ^ _secret(key), one_1 ^ _secret(key + 8))) ^ (two_0 + two_1)
        high = (high + _folded(two_0 ^ _secret(key + 16), two_1 ^ _secret(key + 24))) ^ (one_0 + one_1)
    last = low * _PRIME64_1 + high * _PRIME64_4 + length * _PRIME64_2 % 2**64
    return _avalanche(low + high), -_avalanche(last)


def _long(data: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    secret = np.frombuffer(_SECRET, dtype=np.uint8)
    # Stripe n of a block is mixed with the eight words of the secret from byte 8 n on.
    keys = np.stack([_words(secret, 8 * n, 8 * n + _STRIPE) for n in range(_BLOCK // _STRIPE)])

    def mixed(begin: int, end: int, keys: np.ndarray) -> np.ndarray:
        """What the stripes from byte `begin` to `end` add to the accumulators, u64[R, 8]."""
        words = _words(data, begin, end).reshape(len(data), -1, 8)
        keyed = words ^ keys
        swapped = words.reshape(len(data), -1, 4, 2)[..., ::-1].reshape(words.shape)
        return (swapped + (keyed & 0xFFFFFFFF) * (keyed >> 32)).sum(axis=1, dtype=np.uint64)

    start = [_PRIME32_3, _PRIME64_1, _PRIME64_2, _PRIME64_3, _PRIME64_4, _PRIME32_2, _PRIME64_5, _PRIME32_1]
    sums = np.tile(np.array(start, dtype=np.uint64), (len(data), 1))
    last_block = (length - 1) // _BLOCK * _BLOCK
    for block in range(0, last_block, _BLOCK):
        sums = sums + mixed(block, block + _BLOCK, keys)
        sums = (sums ^ (sums >> 47) ^ _words(secret, 128, 192)) * _PRIME32_1
    whole_stripes = (length - 1 - last_block) // _STRIPE
    sums = sums + mixed(last_block, last_block + whole_stripes * _STRIPE, keys[:whole_stripes])
    sums = sums + mixed(length - _STRIPE, length, _words(secret, 121, 185))

    def merged(begin: int, result: int) -> np.ndarray:
        pairs = (sums ^ _words(secret, begin, begin + _STRIPE)).reshape(-1, 4, 2)
        return _avalanche(_folded(pairs[..., 0], pairs[..., 1]).sum(axis=1, dtype=np.uint64) + result % 2**64)

    return merged(11, length * _PRIME64_1), merged(117, ~(length * _PRIME64_2))
