"""What `linear_logprob` keeps on a CPU for its backward pass, so that fewer logits are made twice.

The first blocks of columns are kept, in one of two forms:

* raw logits: the backward pass has the same bits as if it had made them again.
* roots, sqrt(exp(z - peak)) with the row's peak in the block, as 16-bit integers: half the memory. Each is off by
  1 / 131070 at most, so p by sqrt(p p_peak) / 65535. Enough where only log-probs have a gradient: its entries are p.

They wait in the memory that the weight's gradient will take in any case, and in some beside it.

Legend: T tokens, H hidden, V vocabulary; n rows of one block.
"""

from copy import copy
from itertools import accumulate

import torch
from torch import Tensor

from .projection import Normaliser, blocks, exp_

SPARE_BYTES = 64 << 20
SPARE_SHARE = 0.1
"""Memory beside the gradient's: at most so many bytes, and this share of all logits in float32. At T 2048, H 576, V
49152 that is 38 MiB, with which 76% of the blocks are kept in place of 56%."""

ROOT_STEPS = 65535
ROOT_OFFSET = 32768
"""A root is held as the integer next to `root * ROOT_STEPS - ROOT_OFFSET`. Signed, because torch converts to unsigned
16-bit integers at a fifth of the speed."""


class KeptLogits:
    """Room for the first blocks of columns, all rows of each.

    The gradient of a block is written over what no later block needs: what is kept of it begins where its gradient
    does, or later where it takes more bytes a column.
    """

    def __init__(self, num_rows: int, weight: Tensor, dtype: torch.dtype, width: int, *, roots: bool) -> None:
        """`dtype` is that of the logits, `width` that of a block; with `roots`, raw logits are kept only if all fit."""
        self.gradient: Tensor | None = torch.empty_like(weight, memory_format=torch.contiguous_format)
        """[V, H]; the weight's gradient once the blocks are spent. None: they were, by an earlier backward pass."""
        self._width = width
        columns = list(blocks(len(weight), width))
        home, beside = room(self.gradient, columns, num_rows, dtype.itemsize)
        self.roots = roots and len(home) + len(beside) < len(columns)
        form = torch.int16 if self.roots else dtype
        if self.roots:
            home, beside = room(self.gradient, columns, num_rows, form.itemsize)
        gradient_bytes = self.gradient.view(-1).view(torch.uint8)
        places = [gradient_bytes[span] for span in home]
        places += torch.empty(sum(beside), dtype=torch.uint8, device=weight.device).split(beside)
        self._places = [
            p.view(form).view(num_rows, c.stop - c.start) for p, c in zip(places, columns, strict=False)
        ]  # [T, columns] of each block that is kept
        self._peaks = torch.empty(len(places) if self.roots else 0, num_rows, dtype=dtype, device=weight.device)
        self._live: Tensor | None = None

    def _place(self, cols: slice) -> Tensor | None:
        """[T, columns], the place of a block; None where it is not kept."""
        index = cols.start // self._width
        return self._places[index] if index < len(self._places) else None

    def select(self, live: Tensor | slice) -> "KeptLogits":
        """The same memory, read for the rows `live` (indices, or all of them) as if they were all there are."""
        selected = copy(self)
        selected._live = live if isinstance(live, Tensor) else None
        return selected

    def spent(self) -> "KeptLogits":
        """Without the memory: what makes a second backward pass round where the first one did."""
        left = copy(self)
        left.gradient, left._places, left._live = None, [], None
        return left

    def put_raw(self, cols: slice, rows: slice, raw: Tensor) -> None:
        """Keeps raw[n, v], if such a block is kept, and raw."""
        if not self.roots and (place := self._place(cols)) is not None:
            place[rows] = raw

    def put_roots(self, cols: slice, rows: slice, power: Tensor, peak: Tensor) -> None:
        """Keeps power[n, v] = exp(z - peak), which is spent, and peak[n], if such a block is kept, and as roots."""
        if self.roots and (place := self._place(cols)) is not None:
            place[rows] = roots_(power)
            self._peaks[cols.start // self._width, rows] = peak

    def raw(self, cols: slice, rows: slice) -> Tensor | None:
        """Raw logits [n, v], the caller's to overwrite; None where none are kept."""
        place = None if self.roots else self._place(cols)
        return None if place is None else place[self._among_all(rows)]

    def probabilities(self, cols: slice, rows: slice, normaliser: Normaliser) -> Tensor | None:
        """p[n, v] from roots; None where none are kept. `normaliser` [n] is that of the whole vocabulary."""
        if not self.roots or (place := self._place(cols)) is None:
            return None
        peak = self._peaks[cols.start // self._width, self._among_all(rows)]
        return probabilities_(place[self._among_all(rows)].to(peak.dtype), peak, normaliser)

    def remade(self, cols: slice, rows: slice, z: Tensor, normaliser: Normaliser) -> Tensor | None:
        """The same from z[n, v], which is spent, where roots were kept once; None elsewhere."""
        if cols.start // self._width >= len(self._peaks):
            return None
        peak = self._peaks[cols.start // self._width, self._among_all(rows)]
        return probabilities_(roots_(exp_(z.sub_(peak[:, None]))), peak, normaliser)

    def _among_all(self, rows: slice) -> Tensor | slice:
        return rows if self._live is None else self._live[rows]


def room(
    gradient: Tensor, columns: list[slice], num_rows: int, itemsize: int
) -> tuple[list[slice], list[int]]:  # fmt: skip
    """(bytes of the gradient for the first blocks, sizes in bytes of those after them that find room beside it)."""
    column_bytes = num_rows * itemsize
    stride = max(column_bytes, gradient.shape[1] * gradient.itemsize)
    starts = [-(-cols.start * stride // itemsize) * itemsize for cols in columns]
    sizes = [(cols.stop - cols.start) * column_bytes for cols in columns]
    spans = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    home = [span for span in spans if span.stop <= gradient.nbytes]
    left = sizes[len(home) :]
    spare = min(SPARE_BYTES, int(SPARE_SHARE * torch.float32.itemsize * num_rows * len(gradient)))
    return home, left[: sum(end <= spare for end in accumulate(left))]


def roots_(power: Tensor) -> Tensor:
    """What is held of power[n, v] = exp(z - peak), in place: whole numbers."""
    return power.sqrt_().mul_(ROOT_STEPS).sub_(ROOT_OFFSET).round_()


def probabilities_(roots: Tensor, peak: Tensor, normaliser: Normaliser) -> Tensor:
    """p[n, v] from roots and the peak[n] of their block, in place."""
    scale = ((peak - normaliser.peak - normaliser.log_total) / 2).exp_().div_(ROOT_STEPS)
    return roots.add_(ROOT_OFFSET).mul_(scale[:, None]).square_()
