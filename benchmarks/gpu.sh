#!/usr/bin/env bash
# Everything that needs a GPU, in under 9 minutes: tests, benchmarks, a short run. Results go to the folder given.
# Peers that are installed are measured too: pip install "liger-kernel[cutedsl]" cut-cross-entropy quack-kernels
#   benchmarks/gpu.sh OUT
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/gpu.sh OUT}
mkdir -p "$out"
python=${PYTHON:-.venv/bin/python}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >"$out/device.txt"
git rev-parse HEAD >"$out/commit.txt" 2>/dev/null
"$python" -m pip list --format=freeze >"$out/versions.txt"

# No step takes more than its share, nor more than is left of the whole; a second is the least that timeout knows.
limit() {
    local left=$((520 - SECONDS))
    echo $((left < 1 ? 1 : left < $1 ? left : $1))
}

timeout "$(limit 180)" "$python" -m pytest tests -m gpu -q -p no:cacheprovider --junitxml="$out/tests.xml" \
    | tee "$out/tests.log"
# Kernels beside their peers. The file is written after each case, so that a stop loses one at most.
timeout "$(limit 200)" "$python" benchmarks/kernel_speed.py --device cuda --within 150 --out "$out/kernels.json" \
    | tee "$out/kernels.log"
timeout "$(limit 150)" "$python" siri/train.py --name gpu --runs_dir "$out/runs" --iterations 10 --eval.limit 50 \
    | tee "$out/run.log"
cp "$out/runs/gpu/summary.json" "$out/runs/gpu/metrics.jsonl" "$out/" 2>/dev/null
rm -rf "$out/runs"
# What has no use for a GPU comes last, in the time that is left.
timeout "$(limit 60)" "$python" -m pytest benchmarks --ignore=benchmarks/test_kernels.py -q -p no:cacheprovider \
    --benchmark-json="$out/benchmarks.json" | tee "$out/benchmarks.log"
if [ -f "$out/kernels.json" ]; then
    timeout 15 "$python" benchmarks/kernel_figures.py "$out/kernels.json" --out "$out/kernels"
fi
