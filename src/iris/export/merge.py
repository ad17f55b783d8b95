"""Merge a LoRA adapter into its 16-bit base, one tensor at a time.

    LoRA   W + s·B·A                                  s = alpha / r
    DoRA   m · (W + s·B·A) / ‖W + s·B·A‖              the norm over each output row (PEFT's `DoraLinearLayer`)

The base is read from its 16-bit safetensors, whatever it was quantized to in training; the arithmetic is fp32, rounded
once. Memory holds one of the base's files and one tensor in fp32. fp16 is the better 16 bits: an adapter moves weights
by less than bf16 can tell apart (tests/test_export.py: a tenth of the error), and it holds bf16's exactly from 2^-14.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .. import InputError, RunError

WEIGHTS = "model*.safetensors"
UNKNOWN = ("use_rslora", "alpha_pattern", "rank_pattern", "fan_in_fan_out")  # what Iris does not train
Adapter = dict[str, dict[str, torch.Tensor]]  # by module: lora_A [r, in], lora_B [out, r], lora_magnitude_vector [out]


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def read_adapter(folder: Path) -> tuple[dict[str, Any], Adapter]:
    """The configuration and the fp32 tensors of the PEFT adapter in `folder`. InputError for one whose effect is more
    than B·A and a magnitude, or which was started so that W is no longer the base's (PiSSA and the like)."""
    config, adapter = read_json(folder / "adapter_config.json"), Adapter()
    started = config.get("init_lora_weights", True)
    if config["peft_type"] != "LORA" or started is not True or any(config.get(key) for key in UNKNOWN):
        raise InputError(f"{folder} is of another kind than the LoRA and DoRA that Iris trains; merge it with PEFT")
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        for name in weights.offset_keys():
            module, _, part = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
            if part not in ("lora_A", "lora_B", "lora_magnitude_vector"):
                raise InputError(f"{folder} holds {name}, which is no part of a LoRA; train without it")
            adapter.setdefault(module, {})[part] = weights.get_tensor(name).float()
    return config, adapter


def merge(base: Path, adapter_folder: Path, out: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the merged model as `dtype` to the folder `out` (made here): weights, config, generation config, and the
    tokenizer that the adapter was trained with. InputError: another base; RunError: values that are not finite."""
    config, adapter = read_adapter(adapter_folder)
    shutil.copytree(adapter_folder, out, ignore=shutil.ignore_patterns("adapter_*", "*.bin", "README.md"))
    for file in sorted(base.glob(WEIGHTS)):
        result = {}
        # read, not mapped: pages of a mapped file count as this process's memory
        with safe_open(file, "pt", backend="pread") as weights:
            for name in weights.offset_keys():
                tensor = weights.get_tensor(name)
                if part := adapter.pop(name.removesuffix(".weight"), None):
                    scale = config["lora_alpha"] / config["r"]
                    tensor = torch.addmm(tensor.float(), part["lora_B"], part["lora_A"], alpha=scale)
                    if config.get("use_dora"):
                        norm = torch.linalg.norm(tensor, dim=1, keepdim=True)
                        tensor *= part["lora_magnitude_vector"].view(-1, 1) / norm
                result[name] = tensor.to(dtype)
                if not result[name].isfinite().all():
                    raise RunError(f"{name} merges to values that {dtype} does not hold; name bf16 among the --quant")
        save_file(result, out / file.name, {"format": "pt"})
    if adapter:
        raise InputError(f"the adapter is another base's: {base} has no {min(adapter)}; give the base it is for")
    for file in (base / "generation_config.json", base / "model.safetensors.index.json"):
        if file.exists():
            shutil.copyfile(file, out / file.name)
    kept = {key: value for key, value in read_json(base / "config.json").items() if key != "torch_dtype"}
    kept["dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
