"""Calls of the C++ extension and the process around them: its end, its signals, its memory.

Where something is wrong here, the process ends or hangs: each case has one of its own.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

pytestmark = pytest.mark.usefixtures("extension")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


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


# A call of ten minutes; with two task groups, the second one is done at once.
SIGNALS = """
import os, random, signal, sys, threading, time
import numpy as np
from siri.engine.native import group_states
letters = [chr(0x4e00 + n) for n in range(150)]
count, length, threads = map(int, sys.argv[1:])
rng = random.Random(0)
states = ["".join(rng.choices(letters, k=length)) for _ in range(count)] + ["short"]
groups = np.arange(len(states)) == count
def kick():
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
sent = []
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts this in the background has it ignored
threading.Timer(0.5, kick).start()
try:
    group_states(states, groups.astype(int), similarity=0.3, threads=threads)
except KeyboardInterrupt:
    print(time.monotonic() - sent[0])
"""


@pytest.mark.parametrize(("count", "length", "threads"), [(10_000, 200, 1), (10_000, 200, 2), (2, 5_000_000, 1)])
def test_ctrl_c_ends_a_long_call(count: int, length: int, threads: int) -> None:
    """Within some 0.2 s; a busy machine may take longer."""
    result = run(SIGNALS, str(count), str(length), str(threads))
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 5


HANDLER = """
import random, signal
from siri.engine.native import group_states
rng = random.Random(0)
states = ["".join(rng.choices("abcdefgh", k=190)) for _ in range(250)]
expected = group_states(states, similarity=0.7, threads=1)
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(group_states(["a", "b", "a"], similarity=0.5).tolist()))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
labels = group_states(states, similarity=0.7, threads=1)
during = len(seen)
signal.setitimer(signal.ITIMER_REAL, 0)
print((labels == expected).all(), during > 1, seen[:1])
"""


def test_a_signal_handler_runs_during_a_call_which_goes_on() -> None:
    result = run(HANDLER)
    assert result.stdout == "True True [[0, 1, 0]]\n", result.stderr


NO_THREADS = """
import siri._native as native
assert native.hash_states((b"a",), None, 0).tolist() == native.hash_states((b"a",), None, 1).tolist()
for similarity in (None, 0.5):
    assert native.group_states((b"a", b"b", b"a"), None, None, similarity, 0).tolist() == [0, 1, 0]
"""


def test_no_threads_are_one() -> None:
    """Work was divided by their number."""
    result = run(NO_THREADS)
    assert result.returncode == 0, result.stderr
