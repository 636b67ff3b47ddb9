"""The gate of the Triton kernels: for every target nothing is spilled, shared memory suffices, and warps are
specialised where `linear_logprob_triton` says so. ptxas comes with triton, so no GPU is needed.
"""

import re
from typing import Any

import pytest

pytest.importorskip("triton")
import triton.language as tl
from compiled import SHARED_LIMIT, Compiled, compiled

from siri.kernels import distill_loss_triton as distill
from siri.kernels import exact_logits_triton as exact
from siri.kernels import gigpo_advantage_triton as gigpo
from siri.kernels import linear_logprob_triton as linear
from siri.kernels import softmax_triton as rows

POINTERS = {
    "hidden_ptr": "*bf16", "weight_ptr": "*bf16", "bias_ptr": "*bf16", "raw_ptr": "*fp32", "out_ptr": "*fp32",
    "target_ptr": "*i64",
}  # fmt: skip
SIZES = (
    "T", "V", "H", "n", "v", "num_tiles", "vocab_start", "stride", "out_stride", "hidden_stride", "hidden_step",
    "weight_stride", "weight_step", "stats_stride", "shift",
)  # fmt: skip
HEAD = {"HAS_BIAS": True, "SOFTCAP": True}  # the most that a kernel has to hold
GIGPO = {
    **dict.fromkeys(("N", "places"), "i64"),
    **dict.fromkeys(("gamma", "penalty", "omega", "min_sigma", "eps", "within"), "fp64"),
    **dict.fromkeys(("traj_ptr", "task_ptr", "step_ptr"), "*i64"), "valid_ptr": "*i1", "stats_ptr": "*u64",
    "tables_ptr": "*i32", "owner_ptr": "*i32", "score_ptr": "*fp64", "reward_ptr": "*fp64", "returns_ptr": "*fp64",
    "out_ptr": "*fp64",
}  # fmt: skip
TARGETS = (80, 90, 100)
STEPS = {"hidden_step": 1, "weight_step": 1}  # Triton makes constants of ones


def types_of(kernel: Any, **types: str) -> dict[str, str]:
    """The type of each argument: those given, float32 pointers and numbers else."""
    known = {**dict.fromkeys(SIZES, "i32"), **POINTERS, **types}
    return {name: known.get(name, "*fp32" if name.endswith("_ptr") else "fp32") for name in kernel.arg_names}


def tile(launch: linear.Launch) -> dict[str, Any]:
    sizes = {"BLOCK_T": launch.block_t, "BLOCK_V": launch.block_v, "BLOCK_H": launch.block_h}
    return {**sizes, "GROUP": linear.GROUP_T}


def within_limits(result: Compiled, target: int) -> None:
    assert result.spilled == 0
    assert result.shared <= SHARED_LIMIT[target]


PLAIN, CAPPED = {"HAS_BIAS": False, "SOFTCAP": False}, {"HAS_BIAS": False, "SOFTCAP": True}


@pytest.mark.parametrize(
    ("target", "launch", "head"),
    [(90, linear.TMA_SM90, PLAIN), (90, linear.TMA_SM90, HEAD), (100, linear.TMA_SM100, PLAIN),
     (100, linear.TMA_SM100, CAPPED)],
)  # fmt: skip
# H = 72: rows of 16 bytes, strides that are no multiples of 16 elements.
@pytest.mark.parametrize(("kind", "aligned"), [("*bf16", True), ("*fp16", False)])
def test_descriptor_kernel_is_warp_specialised(
    target: int, launch: linear.Launch, head: dict[str, bool], kind: str, aligned: bool
) -> None:
    kernel = linear.tile_stats_tma_kernel
    types = types_of(kernel, hidden_ptr=kind, weight_ptr=kind)
    result = compiled(
        kernel, types, {**tile(launch), **head}, target=target, warps=launch.warps, stages=launch.stages,
        aligned=aligned,
    )  # fmt: skip
    within_limits(result, target)
    assert result.specialised
    assert result.warps == 12  # those that compute, and those that load and multiply beside them


def test_eight_warps_on_hopper_are_not_specialised() -> None:
    """The compiler says nothing when it drops it: this shows that the gate would see."""
    kernel, launch = linear.tile_stats_tma_kernel, linear.TMA_SM90
    result = compiled(kernel, types_of(kernel), {**tile(launch), **HEAD}, target=90, warps=8, stages=3)
    assert not result.specialised
    assert result.warps == 8


def test_spills_and_too_much_shared_memory_are_seen() -> None:
    """One warp cannot hold the tile in its registers, and eight stages do not fit: the gate would fail on both."""
    kernel, launch = linear.tile_stats_kernel, linear.POINTER_HALF
    constants = {**tile(launch), **HEAD, **STEPS, "DOT": tl.bfloat16}
    result = compiled(kernel, types_of(kernel), constants, target=80, warps=1, stages=launch.stages)
    assert result.spilled > 0
    assert compiled(kernel, types_of(kernel), constants, target=80, warps=4, stages=8).shared > SHARED_LIMIT[80]


