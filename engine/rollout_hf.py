"""Sampling with plain transformers on the trainer's own module, for machines without vLLM.

Requests are decoded in waves: prompts of similar length, padded on the left, one token a step with a KV cache; a
sequence that ends leaves the batch, and what was submitted meanwhile joins the next wave. A request's randomness comes
from its own generator, so a wave's company changes log-probabilities by rounding only (below 1e-4 in float32), and the
same wave gives the same bits.
"""

from collections.abc import Iterable

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from siri.engine.sampling import Completion, SampleRequest, StaleWeightsError, check_version
from siri.kernels import selective_logprob

WAVE_TOKENS = 32768
"""Most positions (padding included) of the KV cache of one wave: 0.3 GiB for the tiny policy, 1.4 GiB for 135 M
parameters in float32."""


class HfSampler:
    """A `Sampler` that runs the module it is given: there is no copy of the weights that could be stale."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._queue: list[SampleRequest] = []
        self._version: int | None = None

    @property
    def held_version(self) -> int | None:
        return self._version

    def submit(self, request: SampleRequest) -> None:
        check_version(request, self._version)
        self._queue.append(request)

    def poll(self) -> list[Completion]:
        """Decode one wave to its end."""
        if not self._queue:
            return []
        wave = _next_wave(self._queue)
        chosen = {request.id for request in wave}
        self._queue = [request for request in self._queue if request.id not in chosen]
        return _decode(self._model, wave)

    def sleep(self) -> None:
        assert not self._queue, "requests are pending"

    def wake(self) -> None:
        pass

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int) -> None:
        """Check that the tensors are the module's own, and call them `version`."""
        assert not self._queue, "requests are pending"
        self._version = None
        own = self._model.state_dict()
        for name, tensor in named_tensors:
            if name not in own or own[name].data_ptr() != tensor.data_ptr():
                raise StaleWeightsError(
                    f"weight hand-over: {name} of policy version {version} is not the tensor that the sampler's module "
                    "computes with; this sampler takes its weights from the module it was made with"
                )
        self._version = version

    def close(self) -> None:
        self._queue = []
        self._version = None


def _next_wave(queue: list[SampleRequest]) -> list[SampleRequest]:
    """The oldest request, and those nearest to it in length while they fit."""
    oldest = len(queue[0].prompt_ids)
    wave: list[SampleRequest] = []
    width = 0
    for request in sorted(queue, key=lambda request: abs(len(request.prompt_ids) - oldest)):
        width = max(width, len(request.prompt_ids) + request.max_tokens)
        if wave and width * (len(wave) + 1) > WAVE_TOKENS:
            break
        wave.append(request)
    return wave


@torch.no_grad()
def _decode(model: PreTrainedModel, wave: list[SampleRequest]) -> list[Completion]:
    device = model.device
    width = max(len(request.prompt_ids) for request in wave)
    ids = np.zeros((len(wave), width), dtype=np.int64)
    filled = np.zeros((len(wave), width), dtype=np.int64)
    for row, request in enumerate(wave):
        ids[row, width - len(request.prompt_ids) :] = request.prompt_ids
        filled[row, width - len(request.prompt_ids) :] = 1
    input_ids = torch.from_numpy(ids).to(device)
    mask = torch.from_numpy(filled).to(device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    live = [_Drawing(request, device) for request in wave]
    done: list[Completion] = []
    while live:
        logits = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens = _draw(logits.float(), live)
        ended = [drawing.ended() for drawing in live]
        done += [drawing.completion() for drawing, end in zip(live, ended, strict=True) if end]
        staying = [row for row, end in enumerate(ended) if not end]
        live = [live[row] for row in staying]
        if live and any(ended):
            rows = torch.tensor(staying, device=device)
            cache.batch_select_indices(rows)
            tokens, mask, position = tokens[rows], mask[rows], position[rows]
        input_ids, position = tokens[:, None], position[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return done


class _Drawing:
    """One request and what has been drawn for it so far."""

    def __init__(self, request: SampleRequest, device: torch.device) -> None:
        self.request = request
        self.generator = torch.Generator(device).manual_seed(request.seed)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []

    def ended(self) -> bool:
        return self.tokens[-1] in self.request.stop_token_ids or len(self.tokens) == self.request.max_tokens

    def completion(self) -> Completion:
        return Completion(
            id=self.request.id,
            action_ids=np.array(self.tokens, dtype=np.int32),
            logprob=np.array(self.logprobs, dtype=np.float32),
            finished_by="stop" if self.tokens[-1] in self.request.stop_token_ids else "length",
        )


def _draw(logits: torch.Tensor, drawings: list[_Drawing]) -> torch.Tensor:
    """One token i64[B] a row of `logits` f32[B, V], by the Gumbel-max rule; appended to `drawings`."""
    temperature = torch.tensor([drawing.request.temperature or 1.0 for drawing in drawings], device=logits.device)
    noise = torch.ones_like(logits)
    for row, drawing in zip(noise, drawings, strict=True):
        if drawing.request.temperature > 0:
            row.exponential_(generator=drawing.generator)
    tokens = (logits / temperature[:, None] - noise.log()).argmax(dim=-1)
    logprob = selective_logprob(logits, tokens, temperature=temperature)
    for drawing, token, value in zip(drawings, tokens.tolist(), logprob.tolist(), strict=True):
        drawing.tokens.append(token)
        drawing.logprobs.append(value)
    return tokens
