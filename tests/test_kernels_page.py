"""docs/kernels.md: its code runs, and the kernels run where torch and triton alone are installed.

The other trainers are stand-ins: modules of their names whose functions have the documented signatures, and whose
callers call as the real ones do.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPO
from projections import gradients, naive, relative_error
from torch import Tensor

PAGE = (REPO / "docs" / "kernels.md").read_text()
SECTIONS = dict(section.split("\n", 1) for section in PAGE.split("\n## ")[1:])
SWAPS = {
    title: block
    for title, text in SECTIONS.items()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
}


GIGPO = "GiGPO in a loop of your own"
"""Not a swap: six lines, three of which import."""


def test_every_block_of_the_page_is_tested() -> None:
    assert set(SWAPS) == {"A training loop of your own", GIGPO, "TRL", "verl", "Liger-Kernel", "verl-agent"}
    assert PAGE.count("```") == 2 * len(SWAPS)


def test_the_page_says_how_to_install_the_kernels_alone() -> None:
    """That they run then is `test_torch_and_triton_are_enough`."""
    introduction = PAGE.split("\n## ")[0]
    assert re.search(r"`pip install --no-deps \.`\s.*\sis enough for\s+`from siri\.kernels import", introduction)


def test_the_page_names_the_trainers_that_a_swap_does_not_serve() -> None:
    """What each asks of the fused head is in `test_adapters.py`."""
    assert re.search(r"SFT, KTO and DPO ask .* refused", SECTIONS["TRL"], re.S)
    assert re.search(r"not for TPO\s+on a GPU, .*`selective_log_softmax_and_entropy`", SECTIONS["TRL"])


@pytest.mark.parametrize("title", SWAPS)
def test_a_swap_takes_five_lines(title: str) -> None:
    assert len([line for line in SWAPS[title].splitlines() if line.strip()]) <= (6 if title == GIGPO else 5)


def stand_ins(patch: pytest.MonkeyPatch, **sources: str) -> list[ModuleType]:
    """Modules of these names (`__` for a dot) and the packages around them, for as long as the test runs."""
    made: dict[str, ModuleType] = {}
    for name, source in sources.items():
        parts = name.split("__")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            made.setdefault(path, ModuleType(path))
            if depth > 1:
                setattr(made[".".join(parts[: depth - 1])], parts[depth - 1], made[path])
        exec(source, made[path].__dict__)
    for path, module in made.items():
        patch.setitem(sys.modules, path, module)
    return [made[name.replace("__", ".")] for name in sources]


def problem() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 6, generator=g).requires_grad_()
    weight = torch.randn(70, 6, generator=g).requires_grad_()
    return hidden, weight, torch.randint(0, 70, (10,), generator=g)


def assert_right(logprob: Tensor, entropy: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, t: float) -> None:
    true_logprob, true_entropy, _ = naive(hidden, weight, targets, temperature=t)
    assert (logprob - true_logprob).abs().max() <= 2e-5
    assert (entropy - true_entropy).abs().max() <= 2e-5
    got = gradients(logprob.sum() + 0.1 * entropy.sum(), hidden, weight)
    expected = gradients(true_logprob.sum() + 0.1 * true_entropy.sum(), hidden, weight)
    assert max(map(relative_error, got, expected)) <= 5e-6


def test_bare_loop() -> None:
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    embedding, head = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50, bias=False)
    model = SimpleNamespace(model=lambda ids: SimpleNamespace(last_hidden_state=embedding(ids)), lm_head=head)
    exec(SWAPS["A training loop of your own"], {"model": model, "input_ids": ids})

    hidden, targets = embedding(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    logprob, entropy, _ = naive(hidden, head.weight, targets)
    expected = gradients(-logprob.mean() - 0.01 * entropy.mean(), embedding.weight, head.weight)
    for parameter, gradient in zip((embedding.weight, head.weight), expected, strict=True):
        assert parameter.grad is not None
        assert relative_error(parameter.grad, gradient) <= 5e-6


def test_bare_loop_with_padding() -> None:
    """The mean is over the tokens that are kept."""
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    embedding, head = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50, bias=False)
    padded = ids.clone()
    padded[1, 3:] = -100
    hidden = embedding(ids)
    model = SimpleNamespace(model=lambda _: SimpleNamespace(last_hidden_state=hidden), lm_head=head)
    exec(SWAPS["A training loop of your own"], {"model": model, "input_ids": padded})
    kept = (padded[:, 1:] != -100).flatten()
    logprob, entropy, _ = naive(hidden[:, :-1].flatten(0, 1)[kept], head.weight, padded[:, 1:].flatten()[kept])
    (expected,) = gradients(-logprob.mean() - 0.01 * entropy.mean(), head.weight)
    assert head.weight.grad is not None
    assert relative_error(head.weight.grad, expected) <= 5e-6


def test_gigpo_in_a_loop_of_your_own() -> None:
    """Two tasks of two trajectories of two steps; the first states of a task are equal, the second differ."""
    hidden, weight, targets = problem()
    states = ["a", "b", "a", "c", "a", "d", "a", "e"]
    reward = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.5])
    given = {
        "states": states, "task_group": np.repeat([7, 3], 4), "reward": reward, "valid": reward >= 0,
        "traj": torch.arange(4).repeat_interleave(2), "step_of_token": torch.tensor([0, 0, 1, 2, 3, 3, 4, 5, 6, 7]),
        "hidden": hidden, "weight": weight, "targets": targets, "old_logprob": None, "num_tokens": 10,
    }  # fmt: skip
    exec(SWAPS[GIGPO], given)
    # First task: outcomes 1 and 0 with sigma 1 / sqrt(2); the first states' returns are 0.95 and 0. The second is even.
    episode, anchor = 0.5 / (0.5**0.5 + 1e-6), 0.475 / (0.475 * 2**0.5 + 1e-6)
    steps = torch.tensor([episode + anchor, episode, -episode - anchor, -episode, 0, 0, 0, 0])
    expected = -(steps[given["step_of_token"]].double() * naive(hidden, weight, targets)[0]).sum() / 10
    for got, truth in zip(gradients(given["loss"], hidden, weight), gradients(expected, hidden, weight), strict=True):
        assert relative_error(got, truth) <= 5e-6


TRL = """
def selective_log_softmax(logits, index, temperature=1.0, row_mask=None):
    raise AssertionError("not swapped")

