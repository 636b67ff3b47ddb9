"""Attention over packed rows: each row sees only itself, nothing of size T x T exists.

Registered with transformers as `siri_packed`. Called with `row_bounds` (our packed forward) it attends row by row;
called without (generation with a KV cache) it is the library's own SDPA, so one module serves training and sampling.
On a GPU in half precision it is torch's variable-length flash attention, which needs no flash-attn package.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "siri_packed"


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    row_bounds: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of `query` [1, heads, T, D] inside each row `[row_bounds[s], row_bounds[s + 1])`.

    Returns [1, T, heads, D]. Raises NotImplementedError for sliding windows shorter than a row.
    """
    if row_bounds is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    lengths = [stop - start for start, stop in itertools.pairwise(row_bounds)]
    longest = max(lengths, default=0)
    window = kwargs.get("sliding_window")
    if window is not None and window < longest:
        raise NotImplementedError(f"a sliding window of {window} tokens inside a row of {longest} cannot be packed")
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _flash_varlen(query, key, value, row_bounds, longest, scaling), None
    rows = [query.new_zeros(1, 0, query.shape[1], query.shape[3])]
    # split, not slices: the gradient of a slice is a tensor of zeros as long as all rows together, one for each row.
    for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True):
        row = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        rows.append(row.transpose(1, 2))
    return torch.cat(rows, dim=1), None


def _flash_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_bounds: Sequence[int],
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    cu_seqlens = _on_device(tuple(row_bounds), query.device)
    q, k, v = (x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value))
    attended = varlen_attn(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest,
        scale=scaling, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(attended, torch.Tensor)
    return attended.unsqueeze(0)


@lru_cache(maxsize=4)
def _on_device(row_bounds: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """i32: the same for every layer of a pass, so it is sent once."""
    return torch.tensor(row_bounds, dtype=torch.int32, device=device)


def register() -> str:
    """Make the implementation known to transformers; returns its name."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
