#!/usr/bin/env bash
# The voice that comes with Iris, on one GPU: train on the verses and the grown poems, learn from reward, measure, write
# the adapter's GGUF.
#
# Run as: runs/voice.sh (about twelve minutes on an H100, beside the benchmarks' download)
set -euo pipefail
cd "$(dirname "$0")/.."
set -x

iris train --data verses,grown --out runs/planner
python bench/reward.py --run runs/planner --out runs/voice
iris evaluate --adapter runs/voice/adapter --out results/mine/voice.json
iris export --run runs/voice --quant lora --out exports/voice
cp exports/voice/*-LoRA.gguf src/iris/poetry/voice.gguf
iris poem "the last bus home" --form limerick --seed 7
