#!/usr/bin/env bash
# What the GPU of this machine says about fastconv, in under ten minutes, on a bare machine: build for its architecture, run the suite on the device,
# measure its ceilings, run the quick grid against cuDNN and Inductor, write JSON, table and plots.
#
#   bench/gpu.sh
#   OUT=/tmp/out FASTCONV_PREBUILT=/path/to/libraries bench/gpu.sh
#
# Needs an NVIDIA GPU, nvcc, a C++ compiler, and a python3 with torch >= 2.10 (CUDA), triton, pybind11, cmake, ninja and pytest. Takes no network, no
# pip, no virtual environment. Stages run in the order of their worth, correctness first; each has a time limit and leaves its files in OUT as
# it goes, so that a run that is cut short is still worth something. The exit code says whether everything that ran was right.
#
#   OUT                where results go (bench/results)
#   FASTCONV_PREBUILT  libraries built elsewhere for this platform, used instead of building
#   FASTCONV_SECONDS   for everything together (570)
#   FASTCONV_DEVICE    cuda; cpu goes through the same stages without a GPU, to try this script
#   PYTHON             the interpreter (python3)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
DEVICE=${FASTCONV_DEVICE:-cuda}
BUDGET=${FASTCONV_SECONDS:-570}
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
STAGES=$OUT/stages.jsonl
: > "$STAGES"
SECONDS=0
failed=0

export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# Caches of compilers stay out of the home folder, which may be read-only.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$OUT/cache/triton} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$OUT/cache/inductor}

# stage NAME LIMIT COMMAND...: runs it for LIMIT seconds at most, its output in NAME.log, one line about it in stages.jsonl.
stage() {
  local name=$1 limit=$2 left=$((BUDGET - SECONDS)) start=$SECONDS code state last
  shift 2
  if ((left < 10)); then
    printf '{"stage": "%s", "state": "skipped", "seconds": 0}\n' "$name" >> "$STAGES"
    echo "-- $name: skipped, no time left"
    return 0
  fi
  ((limit > left)) && limit=$left
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" > "$OUT/$name.log" 2>&1
  code=$?
  case $code in
    0) state=passed ;;
    124 | 137) state="cut short" ;;
    *) state=failed failed=1 ;;
  esac
  last=$(grep -v '^[[:space:]]*$' "$OUT/$name.log" | tail -n 1 | tr -d '"\\\000-\037' | cut -c1-300)
  printf '{"stage": "%s", "state": "%s", "exit": %d, "seconds": %d, "last_line": "%s"}\n' "$name" "$state" "$code" $((SECONDS - start)) "$last" >> "$STAGES"
  echo "-- $name: $state after $((SECONDS - start)) s: $last"
  return "$code"
}

# Modules the tests and the benchmark use beyond the list above, where this machine lacks them: stand-ins that skip or print plainly.
has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }
for module in hypothesis rich; do
  if ! has "$module"; then
    mkdir -p "$OUT/cache/bare" && ln -sfn "$PWD/bench/bare/$module" "$OUT/cache/bare/$module"
    export PYTHONPATH=$OUT/cache/bare:$PYTHONPATH
    echo "no $module here: using bench/bare/$module"
  fi
done

# ---- the machine ------------------------------------------------------------------------------------------------------------------
describe='import json, platform, sys, torch
facts = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "platform": platform.platform()}
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    facts |= {"gpu": p.name, "capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count, "memory": p.total_memory, "l2": p.L2_cache_size}
print(json.dumps(facts))
sys.exit(sys.argv[1] == "cuda" and "gpu" not in facts)'
stage machine 60 "$PYTHON" -c "$describe" "$DEVICE" || { echo "no usable $DEVICE here: see $OUT/machine.log"; exit 1; }
cp "$OUT/machine.log" "$OUT/machine.json"
if [[ $DEVICE == cuda ]]; then
  nvidia-smi > "$OUT/nvidia-smi.log" 2>&1
  capability=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability(0))')
  # Instructions of one generation only ("9.0a") where nvcc has them.
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability$([[ $capability == 9.0 ]] && echo a)} FASTCONV_CUDA=1
else
  export FASTCONV_CUDA=${FASTCONV_CUDA:-0}
fi

# ---- the build --------------------------------------------------------------------------------------------------------------------
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
stage build 280 "$PYTHON" setup.py build_ext --inplace || { echo "the build failed: see $OUT/build.log"; exit 1; }
stage loads 60 "$PYTHON" -c "
import torch, fastconv
from fastconv import _ops
print('fastconv', fastconv.__file__, '; CUDA kernels:', _ops.cuda_refusal or 'in use')
raise SystemExit('$DEVICE' == 'cuda' and _ops.cuda_refusal is not None)" || exit 1

# ---- correctness of the operators on the device -----------------------------------------------------------------------------------
workers=()
has xdist && workers=(-n "$((MAX_JOBS < 8 ? MAX_JOBS : 8))")
run_tests() { # name limit files...
  local name=$1 limit=$2
  shift 2
  stage "$name" "$limit" "$PYTHON" -m pytest -q --no-header -rf -p no:cacheprovider --junitxml="$OUT/$name.xml" "${workers[@]}" -k "$DEVICE" "$@"
}
operators=(tests/test_depthwise.py tests/test_separable.py tests/test_pooling.py tests/test_shift_stitch.py tests/test_cuda_operators.py tests/test_opcheck.py)
run_tests operators 130 "${operators[@]}"
run_tests gradients 60 tests/test_autograd.py

# ---- ceilings and the quick grid --------------------------------------------------------------------------------------------------
# Cases are written to result.json one by one: what was measured when the limit comes is reported.
only=()
[[ $DEVICE == cpu ]] && only=(--only "${FASTCONV_ONLY:-depthwise-forward-float32/convnext}")
stage grid 200 "$PYTHON" -m bench --quick --device "$DEVICE" --out "$OUT/quick" "${only[@]}"
if [[ -s $OUT/quick/result.json && ! -s $OUT/quick/table.md ]]; then
  stage report 40 "$PYTHON" -m bench report "$OUT/quick/result.json"
fi

# ---- the rest, as far as time goes ------------------------------------------------------------------------------------------------
ignored=()
# Done above, or no matter of this machine's GPU: host-run kernels, compilers, this script itself.
for file in "${operators[@]}" tests/test_autograd.py tests/test_{cuda_host,cuda_host_plants,cuda_compiled,triton_ahead,triton_launch,triton_plants,gpu_script}.py; do ignored+=("--ignore=$file"); done
run_tests rest 120 tests "${ignored[@]}"
[[ $DEVICE == cuda ]] && stage tuning 120 "$PYTHON" -m bench --quick --out "$OUT/tuning.json" tune

rm -rf "$OUT/cache"
echo "results are in $OUT after $SECONDS s"
cat "$STAGES"
exit $failed
