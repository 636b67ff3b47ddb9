"""What calls of the C++ extension do to the process around them: at its end, and without memory for threads.

Where something is wrong here, the process ends: each case has one of its own.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

pytestmark = pytest.mark.usefixtures("extension")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-c", script, *arguments], capture_output=True, text=True)


DAEMONS = """
import os, sys, threading, time
from siri.engine import native
states = [os.urandom(3000) for _ in range(200)]
def work():
    while True:
        getattr(native, sys.argv[1])(states, threads=1)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
garbage = [[n] for n in range(300_000)]  # the interpreter takes its time to clear this
"""


@pytest.mark.parametrize("function", ["hash_states", "group_states"])
def test_daemons_inside_a_call_do_not_abort_the_interpreter_at_its_exit(function: str) -> None:
    result = run(DAEMONS, function)
    assert (result.returncode, result.stderr) == (0, "")


# Allocations of the calling thread fail from the n-th on, for each n: the list of threads, then what each one needs.
FAILING_MEMORY = """
#include <cstdio>
#include <cstdlib>
#include <new>
#include "parallel.h"

static thread_local long left = -1;
void* operator new(std::size_t size) {
    if (left == 0) throw std::bad_alloc();
    if (left > 0) --left;
    return std::malloc(size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

int main() {
    int refused = 0;
    for (long allowed = 0; allowed < 20; ++allowed) {
        std::atomic<int> done{0};
        left = allowed;
        try {
            siri::parallel_for(64, 1, 8, [&](std::size_t, std::size_t) { ++done; });
            left = -1;
            if (done != 64) return 1;
        } catch (const std::bad_alloc&) {
            left = -1;
            if (done != 0) return 2;
            ++refused;
        }
    }
    std::printf("%d refused", refused);
}
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_without_memory_for_more_threads_those_there_do_the_work(tmp_path: Path) -> None:
    source, program = tmp_path / "failing.cpp", tmp_path / "failing"
    source.write_text(FAILING_MEMORY)
    build = ["c++", "-std=c++17", "-pthread", f"-I{REPO / 'csrc'}", str(source), "-o", str(program)]
    subprocess.run(build, check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "1 refused"), result.stderr
