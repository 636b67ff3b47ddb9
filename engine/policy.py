"""The policy: a causal language model of transformers with its tokenizer, and its forward pass over packed rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from siri.engine import attention
from siri.engine.errors import UserError
from siri.engine.trajectory import PackedBatch
from siri.kernels import linear_logprob


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The vocabulary projection, as the fused losses take it."""

    weight: torch.Tensor
    """[V, H], the parameter itself (tied to the embedding or not)."""
    bias: torch.Tensor | None
    softcap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A model to train and the tokenizer its tokens come from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    """Directory or hub id it was loaded from; the sampler reads its configuration there."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head(self) -> Head:
        output = self.model.get_output_embeddings()
        assert isinstance(output, nn.Linear)
        return Head(
            weight=output.weight,
            bias=output.bias,
            softcap=getattr(self.model.config, "final_logit_softcapping", None),
        )

    def hidden_L(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states [L, H] of the positions that predict the trained tokens.

        `batch` is on the device, but for `cu_seqlens`, which is best left on the host.
        """
        if batch.num_tokens == 0:  # a rank that ran out of rows: nothing to compute, yet something to call backward on
            return self.head.weight[:0]
        bounds = tuple(batch.cu_seqlens.tolist())
        # A 4-D mask is passed through by transformers as it is; ours is never read. Without it the library would
        # build a [T, T] block mask for packed positions.
        unused_mask = torch.zeros(1, 1, 1, 1, device=batch.input_ids_T.device)
        output = self.model.base_model(
            input_ids=batch.input_ids_T.unsqueeze(0),
            position_ids=batch.position_T.unsqueeze(0),
            attention_mask=unused_mask,
            use_cache=False,
            row_bounds=bounds,
        )
        return output.last_hidden_state.squeeze(0).index_select(0, batch.hidden_index_L)

    @torch.no_grad()
    def logprob_L(self, batch: PackedBatch, *, temperature: float) -> torch.Tensor:
        """Log-probability f32[L] (nats) of each trained token at `temperature`."""
        head = self.head
        logprob_L = linear_logprob(
            self.hidden_L(batch), head.weight, batch.target_L,
            bias=head.bias, softcap=head.softcap, temperature=temperature,
        )  # fmt: skip
        assert isinstance(logprob_L, torch.Tensor)
        return logprob_L

    def save(self, directory: Path) -> None:
        """Write a directory that transformers and vLLM load."""
        with _quiet():
            self.model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)


_UNLOADABLE = (OSError, ValueError, KeyError, SafetensorError)
"""What transformers raises for a model that is missing, damaged, or of another kind."""


def _not_loaded(source: str, error: Exception) -> UserError:
    return UserError(
        f"policy.model: {source!r} cannot be loaded as a causal language model ({_first_line(error)}); "
        "give `tiny`, `smollm2-135m`, a directory in transformers format, or a hub id that this machine can reach"
    )


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone, from a directory or hub id. Raises UserError if there is none, or if it is damaged."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except _UNLOADABLE as error:
        raise _not_loaded(source, error) from error
    return tokenizer


def load_policy(source: str, *, dtype: torch.dtype, device: torch.device) -> Policy:
    """Load model and tokenizer from a directory or hub id.

    Raises UserError if there is no such model, if it is damaged or not a causal LM, or if its head is not a plain
    linear layer.
    """
    name = attention.register()
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, attn_implementation=name, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except _UNLOADABLE as error:
        raise _not_loaded(source, error) from error
    model, report = loaded
    _check_weights(report, source)
    _check_head(model, source, config)
    nn.Module.to(model, device)
    model.eval()  # no dropout: with it, trainer and sampler would be two policies
    return Policy(model=model, tokenizer=tokenizer, source=source)


def _check_weights(report: dict[str, Any], source: str) -> None:
    """transformers draws at random what it does not find, and says so in a warning."""
    absent = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if absent:
        raise UserError(
            f"policy.model: {source!r}: its weights lack {len(absent)} tensors of the shape that its config.json asks "
            f"for, {absent[0]} first; copy or download the model again"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars (they would cut through those of the run), no table of what `_check_weights` says in a line."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_head(model: PreTrainedModel, source: str, config: Any) -> None:
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise UserError(
            f"policy.model: {source!r} ends in a {type(output).__name__}; the fused losses need a plain linear head, "
            "so use a model without adapters or quantisation on its lm_head"
        )
    scale = getattr(config, "logit_scale", None) or getattr(config, "logits_scaling", None)
    if scale not in (None, 1, 1.0):
        raise UserError(
            f"policy.model: {source!r} scales its logits by {scale}, which the losses do not model; use another model"
        )


def _first_line(error: BaseException) -> str:
    line = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {line}"
