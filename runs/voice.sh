#!/usr/bin/env bash
# The voice that comes with Iris, on one GPU: train on the verses and the grown poems, learn from reward, then once more
# while its prose goes back to what it is after a few verses, measure, write the adapter's GGUF.
#
# Run as: runs/voice.sh (about a quarter of an hour on an H100, beside the benchmarks' download)
set -euo pipefail
cd "$(dirname "$0")/.."
set -x

iris train --data verses,grown --out runs/planner
iris train --data verses --rows 394 --plans 0 --batch-size 2 --out runs/verses
python bench/reward.py --run runs/planner --prose runs/planner/adapter --minutes 7 --out runs/rewarded
python bench/reward.py --run runs/rewarded --prose runs/verses/adapter --minutes 2.6 \
  --plans haiku=12,limerick=3,couplet=1,quatrain=2,sonnet=6 --out runs/voice
iris evaluate --adapter runs/voice/adapter --out results/mine/voice.json
iris export --run runs/voice --quant lora --out exports/voice
cp exports/voice/*-LoRA.gguf src/iris/poetry/voice.gguf
iris poem "the last bus home" --form limerick --seed 7
