"""Peak memory of `iris export` on a model of Llama's 1B or 8B shape with random weights. Not a test of CI: 10 to 60 GB.

python tests/export_memory.py 1b TOKENIZER_FOLDER SCRATCH_FOLDER f16,q8_0,q4_k_m
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from iris import record
from iris.merge import Tensor, header
from iris.speed import SHAPES

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
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = SHAPES[shape] | {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "rms_norm_eps": 1e-5,
        "num_attention_heads": SHAPES[shape]["hidden_size"] // SHAPES[shape]["head_dim"], "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "dtype": "bfloat16",
        "rope_parameters": rope | {"original_max_position_embeddings": 8192},
    }  # fmt: skip
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
    lora = []
    for name, size in named:
        if name.endswith("_proj.weight"):
            start = "base_model.model." + name.removesuffix(".weight")
            lora += [(f"{start}.lora_A.weight", (RANK, size[1])), (f"{start}.lora_B.weight", (size[0], RANK))]
    write_tensors(run / "adapter/adapter_model.safetensors", lora, 0.01)
    model = {"id": f"random/Llama-{shape}", "revision": None, "digest": None}
    record.write(record.Record("training", "random", model, "finished"), run / "record.json")
    return run


def main() -> None:
    shape, tokenizer, scratch, quants = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    run = make_run(shape, tokenizer, scratch)
    code = "import sys; from pathlib import Path; from iris.export import export; a = sys.argv; "
    code += "print(export(Path(a[1]), Path(a[2]), a[3].split(',')).measures)"
    subprocess.run([sys.executable, "-c", code, str(run), str(scratch / "out"), quants], check=True)


if __name__ == "__main__":
    main()
