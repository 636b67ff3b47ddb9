"""What is asked of arguments, once, at the door, and which rows enter.

While a CUDA graph is captured nobody can wait for the device: what depends on values is not looked at then.

Legend: T tokens, H hidden, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .dispatch import capturing


def check_projection(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *, prefix: str = "", **per_token: Tensor | float | None
) -> None:
    """Shapes, once, at the door. `per_token` are the arguments that hold one value a token; `prefix` names a teacher's.

    Raises ValueError naming the argument, its shape and the rule.
    """
    check_whole(**{f"{prefix}hidden": hidden, f"{prefix}weight": weight, f"{prefix}bias": bias})
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{prefix}hidden {tuple(hidden.shape)} and {prefix}weight {tuple(weight.shape)} must be [T, H] and [V, H] "
            "with one H"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{prefix}bias {tuple(bias.shape)} must be [V] = [{weight.shape[0]}]")
    for name, value in per_token.items():
        number = name == "temperature" and isinstance(value, Tensor) and value.ndim == 0
        if isinstance(value, Tensor) and not number and value.shape != hidden.shape[:1]:
            raise ValueError(f"{name} {tuple(value.shape)} must be [T] = [{hidden.shape[0]}]")


def check_whole(**tensors: Tensor | None) -> None:
    """Raises ValueError for a DTensor: it has no memory of its own, and a kernel on a GPU would be given address 0."""
    for name, tensor in tensors.items():
        if hasattr(tensor, "full_tensor"):
            raise ValueError(
                f"{name} is a DTensor; pass {name}.full_tensor(), through which gradients flow back to the shards, or "
                "for a shard of the vocabulary its to_local() with tp_group"
            )


def check_targets(targets: Tensor, vocabulary: int, ignore_index: int | None) -> Tensor:
    """`targets` in i64: in a narrower dtype -100 and the size of the vocabulary can be other numbers.

    Raises ValueError naming the first target that is neither a token id nor `ignore_index`, with its index.
    """
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"targets have dtype {targets.dtype}; token ids must be integers")
    targets = targets.long()
    if capturing(targets):
        return targets
    bad = (targets < 0) | (targets >= vocabulary)
    if ignore_index is not None:
        bad &= targets != ignore_index
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        where = ", ".join(map(str, index))
        unless = "" if ignore_index is None else f" and is not ignore_index ({ignore_index})"
        remedy = "mark tokens to skip with ignore_index" if ignore_index is not None else "leave such tokens out"
        raise ValueError(
            f"targets[{where}] = {targets[index].item()} is outside the vocabulary [0, {vocabulary}){unless}; {remedy}"
        )
    return targets


def check_temperature(temperature: float | Tensor, rows: "Rows") -> None:
    """Raises ValueError naming the first of these rows whose temperature is not > 0; `LogitMap` sees to a number.

    On a GPU this waits for the device, as `check_targets` has just done.
    """
    if not isinstance(temperature, Tensor) or capturing(temperature):
        return
    bad = ~(rows.pick(temperature) > 0) if temperature.ndim else ~(temperature > 0)
    if bad.any():
        where, value = "", temperature
        if temperature.ndim:
            row = int(rows.pick(torch.arange(len(temperature), device=temperature.device))[bad][0])
            where, value = f"[{row}]", temperature[row]
        raise ValueError(f"temperature{where} = {value.item()} must be > 0; greedy decoding has no log-probability")


def check_denominator(denominator: float | Tensor) -> None:
    """Raises ValueError unless a Python number is > 0 (a tensor is trusted: looking would be a sync on a GPU)."""
    if not isinstance(denominator, Tensor) and not denominator > 0:
        raise ValueError(f"denominator = {denominator} must be > 0; pass max(1, the global count of trained tokens)")


def check_backend(backend: str) -> None:
    """Raises ValueError for a name that no op knows."""
    if backend not in ("auto", "reference"):
        raise ValueError(f'backend = {backend!r} must be "auto" (bounded memory) or "reference" (all logits in memory)')


def nonzero(mask: Tensor) -> Tensor | slice:
    """The rows where mask[T] holds: a slice if they are all, so that nothing is copied, or if looking is not allowed;
    else indices i64."""
    return slice(None) if capturing(mask) or mask.all() else mask.nonzero().squeeze(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of [T] that enter an operation."""

    index: Tensor | slice
    """i64, or all"""
    mask: Tensor | None = None
    """bool [T], where a CUDA graph is captured: its shapes are fixed, so the other rows stay and are made harmless."""

    @classmethod
    def of(cls, mask: Tensor) -> "Rows":
        return cls(index=slice(None), mask=mask) if capturing(mask) else cls(index=nonzero(mask))

    def pick(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """values[T, ...] of these rows; `fill` in those that stay for their shape's sake."""
        if self.mask is None:
            return values[self.index]
        return values.masked_fill(~self.mask.view(-1, *[1] * (values.ndim - 1)), fill)

    def spread(self, values: Tensor, total: int) -> Tensor:
        """values of these rows in [T], 0 in the others."""
        if self.mask is not None:
            return torch.where(self.mask, values, 0)
        if isinstance(self.index, slice):
            return values
        return values.new_zeros(total).index_copy(0, self.index, values)


def kept_rows(targets: Tensor, ignore_index: int, token_weight: Tensor | None) -> Rows:
    """The rows that enter a loss: target not ignored, weight not 0."""
    kept = targets != ignore_index
    return Rows.of(kept if token_weight is None else kept & (token_weight != 0))
