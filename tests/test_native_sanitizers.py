"""The tests of the C++ extension with a build of it under sanitizers: `make sanitize`. Takes some minutes."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
# The build takes the place of siri._native before anything imports that; the tests of the twin have nothing to show.
SCRIPT = """
import importlib.util, sys
import pytest
spec = importlib.util.spec_from_file_location("siri._native", sys.argv[1])
module = sys.modules["siri._native"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.__file__ == sys.argv[1], "the build, not what is installed"
files = ["tests/test_native.py", "tests/test_native_similarity.py"]
# -s: what pytest captures of stderr, the report, would be lost with the process that it ends.
sys.exit(pytest.main([*files, "-q", "-s", "-p", "no:cacheprovider", "-o", "timeout=900", "-k", sys.argv[2]]))
"""
SANITIZERS = {
    # Python's own allocator would put the states side by side; with malloc's, reading past one is seen. Python itself
    # leaves memory behind when it ends.
    "address,undefined": ("libasan.so", "not twin and not memory", "detect_leaks=0"),
    "thread": ("libtsan.so", "not twin and (threads or fuzz or collide)", "exitcode=66"),
}


@pytest.mark.sanitize
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs g++ on Linux")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_nothing_is_reported(sanitizer: str, tmp_path: Path) -> None:
    library, chosen, options = SANITIZERS[sanitizer]
    build = tmp_path / "_native.so"
    import pybind11  # a requirement of the build only

    flags = f"-std=c++17 -O1 -g -fPIC -shared -pthread -fvisibility=hidden -fsanitize={sanitizer}"
    sources = sorted(map(str, (REPO / "csrc").glob("*.cpp")))
    headers = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    command = ["g++", *flags.split(), "-fno-sanitize-recover=all", *headers, *sources, "-o", str(build)]
    subprocess.run(command, check=True)

    # libstdc++ too: where it is loaded later, the sanitizer does not find the function that throws exceptions.
    preload = [_library(library), _library("libstdc++.so.6")]
    environment = {**os.environ, "LD_PRELOAD": " ".join(preload), "PYTHONMALLOC": "malloc"}
    environment |= {"ASAN_OPTIONS": options, "TSAN_OPTIONS": options}
    # Address-space randomisation of more bits than the thread sanitizer allows for ends it at once.
    fixed = [setarch, platform.machine(), "-R"] if (setarch := shutil.which("setarch")) else []
    result = subprocess.run(
        [*fixed, sys.executable, "-P", "-c", SCRIPT, str(build), chosen],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
    )
    for report in ("Sanitizer", "runtime error"):
        assert report not in result.stderr, result.stderr[:5000]
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


def _library(name: str) -> str:
    answer = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return answer.stdout.strip()
