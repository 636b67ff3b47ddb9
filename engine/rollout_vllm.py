"""vLLM inside the trainer's process. One of the two files that know vLLM's inside.

The engine is a guest: what its import and start-up change in the process (random states, environment variables, torch's
thread count, memory binding, log handlers) is put back, and what a step changes too.

Written for vLLM 0.26 and 0.32, the CPU build and the CUDA build.
"""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoConfig

from siri.engine import random_state
from siri.engine.errors import UserError
from siri.engine.sampling import Completion, SampleRequest, check_version
from siri.engine.weight_sharing import hand_over

CPU_KV_CACHE_BYTES = 2**30
"""Most that the KV cache takes on a CPU unless told otherwise: 110 k tokens of the tiny policy."""
GPU_KV_CACHE_SHARE = 0.5
"""Most that the KV cache takes of the GPU memory that is free at the start, unless told otherwise."""
CPU_BLOCK_TOKENS = 32
"""Tokens of a KV block. A growing conversation prefills its last, unfinished block again: with vLLM's 128 tokens, 64
conversations of 12 turns took 7.0 s of CPU time, with 32 they took 6.0 s."""
MAX_BATCHED_TOKENS = 8192
"""Most tokens of one engine step (more if the context is longer)."""


class VllmSampler:
    """A `Sampler` on a vLLM engine in this process; `open_vllm_sampler` makes one."""

    def __init__(self, engine: Any, *, device: torch.device) -> None:
        self._engine = engine
        self._device = device
        self._pending: set[int] = set()
        self._version: int | None = None
        self._asleep = False

    @property
    def held_version(self) -> int | None:
        return self._version

    def submit(self, request: SampleRequest) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        check_version(request, self._version)
        assert request.id not in self._pending, "an id is used by one pending request"
        params = SamplingParams(
            temperature=request.temperature,
            top_p=1.0,
            top_k=-1,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=list(request.stop_token_ids),
            ignore_eos=True,  # only the stop tokens of the request stop it, not those of generation_config.json
            logprobs=0,  # of the drawn token alone
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(str(request.id), {"prompt_token_ids": request.prompt_ids.tolist()}, params)
        self._pending.add(request.id)

    def poll(self) -> list[Completion]:
        if not self._pending:
            return []
        # On the CPU each step draws from torch's global generator, seeds or no seeds. On a GPU it does not, and keeping
        # the state there would wait for the device at every step.
        kept = random_state.preserved() if self._device.type == "cpu" else nullcontext()
        with kept, _small_functions_eager(self._device):
            outputs = self._engine.step()
        completions = [_completion(output) for output in outputs if output.finished]
        self._pending.difference_update(completion.id for completion in completions)
        return completions

    def sleep(self) -> None:
        assert not self._pending, "requests are pending"
        if self._device.type == "cuda":  # the CPU build cannot sleep
            self._version = None
            self._engine.sleep(level=2)
            self._asleep = True

    def wake(self) -> None:
        if self._asleep:
            self._engine.wake_up(tags=["weights"])

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int) -> None:
        assert not self._pending, "requests are pending"
        held, self._version = self._version, None
        with random_state.preserved():
            hand_over(self._engine, named_tensors, version=version, held=held)
            if self._asleep:
                self._engine.wake_up(tags=["kv_cache"])
                self._asleep = False
        self._version = version

    def close(self) -> None:
        self._version = None
        self._engine.engine_core.shutdown()
        del self._engine


def vllm_is_installed() -> bool:
    return find_spec("vllm") is not None


def open_vllm_sampler(
    model: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_bytes: int | None = None,
) -> VllmSampler:
    """Start a vLLM engine in this process; its weights are noise until the first `load_weights`.

    `model` is a directory or hub id, of which only the configuration is read; `max_model_len` counts prompt and drawn
    tokens; `max_num_seqs` is the most that are sampled at once. Under several ranks each has an engine of its own, and
    `torch.distributed` is initialised first. Raises UserError if vLLM is missing or cannot run the model, or if there
    is not memory for one sequence.
    """
    if not vllm_is_installed():
        raise UserError(
            "rollout.sampler: vllm is not installed; install it (see README) or set rollout.sampler: transformers"
        )
    kv_bytes = _kv_cache_bytes(model, dtype, device, max_model_len, max_num_seqs, kv_cache_bytes)
    # One rank: vLLM makes itself a world of one. Several: it finds our process group and takes LOCAL_RANK's device.
    several = dist.is_initialized() and dist.get_world_size() > 1
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": str(dtype).removeprefix("torch."),
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max(MAX_BATCHED_TOKENS, max_model_len),
        "kv_cache_memory_bytes": kv_bytes,
        "distributed_executor_backend": "external_launcher" if several else None,
        "seed": 0,
        "disable_log_stats": True,
    }
    if device.type == "cuda":
        # The share decides nothing once the size of the KV cache is given, but vLLM still refuses to start unless that
        # share of the whole memory is free, and the trainer's weights are there first.
        arguments |= {"enable_sleep_mode": True, "gpu_memory_utilization": 0.01}
    else:
        # Eager: compiling costs 16 s of CPU time at the start and gains nothing on small models (4.9 s against 4.8 s
        # for 64 conversations of 12 turns). No chunked prefill: with it, vLLM 0.32 for CPUs dies on a seeded request
        # whose prompt is cut ("CPU Generator does not use offset").
        arguments |= {"enforce_eager": True, "enable_chunked_prefill": False, "block_size": CPU_BLOCK_TOKENS}
    with _process_kept(device):
        if device.type == "cpu":
            _check_head_dim(model)
        engine = _start(model, arguments)
    return VllmSampler(engine, device=device)


