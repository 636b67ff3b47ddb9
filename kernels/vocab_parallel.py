"""A vocabulary that lies on several ranks, a contiguous shard on each, in rank order.

Legend: T tokens, V vocabulary.
"""

from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

from .projection import SoftmaxStats, merge


def shard_bounds(weight: Tensor, tp_group: dist.ProcessGroup | None) -> tuple[int, int]:
    """(first token id of this rank's shard, size of the whole vocabulary)."""
    if tp_group is None:
        return 0, len(weight)
    size = torch.tensor([len(weight)], device=weight.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size(tp_group))]
    dist.all_gather(sizes, size, group=tp_group)
    counts = [int(s) for s in sizes]
    return sum(counts[: dist.get_rank(tp_group)]), sum(counts)


def merge_over_ranks(stats: Tensor, tp_group: dist.ProcessGroup | None) -> SoftmaxStats:
    """Statistics [T] over the whole vocabulary, merged in rank order: bit-equal on every rank."""
    if tp_group is None:
        return SoftmaxStats(*stats)
    shards = [torch.empty_like(stats) for _ in range(dist.get_world_size(tp_group))]
    dist.all_gather(shards, stats, group=tp_group)
    return reduce(merge, (SoftmaxStats(*shard) for shard in shards))
