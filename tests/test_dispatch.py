"""Which kernels run, and what the package of kernels needs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import REPO

import siri.kernels
from siri.kernels import dispatch

X = torch.zeros(2, 3)


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No GPU, no interpreter, nothing decided yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("SIRI_KERNELS", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    dispatch.decide.cache_clear()
    yield
    dispatch.decide.cache_clear()


def with_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())


def test_the_kernels_under_test_are_those_of_this_checkout() -> None:
    assert siri.kernels.__file__ is not None
    assert Path(siri.kernels.__file__).resolve().parent == REPO / "kernels"


def test_without_a_gpu_the_reference_runs() -> None:
    assert dispatch.explain().startswith("reference (SIRI_KERNELS=auto: ")
    assert not dispatch.use_triton(X, None)


def test_a_gpu_gets_triton_and_its_cpu_tensors_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (9, 0))
    assert dispatch.explain() == "triton (SIRI_KERNELS=auto, a card)"
    assert dispatch.decide().device == "cuda"
    assert not dispatch.use_triton(X)
    assert dispatch.explain("cuda") == dispatch.explain()
    assert dispatch.explain("cpu") == ("reference (the tensors are on the cpu; on cuda: SIRI_KERNELS=auto, a card)")


def test_an_old_gpu_gets_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (7, 5))
    assert dispatch.explain() == (
        "reference (SIRI_KERNELS=auto: the GPU has compute capability (7, 5), the kernels need (8, 0))"
    )


def test_the_reference_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (9, 0))
    monkeypatch.setenv("SIRI_KERNELS", "reference")
    assert dispatch.explain() == "reference (SIRI_KERNELS=reference)"


def test_triton_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIRI_KERNELS", "triton")
    with pytest.raises(ValueError, match=r"SIRI_KERNELS = 'triton' cannot be had: .*; set SIRI_KERNELS=auto"):
        dispatch.explain()
    with pytest.raises(ValueError, match="SIRI_KERNELS = 'triton' cannot be had"):
        siri.kernels.linear_logprob(X, X, torch.tensor([0, 1]))  # it ran the reference and said nothing


def test_triton_asked_for_on_a_gpu_leaves_cpu_tensors_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (9, 0))
    monkeypatch.setenv("SIRI_KERNELS", "triton")
    assert not dispatch.use_triton(X)


def test_an_unknown_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIRI_KERNELS", "cuda")
    with pytest.raises(ValueError, match="SIRI_KERNELS = 'cuda' must be one of auto, reference, triton"):
        dispatch.explain()


def test_the_interpreter_waits_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    assert not dispatch.use_triton(X)
    dispatch.decide.cache_clear()
    monkeypatch.setenv("SIRI_KERNELS", "triton")
    assert dispatch.use_triton(X)
    assert not dispatch.use_triton(X.double())


def test_the_kernels_need_torch_and_triton_only() -> None:
    """Everything importable but what torch and triton import themselves is hidden; linear_logprob still works."""
    program = """
import importlib.util, sys
import torch
if importlib.util.find_spec("triton"):
    import triton
known = {name.partition(".")[0] for name in sys.modules} | set(sys.stdlib_module_names) | {"siri"}
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in known:
            raise AssertionError(f"siri.kernels imports {name}")
sys.meta_path.insert(0, Nothing())
from siri.kernels import dispatch, linear_logprob
if "triton" in known:
    import siri.kernels.linear_logprob_triton
x, w = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
linear_logprob(x, w, torch.tensor([0, 3])).sum().backward()
assert (x.grad == 0).all()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
