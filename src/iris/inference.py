"""How fast a GGUF model is read, reads and writes on this machine's cores, and so which size to choose for what.

    iris speed infer --tokenizer DIR --out results/speed-infer.json

Files of the exact shapes of the Llama-3 family are written with random weights, measured, each in a process of its own,
and deleted. What bounds generation is that every token reads all of the weights: beside each speed stands the share of
the memory bandwidth, measured in the same run, that it takes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import gguf_file, record
from .errors import InputError, RunError
from .gguf_file import Planned, Type
from .poet import SPIN, cores
from .recipe import one_of
from .speed import SHAPES, shape_config

QUANTS = ("q4_0", "q8_0")


def infer_speed(shapes: list[str], tokenizer: Path, out: Path, quants: tuple[str, ...] = QUANTS) -> record.Record:
    """Measure every shape in every quantization and write one record of kind "speed"; `measures` holds {"rows": [one a
    file], "bandwidth_gb_per_s"}. InputError for an unknown shape or a folder without a tokenizer."""
    if not (tokenizer / "tokenizer.json").exists():
        raise InputError(f"{tokenizer} has no tokenizer.json; give a folder with a Llama-3 tokenizer")
    for shape in shapes:
        one_of(shape, list(SHAPES), "shape")
    bandwidth, rows = read_bandwidth(), []
    for shape in shapes:
        for quant in quants:
            with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
                path = write_random(shape, quant, tokenizer, Path(scratch))
                row: dict[str, Any] = {
                    "who": "xllamacpp",
                    "shape": shape,
                    "quant": quant,
                    "file_gb": path.stat().st_size / 1e9,
                }
                row |= in_fresh_process(path)
                row["bandwidth_ratio"] = row["generation_tokens_per_s"] * row["file_gb"] / bandwidth
            rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
            print(json.dumps(rows[-1]), flush=True)
    result = record.Record(
        kind="speed",
        name=out.stem,
        status="finished",
        model={"id": "random weights, Llama-3 shapes: " + ", ".join(shapes), "revision": None, "digest": None},
        settings={"device": f"{cores()} cores", "threads": cores(), "prompt_tokens": 256, "written_tokens": 64},
        measures={"rows": rows, "bandwidth_gb_per_s": round(bandwidth, 1)},
    )
    record.write(result, out)
    return result


def read_bandwidth(size: int = 1 << 30, tries: int = 5) -> float:
    """GB/s at which all cores together read memory: the best of some sums over `size` bytes each."""
    from concurrent.futures import ThreadPoolExecutor

    parts = np.array_split(np.ones(size // 8), cores())
    best = math.inf
    with ThreadPoolExecutor(cores()) as pool:
        for _ in range(tries):
            began = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - began)
    return size / best / 1e9


def write_random(shape: str, quant: str, tokenizer: Path, folder: Path) -> Path:
    """A GGUF of a Llama-3 shape with random weights and the given tokenizer, in `folder`."""
    config = shape_config(shape)
    config.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).symlink_to((tokenizer / file).resolve())
    noise = np.random.default_rng(0).standard_normal((1 << 20) + 1, np.float32) * np.float32(0.02)
    wide, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (wide,),
        "attn_q": (queries, wide),
        "attn_k": (keys, wide),
        "attn_v": (keys, wide),
    }
    block |= {"attn_output": (wide, queries), "ffn_norm": (wide,), "ffn_gate": (inner, wide), "ffn_up": (inner, wide)}
    block |= {"ffn_down": (wide, inner)}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, wide)}
    for layer in range(config.num_hidden_layers):
        shapes |= {f"blk.{layer}.{name}.weight": each for name, each in block.items()}
    shapes |= {"output_norm.weight": (wide,)}
    if not config.tie_word_embeddings:
        shapes["output.weight"] = (config.vocab_size, wide)
    tied, layers = config.tie_word_embeddings, config.num_hidden_layers
    factors = gguf_file.rope_factors(gguf_file.read_json(folder / "config.json"))
    tensors = [Planned("rope_freqs.weight", Type.F32, (dim // 2,), lambda: np.asarray(factors))]
    for name, each in shapes.items():
        kind = gguf_file.choose(name, each, quant, layers, tied)
        fill = (lambda each=each: np.ones(each, np.float32)) if len(each) == 1 else (lambda e=each: np.resize(noise, e))
        tensors.append(Planned(name, kind, each, fill))
    path = folder / f"llama-{shape}-random-{quant.upper()}.gguf"
    gguf_file.write_tensors(tensors, folder, path, quant, path.stem)
    return path


def in_fresh_process(path: Path) -> dict[str, float]:
    """`engine_speed` in a process of its own, so that its memory is its own. RunError if it fails."""
    command = [
        sys.executable,
        "-c",
        "import sys; from iris import inference; inference.print_speed(sys.argv[1])",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"the engine failed on {path}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def print_speed(path: str) -> None:
    """Load the GGUF and print, as JSON: load_seconds, prompt and generation tokens/s (best of three, a prompt of 256
    tokens and 64 written ones, one request at a time) and peak_memory_gb (the mapped file included)."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    import xllamacpp

    began = time.perf_counter()
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity, params.port = path, 512, -1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores()
    params.fit_params = False
    server = xllamacpp.Server(params)
    measures = {"load_seconds": round(time.perf_counter() - began, 2)}
    rng = np.random.default_rng(0)
    timings = []
    for _ in range(3):
        prompt = rng.integers(1000, 20000, 256).tolist()
        body = {"prompt": prompt, "n_predict": 64, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
        timings.append(server.handle_completions(body)["timings"])
    measures["prompt_tokens_per_s"] = round(max(each["prompt_per_second"] for each in timings), 1)
    measures["generation_tokens_per_s"] = round(max(each["predicted_per_second"] for each in timings), 1)
    measures["peak_memory_gb"] = record.peak_memory_gb()
    print(json.dumps(measures))