class _ChunkedLogProbFunction:
    pass

def fused_head(hidden, weight, bias, labels):
    outputs = ("log_probs", "entropy")
    return _ChunkedLogProbFunction.apply(hidden, weight, bias, labels, 0.9, 8192, None, 1.0, outputs)

def score(logits, index):
    return selective_log_softmax(logits, index, row_mask=None)
"""


def test_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    [trl] = stand_ins(monkeypatch, trl__trainer__utils=TRL)
    exec(SWAPS["TRL"], {})
    hidden, weight, targets = problem()
    logprob, entropy, *others = trl.fused_head(hidden, weight, None, targets)
    assert others == [None, None, None]
    assert_right(logprob, entropy, hidden, weight, targets, 0.9)
    scored = trl.score((hidden @ weight.t()).view(2, 5, 70), targets.view(2, 5))
    assert (scored.flatten() - naive(hidden, weight, targets)[0]).abs().max() <= 2e-5


VERL_TORCH = """
class FusedLinearForPPO:
    def __init__(self, chunk_size=512, impl_backend="torch"):
        raise AssertionError("not swapped")
"""
VERL_TRITON = """
def linear_cross_entropy(hidden, weight, labels, temperature=1.0, reduction="none", dist_process_group=None):
    raise AssertionError("not swapped")
"""
VERL_MODEL = """
def torch_backend(hidden, weight, labels, temperature):
    from verl.utils.experimental.torch_functional import FusedLinearForPPO
    head = FusedLinearForPPO(impl_backend="torch")
    return head.forward(hidden_states=hidden, vocab_weights=weight, input_ids=labels, temperature=temperature)

def triton_backend(hidden, weight, labels, temperature):
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy
    return linear_cross_entropy(hidden, weight, labels, temperature, "none")
