"""How much memory a training will take on a GPU, from the model's config alone, before its weights are fetched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import LlamaConfig, LlamaForCausalLM

from .. import InputError, hub, record
from ..model import hardware
from ..model.load import read_config
from ..recipe import Recipe
from .memory import USABLE, Plan, cuts, needed_gb

GPUS = {"t4": 15, "l4": 22, "a100": 40, "a100-80": 80, "h100": 80, "h200": 140}  # GB
SHAPE = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size"
SHAPE += " tie_word_embeddings"
SHAPES: dict[str, tuple[Any, ...]] = {  # of the models' own config.json, for who has no account or no network
    "smollm2": (576, 1536, 30, 9, 3, 64, 49152, True),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 128256, True),
    "llama-3.2-3b": (3072, 8192, 28, 24, 8, 128, 128256, True),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128, 128256, False),
}


def shape_of(model: str) -> tuple[LlamaConfig, int]:
    """The config of a model and how many parameters it has; InputError where the config cannot be had."""
    known: dict[str, Any]
    if model in SHAPES:
        known = dict(zip(SHAPE.split(), SHAPES[model], strict=True))
    elif Path(model).is_dir():
        known = read_config(Path(model))
    else:
        with hub.translate_errors(f"the model {model}"):
            known = read_config(Path(hf_hub_download(model, "config.json")).parent)
    config = LlamaConfig(**known)
    with torch.device("meta"):
        return config, LlamaForCausalLM(config).num_parameters()


def measured(results: Path) -> Iterator[tuple[str, dict[str, Any], Plan, float]]:
    """The device, the recipe's fields, the plan and the GB of every training that the records in `results` tell of."""
    for one in record.load(results).values():
        device = one.settings.get("device", "") + " as a T4" * one.settings.get("as_t4", False)
        if one.kind == "training" and "plan" in one.settings:
            yield device, one.recipe or {}, Plan(**one.settings["plan"]), one.measures["peak_memory_gb"]
        for row in one.measures.get("rows", []):
            if row.get("who") == "iris" and "plan" in row:  # bench/llama_speed.py's
                (model,) = (name for name in SHAPES if name.endswith(f"-{row['shape']}"))
                ours = {"model": model, "method": row["method"], "max_length": 2048}
                yield device, ours, Plan(**row["plan"]), row["peak_memory_gb"]


def forecast(recipe: Recipe, gpu: str = "", results: Path = Path("results")) -> str:
    """In words: what a step of the recipe takes by estimate, and what it took where `results` has measured this size
    and method. gpu: one of GPUS or a number of GB; "" for the GPU that is here, else a T4. InputError for another name,
    or a model whose config cannot be had."""
    here = hardware.device() == "cuda" and not gpu
    name = hardware.device_name() if here else gpu or "T4"
    size = GPUS.get(name.lower(), name.lower().removesuffix("gb"))
    try:
        room = hardware.gpu_memory_gb() if here else float(size)
    except ValueError:
        raise InputError(f"unknown GPU {gpu}; give {', '.join(GPUS)}, or its memory in GB") from None
    config, parameters = shape_of(recipe.model)
    needs = {plan: needed_gb(plan, recipe, config, parameters) for plan in cuts(recipe, False, [False])}
    fitting = [plan for plan, need in needs.items() if need < USABLE * room]
    best = fitting[0] if fitting else list(needs)[-1]
    told = [("it fits, by estimate" if fitting else "it does not fit, by estimate", best, needs[best])]
    asked = (recipe.model, recipe.method, recipe.max_length)
    for device, made, plan, peak in measured(results):
        if (made["model"], made["method"], made["max_length"]) == asked:
            told.append((f"measured on {device}", plan, peak))
    lines = [
        f"{recipe.model} ({parameters / 1e9:.2g} billion parameters), {recipe.method}, on {name} with {room:.0f} GB"
    ]
    for what, plan, need in told:
        again = ", activations computed twice" * plan.checkpointing + ", compiled" * plan.compile
        lines.append(f"{what}: {need:.1f} GB with {plan.micro_batch} x {recipe.max_length:,} tokens at a time{again}")
    return "\n".join(dict.fromkeys(lines))
