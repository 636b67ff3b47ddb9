#!/usr/bin/env bash
# Everything that needs a GPU, in under 9 minutes: tests, benchmarks, a short run. Results go to the folder given;
# steps.txt has the exit status of each step, and one that fails or takes too long stops no other.
# Peers that are installed are measured too: pip install "liger-kernel[cutedsl]" cut-cross-entropy quack-kernels, and
# of TRL and verl what needs nothing else: pip install --no-deps trl verl
#   benchmarks/gpu.sh OUT
# PYTHON names another Python than that of .venv. Where siri is not installed in it, this checkout is imported: the
# tests and benchmarks of the kernels then need torch, triton, pytest, pytest-timeout and hypothesis.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/gpu.sh OUT}
mkdir -p "$out"
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >"$out/device.txt"
git rev-parse HEAD >"$out/commit.txt" 2>/dev/null
"$python" -m pip list --format=freeze >"$out/versions.txt"
: >"$out/steps.txt"

# -P: from this folder a Python without siri would find the checkout, but the scripts of benchmarks/ would not.
if ! "$python" -P -c "import siri.kernels" 2>/dev/null; then
    links=$(mktemp -d)
    trap 'rm -rf "$links"' EXIT
    mkdir "$links/siri"
    ln -s "$PWD"/siri/* "$PWD"/{kernels,engine,configs} "$links/siri/"
    # Without SAFEPATH `python -m` would find siri/ of this folder before the links.
    export PYTHONSAFEPATH=1 PYTHONPATH="$links:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
fi

# step NAME SECONDS ARGUMENTS...: no more than its share, nor than is left of the whole; a second is the least that
# timeout knows. On SIGINT pytest still says what failed until then, and writes its report.
failed=0
step() {
    local name=$1 share=$2 left=$((${SECONDS_IN_ALL:-500} - SECONDS))
    shift 2
    share=$((left < 1 ? 1 : left < share ? left : share))
    timeout --signal=INT --kill-after=10 "$share" "$python" "$@" 2>&1 | tee "$out/$name.log"
    local status=${PIPESTATUS[0]}
    echo "$name: $status" >>"$out/steps.txt"
    ((status == 0)) || failed=1
}

# First the kernels, in a process of their own: vLLM, in the next tests, takes most of the memory for itself.
step kernel-tests 150 -m pytest tests/test_gpu_kernels.py -m gpu -q -p no:cacheprovider \
    --junitxml="$out/kernel-tests.xml"
# Kernels beside their peers. The file is written after each case, so that a stop loses one at most.
step kernels 200 benchmarks/kernel_speed.py --device cuda --within 150 --out "$out/kernels.json"
step tests 120 -m pytest tests -m gpu -q -p no:cacheprovider --ignore=tests/test_gpu_kernels.py \
    --continue-on-collection-errors --junitxml="$out/tests.xml"
step run 150 siri/train.py --name gpu --runs_dir "$out/runs" --iterations 10 --eval.limit 50
cp "$out/runs/gpu/summary.json" "$out/runs/gpu/metrics.jsonl" "$out/" 2>/dev/null
rm -rf "$out/runs"
# What has no use for a GPU comes last, in the time that is left.
step benchmarks 60 -m pytest benchmarks --ignore=benchmarks/test_kernels.py -q -p no:cacheprovider \
    --continue-on-collection-errors \
    --benchmark-json="$out/benchmarks.json"
if [ -f "$out/kernels.json" ]; then
    timeout 15 "$python" benchmarks/kernel_figures.py "$out/kernels.json" --out "$out/kernels"
fi
cat "$out/steps.txt"
exit "$failed"
