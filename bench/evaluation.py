"""The four complete benchmarks of a random model of Llama-3.2-1B's shape, timed on this GPU: `iris evaluate` beside the
plain `lm_eval --model hf --batch_size auto`, one after the other, each in a fresh process.

    python bench/evaluation.py --tokenizer DIR --data-dir DIR --out results/speed/evaluate-h100.json

The plain command reads the same local files: `datasets.load_dataset` answers it from there, nothing else is changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from iris import benchmarks, hardware, record, speed
from iris.evaluate import METRIC

TASKS = list(benchmarks.DATA)


def plain(model: str, data_dir: str, out: str) -> None:
    """lm_eval's own command, in this process."""
    from lm_eval.__main__ import cli_evaluate

    benchmarks._use_local_data(data_dir)
    arguments = ["run", "--model", "hf", "--model_args", f"pretrained={model},dtype=bfloat16"]
    arguments += ["--tasks", ",".join(TASKS), "--batch_size", "auto", "--device", "cuda", "--output_path", out]
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plain", nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        plain(args.plain[0], args.data_dir, args.plain[1])
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = speed.make_model("1b", args.tokenizer, Path(scratch) / "llama-1b-random")
        begin = time.monotonic()
        ours = Path(scratch) / "ours.json"
        command = [sys.executable, "-m", "iris", "evaluate", "--model", str(model), "--tasks", ",".join(TASKS)]
        subprocess.run([*command, "--data-dir", args.data_dir, "--out", str(ours)], check=True)
        tasks = record.read(ours).tasks
        each = {task: {"value": tasks[task]["value"], "n": tasks[task]["n"], "seconds": tasks[task]["seconds"]}
                for task in TASKS}  # fmt: skip
        rows.append({"who": "iris", "seconds": round(time.monotonic() - begin, 1), "tasks": each})
        print(json.dumps(rows[-1]), flush=True)
        begin = time.monotonic()
        folder = Path(scratch) / "plain"
        command = [sys.executable, __file__, "--data-dir", args.data_dir, "--plain", str(model), str(folder)]
        subprocess.run(command, check=True)
        seconds = round(time.monotonic() - begin, 1)
        (told,) = folder.rglob("results_*.json")
        results = json.loads(told.read_text())["results"]
        each = {task: {"value": results[task][METRIC[task] + ",none"]} for task in TASKS}
        rows.append({"who": "lm_eval --batch_size auto", "seconds": seconds, "tasks": each})
        print(json.dumps(rows[-1]), flush=True)
    result = record.Record(
        kind="speed",
        name=args.out.stem,
        status="finished",
        model={"id": "random weights, Llama-3.2-1B's shape", "revision": None, "digest": None},
        settings={"device": hardware.device_name(), "precision": "bf16"},
        measures={"rows": rows},
    )
    record.write(result, args.out)


if __name__ == "__main__":
    main()
