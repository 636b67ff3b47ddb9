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


def add_mm_(total: Tensor, a: Tensor, b: Tensor, scale: Tensor | None = None, *, begun: bool = True) -> Tensor:
    """total[m, n] += scale * a[m, k] @ b[k, n], in place; `total` as `mm` returns it, `scale` 0-dim, None for 1.

    Not `begun`: `total` is not read, whatever it holds.
    """
    if scale is not None:
        product = mm(a, b).mul_(scale)
        return total.add_(product) if begun else total.copy_(product)
    if a.dtype in HALF and a.is_cuda:
        return torch.addmm(total, a, b, out_dtype=torch.float32, beta=int(begun), out=total)
    return total.addmm_(a.to(total.dtype), b.to(total.dtype), beta=int(begun))
