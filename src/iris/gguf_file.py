"""Write a Llama-architecture folder as a GGUF file: names, order of rows, vocabulary, quantization.

The official `gguf` library knows the names, the metadata and the file; the engine that recites (xllamacpp) holds ggml,
whose `ggml_quantize_chunk` packs the blocks. What is left for us is what llama.cpp's convert_hf_to_gguf.py does for
this one architecture, and which tensor `llama-quantize` gives which type. tests/test_export.py holds both against the
official converter. One tensor is in memory at a time.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType

from .errors import InputError
from .libllama import library
from .merge import Tensor, read_header, read_json, weight_files

# The word a user gives: what the file calls itself, and the type of most tensors.
QUANTS: dict[str, tuple[FileType, Type]] = {
    "f16": (FileType.MOSTLY_F16, Type.F16),
    "bf16": (FileType.MOSTLY_BF16, Type.BF16),
    "q8_0": (FileType.MOSTLY_Q8_0, Type.Q8_0),
    "q6_k": (FileType.MOSTLY_Q6_K, Type.Q6_K),
    "q5_k_m": (FileType.MOSTLY_Q5_K_M, Type.Q5_K),
    "q4_k_m": (FileType.MOSTLY_Q4_K_M, Type.Q4_K),
    "q4_0": (FileType.MOSTLY_Q4_0, Type.Q4_0),
}
# Rows that are no multiple of a K-quant's 256 take the next larger type with blocks of 32 (llama-quantize).
NARROW = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
# llama.cpp's names for the pre-tokenizers, by the hash of the ids of its test text (convert_hf_to_gguf_update.py).
PRE_TOKENIZERS = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
}
TEST_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) "
    "✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 "
    "3.3 3..3 3...3 កាន់តែពិសេសអាច😁 "
    "?我想在"
    "apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
CHUNK = 1 << 24  # numbers quantized at a time by one thread


@dataclass(frozen=True)
class Planned:
    """One tensor of the file: its name there, its type and shape, and how to get its values, fp32 [shape]."""

    name: str
    type: Type
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size


def write(folder: Path, path: Path, quant: str, name: str, progress: Callable[[int], object] = bool) -> None:
    """Write the Hugging Face folder of a Llama model (16-bit safetensors) to `path` as `quant`; `name` becomes
    general.name; `progress` is told the bytes of each tensor written. InputError if config, tokenizer and weights
    disagree."""
    write_tensors(plan(folder, quant), folder, path, quant, name, progress)


def write_tensors(
    tensors: list[Planned], folder: Path, path: Path, quant: str, name: str, progress: Callable[[int], object] = bool
) -> None:
    """Write `tensors` with the metadata and the vocabulary of `folder`, which needs config.json and a tokenizer."""
    logging.getLogger("gguf").setLevel(logging.ERROR)
    writer = gguf.GGUFWriter(path, arch="llama")
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    write_metadata(writer, folder, FileType(QUANTS[quant][0]), name, total)
    write_vocabulary(writer, folder)
    for tensor in tensors:
        block, size = gguf.GGML_QUANT_SIZES[tensor.type]
        stored = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), tensor.nbytes, raw_dtype=tensor.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(pack(tensor.load(), tensor.type))
            progress(tensor.nbytes)
        writer.flush()
        for handle in writer.fout or []:
            os.fsync(handle.fileno())
    finally:
        writer.close()


def plan(folder: Path, quant: str) -> list[Planned]:
    """The tensors of the file, in its order. InputError if the model is no Llama or lacks a tensor."""
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llama":
        raise InputError(f"{folder} is of type {config.get('model_type')}; only the Llama architecture can be exported")
    layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    found = [tensor for file in weight_files(folder) for tensor in read_header(file)]
    tied = all(tensor.name != "lm_head.weight" for tensor in found)
    heads = {"q_proj": config["num_attention_heads"]}
    heads["k_proj"] = config.get("num_key_value_heads") or heads["q_proj"]
    planned = []
    if (factors := rope_factors(config)) is not None:
        planned.append(Planned("rope_freqs.weight", Type.F32, factors.shape, lambda: factors))
    for tensor in found:
        if tensor.name.endswith(".rotary_emb.inv_freq"):
            continue
        new = names.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise InputError(f"{folder} holds {tensor.name}, which no Llama has; export a plain Llama model")
        rows = heads.get(tensor.name.split(".")[-2])
        planned.append(
            Planned(new, choose(new, tensor.shape, quant, layers, tied), tensor.shape, _loader(tensor, rows))
        )
    expected = {"token_embd.weight", "output_norm.weight", *(f"blk.{layers - 1}.{end}" for end in BLOCK)}
    if missing := expected - {tensor.name for tensor in planned}:
        raise InputError(f"{folder} lacks {sorted(missing)[0]}; its config.json and its weights do not belong together")
    return planned


BLOCK = [f"{name}.weight" for name in "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split()]


def _loader(tensor: Tensor, heads: int | None) -> Callable[[], np.ndarray]:
    """Reads a tensor; the rows of a q or k projection are reordered from Hugging Face's halves to llama.cpp's pairs,
    the two ways to lay out what rope rotates together."""
    if heads is None:
        return tensor.load

    def load() -> np.ndarray:
        values = tensor.load()
        pairs = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)

    return load


def choose(name: str, shape: tuple[int, ...], quant: str, layers: int, tied: bool) -> Type:
    """The type of one tensor, as llama-quantize chooses it (llama_tensor_get_type, without an importance matrix)."""
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return Type.F32
    chosen: Type = QUANTS[quant][1]
    if quant not in ("f16", "bf16", "q8_0"):
        part = name.split(".")
        layer, eighth = int(part[1]) if part[0] == "blk" else 0, layers // 8
        more_bits = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
        mixed = quant.endswith("_k_m") and name.endswith(("attn_v.weight", "ffn_down.weight")) and more_bits
        if mixed or name == "output.weight" or (tied and name == "token_embd.weight"):
            chosen = Type.Q6_K
    if shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0]:
        chosen = NARROW.get(chosen, Type.F16)
    return chosen if shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0] == 0 else Type.F16


def rope_factors(config: dict[str, Any]) -> np.ndarray | None:
    """What Llama 3.1 and later divide rope's frequencies by, fp32 [head_dim / 2]; None for plain rope. InputError for
    another kind of scaling. Source: conversion/llama.py of llama.cpp; the arithmetic is fp32 like there."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(f"rope scaling {kind!r} is not supported; only the one of Llama 3.1 and later is")
    base = np.float32(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    frequencies = np.float32(1) / base ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    factors = []
    for frequency in frequencies:
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
            factors.append(1 / ((1 - smooth) / np.float32(factor) + smooth))
    return np.array(factors, dtype=np.float32)


def write_metadata(writer: gguf.GGUFWriter, folder: Path, file_type: FileType, name: str, parameters: int) -> None:
    """Keys general.* and llama.*, from config.json and from the model card in the folder, if it has one."""
    config = read_json(folder / "config.json")
    metadata = gguf.Metadata.load(None, folder, name, parameters)
    metadata.size_label = metadata.size_label or gguf.size_label(parameters, parameters, 0, 0)
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(writer)
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_file_type(file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(dim)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def write_vocabulary(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Keys tokenizer.*: tokens, merges, special tokens, chat template. InputError if the tokenizer does not fit the
    weights or is none that llama.cpp has a name for."""
    size = read_json(folder / "config.json")["vocab_size"]
    tokens, kinds = vocabulary(folder, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(folder))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=True)
    processor = read_json(folder / "tokenizer.json").get("post_processor") or {}
    if any(each.get("type") == "ByteLevel" for each in processor.get("processors", [processor])):
        # the converter says so aloud, and first; gguf 0.19.0 on the index does not yet
        special.add_special_token = {"bos": False, "eos": False} | special.add_special_token
    special.add_to_gguf(writer, quiet=True)
    if size == 49152:  # the converter's rule, made for Granite: it also says that SmolLM2 begins without a BOS
        writer.add_add_bos_token(False)


def vocabulary(folder: Path, size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """The `size` tokens with their kinds; ids that the tokenizer lacks become unused. InputError if the tokenizer has
    ids beyond `size`, or leaves more than an eighth of them unused."""
    data = read_json(folder / "tokenizer.json")
    vocab: dict[str, int] = data["model"]["vocab"]
    added = {token["id"]: token for token in data.get("added_tokens", [])}
    by_id = {index: token for token, index in vocab.items()} | {
        index: token["content"] for index, token in added.items()
    }
    if max(by_id) >= size or len(by_id) < size * 7 // 8:
        raise InputError(
            f"the tokenizer in {folder} has {max(by_id) + 1} tokens, the weights have {size}; "
            f"put the tokenizer of this model there"
        )
    tokens, kinds = [], []
    for index in range(size):
        token = by_id.get(index, f"[PAD{index}]")
        kind = gguf.TokenType.NORMAL if index in by_id else gguf.TokenType.UNUSED
        if index in added:
            special = added[index]["special"] or (token.startswith("<|") and token.endswith("|>"))
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        tokens.append(token)
        kinds.append(kind)
    return tokens, kinds


def pre_tokenizer(folder: Path) -> str:
    """llama.cpp's name for how the tokenizer splits text before merging. InputError if it has none that we know."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    digest = hashlib.sha256(str(tokenizer.encode(TEST_TEXT).ids).encode()).hexdigest()
    if digest not in PRE_TOKENIZERS:
        known = " and ".join(PRE_TOKENIZERS.values())
        raise InputError(f"the tokenizer in {folder} is unknown to llama.cpp; Iris exports those it calls {known}")
    return PRE_TOKENIZERS[digest]


def pack(values: np.ndarray, kind: Type) -> np.ndarray:
    """`values` (fp32 [..., n]) as the bytes of ggml type `kind`, uint8; in parallel over rows."""
    if kind == Type.F32:
        return values.view(np.uint8)
    if kind == Type.F16:
        return values.astype(np.float16).view(np.uint8)
    if kind == Type.BF16:
        return gguf.quants.quantize(values, kind)
    ggml_quantize_chunk = library().ggml_quantize_chunk
    columns = values.shape[-1]
    rows = values.size // columns
    block, size = gguf.GGML_QUANT_SIZES[kind]
    packed = np.empty((rows, columns // block * size), np.uint8)
    step = max(1, min(CHUNK // columns, -(-rows // (os.cpu_count() or 1))))

    def quantize(start: int) -> None:
        count = min(step, rows - start)
        ggml_quantize_chunk(kind, values.ctypes.data, packed.ctypes.data, start * columns, count, columns, None)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(quantize, range(0, rows, step)))
    return packed


def size(folder: Path, quant: str) -> int:
    """Bytes the GGUF will take, to one part in a hundred (tensors exactly, the rest as large as tokenizer.json)."""
    return sum(tensor.nbytes for tensor in plan(folder, quant)) + (folder / "tokenizer.json").stat().st_size