# Factors of one dtype; of two, which meet in float32. Rows of adjacent elements with 16-byte bounds; and any strides,
# where addresses take all registers there are. Cards of capability 8.6 have 99 KiB of shared memory for a program.
@pytest.mark.parametrize("target", [80, 86, 90, 100])
@pytest.mark.parametrize(
    ("launch", "kinds", "dot", "dense"),
    [
        (linear.POINTER_HALF, ("*bf16", "*bf16"), tl.bfloat16, True),
        (linear.POINTER_HALF, ("*fp16", "*fp16"), tl.float16, False),
        (linear.POINTER_FLOAT, ("*fp32", "*fp32"), tl.float32, True),
        (linear.POINTER_FLOAT, ("*bf16", "*fp32"), tl.float32, False),
    ],
)
def test_pointer_kernel(target: int, launch: linear.Launch, kinds: tuple[str, str], dot: Any, dense: bool) -> None:
    kernel = linear.tile_stats_kernel
    types = types_of(kernel, hidden_ptr=kinds[0], weight_ptr=kinds[1], bias_ptr=kinds[1])
    constants = {**tile(launch), **HEAD, **(STEPS if dense else {}), "DOT": dot}
    result = compiled(kernel, types, constants, target=target, warps=launch.warps, stages=launch.stages, aligned=dense)
    within_limits(result, target)


GRAD = {"HAS_P_LOGP": True, "HAS_SCALE": True, "BLOCK": rows.GRAD_BLOCK}
TEACHER = {"STUDENT_BIAS": True, "TEACHER_BIAS": True, "SOFTCAP": True, "HAS_SCALE": True, "BLOCK": distill.BLOCK}
WALK, ROWS = {"BLOCK": gigpo.WALK_BLOCK, "LOG_STEPS": gigpo.WALK_LOG_STEPS}, {"BLOCK": gigpo.ROWS_BLOCK}
DOT = {**STEPS, "BLOCK_H": exact.PEAK_BLOCK_H}
ROW_KERNELS: list[tuple[Any, dict[str, Any], int, dict[str, str]]] = [
    (exact.target_logit_kernel, {**STEPS, "BLOCK_T": 16, "BLOCK_H": 128}, 4, {}),
    *((exact.tile_peak_error_kernel, {**DOT, **HEAD, "BLOCK_V": width}, exact.PEAK_WARPS, {}) for width in (128, 256)),
    (exact.row_peak_error_kernel, {**STEPS, **HEAD, "BLOCK": rows.STATS_BLOCK, "BLOCK_H": exact.ROW_BLOCK_H},
     rows.STATS_WARPS, {}),
    (linear.merge_tiles_kernel, {**HEAD, "BLOCK_T": 32, "TILES": 32}, 4, {}),
    *((rows.row_stats_kernel, {**HEAD, "BLOCK": rows.STATS_BLOCK}, rows.STATS_WARPS, {"raw_ptr": raw})
      for raw in ("*fp32", "*bf16", "*fp16")),
    *((rows.logit_grad_kernel, {**HEAD, **GRAD}, rows.GRAD_WARPS, {"out_ptr": out})
      for out in ("*bf16", "*fp16", "*fp32")),
    (rows.logit_grad_kernel, {**HEAD, **GRAD}, rows.GRAD_WARPS, {"raw_ptr": "*bf16", "out_ptr": "*bf16"}),
    *((distill.divergence_kernel, {**TEACHER, "KIND": kind}, distill.WARPS, {"out_ptr": "*bf16"})
      for kind in ("forward_kl", "reverse_kl", "jsd")),
    *((gigpo.score_kernel, {"BY_ROW": parity, "PARITY": parity, **WALK}, gigpo.WALK_WARPS, GIGPO)
      for parity in (False, True)),
    *((gigpo.moment_kernel, {"SQUARES": squares, "BY_ROW": False, **ROWS}, gigpo.ROWS_WARPS, GIGPO)
      for squares in (False, True)),
    *((gigpo.advantage_kernel, {"SCALE": True, "PARITY": parity, **ROWS}, gigpo.ROWS_WARPS, GIGPO)
      for parity in (False, True)),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("kernel", "constants", "warps", "types"), ROW_KERNELS, ids=lambda value: getattr(value, "__name__", "")
)
def test_row_kernels(
    target: int, aligned: bool, kernel: Any, constants: dict[str, Any], warps: int, types: dict[str, str]
) -> None:
    """With sizes and strides that are multiples of 16, and with odd ones."""
    result = compiled(kernel, types_of(kernel, **types), constants, target=target, warps=warps, aligned=aligned)
    within_limits(result, target)
    assert result.registers * result.warps * 32 <= 2**15  # two programs a multiprocessor at least


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("kernel", "constants", "warps"),
    [
        (rows.logit_grad_kernel, {**HEAD, **GRAD}, rows.GRAD_WARPS),
        (distill.divergence_kernel, {**TEACHER, "KIND": "reverse_kl"}, distill.WARPS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_gradient_is_stored_when_every_warp_has_read_its_logits(
    target: int, aligned: bool, kernel: Any, constants: dict[str, Any], warps: int
) -> None:
    """dz may lie where the logits are. The interpreter reads a whole block at once and would not miss the barrier."""
    types = types_of(kernel, out_ptr="*bf16")
    accesses = compiled(kernel, types, constants, target=target, warps=warps, aligned=aligned).accesses
    assert re.search("L+B+S+$", accesses), accesses
