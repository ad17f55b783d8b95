"""How long the four benchmarks take on this GPU: of one random 1B, and of a base with three adapters in one process.

Run as:  python bench/evaluation.py --tokenizer DIR --data-dir DIR --out results/speed/evaluate.json

`start_seconds` is from the command to the first batch of the first task, everything imported and loaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from random_llama import keep, make_model

from iris import record

ADAPTERS = 3


def make_adapters(model: Path, folder: Path) -> list[Path]:
    """Rank-16 LoRA adapters of the model with random numbers in them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    adapted = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    made = []
    for number in range(ADAPTERS):
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.002)
        made.append(folder / f"adapter-{number}")
        adapted.save_pretrained(str(made[-1]))
    return made


def evaluate(who: str, words: list[str], out: Path) -> dict[str, Any]:
    """`iris evaluate` with these words in a process of its own: its seconds, and those of each task and model."""
    began, started = time.monotonic(), 0.0
    command = [sys.executable, "-m", "iris", "evaluate", *words, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stderr or ():  # tqdm ends its bars with \r, which is a line here
            if "Scoring" in line and not started:
                started = time.monotonic() - began
            elif "running" in line or "rror" in line:
                print(line.rstrip(), file=sys.stderr, flush=True)
    if running.returncode:
        sys.exit(f"`{' '.join(command)}` failed with exit code {running.returncode}")
    seconds = round(time.monotonic() - began, 1)
    row: dict[str, Any] = {"who": who, "seconds": seconds, "start_seconds": round(started, 1)}
    for path in sorted(out.glob("*.json")) if out.is_dir() else [out]:
        tasks = record.read(path).tasks
        row[path.stem] = {name: {"value": one["value"], "seconds": one["seconds"]} for name, one in tasks.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--tasks", default="hellaswag,arc_challenge,mmlu_stem,truthfulqa_mc2")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    from iris.model import hardware

    model_id = {"id": "random weights, Llama-3.2-1B's shape", "revision": None, "digest": None}
    result = record.Record("speed", args.out.stem, model_id, "stopped", measures={"rows": []})
    result.settings = {"device": hardware.device_name(), "tasks": args.tasks}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = make_model("1b", args.tokenizer, folder / "llama-1b-random")
        words = ["--model", str(model), "--tasks", args.tasks, "--data-dir", args.data_dir]
        keep(result, args.out, evaluate("base", words, folder / "alone.json"))
        words += [word for each in make_adapters(model, folder) for word in ("--adapter", str(each))]
        keep(result, args.out, evaluate(f"base and {ADAPTERS} adapters", words, folder / "together"))
    result.status = "finished"
    record.write(result, args.out)


if __name__ == "__main__":
    main()