"""


@pytest.mark.parametrize("backend", ["torch_backend", "triton_backend"])
def test_verl(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Packed sequences: a batch of one, whose dimension the trainer takes off with `squeeze(0)`."""
    *_, model = stand_ins(
        monkeypatch,
        verl__utils__experimental__torch_functional=VERL_TORCH,
        verl__utils__kernel__linear_cross_entropy=VERL_TRITON,
        verl_model=VERL_MODEL,
    )
    exec(SWAPS["verl"], {})
    hidden, weight, targets = problem()
    logprob, entropy = getattr(model, backend)(hidden[None], weight, targets[None], 0.9)
    assert_right(logprob.squeeze(0), entropy.squeeze(0), hidden, weight, targets, 0.9)


def test_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    [liger] = stand_ins(monkeypatch, liger_kernel__ops="LigerFusedLinearScaledCrossEntropyFunction = None")
    exec(SWAPS["Liger-Kernel"], {})
    hidden, weight, targets = problem()
    nll, entropy = liger.LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, targets, 0.9, -100, 1, True)
    assert_right(-nll, entropy, hidden, weight, targets, 0.9)


def test_verl_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    [core] = stand_ins(monkeypatch, gigpo__core_gigpo="compute_gigpo_outcome_advantage = None")
    exec(SWAPS["verl-agent"], {})
    advantage, returns = core.compute_gigpo_outcome_advantage(
        token_level_rewards=torch.tensor([[0.0, 2.0], [0.0, 0.0], [4.0, 0.0]]),
        step_rewards=torch.tensor([1.0, 0.0, 3.0]),
        response_mask=torch.tensor([[1, 1], [1, 1], [1, 0]]),
        anchor_obs=["hall", "hall", "attic"],
        index=["task", "task", "task"],
        traj_index=["first", "second", "third"],
        step_advantage_w=1.0,
        mode="mean_norm",
        enable_similarity=False,
        similarity_thresh=0.95,
    )
    # Episode scores 2, 0, 4 less their mean; step returns 1 and 0 of the hall less theirs; the attic has one row.
    torch.testing.assert_close(advantage, torch.tensor([[0.5, 0.5], [-2.5, -2.5], [2.0, 0.0]]))
    assert torch.equal(advantage, returns)


def needed_by(package: str, found: set[str] | None = None) -> set[str]:
    """Distributions that `package` requires, directly or not, itself included, as far as they are installed."""
    found = set() if found is None else found
    try:
        requires = distribution(package).requires or []
    except PackageNotFoundError:
        return found
    if package not in found:
        found.add(package)
        for requirement in requires:
            name = re.match(r"[\w.-]+", requirement)
            if name is not None and "extra ==" not in requirement:
                needed_by(name[0], found)
    return found


ALONE = """
import importlib.util, math, sys
sys.path.append(sys.argv[1])
for absent in ("numpy", "transformers", "vllm", "pydantic", "yaml"):
    assert importlib.util.find_spec(absent) is None, absent

from siri.kernels import linear_logprob
import torch
hidden = torch.zeros(2, 3, requires_grad=True)
logprob = linear_logprob(hidden, torch.zeros(5, 3), torch.tensor([0, 4]))
assert (logprob + math.log(5)).abs().max() < 1e-6
logprob.sum().backward()

from siri.kernels import adapters
assert adapters.build_step_group(["a", "b", "a"], [0, 0, 0]) == [0, 1, 0]
ones = torch.ones(3, 1)
assert (adapters.compute_gigpo_outcome_advantage(ones, ones[:, 0], ones, "aba", "ggg", "tuv")[0] == 0).all()
import siri.kernels
print(siri.kernels.__file__)
"""


@pytest.mark.timeout(300)  # importing torch through links took 110 s on a crowded machine, 9 s on a busy one
def test_torch_and_triton_are_enough(tmp_path: Path) -> None:
    """A folder of links to what they require, and to our package; `-S` keeps site-packages out."""
    for name in needed_by("torch") | needed_by("triton"):
        owner = distribution(name)
        for top in {file.parts[0] for file in owner.files or () if file.parts[0] != ".."}:
            link = tmp_path / top
            if not link.exists():
                link.symlink_to(Path(str(owner.locate_file(top))))
    (tmp_path / "siri").mkdir()
    for source in [*(REPO / "siri").iterdir(), REPO / "kernels"]:
        (tmp_path / "siri" / source.name).symlink_to(source)
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE, str(tmp_path)], env=dict(os.environ), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path}/siri/kernels/__init__.py\n"
