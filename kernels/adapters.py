"""Our kernels under the signatures of other trainers, so that a swap is one assignment (docs/kernels.md).

Names, order and meaning of arguments, signs and shapes are those of the release or commit that each docstring names,
read in its source. What differs is the same everywhere:

* Outputs are float32 (float64 for float64 inputs), and logits are never rounded to bfloat16 or float16 on the way.
* Any hidden size, vocabulary, dtype and device; no logits are held where hidden states come in.
* An id outside the vocabulary is a ValueError that names it.
* Where hidden states come in, -100 (Liger: `ignore_index`) is a row without output, gradient or cost, and a temperature
  may be a tensor of the shape of the targets.

Sharded parameters (DeepSpeed ZeRO-3, FSDP) must stay gathered, by the caller, until the end of the backward pass.

Legend: T tokens, H hidden, V vocabulary, K targets of one row.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from .adapters_gigpo import build_step_group, compute_gigpo_outcome_advantage
from .checks import check_targets
from .gigpo_advantage import check_choice
from .linear_logprob import linear_logprob
from .projection import LOGIT_FLOOR, compute_dtype
from .selective_logprob import selective_logprob

__all__ = [
    "ChunkedLogProbFunction",
    "FusedLinearForPPO",
    "LigerFusedLinearScaledCrossEntropyFunction",
    "build_step_group",
    "compute_gigpo_outcome_advantage",
    "linear_cross_entropy",
    "selective_log_softmax",
]


@contextmanager
def renamed(**theirs: str) -> Iterator[None]:
    """What our kernels refuse is refused by the names that the arguments have there: `renamed(hidden="_input")`."""
    try:
        yield
    except ValueError as error:
        ours = re.compile(rf"\b({'|'.join(theirs)})\b")
        raise ValueError(ours.sub(lambda name: theirs[name[0]], str(error))) from error


def selective_log_softmax(
    logits: Tensor, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None
) -> Tensor:
    """TRL 1.16.0, `trl.trainer.utils.selective_log_softmax`.

    Differs: the result is float32 for bfloat16 and float16 logits on every device (TRL: on a GPU only).

    Args:
        logits: [..., V]. An id masked with -inf has a log-prob of -inf, or NaN where the whole row is masked.
        index: i32 or i64 [...] or [..., K], token ids.
        temperature: positive; divides the logits.
        row_mask: [...] like `index`; 0 gives a log-prob of 0, and the id there is not looked at.

    Returns:
        log-probs in nats, of the shape of `index`.

    Raises:
        ValueError: shapes that do not fit, an id outside the vocabulary, or temperature <= 0.
    """
    if row_mask is not None:
        if row_mask.shape != index.shape:
            raise ValueError(f"row_mask {tuple(row_mask.shape)} must have the shape of index {tuple(index.shape)}")
        index = index.masked_fill(row_mask == 0, 0)
    leading = logits.shape[:-1]
    if index.shape != leading and (index.shape[:-1] != leading or index.shape[-1] == 0):
        raise ValueError(
            f"index {tuple(index.shape)} must be [...] or [..., K], K > 0, for logits {tuple(logits.shape)} = [..., V]"
        )
    one = index.shape == leading
    with renamed(targets="index"):
        index = check_targets(index, logits.shape[-1], ignore_index=None)
        logprob = _several_logprobs(logits, index.unsqueeze(-1) if one else index, temperature)
    logprob = logprob.squeeze(-1) if one else logprob
    return logprob if row_mask is None else logprob.masked_fill(row_mask == 0, 0.0)


def _several_logprobs(logits: Tensor, index: Tensor, temperature: float) -> Tensor:
    """log p of index [..., K]: one pass over the logits for the likeliest of the K, the others by their distance."""
    # The distance of one id is 0; its gradient would be a tensor of the size of the logits.
    z = (logits if index.shape[-1] > 1 else logits.detach()).gather(-1, index).to(compute_dtype(logits))
    best = z.argmax(-1, keepdim=True)
    top = z.gather(-1, best)
    anchor = selective_logprob(logits, index.gather(-1, best).squeeze(-1), temperature=temperature).unsqueeze(-1)
    logprob = anchor + (z - top) / temperature
    # For the kernel, -inf is LOGIT_FLOOR: a masked id is far below every other one, unless all of its row are masked.
    alone = top.isneginf() & (anchor > LOGIT_FLOOR / (2 * temperature))
    return torch.where(z.isneginf(), torch.where(alone, torch.nan, -torch.inf), logprob)


class ChunkedLogProbFunction:
    """TRL 1.16.0, `trl.kernels.ChunkedLogProbFunction` (`trl.trainer.utils._ChunkedLogProbFunction`)."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float | Tensor,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = ("entropy",),
    ) -> tuple[Tensor, Tensor | None, None, None, None]:
        """(logprobs [T], entropy [T], None, None, None) of hidden @ weight.T + bias, in nats; both are differentiable.

        Serves GRPO, RLOO and asynchronous GRPO. Differs: only "log_probs" and "entropy" can be asked for, and the
        default asks for no more; SFT wants "is_top1", KTO "mean_logits", DPO both, and they are refused. Faults of
        earlier releases that are absent: no gradient of the entropy (trl#6625), a graph lost where no token is trained
        on (trl#7077).

        Args:
            hidden: [T, H].
            weight: [V, H]. With `hidden`, of any float dtypes.
            bias: [V] or None.
            targets: i32 or i64 [T], token ids.
            temperature: positive; divides what the cap leaves.
            chunk_size: not used; blocks are chosen for the hardware.
            final_logit_softcapping: logits become cap * tanh(logits / cap) after the scale.
            logit_scale: positive; multiplies the logits first.
            outputs: "entropy" fills the second place.

        Raises:
            ValueError: shapes that do not fit, a target outside the vocabulary, or another name in `outputs`.
        """
        unknown = [name for name in outputs if name not in ("log_probs", "entropy")]
        if unknown:
            raise ValueError(
                f"outputs: {unknown[0]!r} is not computed here, only 'log_probs' and 'entropy' are; leave TRL's own "
                "function in place for trainers that want more"
            )
        if not logit_scale > 0:
            raise ValueError(f"logit_scale = {logit_scale} must be > 0; multiply hidden by it instead")
        # cap * tanh(s z / cap) / t = (cap / s) * tanh(z / (cap / s)) / (t / s): nothing is multiplied, nothing rounded.
        logprob, entropy = linear_logprob(
            hidden, weight, targets, bias=bias, temperature=temperature / logit_scale,
            softcap=None if final_logit_softcapping is None else final_logit_softcapping / logit_scale,
            return_entropy=True,
        )  # fmt: skip
        return logprob, entropy if "entropy" in outputs else None, None, None, None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 1.0,
    reduction: str = "none",
    dist_process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """verl 0.9.1, `verl.utils.kernel.linear_cross_entropy.linear_cross_entropy`: (logprobs, entropy [T]) in nats.

    The sign is +log p in spite of the name. Faults that are absent: log-probs of +inf where all logits are below about
    -104, hidden sizes that are no multiple of 128 refused; and of earlier releases, vocabularies that are no multiple
    of the tile (verl #2656, #2899; fixed there in #5349), a Triton allocator that worker threads do not see (#4676).

    Args:
        hidden: [..., H]; the leading shape is flattened to T, also in the outputs.
        weight: [V, H]; with `dist_process_group`, this rank's shard of the vocabulary, shards in rank order.
        labels: i32 or i64, T token ids of any shape, global ones where the vocabulary is sharded.
        temperature: positive, or of the shape of `labels`; divides the logits.
        reduction: "none" gives logprobs [T], "sum" and "mean" (over all T) a number. The entropy is never reduced.
        dist_process_group: vocabulary-parallel. As with verl, the gradients of `hidden` are to be summed over the ranks
            by the caller (Megatron's sequence-parallel gather does); each rank gets an equal share of the whole.

    Raises:
        ValueError: shapes that do not fit, a target outside the vocabulary, or another reduction.
    """
    check_choice("reduction", reduction.lower(), ("none", "sum", "mean"))
    flat = hidden.reshape(-1, hidden.shape[-1])
    if dist_process_group is not None:
        ranks = dist.get_world_size(dist_process_group)
        flat = flat.view_as(flat)  # a tensor of our own: the hook must not see the caller's other gradients
        if flat.requires_grad:
            flat.register_hook(lambda whole: whole / ranks)
    with renamed(targets="labels", tp_group="dist_process_group"):
        logprob, entropy = linear_logprob(
            flat, weight, labels.reshape(-1), temperature=_flat(temperature), return_entropy=True,
            tp_group=dist_process_group,
        )  # fmt: skip
    if reduction.lower() == "none":
        return logprob, entropy
    return logprob.sum() if reduction.lower() == "sum" else logprob.mean(), entropy


