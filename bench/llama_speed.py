"""How fast: training by method and size on this GPU, reading and writing by size on this machine's cores, on random
weights of the Llama-3 shapes. Each measurement runs in a process of its own and is kept as soon as it is there.

Run as:  python bench/llama_speed.py train --tokenizer DIR --out results/speed-train.json
    python bench/llama_speed.py train --tokenizer DIR --as-t4 --steps 200 --set batch_size=1 --out results/speed-t4.json
    python bench/llama_speed.py train --tokenizer DIR --peer u-lora-bs=16-ga=1-gc=0-pack=1-cudnn=0 --out ...
    python bench/llama_speed.py train --tokenizer DIR --beside "try.py addmm" --out ...
    python bench/llama_speed.py infer --tokenizer DIR --out results/speed-infer.json

What bounds writing is that every token reads all of the weights: beside each speed stands the share of the memory
bandwidth, measured in the same run, that it takes. --beside: a script that changes something in `iris` and then runs it
(`iris.cli.main` with the words that follow), measured beside the present one; five that were never run on a GPU are in
the history (`git show 2e812cf:bench/tries.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from random_llama import SHAPES, keep, make_model, write_rows

from iris import cli, recipe, record
from iris.poetry.poet import SPIN, cores

QUANTS = ("q4_0", "q8_0")
T4_GB = 15.0


def run(*words: str) -> str:
    """What Python printed, run with these words; ends this script if that fails."""
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"`{' '.join(words)}` failed with exit code {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def train(args: argparse.Namespace, scratch: Path, result: record.Record) -> None:
    """`iris train` by every method on every shape, and the peers on the 1B."""
    from iris.model import hardware

    result.settings = {"device": hardware.device_name(), "as_t4": args.as_t4, "steps": args.steps, "set": args.set}
    settings = [word for setting in args.set for word in ("--set", setting)]
    asked = recipe.make(args.set, data="rows.jsonl")
    tokens = args.steps * asked.batch_size * asked.max_length
    rows = write_rows(args.tokenizer, scratch / "rows.jsonl", tokens // 500 + 100)
    doors = {"iris": [__file__, "as-t4"] if args.as_t4 else ["-m", "iris"]}
    doors |= {f"iris, {each}": each.split() for each in args.beside}
    for shape in args.shapes.split(","):
        model = make_model(shape, args.tokenizer, scratch / f"llama-{shape}-random")
        for method, (who, door) in product(args.methods.split(","), doors.items()):
            out = scratch / f"{shape}-{method}-{who}"
            words = ["train", "--model", str(model), "--method", method, "--data", str(rows), "--out", str(out)]
            try:
                run(*door, *words, "--max-steps", str(args.steps), *settings)
            except SystemExit as failed:  # a change that fails here is no reason to leave the others
                if who == "iris":
                    raise
                print(f"{who}, {method}: {failed}", flush=True)
                continue
            made = record.read(out / "record.json")
            told = {"who": who, "shape": shape, "method": method, "precision": made.settings["precision"]}
            keep(result, args.out, told | made.measures | {"plan": made.settings["plan"]})
        for peer in args.peer if shape == "1b" else []:
            script = str(Path(__file__).with_name("peer_training.py"))
            printed = run(script, "--tokenizer", str(args.tokenizer), "--model", str(model), peer)
            got = json.loads(printed.strip().splitlines()[-1])
            speed = {"steady_tokens_per_s": got.pop("tokens_per_s"), "peak_memory_gb": got.pop("peak_GB")}
            keep(result, args.out, {"who": peer, "shape": shape} | speed | got)


def infer(args: argparse.Namespace, scratch: Path, result: record.Record) -> None:
    """The room's engine on a GGUF of every shape and quantization."""
    from iris.export import gguf

    bandwidth = read_bandwidth()
    result.settings = {"device": f"{cores()} cores", "threads": cores(), "prompt_tokens": 256, "written_tokens": 64}
    result.measures["bandwidth_gb_per_s"] = round(bandwidth, 1)
    for shape, quant in product(args.shapes.split(","), QUANTS):
        model = make_model(shape, args.tokenizer, scratch / f"llama-{shape}-random")
        path = scratch / f"llama-{shape}-random-{quant.upper()}.gguf"
        gguf.write(model, path, quant, path.stem)
        got = json.loads(run(__file__, "engine", str(path)).splitlines()[-1])
        size = path.stat().st_size / 1e9
        share = round(got["generation_tokens_per_s"] * size / bandwidth, 3)
        row = {"who": "xllamacpp", "shape": shape, "quant": quant, "file_gb": round(size, 3)}
        keep(result, args.out, row | got | {"bandwidth_ratio": share})
        path.unlink()


def read_bandwidth() -> float:
    """GB/s at which all cores together read memory: the best of five sums over a GB."""
    parts, best = np.array_split(np.ones(125_000_000), cores()), math.inf
    with ThreadPoolExecutor(cores()) as pool:
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - began)
    return 1 / best


def engine(path: str) -> None:
    """Load the GGUF here and print its measures as JSON: the best of three prompts of 256 tokens and 64 written ones,
    one at a time; peak_memory_gb has the mapped file in it."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    import xllamacpp

    began = time.perf_counter()
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity, params.port = path, 512, -1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores()
    params.fit_params = False
    server = xllamacpp.Server(params)
    measures = {"load_seconds": round(time.perf_counter() - began, 2)}
    rng, timings = np.random.default_rng(0), []
    for _ in range(3):
        prompt = rng.integers(1000, 20000, 256).tolist()
        body = {"prompt": prompt, "n_predict": 64, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
        timings.append(server.handle_completions(body)["timings"])
    measures["prompt_tokens_per_s"] = round(max(each["prompt_per_second"] for each in timings), 1)
    measures["generation_tokens_per_s"] = round(max(each["predicted_per_second"] for each in timings), 1)
    print(json.dumps(measures | {"peak_memory_gb": record.peak_memory_gb()}))


def as_t4(words: list[str]) -> int:
    """Run `iris` here with this GPU taken for one without bf16 and FlashAttention, and with 15 GB."""
    import torch

    from iris.model import hardware

    hardware.is_ampere = lambda: False
    torch.backends.cuda.enable_flash_sdp(False)
    torch.cuda.set_per_process_memory_fraction(T4_GB * 1e9 / torch.cuda.get_device_properties(0).total_memory)
    return cli.main(words)


def main() -> None:
    if sys.argv[1:2] == ["engine"]:
        return engine(sys.argv[2])
    if sys.argv[1:2] == ["as-t4"]:
        sys.exit(as_t4(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "infer"])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", default="1b", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--methods", default=",".join(recipe.METHODS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of the recipe")
    parser.add_argument("--peer", action="append", default=[], metavar="MODE", help="of peer_training.py, beside ours")
    parser.add_argument("--as-t4", action="store_true")
    parser.add_argument("--beside", action="append", default=[], metavar="'SCRIPT WORD...'", help="in place of -m iris")
    args = parser.parse_args()
    model = {"id": f"random weights, Llama-3 shapes: {args.shapes}", "revision": None, "digest": None}
    result = record.Record("speed", args.out.stem, model, "stopped", measures={"rows": []})
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        (train if args.what == "train" else infer)(args, Path(scratch), result)
    result.status = "finished"
    record.write(result, args.out)


if __name__ == "__main__":
    main()
