import subprocess
import sys

import numpy as np
import pytest
import torch
from ranks import on_ranks

from siri.engine import distributed
from siri.engine.distributed import (
    World,
    all_gather_object,
    all_reduce_max,
    all_reduce_sum,
    barrier,
    init_world,
    under_ci,
)
from siri.engine.errors import UserError

RENDEZVOUS = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **RENDEZVOUS}


@pytest.fixture
def bare(monkeypatch):
    """An environment without torchrun's variables; the thread count is put back."""
    for name in (*TORCHRUN, "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS", "CI"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield monkeypatch
    torch.set_num_threads(threads)


def test_a_single_process_has_no_process_group_and_identical_collectives(bare):
    world = init_world("cpu")
    assert (world.rank, world.size, world.is_main, world.device.type) == (0, 1, True, "cpu")
    assert not torch.distributed.is_initialized()
    values = np.array([[1.5, np.inf], [-2.0, 3.0]], dtype=np.float32)
    assert np.array_equal(all_reduce_sum(world, values), values)
    assert np.array_equal(all_reduce_max(world, values), values)
    assert all_gather_object(world, {"a": 1}) == [{"a": 1}]
    barrier(world)
    assert str(world).startswith("1 process on cpu, ")


def test_torchrun_with_one_rank_needs_no_process_group(bare):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        bare.setenv(name, value)
    assert init_world("cpu").size == 1
    assert not torch.distributed.is_initialized()


def test_ranks_are_torchruns():
    expected = {"rank": 3, "size": 8, "local_rank": 1, "local_size": 2}
    assert distributed._ranks(TORCHRUN) == expected
    assert str(World(**expected)) == "rank 3 of 8 on cpu, 1 CPU thread a rank"


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"RANK": ""}, "RANK"), ({"LOCAL_RANK": "x"}, "LOCAL_RANK"), ({"WORLD_SIZE": "-1"}, "WORLD_SIZE")],
)
def test_half_an_environment_is_refused(changes, name):
    with pytest.raises(UserError, match=rf"environment: {name}=.*torchrun --nproc-per-node"):
        distributed._ranks({**TORCHRUN, **changes})
    with pytest.raises(UserError, match="environment: RANK=''"):
        distributed._ranks({"WORLD_SIZE": "4"})
    with pytest.raises(UserError, match=r"RANK=8 of WORLD_SIZE=8 .* ranks count from 0"):
        distributed._ranks({**TORCHRUN, "RANK": "8"})
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT"):
        distributed._ranks({name: value for name, value in TORCHRUN.items() if name not in RENDEZVOUS})


def test_devices(bare):
    bare.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed._pick_device("auto", local_rank=0, local_size=1) == torch.device("cpu")
    with pytest.raises(UserError, match="device: cuda, but torch sees no GPU"):
        distributed._pick_device("cuda", local_rank=0, local_size=1)
    bare.setattr(torch.cuda, "is_available", lambda: True)
    bare.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed._pick_device("auto", local_rank=1, local_size=2) == torch.device("cuda", 1)
    assert distributed._pick_device("cpu", local_rank=5, local_size=6) == torch.device("cpu")
    with pytest.raises(UserError, match=r"4 ranks on a machine with 2 GPU.*start at most 2"):
        distributed._pick_device("auto", local_rank=0, local_size=4)


@pytest.mark.parametrize(
    ("environ", "local_size", "expected"),
    [
        ({}, 1, 16),
        ({}, 4, 4),
        ({}, 32, 1),
        ({"OMP_NUM_THREADS": "3"}, 2, 16),  # torch has read it already; its count stands
        ({"OMP_NUM_THREADS": "1"}, 2, 16),  # the user's own wish, no torchrun
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 2, 12),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 1, 16),
    ],
)
def test_threads(monkeypatch, environ, local_size, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(distributed, "num_cores", lambda: 24)
    assert distributed._num_threads(environ, local_size) == expected


def test_ci_is_recognised(bare):
    assert not under_ci()
    for value, expected in {"true": True, "1": True, "false": False, "": False}.items():
        bare.setenv("CI", value)
        assert under_ci() is expected


def collectives(world):
    # 1e16 + 1 + ... loses the ones in float64 unless the order is fixed; the exact value depends on that order.
    mine = np.array([[1e16, 1.0, -1e16][world.rank], world.rank, np.nan if world.rank == 1 else 0.0])
    barrier(world)
    return {
        "sum": all_reduce_sum(world, mine),
        "max": all_reduce_max(world, mine),
        "objects": all_gather_object(world, {"rank": world.rank, "text": "x" * world.rank}),
    }


@pytest.mark.multirank
def test_collectives_give_every_rank_the_same_bits(tmp_path):
    results = on_ranks(3, collectives, folder=tmp_path)
    for result in results:
        assert np.array_equal(result["sum"], [(1e16 + 1.0) - 1e16, 3.0, np.nan], equal_nan=True)
        assert np.array_equal(result["max"], [1e16, 2.0, np.nan], equal_nan=True)
        assert result["objects"] == [{"rank": r, "text": "x" * r} for r in range(3)]


SCRIPT = """
import torch
from siri.engine.distributed import all_gather_object, init_world, shutdown
world = init_world()
seen = all_gather_object(world, (world.rank, world.size, torch.get_num_threads()))
if world.is_main:
    print("SEEN", seen, flush=True)
shutdown()
"""


@pytest.mark.multirank
def test_under_torchrun_the_cores_are_shared_out(tmp_path, bare):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    threads = max(1, distributed.num_cores() // 2)
    assert f"SEEN {[(0, 2, threads), (1, 2, threads)]}" in done.stdout