class FusedLinearForPPO(torch.nn.Module):
    """verl 0.9.1, `verl.utils.experimental.torch_functional.FusedLinearForPPO`.

    Differs: neither the logits nor the entropy are rounded to the dtype of the hidden states, which is all that verl's
    float32 log-probs are made of: a bfloat16 logit of 10 is off by up to 0.03.
    """

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        """Neither argument is used: blocks are chosen for the hardware, and SIRI_KERNELS chooses the kernels."""
        super().__init__()

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(log_probs, entropy) in nats, of the shape of `input_ids`.

        Args:
            hidden_states: [T, H] or [B, T, H].
            vocab_weights: [V, H].
            input_ids: i32 or i64 [T] or [B, T]: the token to score at each position, shifted by the caller.
            temperature: positive, or of the shape of `input_ids`.

        Raises:
            ValueError: shapes that do not fit, or a target outside the vocabulary.
        """
        if input_ids.shape != hidden_states.shape[:-1]:
            raise ValueError(
                f"input_ids {tuple(input_ids.shape)} must have the leading shape of hidden_states "
                f"{tuple(hidden_states.shape)}"
            )
        with renamed(hidden="hidden_states", weight="vocab_weights", labels="input_ids"):
            logprob, entropy = linear_cross_entropy(hidden_states, vocab_weights, input_ids, temperature)
        return logprob.view(input_ids.shape), entropy.view(input_ids.shape)


def _flat(temperature: float | Tensor) -> float | Tensor:
    return temperature.reshape(-1) if isinstance(temperature, Tensor) and temperature.ndim > 0 else temperature


class LigerFusedLinearScaledCrossEntropyFunction:
    """Liger-Kernel 0.8.2, `liger_kernel.ops.LigerFusedLinearScaledCrossEntropyFunction`."""

    @staticmethod
    def apply(
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        temperature: float | Tensor = 1.0,
        ignore_index: int = -100,
        m_tiles_per_cluster: int = 1,
        return_entropy: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """nll [T], or (nll, entropy), in nats: nll = -log p(target). Both are differentiable.

        Differs: the entropy is float32 too (Liger: the dtype of `_input`), `_input` and `weight` may have different
        dtypes, no tokens give no outputs. `selected_token_ids`, which 0.8.5 appends, is not taken.

        Args:
            _input: [T, H].
            weight: [V, H].
            target: i32 or i64 [T], token ids or `ignore_index`: such rows are 0 and give no gradient.
            temperature: positive; divides the logits.
            ignore_index: the value of `target` that skips a row.
            m_tiles_per_cluster: not used; tiles are chosen for the hardware.
            return_entropy: also return the entropy.

        Raises:
            ValueError: shapes that do not fit, or a target outside the vocabulary that is not `ignore_index`.
        """
        with renamed(hidden="_input", targets="target"):
            # Where nobody asks for the entropy, more can be kept for the backward pass.
            found = linear_logprob(
                _input, weight, target, temperature=temperature, ignore_index=ignore_index,
                return_entropy=return_entropy,
            )  # fmt: skip
        if isinstance(found, Tensor):
            return -found
        logprob, entropy = found
        return -logprob, entropy
