"""Matrix products with float32 sums and float32 results, whatever the dtype of the factors.

torch rounds the product of two bfloat16 matrices to bfloat16. As logits that is an error of 9e-2 in a probability ratio
(measured on SmolLM2-135M against float64), as a gradient summed over chunks one rounding a chunk.
"""

import torch
from torch import Tensor

from .dispatch import interpreting

HALF = (torch.bfloat16, torch.float16)


def factor_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    """Dtype in which Triton code multiplies the two: their own if they agree, else float32.

    Triton's interpreter multiplies the bit patterns of bfloat16 and truncates where it rounds: float32 there.
    """
    same = a.dtype == b.dtype and not (a.dtype == torch.bfloat16 and interpreting())
    return a.dtype if same else torch.float32


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a[m, k] @ b[k, n] in float32 (float64 for float64 factors); both of one dtype."""
    if a.dtype not in HALF:
        return torch.mm(a, b)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def add_mm_(total: Tensor | None, a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
    """total[m, n] += scale * a[m, k] @ b[k, n], in place; `total` as `mm` returns it, `scale` 0-dim, None for 1.

    None for `total` stands for zeros, which are then neither written nor read.
    """
    if scale is not None or total is None:
        product = mm(a, b) if scale is None else mm(a, b).mul_(scale)
        return product if total is None else total.add_(product)
    if a.dtype not in HALF:
        return total.addmm_(a, b)
    if a.is_cuda:
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    return total.addmm_(a.float(), b.float())
