"""The four complete benchmarks of a random model of Llama-3.2-1B's shape, timed on this GPU: `iris evaluate` beside the
plain `lm_eval --model hf --batch_size auto`, one after the other, each in a fresh process.

    python bench/evaluation.py --tokenizer DIR --data-dir DIR --out results/speed/evaluate-h100.json
    python bench/evaluation.py --model smollm2 --data-dir DIR --out results/speed/evaluate-smollm2-h100.json
    python bench/evaluation.py --tokenizer DIR --data-dir DIR --tasks mmlu_stem --batch-sizes auto 8 --out ...

The last shows how far the plain command is from itself at another batch size. The plain command reads the same local
files: `datasets.load_dataset` answers it from there, nothing else is changed.
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
from iris.model import resolve

TASKS = list(benchmarks.DATA)
RANDOM = "random weights, Llama-3.2-1B's shape"


def plain(model: str, data_dir: str, tasks: list[str], batch_size: str, out: str) -> None:
    """lm_eval's own command, in this process."""
    from lm_eval.__main__ import cli_evaluate

    benchmarks._use_local_data(data_dir)
    arguments = ["run", "--model", "hf", "--model_args", f"pretrained={model},dtype=bfloat16"]
    arguments += ["--tasks", ",".join(tasks), "--batch_size", batch_size, "--device", "cuda", "--output_path", out]
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, help="a folder with Llama-3's tokenizer, for the random weights")
    parser.add_argument("--model", help="an alias or folder, instead of random weights")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--batch-sizes", nargs="+", default=["auto"], help="of the plain command, one run each")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plain", nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        plain(args.plain[0], args.data_dir, args.tasks, args.batch_sizes[0], args.plain[1])
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        random = Path(scratch) / "llama-1b-random"
        model = resolve(args.model or str(speed.make_model("1b", args.tokenizer, random)))
        begin = time.monotonic()
        ours = Path(scratch) / "ours.json"
        command = [sys.executable, "-m", "iris", "evaluate", "--model", model.path, "--tasks", ",".join(args.tasks)]
        subprocess.run([*command, "--data-dir", args.data_dir, "--out", str(ours)], check=True)
        tasks = record.read(ours).tasks
        each = {task: {"value": tasks[task]["value"], "n": tasks[task]["n"], "seconds": tasks[task]["seconds"]}
                for task in args.tasks}  # fmt: skip
        rows.append({"who": "iris", "seconds": round(time.monotonic() - begin, 1), "tasks": each})
        print(json.dumps(rows[-1]), flush=True)
        for batch_size in args.batch_sizes:
            begin = time.monotonic()
            folder = Path(scratch) / f"plain-{batch_size}"
            command = [sys.executable, __file__, "--data-dir", args.data_dir, "--tasks", *args.tasks]
            command += ["--batch-sizes", batch_size, "--plain", model.path, str(folder)]
            subprocess.run(command, check=True)
            seconds = round(time.monotonic() - begin, 1)
            (told,) = folder.rglob("results_*.json")
            results = json.loads(told.read_text())["results"]
            each = {task: {"value": results[task][METRIC[task] + ",none"]} for task in args.tasks}
            rows.append({"who": f"lm_eval --batch_size {batch_size}", "seconds": seconds, "tasks": each})
            print(json.dumps(rows[-1]), flush=True)
    result = record.Record(
        kind="speed",
        name=args.out.stem,
        status="finished",
        model=model.as_dict() if args.model else {"id": RANDOM, "revision": None, "digest": None},
        settings={"device": hardware.device_name(), "precision": "bf16"},
        measures={"rows": rows},
    )
    record.write(result, args.out)


if __name__ == "__main__":
    main()
