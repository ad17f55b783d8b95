"""Device, precision, memory: what this machine can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    import torch


def device() -> str:
    """cuda where there is a GPU, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """The GPU's name, or the processor's."""
    import platform

    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            return next(line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


def is_ampere() -> bool:
    """Whether there is a GPU of NVIDIA's Ampere generation or later: bf16 and FlashAttention 2."""
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def has_fast_bf16() -> bool:
    """Whether bf16 arithmetic is done in hardware: an Ampere GPU or later, or a CPU with AVX512-BF16 or AMX."""
    import torch

    if torch.cuda.is_available():
        return is_ampere()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def precision(wanted: str) -> str:
    """bf16, fp16 or fp32 for "auto", else what is wanted; InputError where this device cannot do it."""
    on_gpu = device() == "cuda"
    if wanted == "auto":
        return "bf16" if has_fast_bf16() else ("fp16" if on_gpu else "fp32")
    if wanted == "bf16" and on_gpu and not has_fast_bf16():
        raise InputError(f"{device_name()} has no bf16; use precision=fp16 or precision=auto")
    if wanted == "fp16" and not on_gpu:
        raise InputError("fp16 training needs a GPU; use precision=auto, bf16 or fp32")
    return wanted


def dtype(name: str) -> torch.dtype:
    """torch's dtype of a precision's name."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def gpu_memory_gb() -> float:
    """Memory of the GPU that this process may use, in GB (10^9 bytes)."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory * torch.cuda.get_per_process_memory_fraction(0) / 1e9


def peak_memory_gb() -> float:
    """Peak memory in GB (10^9 bytes): allocated on the GPU, or resident in this process."""
    import torch

    from .record import peak_memory_gb as resident

    return round(torch.cuda.max_memory_allocated() / 1e9, 3) if torch.cuda.is_available() else resident()
