#!/usr/bin/env bash
# Everything that needs a GPU, in under 9 minutes: tests, benchmarks, a short run. Results go to the folder given.
#   benchmarks/gpu.sh OUT
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/gpu.sh OUT}
mkdir -p "$out"
python=${PYTHON:-.venv/bin/python}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >"$out/device.txt"
git rev-parse HEAD >"$out/commit.txt" 2>/dev/null
"$python" -m pip list --format=freeze >"$out/versions.txt"

timeout 180 "$python" -m pytest tests -m gpu -q -p no:cacheprovider --junitxml="$out/tests.xml" | tee "$out/tests.log"
timeout 180 "$python" -m pytest benchmarks -q -p no:cacheprovider --benchmark-json="$out/benchmarks.json" \
    | tee "$out/benchmarks.log"
timeout 150 "$python" siri/train.py --name gpu --runs_dir "$out/runs" --iterations 10 --eval.limit 50 | tee "$out/run.log"
cp "$out/runs/gpu/summary.json" "$out/runs/gpu/metrics.jsonl" "$out/" 2>/dev/null
rm -rf "$out/runs"
