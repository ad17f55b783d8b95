"""Device, precision, memory: what this machine can do."""

import platform
from contextlib import suppress

import torch

from .. import InputError


def device() -> str:
    """cuda where there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """The GPU's name, or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        return next(line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name"))
    return platform.processor() or "CPU"


def is_ampere() -> bool:
    """Whether there is a GPU of NVIDIA's Ampere generation or later: bf16 and FlashAttention 2."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def precision(wanted: str) -> str:
    """bf16, fp16 or fp32 for "auto", else what is wanted; InputError where this device cannot do it. A CPU has bf16 in
    hardware with AVX512-BF16 or AMX. fp8 is a frozen base in 8 bits, all else in bf16 (train/fp8.py)."""
    on_gpu, capabilities = device() == "cuda", torch.cpu.get_capabilities()
    fast_bf16 = is_ampere() if on_gpu else capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    if wanted == "auto":
        slow = "fp16" if on_gpu else "fp32"
        return "bf16" if fast_bf16 else slow
    if wanted == "bf16" and on_gpu and not fast_bf16:
        raise InputError(f"{device_name()} has no bf16; use precision=fp16 or precision=auto")
    if wanted == "fp8" and not (on_gpu and torch.cuda.get_device_capability() >= (8, 9)):
        raise InputError(f"{device_name()} has no FP8 (Ada, Hopper and later GPUs do); use precision=auto")
    if wanted == "fp16" and not on_gpu:
        raise InputError("fp16 training needs a GPU; use precision=auto, bf16 or fp32")
    return wanted


def dtype(name: str) -> torch.dtype:
    """torch's dtype of a precision's name; of fp8, that of all but the base's linear layers."""
    return {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def gpu_memory_gb() -> float:
    """Memory of the GPU that this process may use, in GB (10^9 bytes)."""
    return torch.cuda.get_device_properties(0).total_memory * torch.cuda.get_per_process_memory_fraction(0) / 1e9
