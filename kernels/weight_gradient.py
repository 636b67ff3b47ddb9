"""The sum of a weight's gradient over chunks: in float32, but with no more memory than that, whatever it is rounded to.

The rounded gradient lends its memory to the sum of the first rows, and takes it back row by row. At [152064, 3584] in
bfloat16 that is a peak of 2.18 GB in place of 3.27. Sums in bfloat16 would need 1.09, but round once a chunk: with ten
chunks they are off by 4.2e-3 of the gradient's norm, a gradient that is rounded once by 2.3e-3.

Legend: V vocabulary, H hidden; n rows of a chunk.
"""

import torch
from torch import Tensor

from .gemm import add_mm_
from .projection import blocks

ROUNDED_ROWS = 4096
"""At a time, as a copy: 29 MB in bfloat16 where H = 3584."""

SCALED_ROWS = 8192
"""At a time, of a float16 gradient's product: 117 MB in float32 where H = 3584."""

ALIGNED_ROWS = 128
"""The part that is lent begins and ends at a multiple of so many rows: the product's factor is aligned, too."""


class WeightGradient:
    """A gradient [V, H] of `dtype`, summed in `sum_dtype`."""

    def __init__(self, like: Tensor, *, dtype: torch.dtype, sum_dtype: torch.dtype) -> None:
        """`like` [V, H] says the shape and the device."""
        V, H = like.shape
        self._result = torch.empty(V, H, dtype=dtype, device=like.device)
        ratio = sum_dtype.itemsize // dtype.itemsize
        lent = V if ratio == 1 else V // ratio // ALIGNED_ROWS * ALIGNED_ROWS
        front = self._result.view(-1)[: lent * H * ratio].view(sum_dtype).view(lent, H)
        back = torch.empty(V - lent, H, dtype=sum_dtype, device=like.device)
        self._parts = [(slice(0, lent), front), (slice(lent, V), back)]
        self._begun = False

    def add_(self, draw: Tensor, x: Tensor, scale: Tensor | None) -> None:
        """Adds scale * draw[n, V].T @ x[n, H]; `scale` 0-dim, None for 1."""
        for columns, total in self._parts:
            factor = draw[:, columns].t()
            # A scaled product has a place of its own before it is added.
            for rows in blocks(len(total), SCALED_ROWS if scale is not None else max(1, len(total))):
                add_mm_(total[rows], factor[rows], x, scale, begun=self._begun)
        self._begun = True

    def rounded(self) -> Tensor:
        """The sum [V, H] in `dtype`; zeros if nothing was added. The sum is spent."""
        if not self._begun:
            return self._result.zero_()
        (lent, front), (rest, back) = self._parts
        if front.dtype != self._result.dtype:
            for rows in blocks(lent.stop, ROUNDED_ROWS):  # what is written over has been read, in this block or before
                self._result[rows] = front[rows].to(self._result.dtype)
            self._result[rest] = back
        self._parts = []
        return self._result
