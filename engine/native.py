"""Hashing and grouping of states: the byte work on anchors, in C++ (`csrc/`), without the GIL and on several threads.

Where the extension is not built (no compiler at set-up), its Python twin gives the same values, slower. One that is
built but broken is an error: what is installed gets used.
"""

import operator
import os
import sys
from collections.abc import Iterable, Sequence, Set
from typing import cast

import numpy as np

try:
    import siri._native as implementation
except ModuleNotFoundError as error:
    if error.name != "siri._native":
        raise
    from siri.engine import native_twin as implementation  # type: ignore[no-redef]

States = Sequence[bytes] | Sequence[str] | bytes | bytearray | memoryview | np.ndarray
"""N states: all bytes or all str; or one contiguous buffer of bytes, for which `offsets` says where each begins."""
_BUFFERS = (bytes, bytearray, memoryview, np.ndarray)
_MOST_THREADS = 2**31 - 1


def hash_states(
    states: States, *, offsets: Sequence[int] | np.ndarray | None = None, threads: int | None = None
) -> np.ndarray:
    """128-bit keys of states, equal on every machine, in every process, with and without the extension.

    The hash is XXH3-128 with seed 0 (xxHash, doc/xxhash_spec.md 0.2.0). A str is hashed as its UTF-8 bytes, lone
    surrogates included ("surrogatepass").

    Args:
        states: N states, all bytes or all str (a list, or any iterable with an order); or, with `offsets`, one buffer
            of bytes (bytes, bytearray, memoryview, u8 array), not written to meanwhile. NumPy's arrays of str and bytes
            drop NUL characters at the end of an entry before they get here.
        offsets: [N + 1] integers into a buffer: state n is `states[offsets[n] : offsets[n + 1]]`.
        threads: threads to use at most; None: OMP_NUM_THREADS, else as many as the process has cores. Every number
            gives the same result.

    Returns:
        u64[N, 2], the low and the high half: `low + (high << 64)` is `xxhash.xxh3_128_intdigest(state)`.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checked, bounds = _checked_states(states, offsets)
    return implementation.hash_states(checked, bounds, _checked_threads(threads))


def group_states(
    states: States,
    task_group: Sequence[int] | np.ndarray | None = None,
    *,
    similarity: float | None = None,
    offsets: Sequence[int] | np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Labels of the groups of equal (or similar) states; states of different task groups are never grouped.

    Args:
        states: as in `hash_states`, in (task, trajectory, step) order.
        task_group: [N] integer labels; None: all states belong to one task group.
        similarity: None groups equal states, byte for byte. A threshold in [0, 1] lets a state join the first cluster
            whose first member has `difflib.SequenceMatcher(None, state, first_member).ratio()` at or above it (GiGPO,
            arXiv 2505.10978, as published in verl-agent); here the result depends on the order of the rows. Of str the
            characters are compared (fewer than 2^31 a state), of bytes the bytes. Task groups are done in parallel.
        offsets, threads: as in `hash_states`.

    Returns:
        i64[N], numbered 0, 1, ... in order of first appearance.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    # isinstance would take True, and complex numbers of NumPy, for numbers that can be compared with 1.
    if isinstance(similarity, bool) or not isinstance(similarity, float | int | np.floating | np.integer | None):
        raise TypeError(f"similarity is {similarity!r}: it must be a number in [0, 1]; None groups equal states")
    if similarity is not None and not 0 <= similarity <= 1:
        raise ValueError(f"similarity is {similarity}: it must be in [0, 1]; None groups equal states")
    checked, bounds = _checked_states(states, offsets)
    count = len(checked) if bounds is None else len(bounds) - 1
    groups = None if task_group is None else _checked_integers("task_group", task_group)
    if groups is not None and len(groups) != count:
        raise ValueError(f"task_group has {len(groups)} labels, states has {count}: give one label a state")
    threshold = None if similarity is None else float(similarity)
    return implementation.group_states(checked, bounds, groups, threshold, _checked_threads(threads))


def _checked_states(
    states: States, offsets: Sequence[int] | np.ndarray | None
) -> tuple[tuple[bytes, ...] | tuple[str, ...] | np.ndarray, np.ndarray | None]:
    """The states as a tuple, or as u8 bytes with i64[N + 1] bounds of our own that lie within them."""
    if offsets is None:
        numbers = isinstance(states, np.ndarray) and states.dtype.kind not in "OSU"
        if numbers or isinstance(states, str | bytes | bytearray | memoryview):
            remedy = "a list of states" if isinstance(states, str) else "a list of states, or offsets into it"
            raise TypeError(f"states is one {type(states).__name__}: give {remedy}")
        if isinstance(states, Set):
            raise TypeError(f"states is a {type(states).__name__}, which has no order: give a list of states")
        if not isinstance(states, Iterable):
            raise TypeError(f"states is of type {type(states).__name__}: give a list, or a buffer with offsets")
        return tuple(states), None
    # The protocol that ndarray has at run time is not in its type on Python 3.11.
    view = memoryview(cast(bytes, states)) if isinstance(states, _BUFFERS) else None
    if view is None or view.ndim != 1 or view.itemsize != 1 or not view.contiguous:
        kind, remedy = type(states).__name__, ""
        if view is not None:
            kind = f"{kind} of format {view.format!r} and shape {view.shape}" + (
                "" if view.contiguous else ", with gaps"
            )
            remedy = "; np.ascontiguousarray(states).view(np.uint8).ravel() is one"
        elif isinstance(states, str):
            remedy = "; states.encode() is one, with offsets in bytes"
        raise TypeError(f"states is a {kind}: with offsets it must be one contiguous buffer of bytes{remedy}")
    bounds = _checked_integers("offsets", offsets).copy()
    if len(bounds) == 0:
        raise ValueError("offsets is empty: it holds N + 1 numbers, [0] for no state")
    outside = np.flatnonzero((bounds < 0) | (bounds > len(view)))
    falling = np.flatnonzero(bounds[1:] < bounds[:-1]) + 1
    if len(outside):
        n = int(outside[0])
        # As given: of unsigned numbers, bounds has some as negative ones.
        raise ValueError(f"offsets[{n}] is {offsets[n]}: it must lie in the buffer, 0 to {len(view)}")
    if len(falling):
        n = int(falling[0])
        raise ValueError(f"offsets[{n}] is {bounds[n]}, after {bounds[n - 1]}: offsets must not fall")
    return np.frombuffer(view, dtype=np.uint8), bounds


def _checked_integers(name: str, values: Sequence[int] | np.ndarray) -> np.ndarray:
    """i64[...] of a list or array of integers."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TypeError(f"{name} has entries of different lengths: it must be one row of integers") from error
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, dtype=np.int64)
    if array.ndim == 1 and array.dtype.kind in "fO" and not isinstance(values, np.ndarray):
        # A list of integers that no one integer type holds, or of NumPy's of several types, which it makes floats of.
        for n, value in enumerate(values):
            if isinstance(value, int | np.integer) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name}[{n}] is {value}: in a list, it must be in [-2^63, 2^63)")
        if all(isinstance(value, int | np.integer) for value in values):
            array = np.array([int(value) for value in values])
    if array.ndim != 1 or array.dtype.kind not in "iu":
        remedy = "; np.unique(labels, return_inverse=True)[1] numbers them" if array.dtype.kind in "OSU" else ""
        raise TypeError(f"{name} is {array.dtype}{array.shape}: it must be one row of integers{remedy}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _checked_threads(threads: int | None) -> int:
    if threads is None:
        # torchrun sets it for several ranks; it may be a list of numbers, one a level of nesting.
        wish = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip().lstrip("0")
        if wish.isascii() and wish.isdecimal():
            # Eleven digits are more than the limit already, and int() refuses thousands of them.
            return min(int(wish[:11]), _MOST_THREADS)
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if not hasattr(threads, "__index__"):
        raise TypeError(f"threads is {threads!r}: it must be an integer; None takes as many as there are cores")
    if operator.index(threads) < 1:
        raise ValueError(f"threads is {threads}: it must be at least 1; None takes as many as there are cores")
    return min(operator.index(threads), _MOST_THREADS)
