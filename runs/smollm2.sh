#!/usr/bin/env bash
# The rows of README's results: SmolLM2-135M-Instruct, trained by every method and measured on every task, on one GPU.
#
# Run as: runs/smollm2.sh CHAT BENCHMARKS, in an environment that has Iris. CHAT is a folder with three files of
# ShareGPT's form: gpteacher_roleplay.jsonl.gz (teknium1/GPTeacher, roleplay), open_assistant_trees_en.jsonl.gz
# (LAION-AI/Open-Assistant) and preference_chosen_en.jsonl.gz (hiyouga/DPO-En-Zh-20k, the chosen answers); BENCHMARKS has
# the four benchmarks. A run that fails is told and the others go on; the same command again makes what is missing.
set -uo pipefail
chat=$(realpath "$1") benchmarks=$(realpath "$2") results=$(realpath results)
creative=gpteacher_roleplay.jsonl.gz general=open_assistant+preference.jsonl.gz all=all_three.jsonl.gz
mkdir -p runs/smollm2 && cd runs/smollm2 || exit 1

cp "$chat/$creative" .
cat "$chat"/{open_assistant_trees_en,preference_chosen_en}.jsonl.gz > $general
python -c 'import json
from iris.poetry.verses import read_verses
for row in read_verses("train"): print(json.dumps(row, ensure_ascii=False))' | gzip -n | cat $creative $general - > $all

run() { # NAME METHOD DATA [--field value ...]: train, then measure
  local name=smollm2-$1 method=$2 data=$3
  shift 3
  [ -e "$name/adapter" ] || iris train --method "$method" --data "$data" --out "$name" --refuse "$benchmarks" "$@"
  [ -e "$name/adapter" ] || return
  cp "$name/record.json" "$results/$name-training.json"
  iris evaluate --adapter "$name/adapter" --data-dir "$benchmarks" --out "$results/$name.json"
}

iris evaluate --data-dir "$benchmarks" --out "$results/smollm2-base.json" # as it came
long="--num-train-epochs 2 --learning-rate 5e-4"
for seed in 3407 1 2; do
  suffix=$([ $seed = 3407 ] || echo "-seed$seed")
  run "verses-lora16$suffix" lora16 verses --seed $seed
  run "all-lora16$suffix" lora16 $all --seed $seed $long
done
run general-lora16 lora16 $general
run creative-lora16 lora16 $creative
for method in dora qlora; do
  run verses-$method $method verses
  run creative-$method $method $creative
done
