"""How fast: training speed by method and model size, on random weights of the exact shapes of the Llama-3 family.

    iris speed train --tokenizer DIR --out results/speed-train.json
    iris speed train --tokenizer DIR --as-t4 --steps 200 --set batch_size=1 --out results/speed-t4.json
    iris speed train --tokenizer DIR --peer u-lora-bs=16-ga=1-gc=0-pack=1-cudnn=0 --out ...    # beside Unsloth, say

Every method runs through the same `train.fit` as `iris train`, each in a process of its own. The rows follow
bench/peer_training.py: lengths log-normal with median 403 tokens, cut at 2,000, 580 on average.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import hardware, recipe, record
from .errors import InputError, RunError

SHAPES: dict[str, dict[str, Any]] = {  # the models' own config.json: hidden, inner, layers, heads, head_dim, tied
    name: dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
                    "tie_word_embeddings"), numbers, strict=True))
    for name, numbers in {
        "1b": (2048, 8192, 16, 32, 64, True),
        "3b": (3072, 8192, 28, 24, 128, True),
        "8b": (4096, 14336, 32, 32, 128, False),
    }.items()
}  # fmt: skip
PEER = Path(__file__).resolve().parents[2] / "bench" / "peer_training.py"
T4_GB = 15.0


def shape_config(shape: str) -> Any:
    """transformers' configuration of a Llama-3 shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPES[shape],
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        bos_token_id=128000,
        eos_token_id=[128001, 128008, 128009],
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0 if shape == "8b" else 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )


def make_model(shape: str, tokenizer: Path, folder: Path, seed: int = 0) -> Path:
    """A Hugging Face folder with bf16 random weights of a Llama-3 shape and the given tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    if (folder / "config.json").exists():
        return folder
    config = shape_config(shape)
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(hardware.device()):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def make_rows(tokenizer: Path, path: Path, count: int, seed: int = 0) -> Path:
    """`count` chat rows of random words, a fifth of each in the question, as ShareGPT JSON Lines."""
    from transformers import AutoTokenizer

    reader = AutoTokenizer.from_pretrained(tokenizer)
    chance = random.Random(seed)
    pieces = [str(reader.decode([token])) for token in range(1000, 20000)]
    words = [piece for piece in pieces if piece.startswith(" ") and piece.strip().isalpha()]

    def say(speaker: str, length: int) -> dict[str, str]:
        return {"from": speaker, "value": "".join(chance.choices(words, k=length))}

    with open(path, "w", encoding="utf-8") as handle:
        for _ in range(count):
            length = max(32, min(2000, int(chance.lognormvariate(6.0, 0.7))))
            asked = max(8, length // 5)
            row = {"conversations": [say("human", asked), say("gpt", length - asked)]}
            handle.write(json.dumps(row) + "\n")
    return path


def train_speed(
    shapes: list[str],
    methods: list[str],
    tokenizer: Path,
    out: Path,
    steps: int = 30,
    settings: list[str] | None = None,
    peers: list[str] | None = None,
    as_t4: bool = False,
) -> record.Record:
    """Measure and write one record of kind "speed"; `measures` holds {"rows": [one a run]}. `as_t4` imitates a T4: no
    bf16, no FlashAttention, 15 GB of memory. Peers are modes of bench/peer_training.py (1b only)."""
    if not (tokenizer / "tokenizer.json").exists():
        raise InputError(f"{tokenizer} has no tokenizer.json; give a folder with a Llama-3 tokenizer")
    for method in methods:
        recipe.one_of(method, recipe.METHODS, "method")
    result = record.Record(
        kind="speed",
        name=out.stem,
        status="stopped",
        model={"id": "random weights, Llama-3 shapes: " + ", ".join(shapes), "revision": None, "digest": None},
        settings={"device": hardware.device_name(), "as_t4": as_t4, "steps": steps, "set": settings or []},
        measures={"rows": []},
    )

    def keep(row: dict[str, Any]) -> None:
        result.measures["rows"].append(row)
        record.write(result, out)  # what is measured is kept, whatever the next run does
        print(json.dumps({key: value for key, value in row.items() if key != "losses"}), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        tokens = steps * recipe.make(settings, data="rows.jsonl").tokens_per_step
        rows = make_rows(tokenizer, Path(scratch) / "rows.jsonl", int(tokens / 500) + 100)
        for shape in shapes:
            recipe.one_of(shape, list(SHAPES), "shape")
            model = make_model(shape, tokenizer, Path(scratch) / f"llama-{shape}-random")
            for method in methods:
                run = Path(scratch) / f"{shape}-{method}"
                command = [sys.executable, "-m", "iris.speed", "one", "--model", str(model), "--method", method]
                command += ["--data", str(rows), "--run", str(run), "--steps", str(steps)]
                command += ["--as-t4"] * as_t4 + [f"--set={setting}" for setting in settings or []]
                _run(command)
                keep({"who": "iris", "shape": shape, "method": method} | _row(run / "record.json"))
            for peer in (peers or []) if shape == "1b" else []:
                told = _run([sys.executable, str(PEER), "--tokenizer", str(tokenizer), "--model", str(model), peer])
                got = json.loads(told.strip().splitlines()[-1])
                speed = {"steady_tokens_per_s": got.pop("tokens_per_s"), "peak_memory_gb": got.pop("peak_GB")}
                keep({"who": peer, "shape": shape} | speed | got)
    result.status = "finished"
    record.write(result, out)
    return result


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunError(f"`{' '.join(command[1:])}` failed with exit code {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def _row(path: Path) -> dict[str, Any]:
    run = record.read(path)
    return run.measures | {"precision": run.settings["precision"], "plan": run.settings["plan"]}


def imitate_t4() -> None:
    """Take this GPU for one without bf16 and FlashAttention, and with 15 GB."""
    import torch

    hardware.is_ampere = lambda: False
    torch.backends.cuda.enable_flash_sdp(False)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(T4_GB * 1e9 / total)


def one_run(args: argparse.Namespace) -> None:
    """One method in this process: `iris train` with a fixed number of steps."""
    if args.as_t4:
        imitate_t4()
    asked = recipe.make(args.set, model=args.model, method=args.method, data=args.data, max_steps=args.steps)
    from . import model, train

    model.prepare(asked)
    train.fit(asked, args.run)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m iris.speed", description="One run of `iris speed train`.")
    one = parser.add_subparsers(required=True).add_parser("one")
    one.add_argument("--model", required=True)
    one.add_argument("--method", required=True)
    one.add_argument("--data", required=True)
    one.add_argument("--run", type=Path, required=True)
    one.add_argument("--steps", type=int, required=True)
    one.add_argument("--as-t4", action="store_true")
    one.add_argument("--set", action="append")
    one_run(parser.parse_args())


if __name__ == "__main__":
    main()
