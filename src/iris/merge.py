"""Merge a PEFT adapter into its 16-bit base, one tensor at a time.

    LoRA   W + s·B·A
    DoRA   m · (W + s·B·A) / ‖W + s·B·A‖      the norm over each output row

with s = alpha / r, or alpha / √r for rslora (formulas: PEFT's `LoraLayer` and `DoraLinearLayer`). The arithmetic is
fp32, rounded once to 16 bits. The base is read from its 16-bit safetensors, whatever it was quantized to during
training, and written file by file, so that memory holds one tensor and never a model. NumPy only: no torch here.

Which 16 bits: an adapter moves weights by less than bf16 can tell apart. Measured on SmolLM2 (64 prompts, rank 8,
against the adapter in fp32; tests/test_export.py): rounded to fp16 the largest difference of a logit is 0.02 (DoRA
0.04), to bf16 0.18 (0.28). fp16 holds every bf16 weight exactly from 2^-14 to 65504 and errs by at most 2^-25 below, so
fp16 is the default, and bf16 there on request.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, RunError

PREFIX = "base_model.model."  # PEFT writes it before every name
KINDS = ("lora_A", "lora_B", "lora_magnitude_vector")
# Ways to start an adapter that also change the base, so that W + s·B·A is no longer what was trained.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
# What a folder of a model holds beside its weights.
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
CONFIG = ("config.json", "generation_config.json")
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: a safetensors file, the type (as safetensors names it), the shape, the bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    def raw(self) -> np.ndarray:
        """The tensor's bytes, uint8 [nbytes]."""
        return np.fromfile(self.file, np.uint8, self.nbytes, offset=self.offset)

    def load(self) -> np.ndarray:
        """The tensor as fp32 [shape]."""
        return to_float32(self.raw(), self.dtype).reshape(self.shape)


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers, fp32, that `raw` (uint8) holds as BF16, F16 or F32."""
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.float16 if dtype == "F16" else np.float32).astype(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` (fp32, finite) as F16, or as BF16 in uint16, rounded to nearest even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def read_header(file: Path) -> list[Tensor]:
    """The tensors of a safetensors file in the order of their bytes. InputError if it is none, is cut short, or holds
    other types than BF16, F16 and F32."""
    try:
        with open(file, "rb") as handle:
            length = handle.read(8)
            text = handle.read(min(int.from_bytes(length, "little"), file.stat().st_size))
        entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        start = len(length) + len(text)
        tensors = [
            Tensor(name, entry["dtype"], tuple(entry["shape"]), file, start + begin, end - begin)
            for name, entry in entries.items()
            for begin, end in [entry["data_offsets"]]
        ]
    except FileNotFoundError:
        raise InputError(f"{file} is missing; fetch the model again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file} is not a safetensors file; fetch or train it again") from None
    tensors.sort(key=lambda tensor: tensor.offset)
    if tensors and tensors[-1].offset + tensors[-1].nbytes != file.stat().st_size:
        raise InputError(f"{file} is cut short; fetch or train it again")
    for tensor in tensors:
        if tensor.dtype not in ("BF16", "F16", "F32"):
            raise InputError(f"{tensor.name} in {file} is {tensor.dtype}, not 16-bit; give the model's 16-bit weights")
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder, by the index if it has one. InputError if there are none."""
    index = folder / INDEX
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no model.safetensors; give the folder of a 16-bit model")
    return files


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. InputError if it is missing or holds none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {file.name} in {file.parent}; give the folder that `iris train` wrote") from None
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{file} is damaged: it is not a JSON object")
    return value


