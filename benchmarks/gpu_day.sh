#!/usr/bin/env bash
# Everything that waits for a GPU, in one command of at most 37 minutes, resumable; ends with one table.
#
#     benchmarks/gpu_day.sh [OUTPUT]             # default: build/gpu_day; wants about 24 GB of GPU memory and 20 GB of disk
#     benchmarks/gpu_day.sh --tiny [OUTPUT]      # tiny shapes, on a CPU too, in minutes: does every step run?
#
# Steps: pytest -m gpu; speed of Qwen3's 0.6B, 1.7B and 4B (ours, the reference, the floor, RankGPT through
# transformers, isolated passages); memory of training 4B with LoRA; torch.compile and CUDA graphs. The same command
# goes on with what is not done; a step that fails or takes too long does not stop the others, and is tried again next
# time. OUTPUT, taken from the project's folder, gets table.md, the table, and *.log, what each step said.
set -uo pipefail
cd "$(dirname "$0")/.."
tiny=
if [ "${1:-}" = --tiny ]; then tiny=1 && shift; fi
output=${1:-build/gpu_day${tiny:+_tiny}}
mkdir -p "$output"
export PATH="$PWD/.venv/bin:$PATH"

step() { # step NAME SECONDS COMMAND...
  local name=$1 seconds=$2
  shift 2
  if [ -e "$output/$name.done" ]; then
    echo "$name: done before"
    return
  fi
  echo "$name: at most $seconds s: $*"
  local began=$SECONDS status=0
  timeout "$seconds" "$@" >"$output/$name.log" 2>&1 || status=$?
  local took=$((SECONDS - began))
  if [ $status = 0 ]; then
    echo "$took" >"$output/$name.done"
    rm -f "$output/$name.failed"
  else
    echo "status $status after $took s: $(tail -n 1 "$output/$name.log")" >"$output/$name.failed"
    echo "$name: failed, $(cat "$output/$name.failed")"
  fi
}

if [ "$tiny" ]; then
  shapes=tiny lora=(--shape tiny --lists 1 --repeat 1) speed=(--passages 3 --words 20 --repeats 1) lengths=(40 90)
else
  shapes="0.6b 1.7b 4b" lora=(--shape 4b) speed=(--passages 20 100 --repeats 3) lengths=(512 3000 15000)
fi
step tests 300 python -m pytest -q -m gpu tests/attention/test_gpu.py
for shape in $shapes; do
  step "speed-$shape" 360 python benchmarks/speed.py --shape "$shape" --ways acefgh "${speed[@]}" --output "$output/speed-$shape"
done
step lora 240 python benchmarks/learning_cost.py training "${lora[@]}"
for shape in $shapes; do
  step "compiled-$shape" 200 python benchmarks/compiled.py --shape "$shape" --tokens "${lengths[@]}" --output "$output/compiled-$shape.json"
done
python benchmarks/gpu_day_table.py "$output"
