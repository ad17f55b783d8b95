"""The notebooks 1_train and 2_evaluate on this machine's GPU, for all three methods, with SmolLM2 and with random
weights of Llama-3.2-1B's shape. One record, written anew after each part; a part that fails is told, the next begins.

    python bench/notebooks_gpu.py --tokenizer DIR --data-dir DIR --out results/notebooks-h100.json

No Jupyter is needed, only IPython, whose `display` prints what a notebook would show: the cells of the paired .py
files run from top to bottom in a plain process, all as they are but for the names in the cell of choices. The trainings
run one after the other in one process; the evaluations then run all at once, each in a process (and, as everywhere,
lm-eval in one of its own), and read local benchmark files.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from iris import record
from iris.recipe import METHODS

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("smollm2", "llama-1b-random")
MARK = "part of notebooks_gpu: "  # a child's line that is a row of the record


def cells(notebook: str) -> list[str]:
    """The code cells of a paired .py file."""
    parts = (ROOT / "notebooks" / f"{notebook}.py").read_text(encoding="utf-8").split("\n# %%")
    return [part.partition("\n")[2] for part in parts[1:] if not part.startswith(" [markdown]")]


def execute(notebook: str, choices: dict[str, Any]) -> dict[str, Any]:
    """Run all cells with other `choices`; the names they leave. The install cell does nothing, as Iris is here."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(notebook):
        exec(compile(cell, notebook, "exec"), names)
        if cell.startswith("# Your choices"):
            assert choices.keys() <= names.keys(), f"{notebook} has no choice called one of {', '.join(choices)}"
            names |= choices
    return names


def part(notebook: str, model: str, method: str, args: argparse.Namespace) -> None:
    """Run one notebook in the folder of its model and method, and print its row."""
    folder = args.scratch / f"{model}-{method}"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    row: dict[str, Any] = {"notebook": notebook, "model": model, "method": method, "status": "finished"}
    choices = {"model": model if model == "smollm2" else str(args.scratch / model), "method": method, "data": args.data}
    choices |= {"minutes": args.minutes} | ({"limit": args.limit} if notebook == "2_evaluate" else {})
    began = time.monotonic()
    try:
        row |= (trained if notebook == "1_train" else scored)(execute(notebook, choices))
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}".replace(str(args.scratch), "SCRATCH")
        row |= {"status": "failed", "error": said[:400]}
    print("\n" + MARK + json.dumps(row | {"seconds": round(time.monotonic() - began, 1)}), flush=True)


def trained(names: dict[str, Any]) -> dict[str, Any]:
    run = names["run"]
    told = ("steps", "tokens", "tokens_per_s", "steady_tokens_per_s", "peak_memory_gb", "loss_first", "loss_last")
    return {key: run.measures[key] for key in told} | {key: run.settings[key] for key in ("precision", "plan")}


def scored(names: dict[str, Any]) -> dict[str, Any]:
    base, tuned = (record.read(names[name]) for name in ("base", "tuned"))
    scores = {
        task: {"metric": one["metric"], "base": base.tasks[task]["value"], "tuned": one["value"], "n": one["n"]}
        for task, one in tuned.tasks.items()
    }
    seconds = {name: one.measures["wall_seconds"] for name, one in (("base", base), ("tuned", tuned))}
    return {"peak_memory_gb": tuned.measures["peak_memory_gb"], "wall_seconds": seconds, "scores": scores}


def child(args: argparse.Namespace) -> None:
    """All trainings (`--child 1_train`), or one evaluation (`--child 2_evaluate MODEL METHOD`)."""
    notebook, *which = args.child
    import torch

    from iris import evaluate, hardware, speed

    print("\n" + MARK + json.dumps({"device": hardware.device_name()}), flush=True)
    if notebook == "2_evaluate":
        evaluate.evaluate = partial(evaluate.evaluate, data_dir=args.data_dir)
        model, method = which
        part(notebook, model, method, args)
        return
    for model in args.models:
        if model == "llama-1b-random":
            speed.make_model("1b", args.tokenizer, args.scratch / model)
        for method in args.methods:
            part(notebook, model, method, args)
            gc.collect()  # what the last notebook held, so that the next one's peak is its own
            torch.compiler.reset()
            if hardware.device() == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()


def start(command: list[str], take: Callable[[dict[str, Any]], None]) -> None:
    """Run a child; `take` gets its rows, the screen the rest."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(MARK):
                take(json.loads(line.removeprefix(MARK)))
            print(line, end="", flush=True)
    if process.returncode:
        take({"status": "failed", "error": f"{command[-3:]} ended with code {process.returncode}"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="a folder with Llama-3's tokenizer, for the random weights")
    parser.add_argument("--data-dir", type=Path, required=True, help="local benchmark files, as of `iris evaluate`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="verses", help="what 1_train trains on: a name or a file")
    parser.add_argument("--minutes", type=float, default=0.25, help="of each training")
    parser.add_argument("--limit", type=int, default=16, help="items a task")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.data_dir = args.data_dir.resolve()
    args.tokenizer = args.tokenizer and args.tokenizer.resolve()
    args.data = str(Path(args.data).resolve()) if Path(args.data).is_file() else args.data
    if args.child:
        child(args)
        return
    result = record.Record(
        kind="speed",
        name=args.out.stem,
        model={"id": ", ".join(args.models), "revision": None, "digest": None},
        settings={"data": Path(args.data).name, "minutes": args.minutes, "limit": args.limit},
        measures={"rows": []},
        note="The code cells of the paired .py files in a plain python process, without Jupyter; the install cell "
        "finds Iris and does nothing. All trainings one after the other in one process, then all evaluations at once: "
        "their seconds are those of a shared GPU. The benchmarks come from local files.",
    )
    began = time.monotonic()

    def take(row: dict[str, Any]) -> None:
        if "device" in row:
            result.settings |= row
            return
        result.measures["rows"].append(row)
        result.measures["wall_seconds"] = round(time.monotonic() - began, 1)
        record.write(result, args.out)

    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--tokenizer", str(args.tokenizer), "--data-dir", str(args.data_dir)]
        command += ["--out", str(args.out), "--data", args.data, "--minutes", str(args.minutes), "--scratch", scratch]
        command += ["--limit", str(args.limit), "--models", *args.models, "--methods", *args.methods]
        start([*command, "--child", "1_train"], take)
        pairs = [(model, method) for model in args.models for method in args.methods]
        with ThreadPoolExecutor(len(pairs)) as pool:
            list(pool.map(lambda pair: start([*command, "--child", "2_evaluate", *pair], take), pairs))
    rows = result.measures["rows"]
    result.measures["rows"] = sorted(rows, key=lambda row: (row.get("notebook", ""), row.get("model", "")))
    result.status = "finished" if all(row["status"] == "finished" for row in rows) else "failed"
    record.write(result, args.out)
    print(f"{result.status}: {args.out}, {result.measures['wall_seconds']:.0f} s")


if __name__ == "__main__":
    main()