class Adapter:
    """A PEFT adapter of kind LoRA (with or without DoRA or rslora) in a folder."""

    def __init__(self, folder: Path) -> None:
        """InputError if the folder holds no adapter, or one whose effect is more than B·A and a magnitude."""
        self.folder = folder
        self.config = config = read_json(folder / "adapter_config.json")
        start = config.get("init_lora_weights")
        if config.get("peft_type") != "LORA":
            raise InputError(f"{folder} is an adapter of kind {config.get('peft_type')}; only LORA can be merged")
        if config.get("fan_in_fan_out") or (isinstance(start, str) and start.startswith(CHANGES_BASE)):
            raise InputError(f"{folder} uses fan_in_fan_out or init_lora_weights={start}, which cannot be merged here")
        self.parts: dict[str, dict[str, Tensor]] = {}  # module -> its A, B and magnitude
        for tensor in read_header(folder / "adapter_model.safetensors"):
            module, _, kind = tensor.name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
            if kind not in KINDS:
                raise InputError(f"{folder} holds {tensor.name}, which is no part of a LoRA; train without it")
            self.parts.setdefault(module, {})[kind] = tensor

    def scale(self, module: str, rank: int) -> float:
        """s in W + s·B·A."""
        alpha = self.config["lora_alpha"]
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def apply(self, module: str, weight: np.ndarray) -> np.ndarray:
        """The merged weight, fp32 [out, in], of a module. InputError if the adapter was made for another shape."""
        part = self.parts[module]
        if missing := [kind for kind in self.kinds if kind not in part]:
            raise InputError(f"{self.folder} lacks {', '.join(missing)} of {module}; train it again")
        a, b = part["lora_A"].load(), part["lora_B"].load()
        if (b.shape[0], a.shape[1]) != weight.shape or a.shape[0] != b.shape[1]:
            shape = f"{b.shape[0]} x {a.shape[1]}"
            raise InputError(
                f"{self.folder} was trained on another base: its {module} is {shape}, "
                f"the base's is {weight.shape[0]} x {weight.shape[1]}; give the base it was trained on"
            )
        merged = weight + np.float32(self.scale(module, len(a))) * (b @ a)
        if "lora_magnitude_vector" in part:
            magnitude = part["lora_magnitude_vector"].load().reshape(-1, 1)
            merged *= magnitude / np.linalg.norm(merged, axis=1, keepdims=True)
        return merged

    @property
    def kinds(self) -> tuple[str, ...]:
        return KINDS if self.config.get("use_dora") else KINDS[:2]


def merged_tensors(base: Path, adapter: Adapter) -> Iterator[tuple[Tensor, np.ndarray | None]]:
    """Each tensor of the base, in the order of the files, with its merged value (fp32) or None where the adapter leaves
    it alone. InputError if the adapter names modules that the base lacks; RunError if a value is not finite."""
    left = set(adapter.parts)
    for file in weight_files(base):
        for tensor in read_header(file):
            module = tensor.name.removesuffix(".weight")
            if module not in left:
                yield tensor, None
                continue
            left.remove(module)
            merged = adapter.apply(module, tensor.load())
            if not np.isfinite(merged).all():
                raise RunError(f"{module} merges to values that are not finite; the training diverged, train it again")
            yield tensor, merged
    if left:
        raise InputError(
            f"{adapter.folder} was trained on another base: {base} has no {sorted(left)[0]}; "
            f"give the base it was trained on"
        )


def header(tensors: list[Tensor], dtype: str) -> bytes:
    """The header of a safetensors file that holds `tensors` one after the other as the 16-bit `dtype`."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + 2 * math.prod(tensor.shape)
        entries[tensor.name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tokenizer_folder(base: Path, adapter: Adapter) -> Path:
    """Where the tokenizer lies that the adapter was trained with: its own copy if it has one, else the base's."""
    return adapter.folder if (adapter.folder / "tokenizer.json").exists() else base


def merge(base: Path, adapter: Adapter, out: Path, dtype: str = "F16") -> None:
    """Write the merged model as `dtype` (F16 or BF16) to the folder `out` (made here): weights, config, generation
    config, tokenizer. RunError if a weight is not finite, or too large for fp16."""
    out.mkdir(parents=True)
    for source, names in ((base, (*CONFIG, INDEX)), (tokenizer_folder(base, adapter), TOKENIZER)):
        for name in names:
            if (source / name).exists():
                shutil.copyfile(source / name, out / name)
    config = {key: value for key, value in read_json(out / "config.json").items() if key != "torch_dtype"}
    config["dtype"] = {"F16": "float16", "BF16": "bfloat16"}[dtype]
    (out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    handles: dict[Path, BufferedWriter] = {}
    try:
        for tensor, merged in merged_tensors(base, adapter):
            if tensor.file not in handles:
                handles[tensor.file] = (out / tensor.file.name).open("wb")
                handles[tensor.file].write(header(read_header(tensor.file), dtype))
            if merged is None and tensor.dtype == dtype:
                values = tensor.raw()
            else:
                values = from_float32(tensor.load() if merged is None else merged, dtype)
                if dtype == "F16" and not np.isfinite(values).all():
                    raise RunError(f"{tensor.name} has values too large for fp16; name bf16 among the quantizations")
            handles[tensor.file].write(values.data)
    finally:
        for handle in handles.values():
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
