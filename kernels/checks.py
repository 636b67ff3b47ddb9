"""What is asked of arguments, once, at the door, and which rows enter.

While a CUDA graph is captured nobody can wait for the device: what depends on values is not looked at then.

Legend: T tokens, H hidden, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from .dispatch import capturing


def check_projection(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, per_token: Mapping[str, Tensor | float], *, prefix: str = ""
) -> None:
    """Shapes, once, at the door. `per_token` are the arguments that hold one value a token; `prefix` names a teacher's.

    Raises ValueError naming the argument, its shape and the rule.
    """
    factors = {f"{prefix}hidden": hidden, f"{prefix}weight": weight}
    factors |= {} if bias is None else {f"{prefix}bias": bias}
    # `LogitMap` sees to a temperature that is a number.
    vectors = {k: v for k, v in per_token.items() if k != "temperature" or isinstance(v, Tensor)}
    check_tensors(**factors, **vectors)
    for name, tensor in factors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be floating-point")
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        remedy = ""
        if hidden.ndim > 2:
            remedy = f"; flatten the tokens here and in all arguments: {prefix}hidden.flatten(0, {hidden.ndim - 2})"
        elif weight.ndim == 2 and hidden.ndim == 2 and hidden.shape[1] == weight.shape[0]:
            remedy = f"; {prefix}weight seems to be transposed"
        raise ValueError(
            f"{prefix}hidden {tuple(hidden.shape)} and {prefix}weight {tuple(weight.shape)} must be [T, H] and [V, H] "
            f"with one H{remedy}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{prefix}bias {tuple(bias.shape)} must be [V] = [{weight.shape[0]}]")
    for name, value in vectors.items():
        assert isinstance(value, Tensor)
        number = name == "temperature" and value.ndim == 0
        if not number and value.shape != hidden.shape[:1]:
            raise ValueError(f"{name} {tuple(value.shape)} must be [T] = [{hidden.shape[0]}]")


def check_tensors(**tensors: object) -> None:
    """Raises ValueError unless all are tensors on the device of the first (a 0-dim one may lie on the CPU), and whole.

    A DTensor has no memory of its own: a kernel on a GPU would be given address 0.
    """
    device: torch.device | None = None
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
            remedy = f"pass {name}.weight" if isinstance(value, torch.nn.Module) else f"pass torch.as_tensor({name})"
            raise ValueError(f"{name} is a {kind}; it must be a tensor" + ("" if value is None else f": {remedy}"))
        if hasattr(value, "full_tensor"):
            raise ValueError(
                f"{name} is a DTensor; pass {name}.full_tensor(), through which gradients flow back to the shards, or "
                "for a shard of the vocabulary its to_local() with tp_group"
            )
        device = device or value.device
        if value.device != device and not (value.ndim == 0 and value.device.type == "cpu"):
            first = next(iter(tensors))
            raise ValueError(f"{name} is on {value.device}, {first} on {device}; pass {name}.to({first}.device)")


def check_number(name: str, value: object, rule: str = "a number") -> None:
    """Raises ValueError unless `value` is a number; `rule` says what else it must be."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} = {value!r} must be {rule}")


def check_targets(
    targets: Tensor, vocabulary: int, ignore_index: int | None, token_weight: Tensor | None = None
) -> Tensor:
    """`targets` in i64: in a narrower dtype -100 and the size of the vocabulary can be other numbers.

    Raises ValueError naming the first target, of weight other than 0, that is neither a token id nor `ignore_index`.
    """
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"targets have dtype {targets.dtype}; token ids must be integers")
    targets = targets.long()
    if capturing(targets):
        return targets
    bad = (targets < 0) | (targets >= vocabulary)
    if ignore_index is not None:
        bad &= targets != ignore_index
    if token_weight is not None:
        bad &= token_weight != 0
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        where = ", ".join(map(str, index))
        unless = "" if ignore_index is None else f" and is not ignore_index ({ignore_index})"
        remedy = "mark tokens to skip with ignore_index"
        if ignore_index is None:
            remedy = "clamp such ids and mask the result, or call linear_logprob, which skips ignore_index"
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
        index = tuple(bad.nonzero()[0].tolist())
        if isinstance(rows.index, Tensor) and temperature.ndim:
            index = (int(rows.index[index[0]]),)
        where = f"[{', '.join(map(str, index))}]" if index else ""
        value = temperature[index].item()
        raise ValueError(f"temperature{where} = {value} must be > 0; greedy decoding has no log-probability")


def check_denominator(denominator: float | Tensor) -> float | Tensor:
    """The denominator, detached. Raises ValueError unless it is a number, or a 0-dim tensor, > 0; on a GPU looking
    would be a sync: trusted there."""
    rule = "> 0; pass max(1, the global count of trained tokens)"
    if isinstance(denominator, Tensor):
        if denominator.ndim != 0:
            raise ValueError(f"denominator {tuple(denominator.shape)} must be one number, 0-dim if a tensor, {rule}")
        denominator = denominator.detach()
        if denominator.device.type != "cpu":
            return denominator
    else:
        check_number("denominator", denominator, rule)
    if not denominator > 0:
        raise ValueError(f"denominator = {denominator} must be {rule}")
    return denominator


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
    check_number("ignore_index", ignore_index, "an integer")
    kept = targets != ignore_index
    return Rows.of(kept if token_weight is None else kept & (token_weight != 0))
