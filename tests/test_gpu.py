"""What only a GPU can show. `benchmarks/gpu.sh` runs these with the GPU benchmarks and a short run."""

import json

import pytest
import torch
from models import model_directory, policy
from test_policy import rows

from siri.engine.batch import pack
from siri.train import main
from siri.update import to_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def test_variable_length_flash_attention_is_attention_row_by_row():
    exact = policy(dtype=torch.float32, hidden=64)
    half = policy(dtype=torch.bfloat16, hidden=64)
    half.model.cuda()
    for batch in pack(rows(20, seed=1), max_tokens=200):
        expected = exact.logprob_L(batch, temperature=1.0)
        got = half.logprob_L(to_device(batch, torch.device("cuda")), temperature=1.0).cpu()
        # bfloat16 activations: 8 bits of mantissa through two layers, on log-probabilities of about 10 nats
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.15)


def test_two_iterations_with_vllm_in_the_process(tmp_path):
    model = model_directory(tmp_path / "model", hidden=256, layers=2)
    settings = {
        "name": "gpu", "runs_dir": tmp_path, "policy.model": model, "policy.dtype": "bfloat16", "iterations": 2,
        "rollout.num_tasks": 4, "rollout.group_size": 4, "rollout.sampler": "vllm", "environment.max_turns": 4,
        "eval.limit": 4, "policy.max_prompt_tokens": 400, "policy.max_action_tokens": 8,
    }  # fmt: skip
    assert main([word for name, value in settings.items() for word in (f"--{name}", str(value))]) == 0
    lines = [json.loads(line) for line in (tmp_path / "gpu" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all(line["mismatch/mean"] < 0.1 for line in lines)
