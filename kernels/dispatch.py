"""Reference or Triton: decided once in a process, from SIRI_KERNELS and the hardware.

    auto        Triton on a GPU that it serves, else the reference (plain torch in bounded memory)
    reference   the reference everywhere
    triton      Triton, or an error that says what is missing; CPU tensors on a machine with a GPU get the reference

Triton's interpreter (TRITON_INTERPRET=1) takes the place of the GPU for tests: CPU tensors, and only if asked for by
SIRI_KERNELS=triton, because it is a thousand times slower than the reference. float64 is always the reference's: it is
what gradients are checked with, and tensor cores have no use for it.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

MODES = ("auto", "reference", "triton")

OLDEST_GPU = (8, 0)
"""bfloat16 tensor cores and asynchronous copies begin with compute capability 8.0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What `decide` found."""

    device: Literal["cuda", "cpu"] | None
    """Type of the tensors that the Triton kernels take; None: the reference takes all."""
    reason: str


@cache
def decide() -> Decision:
    """The decision of this process. Raises ValueError for an unknown SIRI_KERNELS, or a triton that cannot be had."""
    mode = asked_mode()
    if mode == "reference":
        return Decision(device=None, reason="SIRI_KERNELS=reference")
    missing = _missing()
    if interpreting() and importlib.util.find_spec("triton") is not None:
        if mode == "triton":
            return Decision(device="cpu", reason="SIRI_KERNELS=triton under TRITON_INTERPRET=1")
        missing = "TRITON_INTERPRET=1 is for tests, which ask for it with SIRI_KERNELS=triton"
    if missing is None:
        return Decision(device="cuda", reason=f"SIRI_KERNELS={mode}, {torch.cuda.get_device_name()}")
    if mode == "triton":
        remedy = "set SIRI_KERNELS=auto"
        if importlib.util.find_spec("triton") is not None:
            remedy += ", or TRITON_INTERPRET=1 to try the kernels on the CPU"
        raise ValueError(f"SIRI_KERNELS = 'triton' cannot be had: {missing}; {remedy}")
    return Decision(device=None, reason=f"SIRI_KERNELS=auto: {missing}")


def asked_mode() -> str:
    """SIRI_KERNELS. Raises ValueError if it is none of the three."""
    mode = os.environ.get("SIRI_KERNELS", "auto")
    if mode not in MODES:
        raise ValueError(f"SIRI_KERNELS = {mode!r} must be one of {', '.join(MODES)}; unset it for auto")
    return mode


def interpreting() -> bool:
    """Whether Triton kernels are run by its interpreter, which reads this variable when they are defined."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether the Triton kernels take a call with these tensors."""
    given = [tensor for tensor in tensors if tensor is not None]
    if given[0].device.type == "cpu" and not interpreting() and asked_mode() != "triton":
        return False  # without a look at the GPU, which would initialise CUDA in a process that may not want it
    device = decide().device
    return all(tensor.device.type == device and tensor.dtype != torch.float64 for tensor in given)


def capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured where this tensor is: nothing may wait for the device then."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which torch.compile calls between the parts of a graph. Traced, it would end in Triton's launcher.

    Torch's own decorator imports the compiler with this package, also where nothing is ever compiled.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def explain(device: str | None = None) -> str:
    """Which kernels this process uses, and why: one line for a log. Raises ValueError as `decide` does.

    Args:
        device: type of the tensors in question, "cpu" or "cuda"; None for those that the Triton kernels serve, if any.
    """
    decision = decide()
    if decision.device is not None and device not in (None, decision.device):
        return f"reference (the tensors are on the {device}; on {decision.device}: {decision.reason})"
    return f"{'reference' if decision.device is None else 'triton'} ({decision.reason})"


def _missing() -> str | None:
    """What Triton lacks on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "torch finds no NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_GPU:
        return f"the GPU has compute capability {capability}, the kernels need {OLDEST_GPU}"
    return None