def _start(model: str, arguments: dict[str, Any]) -> Any:
    from vllm import EngineArgs, LLMEngine
    from vllm.distributed import parallel_state

    _register_architecture(model)
    if arguments["distributed_executor_backend"] is not None:
        # An engine's shutdown destroys the process group. This one is the trainer's, and stays.
        parallel_state.destroy_distributed_environment = lambda: None
    try:
        return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except ValueError as error:  # vLLM's configuration errors
        raise UserError(
            f"rollout.sampler: vLLM cannot run {model!r} with a context of {arguments['max_model_len']} tokens and "
            f"{arguments['kv_cache_memory_bytes'] / 2**20:.0f} MiB of KV cache ({_gist(error)}); "
            "shorten policy.max_prompt_tokens, or set rollout.sampler: transformers"
        ) from error


def _register_architecture(model: str) -> None:
    """Import the model's class here. Left alone, vLLM learns about it in a subprocess that imports vLLM a second time
    (8 s of CPU time on the first start on a machine)."""
    from vllm import ModelRegistry

    for architecture in AutoConfig.from_pretrained(model).architectures or []:
        if architecture in ModelRegistry.models:
            ModelRegistry.register_model(architecture, ModelRegistry.models[architecture].load_model_cls())


def _kv_cache_bytes(
    model: str, dtype: torch.dtype, device: torch.device, max_model_len: int, max_num_seqs: int, asked: int | None
) -> int:
    """Room for every sequence at full length, or as much as is decent; preempted sequences are computed again."""
    import psutil  # comes with vLLM

    config = AutoConfig.from_pretrained(model).get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token = 2 * config.num_hidden_layers * kv_heads * _head_dim(config) * dtype.itemsize
    sequence = token * (max_model_len + CPU_BLOCK_TOKENS)
    if asked is None:
        if device.type == "cuda":
            most = int(GPU_KV_CACHE_SHARE * torch.cuda.mem_get_info(device)[0])
        else:
            most = min(CPU_KV_CACHE_BYTES, psutil.virtual_memory().available // 4)
        asked = min(sequence * max_num_seqs, max(most, sequence))
    if asked < sequence:
        raise UserError(
            f"policy.max_prompt_tokens: with the action it makes {max_model_len} tokens, whose KV cache takes "
            f"{sequence} bytes, and there are {asked} for it; lower it, or free memory"
        )
    return asked


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _check_head_dim(model: str) -> None:
    """Raises UserError where the CPU build has no attention kernel, which else shows only at the first token."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    found = _head_dim(AutoConfig.from_pretrained(model).get_text_config())
    known = CPUAttentionBackend.get_supported_head_sizes()
    if found not in known:
        raise UserError(
            f"rollout.sampler: vLLM for CPUs has attention kernels for heads of {known} features, and {model!r} has "
            f"heads of {found}; set rollout.sampler: transformers, or use another model"
        )


def _completion(output: Any) -> Completion:
    drawn = output.outputs[0]
    if drawn.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended request {output.request_id} with {drawn.finish_reason!r}")
    # vLLM gives None where a log-probability is not a number.
    logprobs = [step[token].logprob for step, token in zip(drawn.logprobs, drawn.token_ids, strict=True)]
    return Completion(
        id=int(output.request_id),
        action_ids=np.array(drawn.token_ids, dtype=np.int32),
        logprob=np.array([np.nan if value is None else value for value in logprobs], dtype=np.float32),
        finished_by=drawn.finish_reason,
    )


def _small_functions_eager(device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU, vLLM compiles one small function of its sampler at the first token (4 s). It need not."""
    return torch.compiler.set_stance("force_eager") if device.type == "cpu" else nullcontext()


@contextmanager
def _process_kept(device: torch.device) -> Iterator[None]:
    """Around vLLM's import and start-up: the process comes out as it went in, but for variables named VLLM_*."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # Splitting one sequence's attention over threads makes its bits depend on what else is in the batch: with two
    # threads, 55 of 672 turns differed between batches; without, none, at the same speed.
    os.environ["VLLM_CPU_ATTN_SPLIT_KV"] = "0"
    quiet = "VLLM_LOGGING_LEVEL" not in os.environ
    if quiet:
        os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
        logging.getLogger("vllm").setLevel(logging.ERROR)
    environment = dict(os.environ)
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    native: Any = torch.ops._C
    if device.type == "cpu":  # it would bind the memory of the whole process to one NUMA node
        native.init_cpu_memory_env = lambda nodes: None
    try:
        with random_state.preserved(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if device.type == "cpu":
            del native.init_cpu_memory_env
        # It replaces torch.set_num_threads by a function that only warns, and LOCAL_WORLD_SIZE by 1.
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        for name in [name for name in os.environ if name not in environment and not name.startswith("VLLM_")]:
            del os.environ[name]
        os.environ.update({name: value for name, value in environment.items() if not name.startswith("VLLM_")})


def _gist(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300]
