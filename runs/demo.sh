#!/usr/bin/env bash
# The whole loop on this machine, without a GPU, an account or a hub: five minutes on two cores, after the installation.
#
# Run as: make demo (which installs first), or copy the commands into a shell, one by one.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
rm -rf runs/demo runs/demo-gguf # an earlier demo's
set -v

# 1 of 4: four minutes of training
iris train --minutes 4 --out runs/demo
# 2 of 4: a GGUF file of it, a quarter of a minute
iris export --run runs/demo --out runs/demo-gguf
# 3 of 4: one request to the base, to the model just trained, and to the voice that comes with the clone
iris poem "a baker who overslept" --form limerick --seed 7 --model smollm2
iris poem "a baker who overslept" --form limerick --seed 7 --model runs/demo-gguf/*-Q8_0.gguf
iris poem "a baker who overslept" --form limerick --seed 7
# 4 of 4: did it get better? The held-out verses, half a minute
iris evaluate --tasks poetry_verses --adapter runs/demo/adapter --out results/demo
iris compare results/demo/base.json results/demo/demo.json

set +v
echo
echo "Loss curve: runs/demo/loss.png. Records: results/demo. Open the room with both voices:"
echo "  IRIS_MODEL=$(echo runs/demo-gguf/*-Q8_0.gguf) IRIS_BASE=smollm2 .venv/bin/python app.py"
