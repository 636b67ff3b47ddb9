"""What ptxas makes of a Triton kernel, for a GPU that need not be there."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
"""Bytes of shared memory that one program may have, by compute capability times ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One kernel for one target."""

    registers: int
    """a thread"""
    spilled: int
    """bytes of local memory a thread"""
    shared: int
    """bytes"""
    warps: int
    specialised: bool
    """registers are handed from some warps to others: what warp specialisation cannot do without"""


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], *, target: int, warps: int, stages: int = 3
) -> Compiled:
    """`types` by argument name ("*bf16", "i32", ...); pointers and strides count as multiples of 16, as in practice."""
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in ("H", "hidden_stride", "weight_stride", "stride", "out_stride")
    }
    result = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [folder / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return Compiled(
        registers=int(found[1]),
        spilled=int(found[2]),
        shared=result.metadata.shared,
        warps=result.metadata.num_warps,
        specialised="setmaxnreg" in result.asm["ptx"],
    )
