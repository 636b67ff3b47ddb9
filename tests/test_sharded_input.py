"""Parameters that are sharded (FSDP2, tensor parallelism of torch): refused by name, gathered they work."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from projections import gradients, naive, relative_error
from test_linear_logprob import make
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from siri.kernels import linear_logprob, linear_policy_loss, masked_distill_loss, selective_logprob


@pytest.fixture
def weight(tmp_path: Path) -> Iterator[DTensor]:
    """[30, 8], sharded over a group of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield distribute_tensor(make(5, 8, 30)[1], init_device_mesh("cpu", (1,)), [Shard(0)])
    dist.destroy_process_group()


def test_a_sharded_weight_is_refused_by_name(weight: DTensor) -> None:
    """Triton would read address 0; plain torch complained of an addmm_ that nobody had called."""
    x, w, y = make(5, 8, 30)
    ones = torch.ones(5)
    sharded_x = distribute_tensor(x, weight.device_mesh, [Shard(0)])
    for call in (
        lambda: linear_logprob(x, weight, y),
        lambda: linear_policy_loss(x, weight, y, ones, None, denominator=5),
        lambda: masked_distill_loss(x, weight, y, ones, denominator=5),
    ):
        with pytest.raises(ValueError, match=r"weight is a DTensor; pass weight.full_tensor\(\)"):
            call()
    with pytest.raises(ValueError, match="hidden is a DTensor"):
        linear_logprob(sharded_x, w, y)
    with pytest.raises(ValueError, match="teacher_weight is a DTensor"):
        masked_distill_loss(x, w, y, ones, denominator=5, divergence="jsd", teacher_hidden=x, teacher_weight=weight)
    with pytest.raises(ValueError, match="logits is a DTensor"):
        selective_logprob(distribute_tensor(x @ w.t(), weight.device_mesh, [Shard(0)]), y)


def test_what_the_message_says_works(weight: DTensor) -> None:
    x, w, y = make(5, 8, 30)
    sharded, whole = weight.requires_grad_(), w.requires_grad_()
    (got,) = torch.autograd.grad(linear_logprob(x, sharded.full_tensor(), y).sum(), sharded)
    (expected,) = gradients(naive(x, whole, y)[0].sum(), whole)
    assert isinstance(got, DTensor)
    assert relative_error(got.full_tensor(), expected) <= 5e-6
    assert torch.equal(linear_logprob(x, sharded.to_local(), y, tp_group=dist.group.WORLD), linear_logprob(x, w, y))
