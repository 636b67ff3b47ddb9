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

SHARED_LIMIT = {80: 166_912, 86: 101_376, 90: 232_448, 100: 232_448}
"""Bytes of shared memory that one program may have, by compute capability times ten."""


MULTIPLES = ("H", "v", "hidden_stride", "weight_stride", "stride", "out_stride")
ACCESSES = {"ld.global": "L", "st.global": "S", "bar.sync": "B"}


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
    accesses: str
    """of global memory, as PTX has them one after the other: L load, S store, B barrier of all warps"""


def compiled(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    *,
    target: int,
    warps: int,
    stages: int = 3,
    aligned: bool = True,
) -> Compiled:
    """`types` by argument name ("*bf16", "i32", ...). Pointers are multiples of 16; `aligned`: MULTIPLES too."""
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    multiples = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (aligned and name in MULTIPLES)
    }
    result = triton.compile(
        ASTSource(kernel, signature, constants, multiples),
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
        accesses="".join(ACCESSES[name] for name in re.findall("|".join(ACCESSES), result.asm["ptx"])),
    )
