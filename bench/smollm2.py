"""The rows of README's results: SmolLM2-135M-Instruct, trained by every method and measured on every task, on GPUs.

    python bench/smollm2.py --chat DIR --data-dir DIR --out results [--gpus 0,1] [--only NAME,NAME]

DIR of --chat holds gpteacher_roleplay.jsonl.gz (teknium1/GPTeacher, roleplay), open_assistant_trees_en.jsonl.gz
(LAION-AI/Open-Assistant) and preference_chosen_en.jsonl.gz (hiyouga/DPO-En-Zh-20k, the chosen answers), all of
ShareGPT's form; DIR of --data-dir the four benchmarks. A GPU trains one run at a time, so that times can be compared,
and evaluates several at a time. A run that failed is told, and the others go on; the same command goes on with what is
missing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from iris.poetry.verses import read_verses

CREATIVE, GENERAL, ALL = "gpteacher_roleplay.jsonl.gz", "open_assistant+preference.jsonl.gz", "all_three.jsonl.gz"

# name: method, data, fields of the recipe. None: the base as it came.
RUNS: dict[str, tuple[str, str, list[str]] | None] = {
    "base": None,
    "verses-lora16": ("lora16", "verses", []),
    "all-lora16": ("lora16", ALL, ["num_train_epochs=2", "learning_rate=5e-4"]),
    "creative-lora16": ("lora16", CREATIVE, []),
    "general-lora16": ("lora16", GENERAL, []),
    "verses-dora": ("dora", "verses", []),
    "verses-qlora": ("qlora", "verses", []),
    "creative-dora": ("dora", CREATIVE, []),
    "creative-qlora": ("qlora", CREATIVE, []),
    "verses-lora16-seed1": ("lora16", "verses", ["seed=1"]),
    "verses-lora16-seed2": ("lora16", "verses", ["seed=2"]),
    "all-lora16-seed1": ("lora16", ALL, ["num_train_epochs=2", "learning_rate=5e-4", "seed=1"]),
    "all-lora16-seed2": ("lora16", ALL, ["num_train_epochs=2", "learning_rate=5e-4", "seed=2"]),
}


def make_data(chat: Path, work: Path) -> None:
    """The chat files, and those that are put together from them, in `work`. Only verses that train go in."""
    parts = {CREATIVE: [CREATIVE], GENERAL: ["open_assistant_trees_en.jsonl.gz", "preference_chosen_en.jsonl.gz"]}
    parts[ALL] = [*parts[CREATIVE], *parts[GENERAL]]
    for name, files in parts.items():
        text = b"".join(gzip.decompress((chat / file).read_bytes()) for file in files)
        if name == ALL:
            text += "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in read_verses("train")).encode()
        (work / name).write_bytes(gzip.compress(text, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chat", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/smollm2"), help="folder of the runs")
    parser.add_argument("--gpus", default="0", help="their numbers, comma-separated")
    parser.add_argument("--evaluations", type=int, default=5, help="at a time on one GPU")
    parser.add_argument("--only", help="names of RUNS, comma-separated")
    parser.add_argument("--max-steps", help="for a quick look")
    parser.add_argument("--limit", help="for a quick look")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(RUNS)
    out, data_dir, began = args.out.resolve(), args.data_dir.resolve(), time.monotonic()
    args.work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    make_data(args.chat, args.work)
    gpus = args.gpus.split(",")

    def iris(gpu: str, name: str, *words: str) -> bool:
        start = time.monotonic()
        with open(args.work / f"{name}-{words[0]}.log", "w") as log:
            command = [sys.executable, "-m", "iris", *words, "--model", "smollm2", "--data-dir", str(data_dir)]
            done = subprocess.run(
                command,
                cwd=args.work,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
            )
        now = time.monotonic()
        end = f"exit code {done.returncode}" if done.returncode else "done"
        print(f"{now - began:5.0f} s: {words[0]} {name}: {end} in {now - start:.0f} s", flush=True)
        return not done.returncode

    def train(gpu: str, name: str) -> None:
        method, data, settings = RUNS[name] or ("", "", [])
        if method and not (args.work / f"smollm2-{name}" / "adapter").exists():
            words = ["train", "--method", method, "--data", data, "--out", f"smollm2-{name}"]
            words += [f"--set={setting}" for setting in settings]
            iris(gpu, name, *words, *(["--max-steps", args.max_steps] if args.max_steps else []))
        if (args.work / f"smollm2-{name}" / "adapter").exists():
            shutil.copy(args.work / f"smollm2-{name}" / "record.json", out / f"smollm2-{name}-training.json")

    def evaluate(gpu: str, name: str) -> None:
        if (RUNS[name] is None or (args.work / f"smollm2-{name}" / "adapter").exists()) and not (
            out / f"smollm2-{name}.json"
        ).exists():
            words = ["evaluate", "--out", str(out / f"smollm2-{name}.json")]
            words += ["--adapter", f"smollm2-{name}/adapter"] if RUNS[name] else []
            iris(gpu, name, *words, *(["--limit", args.limit] if args.limit else []))

    def on_all_gpus(work: Callable[[str, str], None], at_a_time: int) -> None:
        waiting = list(reversed(names))

        def worker(gpu: str) -> None:
            while waiting:
                work(gpu, waiting.pop())

        workers = [threading.Thread(target=worker, args=(gpu,)) for gpu in gpus for _ in range(at_a_time)]
        for one in workers:
            one.start()
        for one in workers:
            one.join()

    on_all_gpus(train, 1)
    on_all_gpus(evaluate, args.evaluations)


if __name__ == "__main__":
    main()
