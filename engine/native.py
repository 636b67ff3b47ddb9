"""Hashing and grouping of states: the byte work on anchors, behind typed functions.

Plain Python today. They stay as the oracle of the C++ extension to come, and as the path without a compiler.
"""

from collections import defaultdict
from collections.abc import Sequence
from difflib import SequenceMatcher
from hashlib import blake2b

import numpy as np


def hash_states(states: Sequence[bytes] | Sequence[str]) -> np.ndarray:
    """128-bit keys of states, equal on every machine and in every process.

    Returns u64[N, 2]: the little-endian halves of BLAKE2b with a 16-byte digest. A str is hashed as its UTF-8 bytes
    (lone surrogates included).
    """
    encoded = (state.encode("utf-8", "surrogatepass") if isinstance(state, str) else state for state in states)
    digests = b"".join(blake2b(state, digest_size=16).digest() for state in encoded)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64).reshape(-1, 2)


def group_states(
    states: Sequence[bytes] | Sequence[str],
    task_group: Sequence[int] | np.ndarray | None = None,
    *,
    similarity: float | None = None,
) -> np.ndarray:
    """Labels of the groups of equal (or similar) states; states of different task groups are never grouped.

    Args:
        states: N states in (task, trajectory, step) order; all bytes or all str.
        task_group: [N] integer labels; None: all states belong to one task group.
        similarity: None groups equal states, byte for byte. A threshold in [0, 1] lets a state join the first cluster
            whose first member has `difflib.SequenceMatcher(None, state, first_member).ratio()` at or above it (GiGPO,
            arXiv 2505.10978, as published in verl-agent); here the result depends on the order of the rows. Of str the
            characters are compared, of bytes the bytes.

    Returns:
        i64[N], numbered 0, 1, ... in order of first appearance.

    Raises:
        ValueError: `states` and `task_group` differ in length.
    """
    groups = [0] * len(states) if task_group is None else np.asarray(task_group).tolist()
    keys = list(zip(groups, states, strict=True))
    labels = {key: label for label, key in enumerate(dict.fromkeys(keys))}
    if similarity is not None:
        labels = _cluster(list(labels), similarity)
    return np.fromiter((labels[key] for key in keys), dtype=np.int64, count=len(keys))


def _cluster(keys: list, threshold: float) -> dict:
    """Labels of distinct (task group, state) keys; clusters in order of creation."""
    labels: dict = {}
    num_clusters = 0
    # One matcher a cluster: difflib indexes its second argument, so the representative is indexed once.
    clusters: defaultdict[int, list[tuple[int, SequenceMatcher]]] = defaultdict(list)
    for group, state in keys:
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
