"""States that the tests of hashing and grouping share."""

import random
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

# One width of character after the other: ASCII, Latin-1, 2 bytes, a lone surrogate, 4 bytes.
TEXTS = ["", "a", "ab", "abc", "abd", "xyz", "xyzabc", "ü", "u\u0308", "漢字", "\udcfc", "\U0001f600", "\U0001f600a"]
STATES = st.lists(st.sampled_from(TEXTS), max_size=25)
GROUPS = st.lists(st.integers(-2, 2), min_size=25, max_size=25)


class OwnText(str):
    """A text of its own opinion on everything but its content."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __len__(self) -> int:
        return 0

    def __str__(self) -> str:
        return "?"

    def __getitem__(self, at: object) -> str:
        return "?"

    def encode(self, *_: object) -> bytes:
        return b"?"


class OwnBytes(bytes):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __len__(self) -> int:
        return 0

    def __bytes__(self) -> bytes:
        return b"?"

    def __getitem__(self, at: object) -> bytes:
        return b"?"

    @property
    def __class__(self) -> type:
        return str


class FakeText:
    """What isinstance() takes for a str."""

    @property
    def __class__(self) -> type:
        return str


def as_buffer(states: Sequence[bytes]) -> tuple[bytes, np.ndarray]:
    return b"".join(states), np.cumsum([0, *map(len, states)])


def fuzzed_states(rng: random.Random, count: int) -> list[str]:
    """Texts that are edits of a few others, so that clusters are near each other."""
    alphabet = rng.choice(["ab", "abcdefgh ", "abcdefghijklmnopqrstuvwxyz 0123456789", "aé漢\U0001f600b "])
    length = rng.choice([3, 20, 60, 190, 210, 420])
    bases = ["".join(rng.choices(alphabet, k=rng.randrange(length + 1))) for _ in range(3)]
    states = []
    for _ in range(count):
        state = rng.choice(bases)
        for _ in range(rng.randrange(6)):
            at, size = rng.randrange(len(state) + 1), rng.randrange(12)
            moved = state[at : at + size] if rng.random() < 0.5 else "".join(rng.choices(alphabet, k=size))
            state = state[:at] + state[at + size :] if rng.random() < 0.5 else state
            at = rng.randrange(len(state) + 1)
            state = state[:at] + moved + state[at:]
        states.append(state)
    return states
