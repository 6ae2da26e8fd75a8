#!/usr/bin/env bash
# Measures forward pass and training step beside the peers on a machine with an NVIDIA GPU, into
# benchmarks/results/step_gpu.csv. All arguments go to step.py:
#   benchmarks/gpu.sh
#   benchmarks/gpu.sh --peers ours torch_compiled --rounds 3
#   benchmarks/gpu.sh --installed --peers ours torch_compiled keras_jax
# Needs Python 3.11 or later, the driver, and about 25 GB for the virtual environments, which stay
# in the cache folder (XDG_CACHE_HOME) for the next time. With --installed as the first argument
# nothing is installed: all contenders run in python3, with its packages.
set -euo pipefail

case "${1:-}" in
  -h | --help)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit
    ;;
esac
if ! command -v nvidia-smi > /dev/null; then
  echo "no nvidia-smi here; benchmarks/gpu.sh measures on a machine with an NVIDIA GPU" >&2
  exit 2
fi
cd "$(dirname "$0")/.."

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
if [ "${1:-}" = --installed ]; then
  shift
  command=(python3 -m benchmarks.step --installed)
else
  venvs="${XDG_CACHE_HOME:-$HOME/.cache}/xception_jax/benchmarks"
  ours="$venvs/ours_gpu"
  [ -x "$ours/bin/python" ] || python3 -m venv "$ours"
  "$ours/bin/pip" install --quiet -e '.[cuda]'
  command=("$ours/bin/python" -m benchmarks.step --venvs "$venvs")
fi

measure() {
  "${command[@]}" --platform gpu --dtype bfloat16 --output benchmarks/results/step_gpu.csv "$@"
}

if [ "$#" -gt 0 ]; then
  measure "$@"
  exit
fi
# All contenders of a work hold their memory at the same time: at a batch of 128 not all of them fit
# into 80 GB. A missing contender is named; the rows of the others are written.
measure --work forward:299:128 training:299:64 || missing=1
measure --append --work training:299:128 --peers ours keras_tf_xla torch torch_compiled || missing=1
exit "${missing:-0}"
