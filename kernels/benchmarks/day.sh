#!/usr/bin/env bash
# All that a GPU is needed for, in nine minutes: six stages, each under its own time-out, each ending in a file.
#
#   kernels/benchmarks/day.sh OUT [WHEELS]     # WHEELS: a folder with what is missing; told if anything is
#   kernels/benchmarks/day.sh --dry OUT        # a rehearsal on the CPU, with small shapes
#
# Needs CUDA, torch, triton, transformers and safetensors. Exits with 1 if a stage failed; the others still run.
set -uo pipefail
here=$PWD
cd "$(dirname "$0")/../.."
dry=""
if [ "${1:-}" = --dry ]; then
  dry=--dry
  export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=
  shift
fi
out=${1:?"usage: day.sh [--dry] OUT [WHEELS]"}
wheels=${2:+$(cd "$here" && realpath "$2")}
out=$(cd "$here" && mkdir -p "$out" && realpath "$out")
export PYTHONPATH="$PWD:$PWD/kernels:$PWD/eval${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 LLMPRUNE_CACHE="$out/cache" HF_HUB_OFFLINE=1
failed=0
: > "$out/stages.txt"

missing=$(python3 - <<'P'
from importlib.metadata import PackageNotFoundError, version

needed = "accelerate datasets gguf greenlet huggingface_hub llmprune psutil pydantic pytest pytest-xdist pyyaml"
for name in [*needed.split(), "rich", "safetensors", "torch", "transformers", "triton", "typer"]:
    try:
        version(name)
    except PackageNotFoundError:
        print(name, end=" ")
P
)
if [ -n "$missing" ]; then
  if [ -z "$wheels" ]; then
    echo "missing here: $missing; bring them, and what they need, with: pip wheel --no-deps -w WHEELS ${missing/llmprune/.}" >&2
    exit 2
  fi
  python3 -m pip install --quiet --no-index --find-links "$wheels" $missing || exit 2
fi

stage() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS code=0
  shift 2
  timeout "$limit" "$@" > "$out/$name.log" 2>&1 || code=$?
  [ "$code" = 0 ] || failed=1
  echo "$name: exit $code after $((SECONDS - begin)) s of $limit" | tee -a "$out/stages.txt"
}

bench=kernels/benchmarks
few="--tokens 1 16 64 4096"
shapes=(--shapes "llama-3-8b gate_up" "llama-2-7b o")
[ -z "$dry" ] || few="--tokens 1 20"

# What needs a download, a real model's text, is left out.
stage a_tests 70 python3 -m pytest -q -n 0 -p no:cacheprovider tests/kernels/test_on_gpu.py -k "not real"
stage b_numerics 40 python3 $bench/numerics.py $dry --out "$out"
stage c_tuning 140 env LLMPRUNE_AUTOTUNE=1 python3 $bench/run.py $dry --kinds 2:4 $few "${shapes[@]}" --providers cublas ours --out "$out/untabled"
stage d_table 80 python3 $bench/run.py $dry $few "${shapes[@]}" --out "$out"
stage e_decode 90 python3 $bench/decode.py $dry --out "$out"
stage f_pruning 120 python3 eval/benchmarks/on_gpu.py $dry --out "$out"

cp "$out"/cache/kernels/*.json "$out/tuned.json" 2>/dev/null
rm -rf "$out/cache" "$out/untabled"
cat "$out"/*.log > "$out/log.txt" && rm "$out"/*.log
exit $failed
