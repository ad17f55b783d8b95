"""Peak memory of `iris export` on random weights of a Llama-3 shape with a random adapter, the recital included.

    python bench/export_memory.py 8b --tokenizer DIR --quant q8_0,q4_0 --out results/export-memory-8b.json

Base, merged weights and GGUF files lie in a scratch folder beside the record and are deleted: of the 8B 45 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from iris import record
from iris.merge import Tensor, header
from iris.speed import SHAPES, shape_config

RANK = 16


def shapes(shape: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the model's tensors."""
    config = SHAPES[shape]
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    yield "model.embed_tokens.weight", (128256, hidden)
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}."
        yield start + "input_layernorm.weight", (hidden,)
        yield start + "post_attention_layernorm.weight", (hidden,)
        for name, rows in (("q", hidden), ("k", 8 * dim), ("v", 8 * dim)):
            yield f"{start}self_attn.{name}_proj.weight", (rows, hidden)
        yield start + "self_attn.o_proj.weight", (hidden, hidden)
        yield start + "mlp.gate_proj.weight", (inner, hidden)
        yield start + "mlp.up_proj.weight", (inner, hidden)
        yield start + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (128256, hidden)


def write_tensors(file: Path, named: list[tuple[str, tuple[int, ...]]], scale: float) -> None:
    """Random bf16 tensors, one at a time."""
    rng = np.random.default_rng(0)
    with open(file, "wb") as handle:
        handle.write(header([Tensor(name, "BF16", shape, file, 0, 0) for name, shape in named], "BF16"))
        for _, shape in named:
            values = rng.standard_normal(shape, dtype=np.float32)
            np.multiply(values, scale, out=values)
            handle.write(np.ascontiguousarray(values.view(np.uint16)[..., 1::2]).data)


def make_run(shape: str, tokenizer: Path, scratch: Path) -> Path:
    """A base in four files and a finished run of a random adapter on it."""
    base, run = scratch / "base", scratch / "run"
    (run / "adapter").mkdir(parents=True)
    base.mkdir()
    config = shape_config(shape).to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (base / "config.json").write_text(json.dumps(config))
    for file in tokenizer.glob("*.json"):
        shutil.copy(file, base)
    named = list(shapes(shape))
    parts = {
        f"model-{i + 1:05}-of-00004.safetensors": list(part)
        for i, part in enumerate(np.array_split(range(len(named)), 4))
    }
    for name, part in parts.items():
        write_tensors(base / name, [named[i] for i in part], 0.02)
    weight_map = {named[i][0]: name for name, part in parts.items() for i in part}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": RANK, "lora_alpha": RANK}
    (run / "adapter/adapter_config.json").write_text(json.dumps(adapter))
    lora: list[tuple[str, tuple[int, ...]]] = []
    for name, size in named:
        if name.endswith("_proj.weight"):
            start = "base_model.model." + name.removesuffix(".weight")
            lora += [(f"{start}.lora_A.weight", (RANK, size[1])), (f"{start}.lora_B.weight", (size[0], RANK))]
    write_tensors(run / "adapter/adapter_model.safetensors", lora, 0.01)
    model = {"id": f"random/Llama-{shape}", "revision": None, "digest": None}
    record.write(record.Record("training", "random", model, "finished"), run / "record.json")
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with Llama-3's tokenizer")
    parser.add_argument("--quant", default="q8_0,q4_0")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        run, out = make_run(args.shape, args.tokenizer, Path(scratch)), Path(scratch) / "out"
        command = [sys.executable, "-m", "iris", "export", "--run", str(run), "--quant", args.quant, "--out", str(out)]
        subprocess.run(command, check=True)
        measures = record.read(out / "record.json").measures
    result = record.Record(
        kind="export",
        name=args.out.stem,
        model={"id": f"random weights, Llama-3 shapes: {args.shape}", "revision": None, "digest": None},
        status="finished",
        settings={"shape": args.shape, "quants": args.quant.split(","), "rank": RANK},
        measures={key: value for key, value in measures.items() if key not in ("recited", "known_words")},
    )
    record.write(result, args.out)
    print(json.dumps(result.measures))


if __name__ == "__main__":
    main()
