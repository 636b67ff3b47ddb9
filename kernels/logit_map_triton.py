"""z = cap(raw + bias) / temperature inside Triton kernels: see `projection.LogitMap`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .projection import LogitMap

LOG2_E = tl.constexpr(1.4426950408889634)
LOGIT_FLOOR = tl.constexpr(-1e30)


@triton.jit
def mapped(raw, softcap, inverse_temperature, SOFTCAP: tl.constexpr):
    """z from raw logits. NaN stays NaN: tl.maximum in place of tl.where would swallow it."""
    z = tl.where(raw < LOGIT_FLOOR, LOGIT_FLOOR, raw)  # a bias of -inf must not meet 0 * inf
    if SOFTCAP:
        capped = softcap - 2 * softcap / (1 + tl.exp2(z * (2 * LOG2_E / softcap)))  # softcap * tanh(z / softcap)
        z = tl.where(z > LOGIT_FLOOR, capped, z)
    return z * inverse_temperature


def inverse_temperature(logit_map: LogitMap, like: Tensor) -> Tensor:
    """1 / temperature, f32 [T], for the T rows of `like`: a tensor, so that a new temperature compiles nothing."""
    temperature = torch.as_tensor(logit_map.temperature, dtype=torch.float32, device=like.device).detach()
    return temperature.reciprocal().expand(len(like)).contiguous()
