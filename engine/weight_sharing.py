"""The trainer's weights into vLLM, and the proof that they arrived. One of the two files that know vLLM's inside.

vLLM fuses tensors (q, k, v into one; gate and up into one), and its CPU build packs them for oneDNN and throws the
original away, so what it holds cannot be compared tensor by tensor, and a checksum of its parameters sees empty ones.
What it computes with can be: a linear layer answers a unit vector with a column of its weight, exactly, in any dtype.
After each hand-over, columns of every tensor are compared that way, bit for bit: all columns of small layers, a
rotating window of wide ones.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from siri.engine.errors import UserError
from siri.engine.sampling import StaleWeightsError

WINDOW = 2**16
"""Columns compared times input features. Layers up to 256 features wide are compared whole; for 135 M parameters in
layers of 576 and 1536 features it is 27 GFLOP a hand-over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """What one hand-over did."""

    version: int
    seconds: float
    """Loading and comparing."""
    num_tensors: int
    """Tensors handed over, all of them compared."""
    compared: float
    """Share of the weights' elements that were compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """What a tensor must look like in the sampler: the columns chosen for this version, in the sampler's dtype."""

    columns: torch.Tensor | None
    """i64[k], or None: all of a vector."""
    values: torch.Tensor
    """[rows, k], or [n] for a vector."""
    shape: torch.Size
    """Of the whole tensor."""


def hand_over(
    engine: Any, named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int, held: int | None
) -> HandOver:
    """Load `model.state_dict().items()` of the trainer into a `vllm.LLMEngine` in this process, and compare.

    The tensors are `version` and replace `held` (None: the first). A tied tensor stands under each of its names. No
    request may be pending. Each tensor is read once, as it passes, so that gathered shards need not be kept. Raises
    StaleWeightsError, naming tensor and versions, if vLLM then computes with other values or holds a parameter that was
    not handed over; UserError if vLLM or this check does not know the tensors of this architecture.
    """
    start = time.perf_counter()
    [dtype] = engine.apply_model(lambda model: next(model.parameters()).dtype)
    samples: dict[str, _Sample] = {}

    def passing() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in named_tensors:
            samples[name] = _sample(tensor.detach(), dtype, version)
            yield name, tensor.detach()

    try:
        load(engine, passing())
    except (KeyError, ValueError) as error:  # what vLLM's loaders raise for a name they do not know
        raise UserError(
            f"rollout.sampler: vLLM cannot take over the tensors of this model ({str(error).splitlines()[0][:200]}); "
            "set rollout.sampler: transformers"
        ) from error
    if not engine.reset_prefix_cache():
        raise RuntimeError("the prefix cache could not be dropped: requests are still pending")
    [wrong] = engine.apply_model(lambda model: differences(model, samples))
    if wrong:
        raise StaleWeightsError(
            f"weight hand-over: after loading policy version {version} over version {held}, vLLM does not compute with "
            f"the trainer's {wrong[0]}" + (f", nor with {len(wrong) - 1} other tensors" if len(wrong) > 1 else "")
        )
    total = sum(sample.shape.numel() for sample in samples.values())
    return HandOver(
        version=version,
        seconds=time.perf_counter() - start,
        num_tensors=len(samples),
        compared=sum(sample.values.numel() for sample in samples.values()) / total,
    )


def load(engine: Any, named_tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Copy tensors, named as in a checkpoint, into the model that vLLM runs."""
    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": named_tensors, "is_checkpoint_format": True})
    engine.apply_model(_repack_embeddings)


@torch.no_grad()
def differences(model: nn.Module, samples: dict[str, _Sample]) -> list[str]:
    """Names of the tensors (with the size of the difference) that vLLM's `model` does not hold as in `samples`."""
    wrong: list[str] = []
    reached: set[tuple[nn.Module, str]] = set()
    for name, sample in samples.items():
        module, leaf, first_row = _locate(model, name, samples)
        reached.add((module, leaf))
        readings = list(_readings(module, module.get_parameter(leaf), sample))
        if not readings:
            wrong.append(f"{name} (vLLM keeps it in a form that cannot be read)")
        for held in readings:
            held = held[first_row : first_row + sample.shape[0]].to(sample.values.dtype)
            if not torch.equal(held, sample.values.to(held.device)):
                gap = (held - sample.values.to(held.device)).abs().max().item()
                wrong.append(f"{name} (largest difference {gap:.3g})")
                break
    return wrong + [
        f"{path}.{leaf} (never handed over)"
        for path, module in model.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if (module, leaf) not in reached
    ]


def _sample(tensor: torch.Tensor, dtype: torch.dtype, version: int) -> _Sample:
    if tensor.ndim != 2:
        return _Sample(columns=None, values=tensor.to(dtype, copy=True), shape=tensor.shape)
    width = tensor.shape[1]
    count = min(width, max(1, WINDOW // width))
    columns = (version * count + torch.arange(count, device=tensor.device)) % width
    return _Sample(columns=columns, values=tensor[:, columns].to(dtype), shape=tensor.shape)


def _locate(model: nn.Module, name: str, samples: dict[str, _Sample]) -> tuple[nn.Module, str, int]:
    """Module, parameter name and first row of a tensor of the trainer inside vLLM's model."""
    path, _, leaf = name.rpartition(".")
    parent, _, last = path.rpartition(".")
    fusions: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    first_row = 0
    for fused, parts in fusions.items():
        if last in parts:
            path = f"{parent}.{fused}"
            for part in parts:
                if f"{parent}.{part}.{leaf}" not in samples:
                    raise StaleWeightsError(
                        f"weight hand-over: {name} was handed over without {parent}.{part}.{leaf}, which vLLM keeps in "
                        "one tensor with it"
                    )
            first_row = sum(samples[f"{parent}.{part}.{leaf}"].shape[0] for part in parts[: parts.index(last)])
    try:
        module = model.get_submodule(path)
        module.get_parameter(leaf)
    except AttributeError as error:
        raise UserError(
            f"rollout.sampler: vLLM's {type(model).__name__} has no counterpart of {name!r}, so the weight hand-over "
            "cannot be checked; set rollout.sampler: transformers for this model"
        ) from error
    return module, leaf, first_row


def _readings(module: nn.Module, parameter: torch.Tensor, sample: _Sample) -> Iterator[torch.Tensor]:
    """Every form in which the module holds the sampled columns: the parameter, and what a packed copy answers."""
    if sample.columns is None:
        yield parameter
        return
    if parameter.numel():
        yield parameter[:, sample.columns]
    if hasattr(module, "cpu_linear"):
        unit = torch.zeros(len(sample.columns), sample.shape[1], dtype=parameter.dtype)
        unit[torch.arange(len(sample.columns)), sample.columns.cpu()] = 1
        method: Any = module.quant_method
        yield method.apply(module, unit).t()


def _repack_embeddings(model: nn.Module) -> None:
    """vLLM (0.32) leaves the packed copy of an output head that shares its weight with the embedding as it was: after
    `reload_weights` the head of a tied model still computes with the old weights."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            module.quant_method.process_weights_after_loading(module)
