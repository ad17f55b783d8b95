"""`iris doctor`: what this machine can do, what is installed, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata

from . import embedded, record
from .recipe import METHODS

NEEDED = {  # verb -> the packages without which it does not run, and the extra that brings them
    "train": (("torch", "transformers", "trl", "peft", "datasets"), "train"),
    "train --method qlora": (("bitsandbytes",), "gpu"),
    "evaluate": (("lm_eval", "torch", "peft"), "eval"),
    "sweep": (("optuna",), "eval"),
    "export": (("gguf", "torch"), "train"),
    "publish": (("huggingface_hub",), ""),
    "poem": (("xllamacpp",), ""),
    "app": (("gradio",), "app"),
}


def examine() -> None:
    """Print one line a finding; nothing is changed."""
    versions = record.environment()["packages"] | {"python": platform.python_version()}
    print(f"python {versions['python']} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    if "torch" in versions:
        from . import hardware

        print(f"device: {hardware.device_name()}, precision {hardware.precision('auto')}")
        if hardware.device() == "cpu":
            print("no GPU: the embedded SmolLM2 trains here in minutes; use lora16 or dora, as qlora needs a GPU")
    free = shutil.disk_usage(".").free / 1e9
    print(f"disk: {free:.0f} GB free here; models are kept in {embedded.cache()}")
    for verb, (packages, extra) in NEEDED.items():
        missing = [package for package in packages if not _installed(package)]
        remedy = f"missing {', '.join(missing)}; pip install -e '.[{extra}]' in Iris' folder" if missing else "ready"
        print(f"{verb}: {remedy}")
    token = "a token is there" if os.environ.get("HF_TOKEN") or _token_file() else "none, fine for public models"
    print(f"Hugging Face login: {token}; methods: {', '.join(METHODS)}")


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _token_file() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
